"""Several processes score one folder: they share the work, and what was kept before one is killed is not done again."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import torchrun

from benchmarks import scoring
from benchmarks.config import EvaluationConfig
from benchmarks.minimal_pairs import blimp_tasks
from benchmarks.request import Request
from benchmarks.score_store import ScoreStore
from benchmarks.speed_models import RandomModel, generated_pairs, save_random_model, write_pairs
from corpora.storage import read_manifest
from distill import candidates

TINY = RandomModel(num_layers=1, hidden_size=16, num_heads=2, vocab_size=512, types=400, spread=0.3)
TOKENS_AT_ONCE = 150  # a dozen blocks
FATAL = 40  # operation on files: in the midst of a part, after others
REPORT = Path("model-causal-cuvee", "scores.json")
# `cuvee`, whose processes say what they add to the store; one of them dies at an operation on its files
COMMAND = f"""
import os, signal, sys

from benchmarks import scoring
from benchmarks.score_store import ScoreStore
from corpora import storage
from distill.cli import main

rank, fatal = os.environ["RANK"], int(sys.argv.pop(1))
scoring.TOKENS_AT_ONCE = {TOKENS_AT_ONCE}
add = ScoreStore.add

def told(self, scores):
    add(self, scores)
    print(f"rank {{rank}} added {{len(scores)}}", flush=True)

def fault(operation, path):
    global fatal
    fatal -= 1
    if fatal == 0:
        os.kill(os.getpid(), signal.SIGKILL)

ScoreStore.add = told
if rank == "1":
    storage.fault = fault
main()
"""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the pairs that it is scored on."""
    root = tmp_path_factory.mktemp("subject")
    rows = generated_pairs(4, 20)
    texts = [row[key] for found in rows.values() for row in found for key in row]
    return save_random_model(root / "model", "causal", TINY, texts), write_pairs(root / "pairs", rows)


@pytest.fixture(scope="module")
def alone(subject: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process finds."""
    out = tmp_path_factory.mktemp("alone")
    one_process(subject, out)
    return out


def one_process(subject: tuple[Path, Path], out: Path) -> int:
    """`cuvee score` in this process; how many scores it added."""
    model, pairs = subject
    add, added = ScoreStore.add, 0

    def counted(store: ScoreStore, scores: Mapping[Request, float]) -> None:
        nonlocal added
        added += len(scores)
        add(store, scores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "TOKENS_AT_ONCE", TOKENS_AT_ONCE)
        patch.setattr(ScoreStore, "add", counted)
        candidates.score_folder(model, EvaluationConfig(blimp=str(pairs)), out=out)
    return added


def two_processes(
    subject: tuple[Path, Path], out: Path, *, fatal: int = 0
) -> tuple[subprocess.CompletedProcess[str], Counter[str]]:
    """`cuvee score` in two processes, and how many scores each rank added; the second dies at its operation `fatal`."""
    model, pairs = subject
    script = out.with_suffix(".py")
    script.write_text(COMMAND)
    finished = torchrun(2, script, fatal, "score", model, "--blimp", pairs, "--out", out)
    added: Counter[str] = Counter()
    for rank, number in re.findall(r"rank (\d) added (\d+)", finished.stdout):
        added[rank] += int(number)
    return finished, added


def stored(subject: tuple[Path, Path], out: Path) -> np.ndarray:
    """Every score that is kept, NaN where there is none, in the order of the texts."""
    (folder,) = (out / "answers").iterdir()
    identity = next(manifest.fingerprint for part in folder.iterdir() if (manifest := read_manifest(part)))
    tasks = blimp_tasks(subject[1], None, seed=1)
    requests = sorted({option.text: option for task in tasks for item in task.items for option in item.options}.items())
    found = ScoreStore(out / "answers", identity).find([request for _, request in requests])
    return np.array([found.get(request, np.nan) for _, request in requests])


def test_two_processes_find_what_one_finds_and_share_the_work(
    subject: tuple[Path, Path], alone: Path, tmp_path: Path
) -> None:
    finished, added = two_processes(subject, tmp_path / "out")
    assert finished.returncode == 0, finished.stderr[-3000:]
    expected = stored(subject, alone)
    assert added.total() == len(expected) and min(added["0"], added["1"]) > len(expected) / 4
    np.testing.assert_allclose(stored(subject, tmp_path / "out"), expected, rtol=0, atol=1e-4)
    assert json.loads((tmp_path / "out" / REPORT).read_text()) == json.loads((alone / REPORT).read_text())
    assert finished.stdout.count("score: written to") == 1


def test_what_was_kept_before_one_was_killed_is_not_scored_again(
    subject: tuple[Path, Path], alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    finished, _ = two_processes(subject, out, fatal=FATAL)
    assert finished.returncode != 0 and not (out / REPORT).exists()
    kept, expected = np.isfinite(stored(subject, out)), stored(subject, alone)
    assert 0 < kept.sum() < len(expected)
    assert one_process(subject, out) == len(expected) - kept.sum()
    np.testing.assert_allclose(stored(subject, out), expected, rtol=0, atol=1e-4)  # other rows were read together
    assert json.loads((out / REPORT).read_text()) == json.loads((alone / REPORT).read_text())
