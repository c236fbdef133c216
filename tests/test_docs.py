"""What the documents say is what the code does: their examples run, and their tables are those of the code."""

from __future__ import annotations

import doctest
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from test_recipes import PUBLISHED, WITHOUT_HEAD

from benchmarks.config import Backend
from benchmarks.evaluation import READING
from benchmarks.finetune.config import PRESETS
from benchmarks.protocol import PROTOCOLS
from benchmarks.tasks.definition import choice_benchmarks
from benchmarks.wug import FILES as WUG_FILES
from distill.config import TermConfig
from distill.losses import DIVERGENCES, FEATURE_LOSSES
from distill.recipe import load_recipe
from students.buildable import FIELDS_OF_ALL
from students.config import ModelConfig
from students.registry import ARCHITECTURES
from teachers.codecs import CODECS
from teachers.config import CacheConfig
from teachers.pools import POOLS

DOCS = Path(__file__).parent.parent / "docs"
KINDS = ("dense", "truncated", "sampled")


def rows(document: str) -> dict[str, list[str]]:
    """Cells of every table's rows, by their first cell without its backquotes."""
    lines = (DOCS / document).read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")]
    return {first.replace("`", ""): rest for first, *rest in cells}


@pytest.mark.parametrize("document", ["scale.md", "losses.md"])
def test_the_examples_give_what_is_printed_below_them(document: str) -> None:
    failed, attempted = doctest.testfile(str(DOCS / document), module_relative=False)
    assert attempted and not failed


def test_a_loss_is_said_to_be_served_by_the_kinds_that_it_accepts() -> None:
    said = rows("losses.md")
    for name, loss in DIVERGENCES.items():
        assert said[name][:3] == ["yes" if kind in loss.accepts else "no" for kind in KINDS], name
    assert said[", ".join(FEATURE_LOSSES)] == ["`features` only", "no", "no"]


def test_every_loss_and_field_of_a_term_is_described() -> None:
    text = (DOCS / "losses.md").read_text()
    elsewhere = {"loss", "weight", "view", "temperature", "members", "pool", "exponent", "weights", "across_views"}
    named = {"cross_entropy", *DIVERGENCES, *FEATURE_LOSSES, *TermConfig.__dataclass_fields__} - elsewhere
    assert not [name for name in sorted(named) if not re.search(rf"`{name}\b", text)]


def test_codecs_have_the_bytes_and_serve_the_pools_that_are_said() -> None:
    said = rows("caches.md")
    assert {name.split()[0] for name in said} == set(CODECS)
    for name, (_, size, losses, temperatures, pools) in said.items():
        codec, _, dtype = name.partition(" ")
        made = CODECS[codec](
            CacheConfig(codec=codec, dtype=dtype or "bf16"),  # type: ignore[arg-type]
            hidden_size=1024,
            vocab_size=16_000,
        )
        assert size == f"{made.record.itemsize:,}", name
        assert temperatures == ("any" if made.any_temperature else "stored"), name
        served = [loss for loss, found in DIVERGENCES.items() if made.kind in found.accepts]
        assert ("all" in losses) == (len(served) > 1), name
        assert ("logit_mse" in losses) == ("logit_mse" not in served and len(served) > 1), name
        sampled = [pool for pool, rule in POOLS.items() if rule.sampled]
        assert pools.replace("`", "") == {"dense": "all", "truncated": "none", "sampled": ", ".join(sampled)}[made.kind]


def test_architectures_and_published_sizes_are_those_of_the_code() -> None:
    said = rows("architectures.md")
    fragments = {name: sizes for name, sizes in said.items() if "/" in name}
    assert said.keys() - fragments.keys() == ARCHITECTURES.keys()
    for name, architecture in ARCHITECTURES.items():
        own = {field.name for field in fields(ModelConfig)} - {*architecture.unused_fields, *FIELDS_OF_ALL, "dropout"}
        assert set(re.findall(r"`(\w+)`", said[name][0])) == own, name
        assert ("dropout" in architecture.unused_fields) == (name == "llama")
    assert fragments.keys() == PUBLISHED.keys()
    for name, sizes in fragments.items():
        recipe = load_recipe(name)
        [run] = [*recipe.teachers.values(), *recipe.students.values()]
        model = run.model
        assert model is not None
        shape = (model.hidden_size, model.num_layers, model.num_heads, model.intermediate_size)
        assert sizes == [f"{PUBLISHED[name]:,}", f"{recipe.tokenizer.vocab_size:,}", *map(str, shape)]
    text = (DOCS / "architectures.md").read_text()
    assert all(f"{count:,}" in text for count in WITHOUT_HEAD.values())


@pytest.mark.parametrize("document", sorted(path.name for path in DOCS.glob("*.md")))
def test_a_link_leads_somewhere(document: str) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", (DOCS / document).read_text()):
        assert (DOCS / link).exists(), link


def test_every_benchmark_and_protocol_is_described() -> None:
    text = (DOCS / "benchmarks.md").read_text()
    named = [*choice_benchmarks(), *WUG_FILES, READING, *PROTOCOLS, *PRESETS, *get_args(Backend)]
    assert not [name for name in named if f"`{name}`" not in text]
