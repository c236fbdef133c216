"""Runs that are given minutes: what is timed, how many steps it comes to, and that the run is none the worse for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corpora.prepare import Corpus
from corpora.storage import read_manifest
from distill import timing
from distill.config import PhaseConfig
from distill.distributed import Processes
from distill.learner import Learner
from distill.look import Look, TuneStream
from distill.phases import RunPlan, plan_run
from distill.run import Run, rows_seed
from distill.timing import LEAST, MARGIN, Pace, steps_in_minutes
from distill.train import train

UPDATE, LOOK = 0.07, 4.0  # seconds on the simulated machine
SHORT, LONG = PhaseConfig(share=3, seq_len=8, batch_size=8), PhaseConfig(share=1, seq_len=64, batch_size=8)
GROWING = PhaseConfig(share=1, seq_len=16, batch_size=2, end_batch_size=18)


def run_of(corpus: Corpus, folder: Path, **changes: Any) -> Run:
    return tiny.run(corpus, folder, tiny.CROSS_ENTROPY, **({"steps": None, "minutes": 2.0} | changes))


class Machine:
    """A clock, and how long a step takes by it: a token of a longer row takes longer, an update always the same."""

    def __init__(self, slowness: float = 1.0) -> None:
        self.now, self.slowness = 1000.0, slowness

    def perf_counter(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += self.slowness * seconds

    @staticmethod
    def step_seconds(plan: RunPlan, step: int) -> float:
        length = plan.phase(step).seq_len
        return len(plan.rows(step)) * length * (1e-4 + 1e-5 * length) + UPDATE


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], None]:
    """Lets everything be computed on a machine in an instant that its clock takes for hours."""

    def put(machine: Machine) -> None:
        def gradients(learner: Learner, step: int, plan: RunPlan, *, values: bool = True) -> dict[str, float]:
            machine.work(machine.step_seconds(plan, step) - UPDATE)
            return {}

        def update(learner: Learner, step: int, means: dict[str, float], rate: float) -> float:
            machine.work(UPDATE)
            return 1.0

        def look(tune: TuneStream, module: object, precision: str, *, micro_batch: int | None) -> Look:
            machine.work(LOOK)
            return Look({"causal": 1.0}, 1.0)

        monkeypatch.setattr(timing, "time", machine)
        for owner, method in ((Learner, gradients), (Learner, update), (TuneStream, look)):
            monkeypatch.setattr(owner, method.__name__, method)

    return put


@pytest.mark.parametrize("evaluate_every", [None, 50, 10_000])
@pytest.mark.parametrize(
    "phases", [[], [SHORT, LONG], [LONG, SHORT], [GROWING, SHORT]], ids=["one", "longer", "shorter", "growing"]
)
def test_a_run_takes_the_minutes_that_it_is_given(
    corpus: Corpus,
    processes: Processes,
    tmp_path: Path,
    on_machine: Callable[[Machine], None],
    phases: list[PhaseConfig],
    evaluate_every: int | None,
) -> None:
    machine = Machine()
    on_machine(machine)
    run = run_of(corpus, tmp_path / "run", phases=phases, evaluate_every=evaluate_every)
    steps = steps_in_minutes(run, processes, Learner(run, processes), seed=rows_seed(run.seed))
    plan = plan_run(run.train, corpus.streams["train"], seed=rows_seed(run.seed), steps=steps)
    looks = math.ceil(steps / evaluate_every) if evaluate_every else 0
    seconds = sum(machine.step_seconds(plan, step) for step in range(steps)) + LOOK * looks
    # at most one round of a look and its steps short of what the margin leaves
    assert seconds == pytest.approx(120 * (1 - MARGIN), rel=0.05) and seconds < 120


def test_the_slowest_process_says_how_many_steps_there_are(
    corpus: Corpus, tmp_path: Path, on_machine: Callable[[Machine], None]
) -> None:
    class Beside(Processes):
        """One of two processes; the other's clock runs at another speed."""

        def __init__(self, own: Machine, other: float) -> None:
            super().__init__()
            self.share = other / own.slowness

        def largest(self, values: Tensor) -> Tensor:
            return torch.maximum(values, values * self.share)

    found = []
    for own, other in ((1.0, 1.0), (1.0, 3.0), (3.0, 1.0)):
        on_machine(machine := Machine(own))
        run = run_of(corpus, tmp_path / f"{own}-{other}", phases=[SHORT, LONG])
        found.append(steps_in_minutes(run, processes := Beside(machine, other), Learner(run, processes), seed=7))
    assert found[1] == found[2] == pytest.approx(found[0] / 3, rel=0.01)


@given(
    step=st.floats(1e-3, 10), look=st.floats(0, 100), every=st.none() | st.integers(1, 50), seconds=st.floats(1, 1e4)
)
def test_the_most_steps_that_fit(step: float, look: float, every: int | None, seconds: float) -> None:
    def taken(steps: int) -> float:
        return steps * step + (math.ceil(steps / every) * look if every else 0.0)

    steps = Pace(step=step, look=look, evaluate_every=every).steps_within(seconds)
    assert steps == 1 or taken(steps) <= seconds * (1 + 1e-9)
    assert taken(steps + 1) > seconds * (1 - 1e-9)


def test_steps_of_no_length_are_timed_again_and_again(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single one among them that takes long changes nothing."""
    timed: list[float] = []
    monkeypatch.setattr(
        timing, "_seconds", lambda *arguments: timed.append(9.0 if len(timed) == 1 else 0.01) or timed[-1]
    )
    monkeypatch.setattr(timing, "LEAST", 9.0 + LEAST)
    run = run_of(corpus, tmp_path / "run")
    pace = timing.measured_pace(run, processes, Learner(run, processes), seed=7)
    assert pace.step == 0.01 and sum(timed) >= 9.0 + LEAST


def test_minutes_become_steps_once(
    corpus: Corpus, processes: Processes, tmp_path: Path, on_machine: Callable[[Machine], None]
) -> None:
    on_machine(Machine())
    run = run_of(corpus, tmp_path / "run")
    learner = Learner(run, processes)
    steps = steps_in_minutes(run, processes, learner, seed=7)
    on_machine(Machine(0.1))
    assert steps_in_minutes(run, processes, learner, seed=7) == steps, "a resumed run is as long as it began"
    longer = replace(run, train=replace(run.train, minutes=4.0))
    assert steps_in_minutes(longer, processes, learner, seed=7) == pytest.approx(20 * steps, rel=0.05)


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "adamw", "average": 0.9, "evaluate_every": 3},
        {"optimizer": "muon", "phases": [SHORT, LONG]},
        {"optimizer": "lamb", "phases": [GROWING]},
        {"optimizer": "adamw", "precision": "fp16"},
    ],
    ids=["average", "muon", "lamb", "fp16"],
)
def test_the_run_that_follows_is_the_one_that_it_would_have_been(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    monkeypatch.setattr(timing, "LEAST", 0.01)
    monkeypatch.setattr(Pace, "steps_within", lambda pace, seconds: 5)
    timed = run_of(corpus, tmp_path / "timed", **fields)
    plain = run_of(corpus, tmp_path / "plain", **(fields | {"steps": 5, "minutes": None}))
    for run in (timed, plain):
        train(run, processes)
    names = ["model.safetensors", "metrics.jsonl"]
    names += ["snapshots/average/model.safetensors"] if "average" in fields else []
    for name in names:
        assert (timed.folder / name).read_bytes() == (plain.folder / name).read_bytes(), name


def test_a_learner_is_left_as_it_was(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    run = run_of(corpus, tmp_path / "run", phases=[LONG, SHORT], evaluate_every=9, precision="fp16")
    learner = Learner(run, processes)
    state = deepcopy(learner.state)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    assert steps_in_minutes(run, processes, learner, seed=7) > 1
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    assert not learner.optimizer.state and learner.module.training
    assert learner.state == state and state["scaler"], "the loss's scale has counted steps that it forgets"


def test_a_real_run_takes_about_as_long(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    """A wide bound: other work on the machine comes and goes. What was wrong was wrong by a factor of ten."""
    fields: dict[str, Any] = {"optimizer": "muon", "evaluate_every": 40, "checkpoint_every": 500, "log_every": 10}
    run = run_of(corpus, tmp_path / "run", minutes=0.03, phases=[LONG, SHORT], **fields)
    steps = steps_in_minutes(run, processes, Learner(run, processes), seed=rows_seed(run.seed))
    began = time.perf_counter()
    train(run, processes)
    taken = time.perf_counter() - began
    manifest = read_manifest(run.folder)
    assert manifest is not None and manifest.facts["steps"] == steps
    assert 1.8 / 3 < taken < 1.8 * 3
