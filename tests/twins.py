"""What the tiny twin of every published recipe must do, at its own size: learn, go on, travel, be scored, and teach."""

from __future__ import annotations

import json
from pathlib import Path

from test_end_to_end import cuvee

from corpora.storage import read_manifest
from distill.recipe import load_recipe
from distill.yaml_tree import packaged_folder

SMALL = ["corpus.words=6000", "corpus.split.tune=0.1", "corpus.split.test=0.1", "benchmarks.minimal_pairs.pairs=2"]
TWINS = sorted(
    path.relative_to(packaged_folder()).with_suffix("").as_posix() for path in packaged_folder().rglob("*_tiny.yaml")
)


def architecture_of(twin: str) -> str:
    """Of the model that it trains."""
    recipe = load_recipe(twin)
    [run] = [*recipe.teachers.values(), *recipe.students.values()]
    assert run.model is not None, "a fragment holds one"
    return run.model.architecture


def ran(*arguments: str) -> None:
    """A command of ours, which must succeed."""
    code, told = cuvee(*arguments)
    assert code == 0, told


def assert_learns_and_lives(twin: str, folder: Path) -> None:
    """Its loss falls, a second run leaves it alone, its export is scored, and it teaches by its path."""
    role, _, name = twin.partition("/")
    run = folder / "run"
    ran("run", twin, f"run_dir={run}", *SMALL)
    [trained] = [path for path in (run / role).iterdir() if path.name.startswith(name)]
    losses: dict[str, list[float]] = {}
    for line in (trained / "metrics.jsonl").read_text().splitlines():
        for curve, value in json.loads(line).items():
            if curve.endswith("cross_entropy"):
                losses.setdefault(curve, []).append(value)
    assert losses
    for curve, values in losses.items():
        assert values[-1] < values[0], (curve, values)

    before = (trained / "manifest.json").read_bytes()
    ran("train", twin, f"run_dir={run}", *SMALL)
    assert (trained / "manifest.json").read_bytes() == before

    ran("export", str(trained), str(folder / "export"))
    ran("score", str(folder / "export"), "--items", "1", "--out", str(folder / "scores"))
    assert any((folder / "scores").iterdir())

    manifest = read_manifest(trained)
    assert manifest is not None
    view = manifest.facts["views"][-1]
    smallest = "num_layers: 1, hidden_size: 16, num_heads: 2, max_positions: 128"
    student = (
        f"students={{heard: {{model: {{architecture: elc_bert, {smallest}}}, "
        f"train: {{view: {view}, steps: 2, batch_size: 4, seq_len: 32, precision: fp32}}, "
        "terms: [{loss: forward_kl, members: {published: 1}}]}}"
    )
    teacher = f"teachers={{published: {{path: {trained}, view: {view}}}}}"
    ran("train", "base", f"run_dir={run}", "tokenizer.vocab_size=512", *SMALL, teacher, student)
    assert any((run / "students").glob("heard-*"))
