"""What teachers say about the targets of a batch, in the one form that losses read (house contract 4).

Axes: N target rows (row by row of the batch), D features, V vocabulary, K kept tokens, M members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from students.head import Head

Kind = Literal["dense", "truncated", "sampled"]


@dataclass(frozen=True)
class Expanded:
    """A teacher distribution over each of some target rows, at one temperature.

    `weights_NK` and their logs are probabilities of the tokens `ids_NK` (None: every token of the vocabulary, K = V),
    `log_outside_N` the log of the mass of all other tokens (None: there is none), `entropy_N` the entropy in nats.
    """

    weights_NK: Tensor
    log_weights_NK: Tensor
    ids_NK: Tensor | None
    log_outside_N: Tensor | None
    entropy_N: Tensor
    kind: Kind


@dataclass(frozen=True)
class MemberSignal:
    """One teacher's answer: a feature vector for each target row, and the head that makes logits of it."""

    features_ND: Tensor
    head: Head

    def logits(self, rows: slice) -> Tensor:
        """Logits of some target rows, fp32 [N, V]; under autocast the product that makes them is rounded to bf16."""
        return self.head.logits(self.features_ND[rows].to(self.head.weight_VD.dtype))


def mixture(logits_MNV: Sequence[Tensor], weights_M: Sequence[float]) -> Tensor:
    """Log of the weighted mean of the members' probabilities; fp32 [N, V]."""
    weighted = (
        logits.log_softmax(-1) + math.log(weight)
        for logits, weight in zip(logits_MNV, weights_M, strict=True)
        if weight
    )
    return reduce(torch.logaddexp, weighted)


def product(logits_MNV: Sequence[Tensor], weights_M: Sequence[float]) -> Tensor:
    """Normalised weighted mean of the members' log-probabilities, which averaging logits gives; fp32 [N, V]."""
    pairs = [(logits, weight) for logits, weight in zip(logits_MNV, weights_M, strict=True) if weight]
    total = pairs[0][0] * pairs[0][1]
    for logits, weight in pairs[1:]:
        total = total + logits * weight
    return total.log_softmax(-1)


POOLS: dict[str, Callable[[Sequence[Tensor], Sequence[float]], Tensor]] = {"mixture": mixture, "product": product}


@dataclass(frozen=True)
class Signal:
    """The members' answers and how they are pooled. Weights are not negative and add up to 1."""

    members: tuple[MemberSignal, ...]
    weights: tuple[float, ...]
    pool: str = "mixture"

    def pooled_log_probs(self, rows: slice, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of the pool, fp32 [N, V]; every member's logits are divided by the temperature first."""
        logits = [member.logits(rows) for member in self.members]
        if temperature != 1.0:
            logits = [logits_NV / temperature for logits_NV in logits]
        return POOLS[self.pool](logits, self.weights)

    def expand(self, rows: slice, temperature: float = 1.0) -> Expanded:
        """The pool's distribution over some target rows, without gradient."""
        with torch.no_grad():
            log_probs_NV = self.pooled_log_probs(rows, temperature)
            probs_NV = log_probs_NV.exp()
            # finite logits have finite log-probabilities, so nothing here is 0 * -inf
            entropy_N = -(probs_NV * log_probs_NV).sum(-1)
        return Expanded(probs_NV, log_probs_NV, None, None, entropy_N, "dense")


def row_chunks(rows: int, vocab_size: int, chunk_bytes: int, *, at_least: int = 1) -> list[slice]:
    """Consecutive parts of so many target rows whose fp32 logits take at most `chunk_bytes`; at least one part.

    A part has no fewer than `at_least` rows, whatever they take.
    """
    size = max(chunk_bytes // (4 * vocab_size), at_least)
    return [slice(first, min(first + size, rows)) for first in range(0, max(rows, 1), size)]


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights divided by their sum."""
    total = sum(weights)
    assert total > 0 and min(weights) >= 0, weights
    return tuple(weight / total for weight in weights)
