"""The one loop: it trains every teacher and every student, from a recipe's words to a run folder.

data -> model -> objective -> steps -> run folder. A teacher is a run whose only term is cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from corpora.addressed import address
from corpora.errors import Diverged, Preempted, RecipeError
from corpora.loader import plan_rows
from corpora.prepare import Corpus
from corpora.storage import file_digest, new_folder
from distill.checkpoint import Resumed, load_checkpoint, save_checkpoint
from distill.config import TrackingConfig, TrainConfig
from distill.distributed import Processes
from distill.objective import Objective
from distill.optim import learning_rate, make_optimizer
from distill.precision import autocast, resolve_precision
from distill.preemption import StopFlag, stop_flag
from distill.step_data import StepData, Term, step_data, terms_of, view_shares
from distill.tracking import METRICS, Tracker
from students.config import ModelConfig
from students.language_model import LanguageModel
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

    Raises Diverged when a gradient is not finite and Preempted when a signal asks to stop; the same call then goes on.
    """
    stream, config = run.corpus.streams["train"], run.train
    plan = plan_rows(
        stream,
        seq_len=config.seq_len,
        batch_size=config.batch_size,
        seed=address(run.seed, "data"),
        random_offsets=config.random_offsets,
    )
    steps = config.steps if config.steps is not None else plan.steps(config.epochs or 1.0)
    _require_rows_for_all(config, processes)
    precision = resolve_precision(config.precision, processes.device.type)

    model = build_model(
        run.model, vocab_size=run.corpus.vocab_size, token_ids=run.corpus.token_ids, seed=address(run.seed, "init")
    ).to(processes.device)
    optimizer = make_optimizer(model, config)
    # another arithmetic or world size would go on, but not to the same weights
    arithmetic = {"precision": precision, "processes": processes.world_size, "micro_batch": config.micro_batch_size}
    checkpoint_key = run.fingerprint | {"arithmetic": arithmetic}
    checkpoints = run.folder / "checkpoints"
    start = load_checkpoint(
        checkpoints, model=model, optimizer=optimizer, fingerprint=checkpoint_key, announce=print
    ) or Resumed(0, 0, 0)
    processes.barrier()  # all have read before the first writes
    module = processes.wrap(Objective(model))
    tracker = Tracker(
        run.folder,
        name=run.name,
        steps=steps,
        log_length=start.log_length,
        config=run.tracking,
        writes=processes.is_first,
    )

    words, logged_at = start.words, start.step
    model.train()
    with stop_flag() as stop:
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
            rate = learning_rate(step, steps, config)
            sums, norm = _step(module, optimizer, data, rate, step, run, precision, processes)
            words += sum(stream.words(first, last) for first, last in plan.spans(step))
            done = step + 1
            if done % config.log_every == 0 or done == steps:
                record = {"step": done, "lr": rate, "grad_norm": norm, "words": words}
                tokens = (done - logged_at) * config.batch_size * config.seq_len
                tracker.log(record | _term_means(sums, data, run.terms), tokens=tokens)
                logged_at = done
            stopping = _asked_to_stop(stop, processes)
            if done < steps and (stopping or done % config.checkpoint_every == 0):
                length = tracker.synced_length()
                if processes.is_first:
                    save_checkpoint(
                        checkpoints,
                        step=done,
                        log_length=length,
                        words=words,
                        model=model,
                        optimizer=optimizer,
                        fingerprint=checkpoint_key,
                    )
                if stopping:
                    processes.barrier()
                    raise Preempted(f"{run.folder}: stopped after step {done} and saved; the same command goes on")
    tracker.synced_length()
    tracker.close()
    if processes.is_first:
        _commit(run, model, steps=steps, words=words, precision=precision)
    processes.barrier()


def _step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: StepData,
    rate: float,
    step: int,
    run: Run,
    precision: str,
    processes: Processes,
) -> tuple[Tensor, float]:
    """One optimiser step; returns each term's sum over all targets and the norm of the gradient before clipping."""
    sums: Tensor | None = None
    for number, parts in enumerate(data.micro_batches):
        # dropout is drawn by address too, so that nothing random has to be saved
        torch.manual_seed(address(run.seed, "dropout", step, processes.rank, number) >> 1)
        later = number < len(data.micro_batches) - 1
        with processes.gradients_later(module, later):
            with autocast(precision, processes.device):
                loss, part_sums = module(parts)
            processes.backward(loss)
        by_view = _spread(part_sums, parts, data, run.terms)
        sums = by_view if sums is None else sums + by_view
    assert sums is not None
    sums = processes.sum(sums)
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), run.train.grad_clip)
    if not bool(norm.isfinite()):
        raise Diverged(
            f"{run.folder}: step {step + 1}: the gradient's norm is {float(norm)}, the terms' sums are "
            f"{sums.tolist()}; lower train.lr, or look at the teachers; the last checkpoint is whole"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sums, float(norm)


def _spread(part_sums: Tensor, parts: Sequence[Any], data: StepData, terms: Sequence[Term]) -> Tensor:
    """Sums in the fixed order (view, term): a process whose micro-batch lacks a view contributes zeros."""
    given = dict(
        zip(
            [part.batch.view.objective for part in parts],
            part_sums.split([len(part.terms) for part in parts]),
            strict=True,
        )
    )
    return torch.cat(
        [given.get(view, part_sums.new_zeros(len(terms_of(view, terms)))) for view in data.counts]  # type: ignore[call-overload]
    )


def _term_means(sums: Tensor, data: StepData, terms: Sequence[Term]) -> dict[str, float]:
    """Each term in nats per target, named `view/loss` (and numbered when a loss comes twice)."""
    means: dict[str, float] = {}
    values = iter(sums.tolist())
    for view, count in data.counts.items():
        for number, term in enumerate(terms_of(view, terms)):
            name = f"{view}/{term.config.loss}"
            means[name if name not in means else f"{name}.{number}"] = next(values) / max(count, 1)
    return means


def _asked_to_stop(stop: StopFlag, processes: Processes) -> bool:
    return processes.any(stop.raised)


def _require_rows_for_all(config: TrainConfig, processes: Processes) -> None:
    if config.batch_size < processes.world_size:
        raise RecipeError(
            f"train.batch_size: {config.batch_size} rows for {processes.world_size} processes; each needs at least one"
        )


def _commit(run: Run, model: LanguageModel, *, steps: int, words: int, precision: str) -> None:
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
