"""The rows of one step, as micro-batches of one process: views, signals and the weight of every target row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from corpora.batch import Batch, Objective, View, causal_view, masked_view
from corpora.loader import RowPlan
from corpora.prepare import Corpus
from corpora.rows import make_batch
from distill.config import TermConfig, TrainConfig
from distill.distributed import Processes
from distill.objective import Part
from teachers.config import CacheConfig
from teachers.ensemble import Ensemble

Span = tuple[int, int]


@dataclass(frozen=True)
class Term:
    """A term of the objective and the ensemble that it listens to, if any."""

    config: TermConfig
    ensemble: Ensemble | None


@dataclass(frozen=True)
class StepData:
    """One process's part of a step."""

    micro_batches: list[list[Part]]
    counts: dict[str, int]  # targets of each view, over all processes and micro-batches


def view_shares(config: TrainConfig) -> dict[Objective, float]:
    """Share of the rows of each objective, adding up to 1."""
    if config.view is not None:
        return {config.view: 1.0}
    total = sum(config.views.values())
    return {objective: share / total for objective, share in config.views.items() if share > 0}


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
    batches: dict[Objective, list[Batch]] = {}
    own = {
        objective: processes.own_share(spans) for objective, spans in _rows_of_views(plan.spans(step), shares).items()
    }
    count = _num_micro_batches(own, config)
    for objective, spans in own.items():
        view = step_view(objective, plan.epoch(step), config, cache)
        batches[objective] = [
            make_batch(corpus.streams["train"], piece, view, token_ids=corpus.token_ids, vocab_size=corpus.vocab_size)
            for piece in _pieces(spans, count)
        ]
    counts = _target_counts(batches, processes)
    micro_batches = [
        [
            _part(pieces[number], shares[objective], counts[objective], terms, processes)
            for objective, pieces in batches.items()
            if number < len(pieces)
        ]
        for number in range(count)
    ]
    return StepData(micro_batches, counts)


def terms_of(objective: str, terms: Sequence[Term]) -> list[Term]:
    """The terms that rows of an objective have."""
    return [term for term in terms if term.config.view in (None, objective)]


def _part(batch: Batch, share: float, count: int, terms: Sequence[Term], processes: Processes) -> Part:
    chosen = terms_of(batch.view.objective, terms)
    signals = tuple(term.ensemble.signal(batch) if term.ensemble is not None else None for term in chosen)
    return Part(
        batch.to(processes.device),
        tuple(term.config for term in chosen),
        tuple(signal if signal is None else signal.to(processes.device) for signal in signals),
        # a step of very few rows may hide nothing; then there is nothing to weigh
        tuple(share * term.config.weight / max(count, 1) for term in chosen),
    )


def _rows_of_views(spans: list[Span], shares: Mapping[Objective, float]) -> dict[Objective, list[Span]]:
    """Divide the rows of the global batch by the shares; which rows those are depends on the batch alone."""
    edges = np.round(np.cumsum([0.0, *shares.values()]) * len(spans)).astype(int)
    return {objective: spans[first:last] for objective, first, last in zip(shares, edges, edges[1:], strict=False)}


def _num_micro_batches(own: Mapping[Objective, list[Span]], config: TrainConfig) -> int:
    rows = sum(len(spans) for spans in own.values())
    return max(-(-rows // (config.micro_batch_size or rows or 1)), 1)


def _pieces(spans: list[Span], count: int) -> list[list[Span]]:
    pieces = [[spans[index] for index in part] for part in np.array_split(np.arange(len(spans)), count)]
    return [piece for piece in pieces if piece]


def _target_counts(batches: Mapping[Objective, list[Batch]], processes: Processes) -> dict[str, int]:
    own = [sum(int(batch.has_target_BT.sum()) for batch in pieces) for pieces in batches.values()]
    # fp64 counts are exact far beyond any batch
    summed = processes.sum(torch.tensor(own, dtype=torch.float64, device=processes.device))
    return dict(zip(batches, summed.long().tolist(), strict=True))
