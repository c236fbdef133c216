"""Comma lists on the command line: `seed=1,2,3 students.a.train.lr=1e-3,3e-3` is a run for each combination.

    RUN_DIR/sweep/seed=1_lr=1e-3    an ordinary run_dir: found again when it is finished, gone on with when it is not
    RUN_DIR/sweep/summary.json      means and spreads over seeds, each student's best setting; beside it summary.md

Runs that ask for the same corpus, tokenizer, teachers or caches have one of each: its folder lies in the first of them,
the others link to it. Fingerprints are checked as everywhere, so a link to the wrong one would be refused.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.sweep_report import SweptRun, print_summary, short_keys, summarise, write_summary
from corpora.errors import Diverged, ProcessLost, RecipeError
from corpora.storage import canonical_json, fingerprint_digest, locked, make_folder, read_json
from distill.config import Recipe, as_plain
from distill.recipe import load_recipe
from distill.yaml_tree import COMMAND_LINE

if TYPE_CHECKING:
    from distill.distributed import Processes

SWEEP = "sweep"  # folder of a run_dir
MOST_RUNS = 1_000  # a product of lists grows fast; more is a slip
MOST_NAME = 80  # characters of a run's name
# a quoted value, or what is begun and not ended
_QUOTED = re.compile(r"""\s*(?:"(?:\\.|[^"\\])*(?:"|\\?$)|'(?:''|[^'])*(?:'|$))""", re.DOTALL)

# folders that runs have in common, and the keys of a recipe that they depend on
_TEXT = ("seed", "corpus", "tokenizer")
_SHARED = {
    "corpus": _TEXT,
    "tokenizer": _TEXT,
    "teachers": (*_TEXT, "teachers", "cache"),
    "caches": (*_TEXT, "teachers", "cache"),
}
# settings of a cache that also say in which windows and masks everybody is scored
_SCORED_WITH = ("window", "num_folds", "mean_span", "mask_seed", "keep_share", "random_share")


@dataclass(frozen=True, kw_only=True)
class OneRun:
    """One combination of the values of a sweep."""

    name: str  # of its folder
    values: Mapping[str, str]  # of every key with a list, as it was written
    recipe: Recipe  # whose run_dir is that folder


def value_lists(overrides: Sequence[str]) -> dict[str, list[str]]:
    """The values of every key that has a comma list.

    Raises RecipeError for an empty value, and for a key that is given again beside its list.
    """
    keys = [text.partition("=")[0] for text in overrides]
    found = {}
    for key, text in zip(keys, overrides, strict=True):
        values = split_values(text.partition("=")[2])
        if len(values) < 2:
            continue
        if not all(values):
            raise RecipeError(
                f"{COMMAND_LINE}: {text!r}: a value of this list is empty; leave out the comma, or write null for none"
            )
        if keys.count(key) > 1:
            raise RecipeError(f"{COMMAND_LINE}: {key}: given {keys.count(key)} times, once as a list; keep one of them")
        found[key] = values
    return found


def split_values(text: str) -> list[str]:
    """The parts between those commas of a YAML value that stand outside brackets, braces and quotes, trimmed."""
    parts, begin, depth, place = [], 0, 0, 0
    fresh = True  # a value begins here: an apostrophe inside a word is no quote
    while place < len(text):
        if fresh and (quoted := _QUOTED.match(text, place)):
            place, fresh = quoted.end(), False
            continue
        character = text[place]
        depth = max(depth + (character in "[{") - (character in "]}"), 0)
        if character == "," and not depth:
            parts.append(text[begin:place].strip())
            begin = place + 1
        fresh = character in ",:[{" or (fresh and character.isspace())
        place += 1
    return [*parts, text[begin:].strip()]


def refuse_lists(overrides: Sequence[str]) -> None:
    """Raise RecipeError when a value is a comma list: a command that is not `run` does one thing."""
    for key, values in value_lists(overrides).items():
        raise RecipeError(
            f"{COMMAND_LINE}: {key}: {len(values)} values make {len(values)} runs, which `cuvee run` alone does; give "
            "one value, or quote it if the comma is part of it"
        )


def expand(recipe: str, overrides: Sequence[str]) -> list[OneRun]:
    """Every run of a sweep, the last key varying fastest; all of them are read and checked before one begins.

    Raises RecipeError for what is wrong in any of them, for two that are the same, and for lists of run_dir.
    """
    lists = value_lists(overrides)
    if (count := math.prod(map(len, lists.values()))) > MOST_RUNS:
        raise RecipeError(
            f"{COMMAND_LINE}: the lists make {count:,} runs, at most {MOST_RUNS:,} are taken; shorten them"
        )
    runs, seen = [], {}
    for chosen in itertools.product(*lists.values()):
        values = dict(zip(lists, chosen, strict=True))
        keys = (text.partition("=")[0] for text in overrides)
        given = [f"{key}={values[key]}" if key in values else text for key, text in zip(keys, overrides, strict=True)]
        read, name = load_recipe(recipe, given), run_name(values)
        first = seen.setdefault(canonical_json(as_plain(read)), name)
        if first != name or any(run.name == name for run in runs):
            raise RecipeError(f"{COMMAND_LINE}: {first} and {name} are the same run; leave one of them out")
        runs.append(OneRun(name=name, values=values, recipe=read))
    if len(folders := sorted({run.recipe.run_dir for run in runs})) > 1:
        raise RecipeError(
            f"{COMMAND_LINE}: run_dir: found {' and '.join(folders[:2])}, expected one: every run of a sweep has a "
            "folder of its own below it; give one value"
        )
    return [
        replace(run, recipe=replace(run.recipe, run_dir=str(Path(run.recipe.run_dir) / SWEEP / run.name)))
        for run in runs
    ]


def run_name(values: Mapping[str, str]) -> str:
    """A folder name that can be read, such as seed=1_lr=1e-3; it depends on these values alone.

    Where characters had to be left out a digest of the keys and values follows.
    """
    pairs = zip(short_keys(list(values)), values.values(), strict=True)
    written = "_".join(f"{_plain(key)}={_plain(value)}" for key, value in pairs)
    faithful = all(text == _plain(text) for text in (*values, *values.values()))
    if faithful and len(written) <= MOST_NAME:
        return written
    return f"{written[: MOST_NAME - 9]}-{fingerprint_digest(dict(values))}"


def run_sweep(recipe: str, overrides: Sequence[str]) -> None:
    """Do every run, print and write the summary.

    A run that diverged is recorded and the others go on; Diverged is raised at the end. All other errors, and being
    asked to stop, end the sweep at once: the same command goes on.
    """
    runs = expand(recipe, overrides)
    from distill import stages  # after the recipes: a misspelt key need not wait for torch
    from distill.distributed import Processes
    from distill.preemption import stop_flag

    processes = Processes(runs[0].recipe.processes, runs[0].recipe.timeout)
    announce: Callable[..., None] = print if processes.is_first else lambda *given, **options: None
    folder = Path(runs[0].recipe.run_dir).parent
    failures: dict[str, str] = {}
    # the lock of the run_dir: a run there would sweep temporaries away that are being written below it
    lock = locked(folder.parent) if processes.is_first else contextlib.nullcontext()
    with stop_flag(), processes.guarded(), lock:
        if processes.is_first:
            _share(runs, announce)
        for number, run in enumerate(runs, 1):
            announce(f"sweep: run {number} of {len(runs)}: {run.name}", flush=True)
            try:
                stages.run(run.recipe)
            except Diverged as error:
                failures[run.name] = str(error)
                announce(f"sweep: {run.name} failed: {error}", flush=True)
            _leave_together(processes, failures.get(run.name, ""))
        if processes.is_first:
            summary = summarise(folder.parent.name, [_swept(run, failures.get(run.name, "")) for run in runs])
            write_summary(folder, summary)
            print_summary(summary)
    if failures:
        raise Diverged(
            f"{folder}: {len(failures)} of {len(runs)} runs diverged ({', '.join(failures)}), expected none; the "
            "others are finished, and summary.md has each one's line"
        )


def _leave_together(processes: Processes, failure: str) -> None:
    """Wait until all processes have left a run.

    Mostly it diverges in all of them at once. Where one alone reads what is not finite, the others end inside the run,
    and its line is the one to tell.
    """
    try:
        processes.barrier()
    except ProcessLost as error:
        if failure:
            raise Diverged(failure) from error
        raise


def _share(runs: Sequence[OneRun], announce: Callable[..., None]) -> None:
    """Link what runs have in common to the first of them that has it."""
    for kind, keys in _SHARED.items():
        alike: dict[str, list[Path]] = {}
        for run in runs:
            inputs = {key: as_plain(run.recipe)[key] for key in keys}
            if inputs.get("teachers") != {}:  # nothing to share
                alike.setdefault(canonical_json(inputs), []).append(Path(run.recipe.run_dir) / kind)
        for folders in alike.values():
            try:
                _link(folders)
            except OSError as error:
                announce(f"sweep: {error.filename}: no link can be made ({error.strerror}), so every run makes its own")
                return


def _link(folders: Sequence[Path]) -> None:
    """Let those of the folders that are not there lead to one that is, or to the first."""
    standing = [folder for folder in folders if folder.is_dir()]
    owner = standing[0] if standing else folders[0]
    for folder in folders:
        if folder.is_dir():
            continue
        if folder.is_symlink():  # leads nowhere: what it led to was deleted
            folder.unlink()
        make_folder(folder if folder == owner else folder.parent)
        if folder != owner:
            # relative: a run_dir may be moved
            folder.symlink_to(os.path.relpath(owner.resolve(), folder.parent.resolve()), target_is_directory=True)


def _swept(run: OneRun, failure: str) -> SweptRun:
    """A run as the summary needs it."""
    report = {} if failure else read_json(Path(run.recipe.run_dir) / "report.json")
    cache = as_plain(run.recipe.cache)
    measured = [as_plain(run.recipe.corpus), as_plain(run.recipe.tokenizer), *(cache[key] for key in _SCORED_WITH)]
    return SweptRun(
        name=run.name,
        values=run.values,
        rows=report.get("rows", ()),
        failure=failure,
        yardstick=canonical_json(measured),
    )


def _plain(text: str) -> str:
    """Text without what a folder's name had better not hold."""
    kept = re.sub(r"[^A-Za-z0-9._+-]+", "-", text)
    return kept if kept == text else kept.strip("-")
