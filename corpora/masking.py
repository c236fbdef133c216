"""Addressed, complementary masks: which positions a fold hides is a pure function of (mask seed, position).

Spans tile the stream; each belongs to one of `num_folds` folds; fold f hides exactly its spans. One round of all folds
hides every position once (house contract 2).
"""

from __future__ import annotations

import numpy as np

from corpora.addressed import address, hashes, uniforms
from corpora.batch import View

# spans end at multiples of this many positions, so that the masks of a range depend on its own blocks alone
BLOCK = 64


def span_starts(start: int, stop: int, view: View) -> np.ndarray:
    """First position of the span that each position of [start, stop) belongs to; int64.

    A span goes on with probability 1 - 1 / mean_span: its length is geometric, cut at blocks.
    """
    first = start - start % BLOCK
    positions = np.arange(first, stop, dtype=np.int64)
    begins = uniforms(address(view.mask_seed, "span"), positions) < 1.0 / view.mean_span
    begins |= positions % BLOCK == 0
    return np.maximum.accumulate(np.where(begins, positions, 0))[start - first :]


def folds(start: int, stop: int, view: View) -> np.ndarray:
    """Fold of each position of [start, stop); int64 in [0, num_folds)."""
    spans = span_starts(start, stop, view)
    return (hashes(address(view.mask_seed, "fold"), spans) % np.uint64(view.num_folds)).astype(np.int64)


def hidden(start: int, tokens: np.ndarray, view: View, special: tuple[int, ...]) -> np.ndarray:
    """Whether the view's fold hides each of the tokens that stand from `start` on; special tokens never are; bool."""
    return (folds(start, start + len(tokens), view) == view.fold) & ~np.isin(tokens, special)


def corruption(start: int, stop: int, view: View) -> np.ndarray:
    """What happens to a hidden position of [start, stop): 0 mask token, 1 kept as it is, 2 random token; int64."""
    draws = uniforms(address(view.mask_seed, "noise"), span_starts(start, stop, view))
    kept = draws < view.keep_share
    return np.where(kept, 1, np.where(draws < view.keep_share + view.random_share, 2, 0))


def random_tokens(start: int, stop: int, view: View, num_special: int, vocab_size: int) -> np.ndarray:
    """A random ordinary token for each position of [start, stop); int64."""
    places = np.arange(start, stop, dtype=np.int64)
    drawn = hashes(address(view.mask_seed, "random token"), places) % np.uint64(vocab_size - num_special)
    return drawn.astype(np.int64) + num_special
