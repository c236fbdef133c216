"""Which rows a step reads: a pure function of (seed, step), whatever the world size, so resuming replays nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from corpora.addressed import address, permutation
from corpora.stream import Stream, require_row

Span = tuple[int, int]  # positions [start, stop) of a stream


class Row(NamedTuple):
    """One row of a step."""

    epoch: int  # the pass over the stream that it belongs to
    span: Span


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """Rows of `seq_len` tokens over a stream, shuffled anew each epoch.

    With `random_offsets` an epoch's rows start at a common offset below `seq_len`, drawn for that epoch, so that a
    token meets other amounts of context each time (arXiv 2308.02019).
    """

    num_tokens: int
    seq_len: int
    batch_size: int  # rows in a step, over all processes
    seed: int
    random_offsets: bool = True

    @property
    def rows_per_epoch(self) -> int:
        """Rows in one pass over the stream."""
        usable = self.num_tokens - (self.seq_len - 1 if self.random_offsets else 0)
        return max(usable // self.seq_len, 1)

    def steps(self, epochs: float) -> int:
        """Optimiser steps in so many passes, at least one."""
        return max(round(epochs * self.rows_per_epoch / self.batch_size), 1)

    def rows(self, step: int) -> list[Row]:
        """The rows of a step in global order; they are numbered through the run, so a step may meet two epochs."""
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        epochs_and_rows = (divmod(number, self.rows_per_epoch) for number in numbers)
        return [Row(epoch, self._span(epoch, row)) for epoch, row in epochs_and_rows]

    def spans(self, step: int) -> list[Span]:
        """Positions of the step's rows in global order."""
        return [row.span for row in self.rows(step)]

    def _span(self, epoch: int, row: int) -> Span:
        start = self._offset(epoch) + int(_order(self.seed, epoch, self.rows_per_epoch)[row]) * self.seq_len
        return start, start + self.seq_len

    def _offset(self, epoch: int) -> int:
        # a stream shorter than two rows has one row an epoch and no room for an offset
        room = min(self.seq_len, self.num_tokens - self.rows_per_epoch * self.seq_len + 1)
        return address(self.seed, "offset", epoch) % room if self.random_offsets and room > 1 else 0


def plan_rows(stream: Stream, *, seq_len: int, batch_size: int, seed: int, random_offsets: bool) -> RowPlan:
    """The plan of a stream; raises InputRefused when it is shorter than one row."""
    require_row(stream, seq_len)
    return RowPlan(
        num_tokens=len(stream), seq_len=seq_len, batch_size=batch_size, seed=seed, random_offsets=random_offsets
    )


@lru_cache(maxsize=4)  # a step touches one epoch, seldom two
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return permutation(address(seed, "rows", epoch), rows)
