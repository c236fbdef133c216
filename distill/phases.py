"""Which rows each step of a run reads, where lengths, batches and shares of the views change on the way.

A run is a sequence of phases. All of it is a pure function of the step: resuming replays nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from corpora.addressed import address
from corpora.batch import Objective
from corpora.errors import InputRefused, RecipeError
from corpora.loader import Row, RowPlan, Span, plan_rows
from corpora.stream import Stream
from distill.config import PhaseConfig, TrainConfig
from distill.shares import mean_tokens, phases_of, view_shares


@dataclass(frozen=True)
class Phase:
    """Steps whose rows are of one length and in the same shares of the views."""

    first: int  # step
    row_edges: np.ndarray  # int64 [steps + 1]: number of each step's first row, counted from the phase's first
    plan: RowPlan
    shares: Mapping[Objective, float]
    num_folds: int | None  # of masked rows one fold of so many is hidden; None: as the cache has them
    first_epoch: int  # an epoch of its own: other folds and draws than those of the phase before

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return len(self.row_edges) - 1

    @property
    def seq_len(self) -> int:
        """Tokens in a row."""
        return self.plan.seq_len

    @property
    def tokens(self) -> int:
        """Tokens that are read in it."""
        return int(self.row_edges[-1]) * self.seq_len

    @property
    def epochs(self) -> int:
        """Passes over the stream that are begun in it."""
        return -(-int(self.row_edges[-1]) // self.plan.rows_per_epoch)

    def rows(self, step: int) -> list[Row]:
        """The rows of a step of the run."""
        first, stop = (int(edge) for edge in self.row_edges[step - self.first : step - self.first + 2])
        return [Row(self.first_epoch + epoch, span) for epoch, span in self.plan.numbered(first, stop)]


@dataclass(frozen=True)
class RunPlan:
    """The phases of a run, in order."""

    phases: tuple[Phase, ...]

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return self.phases[-1].first + self.phases[-1].steps

    @property
    def tokens(self) -> int:
        """Tokens that the run reads, repeats included."""
        return sum(phase.tokens for phase in self.phases)

    def phase(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return next(phase for phase in reversed(self.phases) if step >= phase.first)

    def rows(self, step: int) -> list[Row]:
        """The rows of a step in global order."""
        return self.phase(step).rows(step)

    def spans(self, step: int) -> list[Span]:
        """Positions of the step's rows in global order."""
        return [row.span for row in self.rows(step)]

    def shares(self, step: int) -> Mapping[Objective, float]:
        """Share of the rows of each objective, adding up to 1."""
        return self.phase(step).shares

    def words(self, stream: Stream) -> int:
        """Words seen in the whole run, repeats included."""
        return sum(phase.plan.words(stream, 0, int(phase.row_edges[-1])) for phase in self.phases)


def plan_run(config: TrainConfig, stream: Stream, *, seed: int, steps: int | None = None) -> RunPlan:
    """The rows of a run over a stream; `steps` are those of a run that is measured in minutes.

    Raises InputRefused when the stream is shorter than a row, or than the words asked for.
    """
    if steps is None and config.minutes is not None:
        raise RecipeError("train.minutes: how many steps fit is known once the run has started; give steps here")
    if config.words is not None:
        return _of_words(config, stream, seed)
    return _of_steps(config, stream, seed, steps or _num_steps(config, stream, seed))


def batch_sizes(config: TrainConfig, phase: PhaseConfig, steps: int) -> np.ndarray:
    """Rows in each of a phase's steps, from its batch size to the one at its end in a straight line; int64 [steps]."""
    first = phase.batch_size or config.batch_size
    last = phase.end_batch_size or first
    return np.rint(np.linspace(first, last, steps)).astype(np.int64)


def _num_steps(config: TrainConfig, stream: Stream, seed: int) -> int:
    if config.steps is not None:
        return config.steps
    if not config.phases:  # by rows: the last step of an epoch is a whole one
        return _row_plan(config, PhaseConfig(share=1.0), stream, seed).steps(config.epochs or 1.0)
    return max(round((config.epochs or 1.0) * len(stream) / mean_tokens(config)), 1)


def _of_steps(config: TrainConfig, stream: Stream, seed: int, steps: int) -> RunPlan:
    phases = phases_of(config)
    total = sum(phase.share for phase in phases)
    ends = [round(steps * share / total) for share in np.cumsum([phase.share for phase in phases])]
    planned: list[Phase] = []
    first_epoch = 0
    for number, (phase, (first, end)) in enumerate(zip(phases, pairwise([0, *ends]), strict=True)):
        if first == end:  # a share too small for one step
            continue
        edges = np.concatenate([[0], np.cumsum(batch_sizes(config, phase, end - first))])
        plan = _row_plan(config, phase, stream, address(seed, "phase", number) if number else seed)
        shares = view_shares(phase) or view_shares(config)
        planned.append(Phase(first, edges, plan, shares, phase.num_folds, first_epoch))
        first_epoch += planned[-1].epochs
    return RunPlan(tuple(planned))


def _of_words(config: TrainConfig, stream: Stream, seed: int) -> RunPlan:
    """The longest run that sees no more than so many words."""
    assert config.words is not None

    @cache
    def words(steps: int) -> int:
        return _of_steps(config, stream, seed, steps).words(stream)

    if words(1) > config.words:
        raise InputRefused(
            f"train.words: {config.words:,}, but one step reads {words(1):,}; ask for more, or for a smaller batch"
        )
    # almost as many words in every token: a few steps of bisection are left
    guess = max(math.floor(config.words / (mean_tokens(config) * stream.num_words / len(stream))), 1)
    low, high = max(guess * 99 // 100, 1), guess * 101 // 100 + 1
    while words(low) > config.words:
        low, high = max(low // 2, 1), low
    while words(high) <= config.words:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if words(middle) <= config.words else (low, middle)
    return _of_steps(config, stream, seed, low)


def _row_plan(config: TrainConfig, phase: PhaseConfig, stream: Stream, seed: int) -> RowPlan:
    return plan_rows(
        stream,
        seq_len=phase.seq_len or config.seq_len,
        batch_size=phase.batch_size or config.batch_size,
        seed=seed,
        random_offsets=config.random_offsets,
        sources=phase.sources,
    )
