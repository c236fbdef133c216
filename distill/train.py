"""The one loop: it trains every teacher and every student, from a recipe's words to a run folder.

data -> model -> objective -> steps -> run folder. A teacher is a run whose only term is cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from functools import partial

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from corpora.addressed import address
from corpora.errors import Diverged, Preempted, RecipeError
from corpora.loader import RowPlan, plan_rows
from corpora.stream import Stream
from distill.averaging import MovingAverage
from distill.checkpoint import Checkpoints, Progress
from distill.config import TrainConfig
from distill.distributed import Processes
from distill.losses import FEATURE_LOSSES
from distill.objective import Objective, feature_projections
from distill.optim import learning_rate, make_optimizer, set_learning_rate
from distill.precision import autocast, resolve_precision
from distill.preemption import stop_flag
from distill.run import (
    Run,
    average_fingerprint,
    average_folder,
    require_kept,
    save_run,
    snapshot_fingerprint,
    snapshot_folder,
)
from distill.step_data import StepData, require_rows, step_data
from distill.tracking import Tracker
from students.registry import build_model


def train(run: Run, processes: Processes) -> None:
    """Train until the run folder is committed, resuming from the newest valid checkpoint.

    Raises Diverged when a loss or a gradient is not finite, and Preempted when a signal asks to stop; the same call
    then goes on.
    """
    config, stream = run.train, run.corpus.streams["train"]
    require_rows(config, processes.world_size)
    plan = row_plan(config, stream, seed=address(run.seed, "data"))
    steps = num_steps(config, plan)
    _require_in_run(run, steps)
    precision = resolve_precision(config.precision, processes.device.type)

    model = build_model(
        run.model, vocab_size=run.corpus.vocab_size, token_ids=run.corpus.token_ids, seed=address(run.seed, "init")
    ).to(processes.device)
    compared = {t.number: t.ensemble for t in run.terms if t.config.loss in FEATURE_LOSSES and t.ensemble is not None}
    projections = feature_projections(run.model.hidden_size, compared, address(run.seed, "projections"))
    objective = Objective(model, projections.to(processes.device))
    optimizer = make_optimizer(objective, config)
    average = MovingAverage(model, config.average) if config.average is not None else None

    # another arithmetic or world size would go on, but not to the same weights
    arithmetic = {"precision": precision, "processes": processes.world_size, "micro_batch": config.micro_batch_size}
    checkpoints = Checkpoints(
        run.folder / "checkpoints",
        nn.ModuleDict({"objective": objective} | ({"average": average.model} if average else {})),
        optimizer,
        run.fingerprint | {"arithmetic": arithmetic, "average": config.average},
    )
    start = checkpoints.restore(announce=print if processes.is_first else lambda line: None)
    require_kept(run, done=start.step)
    processes.barrier()  # all have read before the first writes
    module = processes.wrap(objective).train()
    tracker = Tracker(
        run.folder,
        name=run.name,
        steps=steps,
        log_length=start.log_length,
        config=run.tracking,
        writes=processes.is_first,
    )

    words, logged_at = start.words, start.step
    with closing(tracker), stop_flag() as stop:
        for step in range(start.step, steps):
            data = step_data(
                step,
                plan,
                steps=steps,
                corpus=run.corpus,
                config=config,
                cache=run.cache,
                terms=run.terms,
                processes=processes,
                precision=precision,
            )
            done = step + 1
            logs = done % config.log_every == 0 or done == steps
            means = _backward(module, data, run, step=step, precision=precision, processes=processes, values=logs)
            norm = float(clip_grad_norm_(module.parameters(), config.grad_clip))
            _require_finite(run, step, norm, means)
            rate = learning_rate(step, steps, config)
            set_learning_rate(optimizer, rate)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            words += sum(stream.words(first, last) for first, last in plan.spans(step))
            if average:
                average.update(model, done)
            if done in config.snapshots and processes.is_first:
                folder, depends = snapshot_folder(run.folder, done), snapshot_fingerprint(run, done)
                save_run(run, folder, model, fingerprint=depends, steps=done, words=words, precision=precision)
            if logs:
                tokens = (done - logged_at) * config.batch_size * config.seq_len
                tracker.log({"step": done, "lr": rate, "grad_norm": norm, "words": words, **means}, tokens=tokens)
                logged_at = done
            stopping = done < steps and processes.any(stop.raised)
            if done < steps and (stopping or done % config.checkpoint_every == 0):
                log_length = tracker.synced_length()
                if processes.is_first:
                    checkpoints.save(Progress(done, log_length, words))
            if stopping:
                processes.barrier()
                raise Preempted(f"{run.folder}: stopped after step {done} and saved; the same command goes on")
        tracker.synced_length()
    if processes.is_first:
        save = partial(save_run, run, steps=steps, words=words, precision=precision)
        if average:
            save(average_folder(run.folder), average.model, fingerprint=average_fingerprint(run))
        # the run's own manifest comes last: a finished run has everything
        save(run.folder, model, fingerprint=run.fingerprint, with_log=True)
    processes.barrier()


def row_plan(config: TrainConfig, stream: Stream, *, seed: int) -> RowPlan:
    """The rows of a run; raises InputRefused when the stream is shorter than one row."""
    return plan_rows(
        stream,
        seq_len=config.seq_len,
        batch_size=config.batch_size,
        seed=seed,
        random_offsets=config.random_offsets,
    )


def num_steps(config: TrainConfig, plan: RowPlan) -> int:
    """Optimiser steps of a run."""
    return config.steps if config.steps is not None else plan.steps(config.epochs or 1.0)


def _require_in_run(run: Run, steps: int) -> None:
    """What the recipe's check cannot know when it counts epochs."""
    if beyond := [step for step in run.train.snapshots if step > steps]:
        raise RecipeError(
            f"{run.name}: the weights after step {max(beyond)} are asked for, but the run ends after {steps}; "
            "ask for earlier ones"
        )


def _backward(
    module: nn.Module, data: StepData, run: Run, *, step: int, precision: str, processes: Processes, values: bool
) -> dict[str, float]:
    """Gradients of one step; returns each term's mean in nats per target, over all processes.

    Without `values` divergences are 0: a teacher that says what is not finite shows in the gradient all the same.
    """
    sums = dict.fromkeys(data.counts, torch.zeros((), device=processes.device))
    for number, parts in enumerate(data.micro_batches):
        # dropout is drawn by address too, so that nothing random has to be saved
        torch.manual_seed(address(run.seed, "dropout", step, processes.rank, number) >> 1)
        later = number < len(data.micro_batches) - 1
        with processes.gradients_later(module, later):
            with autocast(precision, processes.device):
                loss, term_sums = module(parts, values)
            processes.backward(loss)
        for name, value in term_sums.items():
            sums[name] = sums[name] + value
    totals = processes.sum(torch.stack(list(sums.values()))).tolist()
    # a term without targets has said nothing, which is not 0
    return {name: total / count for total, (name, count) in zip(totals, data.counts.items(), strict=True) if count}


def _require_finite(run: Run, step: int, norm: float, means: Mapping[str, float]) -> None:
    if not all(map(math.isfinite, (norm, *means.values()))):
        found = ", ".join(f"{name} is {value:g}" for name, value in {**means, "the gradient's norm": norm}.items())
        raise Diverged(
            f"{run.folder}: step {step + 1}: {found}, all must be finite; lower train.lr, or look at the teachers (the "
            "last checkpoint is whole)"
        )
