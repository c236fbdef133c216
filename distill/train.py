"""The one loop: it trains every teacher and every student, from a recipe's words to a run folder.

data -> model -> objective -> steps -> run folder. A teacher is a run whose only term is cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from corpora.addressed import address
from corpora.errors import Diverged, Preempted
from corpora.loader import plan_rows
from corpora.prepare import Corpus
from corpora.storage import file_digest, new_folder
from distill.checkpoint import Checkpoints, Progress
from distill.config import TrackingConfig, TrainConfig
from distill.distributed import Processes
from distill.objective import Objective
from distill.optim import learning_rate, make_optimizer, set_learning_rate
from distill.precision import autocast, resolve_precision
from distill.preemption import stop_flag
from distill.step_data import StepData, Term, require_rows, step_data, view_shares
from distill.tracking import METRICS, Tracker
from students.buildable import Buildable
from students.config import ModelConfig
from students.registry import build_model
from students.run_folder import save_model
from teachers.config import CacheConfig


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that one training run depends on."""

    name: str
    folder: Path
    model: ModelConfig
    train: TrainConfig
    terms: tuple[Term, ...]
    corpus: Corpus
    cache: CacheConfig  # says which masks masked rows have
    seed: int
    fingerprint: dict[str, Any]  # of all that affects the weights
    tracking: TrackingConfig


def train(run: Run, processes: Processes) -> None:
    """Train until the run folder is committed, resuming from the newest valid checkpoint.

    Raises Diverged when a loss or a gradient is not finite, and Preempted when a signal asks to stop; the same call
    then goes on.
    """
    config, stream = run.train, run.corpus.streams["train"]
    require_rows(config, processes.world_size)
    plan = plan_rows(
        stream,
        seq_len=config.seq_len,
        batch_size=config.batch_size,
        seed=address(run.seed, "data"),
        random_offsets=config.random_offsets,
    )
    steps = config.steps if config.steps is not None else plan.steps(config.epochs or 1.0)
    precision = resolve_precision(config.precision, processes.device.type)

    model = build_model(
        run.model, vocab_size=run.corpus.vocab_size, token_ids=run.corpus.token_ids, seed=address(run.seed, "init")
    ).to(processes.device)
    optimizer = make_optimizer(model, config)

    # another arithmetic or world size would go on, but not to the same weights
    arithmetic = {"precision": precision, "processes": processes.world_size, "micro_batch": config.micro_batch_size}
    checkpoints = Checkpoints(
        run.folder / "checkpoints", model, optimizer, run.fingerprint | {"arithmetic": arithmetic}
    )
    start = checkpoints.restore(announce=print if processes.is_first else lambda line: None)
    processes.barrier()  # all have read before the first writes
    module = processes.wrap(Objective(model)).train()
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
                corpus=run.corpus,
                config=config,
                cache=run.cache,
                terms=run.terms,
                processes=processes,
            )
            means = _backward(module, data, run, step=step, precision=precision, processes=processes)
            norm = float(clip_grad_norm_(module.parameters(), config.grad_clip))
            _require_finite(run, step, norm, means)
            rate = learning_rate(step, steps, config)
            set_learning_rate(optimizer, rate)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            done = step + 1
            words += sum(stream.words(first, last) for first, last in plan.spans(step))
            if done % config.log_every == 0 or done == steps:
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
        _commit(run, model, steps=steps, words=words, precision=precision)
    processes.barrier()


def _backward(
    module: nn.Module, data: StepData, run: Run, *, step: int, precision: str, processes: Processes
) -> dict[str, float]:
    """Gradients of one step; returns each term's mean in nats per target, over all processes."""
    sums = dict.fromkeys(data.counts, torch.zeros((), device=processes.device))
    for number, parts in enumerate(data.micro_batches):
        # dropout is drawn by address too, so that nothing random has to be saved
        torch.manual_seed(address(run.seed, "dropout", step, processes.rank, number) >> 1)
        later = number < len(data.micro_batches) - 1
        with processes.gradients_later(module, later):
            with autocast(precision, processes.device):
                loss, term_sums = module(parts)
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


def _commit(run: Run, model: Buildable, *, steps: int, words: int, precision: str) -> None:
    """The run folder: weights, config, tokenizer and the metrics log; the manifest comes last."""
    with new_folder(run.folder, kind="run", fingerprint=run.fingerprint) as writer:
        save_model(writer, model.cpu().eval())
        for name in ("tokenizer.json", "tokenizer_config.json"):
            writer.write(name, (run.corpus.tokenizer_folder / name).read_bytes())
        metrics = run.folder / METRICS
        writer.adopt(METRICS, {"size": metrics.stat().st_size, "digest": file_digest(metrics)})
        writer.facts |= {
            "name": run.name,
            "views": list(view_shares(run.train)),
            "steps": steps,
            "words": words,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "tokenizer": run.corpus.tokenizer.digest,
            "precision": precision,
        }
