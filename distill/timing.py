"""A run that is given minutes: some steps are timed before it begins, and it has as many steps as fit."""

from __future__ import annotations

import json
import statistics
import time

import torch

from corpora.storage import read_json, write_file
from distill.distributed import Processes
from distill.learner import Learner
from distill.phases import RunPlan, plan_run
from distill.run import Run
from distill.shares import mean_tokens

TRIED, TIMED = 5, 3  # steps; the first ones load code and fill caches
FILE = "steps.json"


def steps_in_minutes(run: Run, processes: Processes, learner: Learner, *, seed: int) -> int:
    """Optimiser steps that fit into the recipe's minutes, the same in every process.

    Found once and kept beside the checkpoints, so that a run that is resumed has as many steps as it began with.
    """
    config = run.train
    assert config.minutes is not None
    path = run.folder / FILE
    if path.exists() and (kept := read_json(path))["minutes"] == config.minutes:
        return kept["steps"]
    processes.barrier()  # all have looked before the first writes
    plan = plan_run(config, run.corpus.streams["train"], seed=seed, steps=max(TRIED, 2 * len(config.phases)))
    seconds = [_seconds(learner, step, plan, processes) for step in range(TRIED)][-TIMED:]
    rate = plan.tokens / plan.steps if not config.phases else len(plan.rows(0)) * plan.phases[0].seq_len
    tokens_per_second = processes.sum(torch.tensor(rate / statistics.median(seconds), device=processes.device))
    # the mean of what the processes measured: all must have the same number
    in_a_second = float(tokens_per_second) / processes.world_size
    steps = max(int(60 * config.minutes * in_a_second / mean_tokens(config)), 1)
    if processes.is_first:
        write_file(path, json.dumps({"minutes": config.minutes, "steps": steps}).encode())
        print(f"{run.name}: {steps:,} steps in {config.minutes:g} minutes, by {TIMED} that were timed", flush=True)
    processes.barrier()
    return steps


def _seconds(learner: Learner, step: int, plan: RunPlan, processes: Processes) -> float:
    """Of a step's gradients; what the update takes is little beside them."""
    began = time.perf_counter()
    learner.gradients(min(step, plan.steps - 1), plan)
    if processes.device.type == "cuda":
        torch.cuda.synchronize(processes.device)
    learner.objective.zero_grad(set_to_none=True)
    return time.perf_counter() - began
