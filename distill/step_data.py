"""The rows of one step, as micro-batches of one process: views, signals and the weight of every target row."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from corpora.batch import Batch, Objective, View, causal_view, masked_view
from corpora.errors import RecipeError
from corpora.loader import RowPlan, Span
from corpora.prepare import Corpus
from corpora.rows import make_batch
from distill.config import TermConfig, TrainConfig
from distill.distributed import Processes
from distill.fused import RowTerm
from distill.objective import Part
from teachers.config import CacheConfig
from teachers.ensemble import Ensemble

T = TypeVar("T")


@dataclass(frozen=True)
class Term:
    """A term of the objective and the ensemble that it listens to, if any."""

    config: TermConfig
    ensemble: Ensemble | None


@dataclass(frozen=True)
class StepData:
    """One process's part of a step."""

    micro_batches: list[list[Part]]
    counts: dict[str, int]  # by name of each term: its targets, over all processes and micro-batches


def view_shares(config: TrainConfig) -> dict[Objective, float]:
    """Share of the rows of each objective, adding up to 1, in an order that does not depend on how they are written."""
    if config.view is not None:
        return {config.view: 1.0}
    total = sum(config.views.values())
    return {objective: share / total for objective, share in sorted(config.views.items()) if share > 0}


def require_rows(config: TrainConfig, world_size: int) -> None:
    """Raise RecipeError when a step has no row for some view or some process."""
    if config.batch_size < world_size:
        raise RecipeError(
            f"train.batch_size: {config.batch_size} rows for {world_size} processes, each needs at least one; raise it"
        )
    shares = view_shares(config)
    missing = set(shares) - {objective for objective, _ in _rows_of_views(range(config.batch_size), shares)}
    if missing:
        raise RecipeError(
            f"train.batch_size: {config.batch_size} rows leave none for {' and '.join(sorted(missing))} with the "
            f"shares of train.views; raise it to {round(1 / min(shares.values()))} or make the shares more equal"
        )


def step_view(objective: Objective, epoch: int, config: TrainConfig, cache: CacheConfig) -> View:
    """The view of an epoch: masked rows go through the folds, one an epoch, so that a round hides every position once.

    With `dynamic_masks` each round has masks of its own; otherwise all rounds have the cache's.
    """
    if objective == "causal":
        return causal_view()
    round_number, fold = divmod(epoch, cache.num_folds)
    # the first round's masks are the cache's; a large odd step keeps later rounds apart from neighbouring seeds
    mask_seed = cache.mask_seed + (round_number * 1_000_003 if config.dynamic_masks else 0)
    return masked_view(mask_seed=mask_seed, fold=fold, num_folds=cache.num_folds, mean_span=cache.mean_span)


def step_data(
    step: int,
    plan: RowPlan,
    *,
    corpus: Corpus,
    config: TrainConfig,
    cache: CacheConfig,
    terms: Sequence[Term],
    processes: Processes,
) -> StepData:
    """What this process reads in a step; the rows and targets of the whole step are the same on any number of them."""
    shares = view_shares(config)
    rows = [
        (step_view(objective, row.epoch, config, cache), row.span)
        for objective, row in _rows_of_views(plan.rows(step), shares)
    ]
    own = processes.own_share(rows)
    count = _num_micro_batches(len(own), config)
    batches = [
        [
            make_batch(corpus.streams["train"], spans, view, token_ids=corpus.token_ids, vocab_size=corpus.vocab_size)
            for view, spans in _by_view(own[number::count]).items()
        ]
        for number in range(count)
    ]
    targets = _target_counts(list(itertools.chain(*batches)), list(shares), processes)
    return StepData(
        [[_part(batch, shares, targets, terms, processes.device) for batch in parts] for parts in batches],
        {name: targets[view] for view in shares for name in terms_of(view, terms)},
    )


def terms_of(view: Objective, terms: Sequence[Term]) -> dict[str, Term]:
    """The terms that rows of a view have, by the name of their curves: `view/loss`, numbered when it comes again."""
    named: dict[str, Term] = {}
    for number, term in enumerate(term for term in terms if term.config.view in (None, view)):
        name = f"{view}/{term.config.loss}"
        named[name if name not in named else f"{name}.{number}"] = term
    return named


def _part(
    batch: Batch,
    shares: Mapping[Objective, float],
    targets: Mapping[Objective, int],
    terms: Sequence[Term],
    device: torch.device,
) -> Part:
    """A batch on the device, with what its teachers say and the weight of every target."""
    view = batch.view.objective
    # a step of very few rows may hide nothing; then there is nothing to weigh
    weight = shares[view] / max(targets[view], 1)
    return Part(
        batch.to(device),
        tuple(
            RowTerm(
                name,
                term.config,
                term.ensemble.signal(batch, device) if term.ensemble is not None else None,
                weight * term.config.weight,
            )
            for name, term in terms_of(view, terms).items()
        ),
    )


def _rows_of_views(rows: Sequence[T], shares: Mapping[Objective, float]) -> list[tuple[Objective, T]]:
    """The rows of the global batch divided by the shares; which rows a view gets depends on the batch alone."""
    edges = np.round(np.cumsum([0.0, *shares.values()]) * len(rows)).astype(int)
    return [
        (objective, row)
        for objective, first, last in zip(shares, edges, edges[1:], strict=False)
        for row in rows[first:last]
    ]


def _by_view(rows: Sequence[tuple[View, Span]]) -> dict[View, list[Span]]:
    """Rows of one view make a batch; where a step meets the next epoch, masked rows have two folds, so two views."""
    grouped: dict[View, list[Span]] = {}
    for view, span in rows:
        grouped.setdefault(view, []).append(span)
    return grouped


def _num_micro_batches(rows: int, config: TrainConfig) -> int:
    return -(-rows // (config.micro_batch_size or rows))


def _target_counts(batches: Sequence[Batch], views: Sequence[Objective], processes: Processes) -> dict[Objective, int]:
    """Targets of each view in the whole step, over all processes."""
    own = [sum(int(batch.has_target_BT.sum()) for batch in batches if batch.view.objective == view) for view in views]
    # fp64 counts are exact far beyond any batch
    summed = processes.sum(torch.tensor(own, dtype=torch.float64, device=processes.device))
    return dict(zip(views, summed.long().tolist(), strict=True))
