"""A run that is given minutes: some steps of each phase and a look are timed before it begins, and it has as many steps
as fit."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from corpora.storage import read_json, write_file
from distill.distributed import Processes
from distill.learner import Learner
from distill.look import TuneStream
from distill.phases import Phase, RunPlan, plan_run
from distill.probe import probe
from distill.run import Run
from distill.shares import phases_of

WARM = 2  # steps of a phase before those that are timed: they load code and fill caches
# an odd number of steps, spread over a phase: where its batch grows the median of their times is still their mean
TIMED = 3
LEAST = 0.3  # seconds that are timed of each phase: steps of a few milliseconds are timed again and again
MARGIN = 0.05  # share of the minutes that is left for checkpoints, logs and whatever else comes between steps
FILE = "steps.json"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that the parts of a run take."""

    step: float  # the mean over the phases, by their shares
    look: float = 0.0  # at the tune stream, with the pairs that are scored then
    evaluate_every: int | None = None  # steps between two looks, of which there is one after the last step too

    def steps_within(self, seconds: float) -> int:
        """The most steps that take so long with their looks; at least one."""
        every = self.evaluate_every
        if every is None:
            return max(math.floor(seconds / self.step), 1)
        rounds, rest = divmod(seconds, every * self.step + self.look)
        more = math.floor((rest - self.look) / self.step)  # steps after the last whole round; they need a look too
        return max(int(rounds) * every + max(more, 0), 1)


def steps_in_minutes(run: Run, processes: Processes, learner: Learner, *, seed: int) -> int:
    """Optimiser steps that fit into the recipe's minutes, the same in every process.

    Found once and kept beside the checkpoints, so that a run that is resumed has as many steps as it began with. The
    learner must be new, and is left as it was.
    """
    config = run.train
    assert config.minutes is not None
    path = run.folder / FILE
    # the first one's: a network's file system may not show all the same at once
    kept: dict[str, Any] | None = processes.gather(read_json(path) if path.exists() else None)[0]
    if kept is not None and kept["minutes"] == config.minutes:
        return kept["steps"]
    pace = measured_pace(run, processes, learner, seed=seed)
    steps = pace.steps_within(60 * config.minutes * (1 - MARGIN))
    if processes.is_first:
        write_file(path, json.dumps({"minutes": config.minutes, "steps": steps}).encode())
        look = f" and {pace.look:.3g} s a look" if pace.evaluate_every is not None else ""
        print(
            f"{run.name}: {steps:,} steps in {config.minutes:g} minutes, at {pace.step:.3g} s a step{look}; "
            f"{MARGIN:.0%} is left for checkpoints",
            flush=True,
        )
    processes.barrier()
    return steps


def measured_pace(run: Run, processes: Processes, learner: Learner, *, seed: int) -> Pace:
    """What a step and a look take here: real ones at the shapes of each phase, of the slowest process.

    Steps are made with a learning rate of 0, at which no optimiser changes a weight; what they leave in the optimiser
    and the learner is taken away, so that the run that follows is the one that it would have been.
    """
    config = run.train
    phases = phases_of(config)
    alike = replace(config, phases=[replace(phase, share=1.0) for phase in phases])
    plan = plan_run(alike, run.corpus.streams["train"], seed=seed, steps=TIMED * len(phases))
    before = deepcopy(learner.state)
    seconds = [_step_seconds(run, learner, plan, phase, processes) for phase in plan.phases]
    look = _look_seconds(run, learner, processes) if config.evaluate_every is not None else 0.0
    learner.optimizer.state.clear()
    learner.restore(before)
    shares = [phase.share for phase in phases]
    step = sum(share * taken for share, taken in zip(shares, seconds, strict=True)) / sum(shares)
    return Pace(step=step, look=look, evaluate_every=config.evaluate_every)


def _step_seconds(run: Run, learner: Learner, plan: RunPlan, phase: Phase, processes: Processes) -> float:
    """Of a step of a phase, gradients and update."""
    stream = run.corpus.streams["train"]

    def take(step: int) -> None:
        means = learner.gradients(step, plan, values=run.train.log_every == 1)
        learner.update(step, means, 0.0)
        sum(stream.words(first, last) for first, last in plan.spans(step))  # the loop counts them

    for _ in range(WARM):
        take(phase.first)
    seconds: list[float] = []
    while sum(seconds) < LEAST:
        steps = range(phase.first, phase.first + phase.steps)
        seconds += [_seconds(partial(take, step), processes) for step in steps]
    return statistics.median(seconds)


def _look_seconds(run: Run, learner: Learner, processes: Processes) -> float:
    tune = TuneStream(run, processes)

    def take() -> None:
        tune.look(learner.module, learner.precision, micro_batch=learner.micro_batch)
        probe(run, learner.model, processes)

    return _seconds(take, processes)


def _seconds(action: Callable[[], object], processes: Processes) -> float:
    """Of the process that takes longest: the others wait for it, and all must come to the same number."""
    began = time.perf_counter()
    action()
    if processes.device.type == "cuda":
        torch.cuda.synchronize(processes.device)
    taken = torch.tensor(time.perf_counter() - began, dtype=torch.float64, device=processes.device)
    return float(processes.largest(taken))
