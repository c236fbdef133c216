"""Windows over a stream in which every target is read once: how caches are made and streams are scored.

A document that fits a window is read once, without overlap. A longer one is read in strided windows: causal windows
keep the targets that the window before has not given, so that each is read with at least half a window of context;
masked windows overlap by half and keep the record that is farther from an edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from corpora.batch import NO_POSITION, NO_TARGET, Batch, View
from corpora.rows import make_batch
from corpora.stream import Stream
from corpora.token_ids import TokenIds


@dataclass(frozen=True)
class Window:
    """The positions [start, stop) are read; the targets at positions [keep_start, keep_stop) are kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def plan_windows(stream: Stream, size: int, *, objective: str) -> list[Window]:
    """Windows of at most `size` tokens, in order, that together keep every position of the stream exactly once."""
    return [
        window
        for start, stop in pairwise(stream.document_offsets.tolist())
        for window in document_windows(start, stop, size, objective=objective)
    ]


def document_windows(start: int, stop: int, size: int, *, objective: str) -> Iterator[Window]:
    """Windows of the document that occupies [start, stop)."""
    if stop - start <= size:
        yield Window(start, stop, start, stop)
        return
    stride = size // 2
    keep_start = start
    for first in range(start, stop, stride):
        last = min(first + size, stop)
        # the last causal output predicts the token just after its window
        reach = min(last + 1, stop) if objective == "causal" else last
        keep_stop = reach if objective == "causal" or last == stop else last - (size - stride) // 2
        yield Window(first, last, keep_start, keep_stop)
        if keep_stop == stop:
            return
        keep_start = keep_stop


def window_batches(
    stream: Stream, windows: list[Window], view: View, *, rows: int, token_ids: TokenIds, vocab_size: int
) -> Iterator[Batch]:
    """Batches of at most `rows` windows of similar length, whose targets are the kept ones alone."""
    # sorted by length so that little is padded; ties keep their order, so the batches are always the same
    ordered = sorted(windows, key=lambda window: window.stop - window.start)
    for first in range(0, len(ordered), rows):
        chosen = ordered[first : first + rows]
        spans = [(window.start, window.stop) for window in chosen]
        batch = make_batch(stream, spans, view, token_ids=token_ids, vocab_size=vocab_size)
        keep_start = torch.tensor([window.keep_start for window in chosen])[:, None]
        keep_stop = torch.tensor([window.keep_stop for window in chosen])[:, None]
        dropped = (batch.target_positions_BT < keep_start) | (batch.target_positions_BT >= keep_stop)
        yield replace(
            batch,
            targets_BT=batch.targets_BT.masked_fill(dropped, NO_TARGET),
            target_positions_BT=batch.target_positions_BT.masked_fill(dropped, NO_POSITION),
        )
