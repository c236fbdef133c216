"""Which rows a step reads: a pure function of (seed, step), whatever the world size, so resuming replays nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from corpora.addressed import address, permutation
from corpora.errors import InputRefused
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
    chosen: tuple[Span, ...] | None = None  # the rows of an epoch, where only some sources are read; no offsets then

    @property
    def rows_per_epoch(self) -> int:
        """Rows in one pass over the stream."""
        if self.chosen is not None:
            return len(self.chosen)
        usable = self.num_tokens - (self.seq_len - 1 if self.random_offsets else 0)
        return max(usable // self.seq_len, 1)

    def steps(self, epochs: float) -> int:
        """Optimiser steps in so many passes, at least one."""
        return max(round(epochs * self.rows_per_epoch / self.batch_size), 1)

    def rows(self, step: int) -> list[Row]:
        """The rows of a step in global order; they are numbered through the run, so a step may meet two epochs."""
        return self.numbered(step * self.batch_size, (step + 1) * self.batch_size)

    def numbered(self, first: int, stop: int) -> list[Row]:
        """The rows of some numbers in [first, stop), counted through all epochs."""
        epochs_and_rows = (divmod(number, self.rows_per_epoch) for number in range(first, stop))
        return [Row(epoch, self._span(epoch, row)) for epoch, row in epochs_and_rows]

    def words(self, stream: Stream, first: int, stop: int) -> int:
        """Words that start in the rows of some numbers in [first, stop), repeats included."""
        whole_from, whole_to = -(-first // self.rows_per_epoch), stop // self.rows_per_epoch
        if whole_from >= whole_to:
            return sum(stream.words(*row.span) for row in self.numbered(first, stop))
        if self.chosen is not None:
            total = (whole_to - whole_from) * sum(stream.words(*span) for span in self.chosen)
        else:  # an epoch's rows lie side by side in the stream, whatever the order in which they are read
            length = self.rows_per_epoch * self.seq_len
            starts = (self._offset(epoch) for epoch in range(whole_from, whole_to))
            total = sum(stream.words(start, start + length) for start in starts)
        edges = (first, whole_from * self.rows_per_epoch), (whole_to * self.rows_per_epoch, stop)
        return total + sum(stream.words(*row.span) for edge in edges for row in self.numbered(*edge))

    def spans(self, step: int) -> list[Span]:
        """Positions of the step's rows in global order."""
        return [row.span for row in self.rows(step)]

    def _span(self, epoch: int, row: int) -> Span:
        if self.chosen is not None:
            return self.chosen[int(_order(self.seed, epoch, self.rows_per_epoch)[row])]
        start = self._offset(epoch) + int(_order(self.seed, epoch, self.rows_per_epoch)[row]) * self.seq_len
        return start, start + self.seq_len

    def _offset(self, epoch: int) -> int:
        # a stream shorter than two rows has one row an epoch and no room for an offset
        room = min(self.seq_len, self.num_tokens - self.rows_per_epoch * self.seq_len + 1)
        return address(self.seed, "offset", epoch) % room if self.random_offsets and room > 1 else 0


def plan_rows(
    stream: Stream, *, seq_len: int, batch_size: int, seed: int, random_offsets: bool, sources: Sequence[str] = ()
) -> RowPlan:
    """The plan of a stream, or of the documents of some sources; raises InputRefused when it has not one row."""
    require_row(stream, seq_len)
    return RowPlan(
        num_tokens=len(stream),
        seq_len=seq_len,
        batch_size=batch_size,
        seed=seed,
        random_offsets=random_offsets,
        chosen=tuple(_spans_of_sources(stream, sources, seq_len)) if sources else None,
    )


def _spans_of_sources(stream: Stream, sources: Sequence[str], seq_len: int) -> Iterator[Span]:
    """Rows of the documents of some sources: neighbours are read on, and cut every `seq_len` tokens."""
    if unknown := sorted(set(sources) - set(stream.sources)):
        raise InputRefused(
            f"corpus: no document of '{stream.name}' is from {', '.join(unknown)}, there are: "
            f"{', '.join(stream.sources) or 'none (it was prepared before sources were kept)'}"
        )
    wanted = np.isin(stream.document_sources, [stream.sources.index(source) for source in sources])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]])))
    for first, last in edges.reshape(-1, 2):
        start, stop = int(stream.document_offsets[first]), int(stream.document_offsets[last])
        for begin in range(start, stop - 1, seq_len):
            yield begin, min(begin + seq_len, stop)


@lru_cache(maxsize=4)  # a step touches one epoch, seldom two
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return permutation(address(seed, "rows", epoch), rows)
