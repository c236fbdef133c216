"""Rows of a stream become a batch of one view: the only place where inputs and targets are aligned.

Axes: B rows, T positions in a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from corpora import masking
from corpora.batch import NO_POSITION, NO_TARGET, PADDING_SEGMENT, Batch, View
from corpora.stream import Stream
from corpora.token_ids import TokenIds


def make_batch(
    stream: Stream, spans: Sequence[tuple[int, int]], view: View, *, token_ids: TokenIds, vocab_size: int
) -> Batch:
    """The positions [start, stop) of each span as rows of `view`, padded to the longest.

    A token is a target when it is not a begin token and, in a masked view, is hidden by the view's fold. An output may
    predict the token just after its row's last.
    """
    length = max(stop - start for start, stop in spans)
    shape = (len(spans), length)
    inputs = np.full(shape, token_ids.pad, np.int64)
    targets = np.full(shape, NO_TARGET, np.int64)
    positions = np.full(shape, NO_POSITION, np.int64)
    segments = np.full(shape, PADDING_SEGMENT, np.int64)
    for row, (start, stop) in enumerate(spans):
        size = stop - start
        # one token more than the row, so that its last output has a target
        tokens = stream.tokens(start, min(stop + view.shift, len(stream)))
        wanted = tokens != token_ids.begin
        seen = tokens
        if view.objective == "masked":
            hidden = masking.hidden(start, tokens, view, token_ids.special)
            wanted &= hidden
            seen = _corrupted(start, tokens, hidden, view, token_ids, vocab_size)
        inputs[row, :size] = seen[:size]
        documents = stream.document_of(np.arange(start, stop))
        segments[row, :size] = documents - documents[0] if view.isolated else 0
        # output t predicts the token at t + shift: of the same document, unless that one is a begin token
        ahead = np.flatnonzero(wanted)
        ahead = ahead[ahead >= view.shift]
        targets[row, ahead - view.shift] = tokens[ahead]
        positions[row, ahead - view.shift] = start + ahead
    return Batch(
        torch.from_numpy(inputs),
        torch.from_numpy(targets),
        torch.from_numpy(positions),
        torch.from_numpy(segments),
        view,
        stream.name,
    )


def _corrupted(
    start: int, tokens: np.ndarray, hidden: np.ndarray, view: View, token_ids: TokenIds, vocab_size: int
) -> np.ndarray:
    """The tokens with the hidden ones replaced as the view's noise says."""
    seen = np.where(hidden, token_ids.mask, tokens)
    if view.keep_share or view.random_share:
        stop = start + len(tokens)
        kind = masking.corruption(start, stop, view)
        seen = np.where(hidden & (kind == 1), tokens, seen)
        replacements = masking.random_tokens(start, stop, view, len(token_ids.special), vocab_size)
        seen = np.where(hidden & (kind == 2), replacements, seen)
    return seen
