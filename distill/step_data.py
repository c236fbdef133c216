"""The rows of one step, as micro-batches of one process: views, signals and the weight of every target row."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from corpora.addressed import address
from corpora.batch import Batch, Objective, View, causal_view, masked_view
from corpora.errors import RecipeError
from corpora.loader import Row, Span
from corpora.prepare import Corpus
from corpora.rows import make_batch
from distill.config import TermConfig, TrainConfig
from distill.distributed import Processes
from distill.fused import RowTerm
from distill.objective import Part
from distill.phases import RunPlan, batch_sizes
from distill.schedule import scheduled_share
from distill.shares import phases_of, view_shares
from teachers.config import ROUND_STEP, CacheConfig
from teachers.ensemble import Ensemble
from teachers.signal import Signal


@dataclass(frozen=True)
class Term:
    """A term of the objective and the ensemble that it listens to, if any."""

    config: TermConfig
    ensemble: Ensemble | None
    number: int = 0  # in the student's list


@dataclass(frozen=True)
class StepData:
    """One process's part of a step."""

    micro_batches: list[list[Part]]
    counts: dict[str, int]  # by name of each term: the targets it speaks of, over all processes and micro-batches


def require_rows(config: TrainConfig, world_size: int) -> None:
    """Raise RecipeError when a step has no row for some view or some process."""
    for number, phase in enumerate(phases_of(config)):
        place = f"train.phases.{number}.batch_size" if config.phases else "train.batch_size"
        rows = int(batch_sizes(config, phase, 2).min())
        if rows < world_size:
            raise RecipeError(f"{place}: {rows} rows for {world_size} processes, each needs at least one; raise it")
        shares = view_shares(phase) or view_shares(config)
        missing = set(shares) - {objective for objective, _ in _rows_of_views([Row(0, (0, 0))] * rows, shares)}
        if missing:
            raise RecipeError(
                f"{place}: {rows} rows leave none for {' and '.join(sorted(missing))} with the shares of the views; "
                f"raise it to {round(1 / min(shares.values()))} or make the shares more equal"
            )


def step_view(
    objective: Objective, epoch: int, config: TrainConfig, cache: CacheConfig, *, masked_shift: int = 0
) -> View:
    """The view of an epoch: masked rows go through the folds, one an epoch, so that a round hides every position once.

    With `dynamic_masks` each round has masks of its own; otherwise the rounds have the cache's, in turn.
    """
    if objective == "causal":
        return causal_view(isolated=config.isolated)
    number, fold = divmod(epoch, cache.num_folds)
    mask_seed = cache.mask_seed + ROUND_STEP * (number if config.dynamic_masks else number % cache.rounds)
    return masked_view(
        mask_seed=mask_seed,
        fold=fold,
        num_folds=cache.num_folds,
        mean_span=cache.mean_span,
        isolated=config.isolated,
        keep_share=cache.keep_share,
        random_share=cache.random_share,
        shift=masked_shift,
    )


def step_data(
    step: int,
    plan: RunPlan,
    *,
    corpus: Corpus,
    config: TrainConfig,
    cache: CacheConfig,
    terms: Sequence[Term],
    processes: Processes,
    micro_batch_size: int | None = None,
    precision: str = "fp32",
    masked_shift: int = 0,
) -> StepData:
    """What this process reads in a step of a run, at most `micro_batch_size` rows at a time.

    The rows, targets and weights of the whole step are the same on any number of processes.
    """
    shares, phase = plan.shares(step), plan.phase(step)
    first_epoch = 0
    if phase.num_folds is not None:  # rounds of its own, from the beginning: other folds of old masks would repeat them
        mask_seed = address(cache.mask_seed, "masks of a phase", phase.first) >> 2
        cache, first_epoch = replace(cache, num_folds=phase.num_folds, mask_seed=mask_seed), phase.first_epoch
    rows = _rows_of_views(plan.rows(step), shares)
    own = processes.own_share(rows)
    # where a model is sharded, all processes must read equally often, if need be a row without a target
    alike = config.parallel == "fsdp"
    most = -(-len(rows) // processes.world_size) if alike else len(own)
    count = -(-most // (micro_batch_size or config.micro_batch_size or most))
    everything = _together(rows)

    def draft(objective: Objective, epoch: int, spans: Sequence[Span]) -> _Draft:
        batch = make_batch(
            corpus.streams["train"],
            spans or everything[objective, epoch][:1],
            step_view(objective, epoch - first_epoch, config, cache, masked_shift=masked_shift),
            token_ids=corpus.token_ids,
            vocab_size=corpus.vocab_size,
        )
        # another pass over the text hears other draws
        draft = _Draft.of(batch if spans else batch.silent(), terms, processes.device, precision, draw=epoch)
        return replace(draft, num_rows=len(spans))

    drafts = []
    for number in range(count):
        grouped = _together(own[number::count])
        keys = everything if alike else grouped
        drafts.append([draft(*key, grouped.get(key, [])) for key in keys])
    named = {name: term for view in shares for name, term in terms_of(view, terms).items()}
    targets, counted_rows = _counts(list(itertools.chain(*drafts)), list(named), processes)
    weights = {}
    for view, share in shares.items():
        for name, term in terms_of(view, terms).items():
            count_of = counted_rows[name] if term.config.legacy_batchmean else targets[name]
            scheduled = term.config.weight * scheduled_share(step, plan.steps, term.config.schedule)
            # a step of very few rows may hide nothing; then there is nothing to weigh
            weights[name] = share * scheduled / max(count_of, 1)
    return StepData([[draft.part(weights) for draft in parts] for parts in drafts], targets)


def terms_of(view: Objective, terms: Sequence[Term]) -> dict[str, Term]:
    """The terms that rows of a view have, by the name of their curves: `view/loss`, numbered when it comes again."""
    named: dict[str, Term] = {}
    for number, term in enumerate(term for term in terms if term.config.view in (None, view)):
        name = f"{view}/{term.config.loss}"
        named[name if name not in named else f"{name}.{number}"] = term
    return named


@dataclass(frozen=True)
class _Draft:
    """A batch on the device and what its teachers say, before anybody knows how many targets the step has."""

    batch: Batch
    terms: dict[str, Term]
    signals: dict[str, Signal]  # of the terms that have one
    num_rows: int = 0  # rows that are there for what they say

    @classmethod
    def of(cls, batch: Batch, terms: Sequence[Term], device: torch.device, precision: str, *, draw: int) -> _Draft:
        named = terms_of(batch.view.objective, terms)
        # products of the heads in the type of the student's own
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        signals = {
            name: term.ensemble.signal(batch, device, draw=draw, dtype=dtype)
            for name, term in named.items()
            if term.ensemble is not None
        }
        return cls(batch.to(device), named, signals)

    def targets(self, name: str) -> int:
        """The targets that a term speaks of."""
        if name not in self.terms:
            return 0
        heard_N = self.signals[name].heard_N if name in self.signals else None
        return int(self.batch.has_target_BT.sum() if heard_N is None else heard_N.sum())

    def part(self, weights: Mapping[str, float]) -> Part:
        """The batch with the weight of each term's targets."""
        return Part(
            self.batch,
            tuple(
                RowTerm(name, term.number, term.config, self.signals.get(name), weights[name])
                for name, term in self.terms.items()
            ),
        )


def _rows_of_views(rows: Sequence[Row], shares: Mapping[Objective, float]) -> list[tuple[Objective, Row]]:
    """The rows of the global batch divided by the shares; which rows a view gets depends on the batch alone."""
    edges = np.round(np.cumsum([0.0, *shares.values()]) * len(rows)).astype(int)
    return [
        (objective, row)
        for objective, first, last in zip(shares, edges, edges[1:], strict=False)
        for row in rows[first:last]
    ]


def _together(rows: Sequence[tuple[Objective, Row]]) -> dict[tuple[Objective, int], list[Span]]:
    """Rows of one objective and epoch make a batch: they have one view, and hear the same draws."""
    grouped: dict[tuple[Objective, int], list[Span]] = {}
    for objective, row in rows:
        grouped.setdefault((objective, row.epoch), []).append(row.span)
    return grouped


def _counts(
    drafts: Sequence[_Draft], names: Sequence[str], processes: Processes
) -> tuple[dict[str, int], dict[str, int]]:
    """Targets and rows that each term speaks of in the whole step, over all processes."""
    targets = [sum(draft.targets(name) for draft in drafts) for name in names]
    rows = [sum(draft.num_rows for draft in drafts if name in draft.terms) for name in names]
    # fp64 counts are exact far beyond any batch
    summed = processes.sum(torch.tensor([targets, rows], dtype=torch.float64, device=processes.device))
    return tuple(dict(zip(names, counts, strict=True)) for counts in summed.long().tolist())  # type: ignore[return-value]
