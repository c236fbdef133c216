"""A learning rate that is too high is stopped with its cause, and nothing that it spoiled is kept."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import load_file

from corpora.errors import Diverged
from corpora.prepare import Corpus
from corpora.storage import read_manifest
from distill.distributed import Processes
from distill.divergence import STEPS, Watchdog
from distill.look import Look, TuneStream
from distill.train import train

FAST: dict[str, Any] = {"steps": 30, "lr_schedule": "constant", "warmup_share": 0.0}


def all_weights_are_finite(folder: Path) -> bool:
    """In every file below a folder."""
    return all(
        bool(tensor.isfinite().all()) for path in folder.rglob("*.safetensors") for tensor in load_file(path).values()
    )


@pytest.mark.parametrize("rate", [30.0, 1e3, 1e30])
@pytest.mark.parametrize("architecture", ["llama", "gptj", "elc_bert"])
def test_it_is_stopped_within_three_steps(
    corpus: Corpus, processes: Processes, tmp_path: Path, rate: float, architecture: str
) -> None:
    """Of a step that costs more than twice what guessing does, or at once where a number is lost."""
    model = tiny.model_config(architecture)
    view = "masked" if architecture == "elc_bert" else "causal"
    run = tiny.run(corpus, tmp_path / "run", model=model, lr=rate, view=view, checkpoint_every=1, **FAST)
    with pytest.raises(Diverged, match="lower train.lr") as ended:
        train(run, processes)
    assert ended.value.exit_code == 6 and "\n" not in str(ended.value)
    (step,) = re.findall(r"step (\d+)", str(ended.value))
    losses = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    high = [r["step"] for r in losses if r.get(f"{view}/cross_entropy", 0) > 2 * math.log(corpus.vocab_size)]
    assert not high or int(step) - high[0] < STEPS
    assert read_manifest(run.folder) is None and all_weights_are_finite(run.folder)
    kept = sorted((run.folder / "checkpoints").glob("*"))
    assert all(int(path.name.removeprefix("step-")) <= int(step) - 1 for path in kept)


@pytest.mark.parametrize("steps", [1, 4])
def test_weights_that_are_lost_in_the_last_step_are_not_committed(
    corpus: Corpus, processes: Processes, tmp_path: Path, steps: int
) -> None:
    run = tiny.run(corpus, tmp_path / "run", lr=1e38, checkpoint_every=1, **FAST | {"steps": steps})
    with pytest.raises(Diverged, match=r"run: step \d: .* not finite|must be finite"):
        train(run, processes)
    assert read_manifest(run.folder) is None and not list(run.folder.rglob("*.safetensors"))


def test_a_look_that_is_not_finite_is_no_best_one(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TuneStream, "look", lambda *given, **more: Look({"causal": math.nan}, None))
    run = tiny.run(corpus, tmp_path / "run", evaluate_every=1, keep="best")
    with pytest.raises(
        Diverged, match="step 1: cross-entropy nan on the tune stream; expected a number; lower train.lr"
    ):
        train(run, processes)
    assert not (run.folder / "snapshots").exists()


def test_steps_that_cost_too_much_must_follow_each_other() -> None:
    watchdog = Watchdog(100, "run")
    high = {"causal/cross_entropy": 2.01 * math.log(100), "causal/1/forward_kl": 99.0}
    low = {"causal/cross_entropy": 1.99 * math.log(100), "causal/1/forward_kl": 99.0}
    for step, means in enumerate([high, high, low, high, high], 1):
        watchdog.watch(step, means)
        assert watchdog.alarmed == (means is high)
    with pytest.raises(Diverged, match=r"run: step 6: cross-entropy 9.256 nats, above 9.21 for 3 steps in a row"):
        watchdog.watch(6, high)
    Watchdog(100, "run").watch(1, {})
