"""An n-gram model of our own token counts.

Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1999, Computer Speech and Language 13:359). Of order n,

    p_n(w | h) = max(a(hw) - D(a(hw)), 0) / a(h.) + left_over(h) p_{n-1}(w | h without its first token),

where a counts occurrences for the highest order and for n-grams that begin a document, and else different tokens
before; a(h.) sums over what follows h, left_over(h) is what the discounts D took, and a context that nothing follows
leaves everything. The unigrams leave their rest to the uniform distribution over all types but the special tokens.
Special tokens have probability 0: a begin token is context, and no n-gram reaches across it.

Axes: B rows, T positions in a row, V vocabulary, P positions of the stream, N predictions, C = order - 1 contexts of a
prediction (its last token, its last two, ...), G n-grams of one order, H contexts of one order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from corpora.errors import InputRefused
from corpora.stream import SHARD_TOKENS, Stream
from corpora.token_ids import TokenIds

# Discounts of counts 1, 2 and above where their estimates do not exist; KenLM's `--discount_fallback` has the same.
FALLBACK = (0.5, 1.0, 1.5)
UNKNOWN = -1  # the number of an n-gram that was never seen
_ROWS_AT_ONCE = 64  # distributions that are made together: at 16,000 types they stay in the processor's cache
_SORTED_AT_ONCE = 1 << 22  # positions: 250 MB, whatever the length of the stream


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order above 1, and what is known of each of their contexts.

    `keys_G`: int64, ascending; the number of the context among the n-grams one order below, times vocab_size, plus the
    token. Arrays over contexts hold one more entry at the end, where UNKNOWN points to: nothing follows it.
    """

    keys_G: np.ndarray
    counts_G: np.ndarray  # adjusted counts
    discounts: np.ndarray  # of the counts 0, 1, 2 and above
    first_H: np.ndarray  # where the n-grams of a context begin
    number_H: np.ndarray  # how many there are
    total_H: np.ndarray  # sum of their counts
    left_over_H: np.ndarray

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Numbers of n-grams by their keys, or UNKNOWN."""
        if len(self.keys_G) == 0:
            return np.full(keys.shape, UNKNOWN)
        places = np.minimum(np.searchsorted(self.keys_G, keys), len(self.keys_G) - 1)
        return np.where(self.keys_G[places] == keys, places, UNKNOWN)

    def discounted(self, numbers: np.ndarray) -> np.ndarray:
        """Counts of n-grams less their discounts, float64."""
        counts = self.counts_G[numbers]
        return counts - self.discounts[np.minimum(counts, 3)]


@dataclass(frozen=True)
class NgramModel:
    """The counts of one stream, and the distributions they give.

    `keys[n - 2]` holds the keys of the n-grams of order n as in `_Level`, `counts[n - 1]` their adjusted counts, uint32
    [G]; a unigram's number is its token.
    """

    order: int  # longest n-gram in tokens
    vocab_size: int
    special: tuple[int, ...]  # tokens of probability 0
    keys: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]

    @property
    def discounts(self) -> list[tuple[float, ...]]:
        """Of each order, for counts of 1, of 2 and above."""
        return [tuple(discounts_of(counts)[1:].tolist()) for counts in self.counts]

    @cached_property
    def unigrams_V(self) -> np.ndarray:
        """Probabilities without context, float64; 0 for special tokens."""
        counts_V, discounts = self.counts[0], discounts_of(self.counts[0])
        taken_V = discounts[np.minimum(counts_V, 3)]
        ordinary_V = np.ones(self.vocab_size)
        ordinary_V[list(self.special)] = 0
        return (counts_V - taken_V + taken_V.sum() * ordinary_V / ordinary_V.sum()) / counts_V.sum(dtype=np.int64)

    @cached_property
    def _higher(self) -> tuple[_Level, ...]:
        """The orders from 2 on."""
        return tuple(
            _level(keys_G, counts_G, len(contexts), self.vocab_size)
            for keys_G, counts_G, contexts in zip(self.keys, self.counts[1:], self.counts, strict=False)
        )

    def contexts(self, ids_BT: np.ndarray, segments_BT: np.ndarray) -> np.ndarray:
        """What stands before the token after each position: int64 [B, T, C], numbers of n-grams of 1, ..., C tokens.

        UNKNOWN where it was never seen, or begins before its row or segment. Raises InputRefused for a token that is
        not of this vocabulary.
        """
        if ids_BT.size and not 0 <= ids_BT.min() <= ids_BT.max() < self.vocab_size:
            raise InputRefused(
                f"n-grams: token ids {ids_BT.min()} to {ids_BT.max()}; expected 0 to {self.vocab_size - 1}; "
                "use the tokenizer of the corpus that was counted"
            )
        contexts_BTC = np.full((*ids_BT.shape, self.order - 1), UNKNOWN)
        if self.order > 1:
            contexts_BTC[..., 0] = ids_BT
        inside_BT = segments_BT[:, 1:] == segments_BT[:, :-1]
        for number, level in enumerate(self._higher[:-1], start=1):
            before_BT = np.where(inside_BT, contexts_BTC[:, :-1, number - 1], UNKNOWN)
            contexts_BTC[:, 1:, number] = level.find(before_BT * self.vocab_size + ids_BT[:, 1:])
        return contexts_BTC

    def probs(self, contexts_NC: np.ndarray) -> np.ndarray:
        """The distributions after some contexts, float32 [N, V]; each sums to 1."""
        # fp32 holds the smallest: below the highest order types are counted, so each order leaves about 1 / V or more
        probs_NV = np.empty((len(contexts_NC), self.vocab_size), np.float32)
        for first in range(0, len(contexts_NC), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            self._fill(probs_NV[rows], contexts_NC[rows])
        return probs_NV

    def token_log_probs(self, contexts_NC: np.ndarray, tokens_N: np.ndarray) -> np.ndarray:
        """Log-probabilities in nats of one token after each context, float64 [N]: `probs` where one is wanted."""
        shares = self._shares(contexts_NC)
        probs_N = shares[0] * self.unigrams_V[tokens_N]
        for level, contexts_N, share_N in zip(self._higher, contexts_NC.T, shares[1:], strict=True):
            numbers_N = level.find(contexts_N * self.vocab_size + tokens_N)
            seen_N = numbers_N != UNKNOWN
            own_N = level.discounted(numbers_N[seen_N]) / level.total_H[contexts_N[seen_N]]
            probs_N[seen_N] += share_N[seen_N] * own_N
        return np.log(probs_N, where=probs_N > 0, out=np.full(len(probs_N), -np.inf))

    def _shares(self, contexts_NC: np.ndarray) -> list[np.ndarray]:
        """How much of each prediction the orders 1, 2, ... decide with what follows in them: what the longer left."""
        shares = [np.ones(len(contexts_NC))]
        for level, contexts_N in zip(reversed(self._higher), contexts_NC.T[::-1], strict=True):
            shares.append(shares[-1] * level.left_over_H[contexts_N])
        return shares[::-1]

    def _fill(self, probs_NV: np.ndarray, contexts_NC: np.ndarray) -> None:
        """Write the distributions after some contexts: all types by the unigrams, then what each order has seen."""
        shares = self._shares(contexts_NC)
        np.multiply(shares[0][:, None].astype(np.float32), self.unigrams_V.astype(np.float32), out=probs_NV)
        flat = probs_NV.reshape(-1)
        rows_N = np.arange(len(contexts_NC))
        for level, contexts_N, share_N in zip(self._higher, contexts_NC.T, shares[1:], strict=True):
            number_N = level.number_H[contexts_N]
            row_F = np.repeat(rows_N, number_N)  # F: all that follows the contexts, row by row
            first_N = level.first_H[contexts_N] - (np.cumsum(number_N) - number_N)
            gram_F = first_N[row_F] + np.arange(len(row_F))
            scale_N = share_N / np.maximum(level.total_H[contexts_N], 1)
            # a key is its context's number * V + token
            place_F = level.keys_G[gram_F] + ((rows_N - contexts_N) * self.vocab_size)[row_F]
            flat[place_F] += (level.discounted(gram_F) * scale_N[row_F]).astype(np.float32)


def discounts_of(counts_G: np.ndarray) -> np.ndarray:
    """What is taken from the counts 0, 1, 2 and above, float64 [4]; no discount exceeds its count, all are above 0.

    Chen and Goodman 1999, equation 26: of t_k n-grams with count k, Y = t_1 / (t_1 + 2 t_2) and D_k = k - (k + 1) Y
    t_{k+1} / t_k. FALLBACK where a t_k is 0 or a D_k not above 0: text too small, or too regular, to estimate them.
    """
    times = np.bincount(np.minimum(counts_G, 5), minlength=6)[1:5].astype(np.float64)
    if times.all():
        k = np.arange(1, 4)
        discounts = k - (k + 1) * times[0] / (times[0] + 2 * times[1]) * times[1:] / times[:-1]
        if (discounts > 0).all():
            return np.array([0.0, *discounts])
    return np.array([0.0, *FALLBACK])


def count_ngrams(stream: Stream, order: int, *, vocab_size: int, token_ids: TokenIds | None = None) -> NgramModel:
    """Count the n-grams of up to `order` tokens in a stream.

    Memory at the peak: about 30 bytes a token, 12 for each n-gram (24 in the longest order), and 250 MB to sort them.
    Raises InputRefused for a stream without a token to predict, ValueError for an order below 1.
    """
    if order < 1:
        raise ValueError(f"n-grams of order {order}; expected at least 1")
    token_ids = token_ids or TokenIds()
    tokens_P = _all_tokens(stream)
    assert (tokens_P[stream.document_offsets[:-1]] == token_ids.begin).all(), "a document begins with a begin token"
    assert tokens_P.max(initial=0) < vocab_size and len(tokens_P) < 1 << 31, "tokens and n-grams have int32 numbers"
    predicted_P = ~np.isin(tokens_P, token_ids.special)
    if not predicted_P.any():
        raise InputRefused(f"n-grams: the stream '{stream.name}' holds no token to predict; add text")
    all_keys: list[np.ndarray] = []
    all_counts = [np.bincount(tokens_P[predicted_P], minlength=vocab_size).astype(np.uint32)]
    numbers_P = tokens_P  # of the n-gram that ends at a position; UNKNOWN where it would begin before its document
    for _ in range(1, order):
        # none ends at a special token, so that none goes on across it
        contexts_P = np.where(predicted_P[1:], numbers_P[:-1], UNKNOWN)
        keys_G, counts_G, shorter_G, numbers_P = _longer(contexts_P, numbers_P, tokens_P, vocab_size)
        # a shorter n-gram that nothing precedes begins a document, and keeps its occurrences
        preceding = np.bincount(shorter_G, minlength=len(all_counts[-1])).astype(np.uint32)
        all_counts[-1] = np.where(preceding > 0, preceding, all_counts[-1])
        all_keys.append(keys_G)
        all_counts.append(counts_G)
    return NgramModel(order, vocab_size, token_ids.special, tuple(all_keys), tuple(all_counts))


def _all_tokens(stream: Stream) -> np.ndarray:
    """Every token of a stream, int32."""
    tokens_P = np.empty(len(stream), np.int32)
    for start in range(0, len(stream), SHARD_TOKENS):
        stop = min(start + SHARD_TOKENS, len(stream))
        tokens_P[start:stop] = stream.tokens(start, stop)
    return tokens_P


def _longer(
    contexts_P: np.ndarray, numbers_P: np.ndarray, tokens_P: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The n-grams one order up: keys, occurrences, numbers without their first token; and which ends at each position.

    `contexts_P`: the number of the n-gram before each position from the second on, or UNKNOWN; `numbers_P`: of the one
    that ends at each. Keys sort by context, so parts of the contexts are sorted one after another.
    """
    longer_P = np.full(len(tokens_P), UNKNOWN, np.int32)
    all_keys, all_counts, all_shorter = [np.empty(0, np.int64)], [np.empty(0, np.uint32)], [np.empty(0, np.int32)]
    number = 0
    for first, stop in itertools.pairwise(_parts(contexts_P)):
        ends = np.flatnonzero((contexts_P >= first) & (contexts_P < stop)) + 1
        keys = contexts_P[ends - 1].astype(np.int64) * vocab_size + tokens_P[ends]
        keys_G, gram_of_ends, counts_G = np.unique(keys, return_inverse=True, return_counts=True)
        shorter_G = np.empty(len(keys_G), np.int32)
        shorter_G[gram_of_ends] = numbers_P[ends]
        longer_P[ends] = number + gram_of_ends
        number += len(keys_G)
        all_keys.append(keys_G)
        all_counts.append(counts_G.astype(np.uint32))
        all_shorter.append(shorter_G)
    return np.concatenate(all_keys), np.concatenate(all_counts), np.concatenate(all_shorter), longer_P


def _parts(contexts_P: np.ndarray) -> list[int]:
    """Borders between numbers of contexts, so that about _SORTED_AT_ONCE positions stand after those of each part."""
    ends = np.cumsum(np.bincount(contexts_P[contexts_P != UNKNOWN]))
    return [0, *(np.flatnonzero(np.diff(ends // _SORTED_AT_ONCE)) + 1).tolist(), len(ends)]


def _level(keys_G: np.ndarray, counts_G: np.ndarray, num_contexts: int, vocab_size: int) -> _Level:
    context_G = keys_G // vocab_size
    discounts = discounts_of(counts_G)
    number_H = np.bincount(context_G, minlength=num_contexts + 1)
    total_H = np.bincount(context_G, counts_G, minlength=num_contexts + 1)
    taken_H = np.bincount(context_G, discounts[np.minimum(counts_G, 3)], minlength=num_contexts + 1)
    left_over_H = np.divide(taken_H, total_H, out=np.ones(num_contexts + 1), where=total_H > 0)
    return _Level(keys_G, counts_G, discounts, np.cumsum(number_H) - number_H, number_H, total_H, left_over_H)
