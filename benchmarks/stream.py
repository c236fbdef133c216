"""A model on a test stream: what each target cost in nats, document by document.

Axes: N targets, D documents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from benchmarks.stats import GainKept, gain_kept
from corpora.batch import Objective
from corpora.errors import Diverged


@dataclass(frozen=True)
class StreamResult:
    """Costs of the targets of one view, in the order of their positions.

    `positions_N`: int64, strictly increasing positions of the targets in the stream. `nats_N`: float32, minus the
    log-probability of each. `offsets_D1`: int64 [D + 1], where each document begins, and the end of the stream.
    `bytes_D`: int64, UTF-8 bytes of each document's text.
    """

    objective: Objective
    positions_N: np.ndarray
    nats_N: np.ndarray
    offsets_D1: np.ndarray
    bytes_D: np.ndarray

    @property
    def sums_D(self) -> np.ndarray:
        """Nats of each document, float64."""
        return np.bincount(self._document_N, weights=self.nats_N.astype(np.float64), minlength=len(self.bytes_D))

    @property
    def counts_D(self) -> np.ndarray:
        """Targets of each document, int64."""
        return np.bincount(self._document_N, minlength=len(self.bytes_D))

    @property
    def cross_entropy(self) -> float:
        """Nats per target. Causal and masked ones answer different questions and are never compared."""
        return float(self.nats_N.sum(dtype=np.float64) / len(self.nats_N))

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of text: total nats / ln 2 / bytes, comparable across tokenizers; None for masked views.

        It counts the documents whose every token after the begin token was a target: of the others, bytes would be
        divided by that nobody predicted. None when there is no such document.
        """
        if self.objective != "causal":
            return None
        # the begin token has a position and is never a target (house contract 1)
        complete_D = (self.counts_D == np.diff(self.offsets_D1) - 1) & (self.bytes_D > 0)
        if not complete_D.any():
            return None
        return float(self.sums_D[complete_D].sum() / math.log(2) / self.bytes_D[complete_D].sum())

    @property
    def _document_N(self) -> np.ndarray:
        """Number of the document of each target."""
        return np.searchsorted(self.offsets_D1, self.positions_N, side="right") - 1


def stream_result(
    objective: Objective, positions_N: np.ndarray, nats_N: np.ndarray, *, offsets_D1: np.ndarray, bytes_D: np.ndarray
) -> StreamResult:
    """A result from targets in any order; fields and units as in StreamResult.

    Raises Diverged when a target's cost is not finite, ValueError when there is no target, when a position occurs
    twice, and when positions, offsets and bytes do not belong together.
    """
    order_N = np.argsort(positions_N, kind="stable")
    result = StreamResult(
        objective,
        np.asarray(positions_N, np.int64)[order_N],
        np.asarray(nats_N, np.float32)[order_N],
        np.asarray(offsets_D1, np.int64),
        np.asarray(bytes_D, np.int64),
    )
    if len(result.positions_N) == 0:
        raise ValueError("stream: no target was scored")
    if (np.diff(result.positions_N) <= 0).any():
        raise ValueError("stream: a target position occurs twice")
    if len(result.bytes_D) != len(result.offsets_D1) - 1:
        raise ValueError(f"stream: {len(result.bytes_D)} documents' bytes, {len(result.offsets_D1)} offsets")
    first, last = result.positions_N[0], result.positions_N[-1]
    if first < result.offsets_D1[0] or last >= result.offsets_D1[-1]:
        raise ValueError(f"stream: targets at {first} to {last}, the stream ends at {result.offsets_D1[-1]}")
    if not np.isfinite(result.nats_N).all():
        where = result.positions_N[np.argmin(np.isfinite(result.nats_N))]
        raise Diverged(f"stream, position {where}: cross-entropy is not finite; the candidate is invalid")
    return result


def stream_gain_kept(
    control: StreamResult, student: StreamResult, pool: StreamResult, *, confidence: float, resamples: int, seed: int
) -> GainKept:
    """Gain kept of a student, all three models on the same targets of the same view; else ValueError."""
    for other in (student, pool):
        if other.objective != control.objective or not np.array_equal(other.positions_N, control.positions_N):
            raise ValueError("gain kept: control, student and pool were scored on different targets")
    return gain_kept(
        control.sums_D,
        student.sums_D,
        pool.sums_D,
        control.counts_D,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
