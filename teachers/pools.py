"""Pooling rules: how the distributions of several teachers become one.

Every rule starts from the members' logits at the temperature of the term: temperature comes before pooling. Axes: N
target rows, V vocabulary, M members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


def mixture(logits_MNV: Sequence[Tensor], weights_M: Sequence[float], exponent: float = 1.0) -> Tensor:
    """Log of the weighted mean of the members' probabilities; fp32 [N, V]."""
    weighted = (logits.log_softmax(-1) + math.log(weight) for logits, weight in _heard(logits_MNV, weights_M))
    return reduce(torch.logaddexp, weighted)


def mixture_probs(logits_MNV: Sequence[Tensor], weights_M: Sequence[float], exponent: float = 1.0) -> Tensor:
    """Weighted mean of the members' probabilities, where no logarithm of it is wanted; fp32 [N, V]."""
    pairs = _heard(logits_MNV, weights_M)
    total = _softmax_(pairs[0][0])
    if pairs[0][1] != 1.0:
        total *= pairs[0][1]
    for logits, weight in pairs[1:]:
        total.add_(_softmax_(logits), alpha=weight)
    return total


def product(logits_MNV: Sequence[Tensor], weights_M: Sequence[float], exponent: float = 0.0) -> Tensor:
    """Normalised weighted mean of the members' log-probabilities, which averaging logits gives; fp32 [N, V]."""
    return _weighted_sum(logits_MNV, weights_M).log_softmax(-1)


def product_probs(logits_MNV: Sequence[Tensor], weights_M: Sequence[float], exponent: float = 0.0) -> Tensor:
    """The probabilities of `product`; fp32 [N, V]."""
    return _softmax_(_weighted_sum(logits_MNV, weights_M))


def power(logits_MNV: Sequence[Tensor], weights_M: Sequence[float], exponent: float) -> Tensor:
    """Log of the normalised power mean (sum_m w_m p_m^r)^(1/r), r from 0 (product) to 1 (mixture); fp32 [N, V].

    Between the two, and nowhere else, a pool is sure to cost no more than its members do on average (arXiv 2603.04204).
    """
    if exponent == 0.0:
        return product(logits_MNV, weights_M)
    if exponent == 1.0:
        return mixture(logits_MNV, weights_M)
    weighted = (
        logits.log_softmax(-1) * exponent + math.log(weight) for logits, weight in _heard(logits_MNV, weights_M)
    )
    return (reduce(torch.logaddexp, weighted) / exponent).log_softmax(-1)


def power_probs(logits_MNV: Sequence[Tensor], weights_M: Sequence[float], exponent: float) -> Tensor:
    """The probabilities of `power`; fp32 [N, V]."""
    return power(logits_MNV, weights_M, exponent).exp()


Rule = Callable[[Sequence[Tensor], Sequence[float], float], Tensor]


@dataclass(frozen=True)
class Pooling:
    """A pooling rule: of the members' logits, their weights and the exponent of the power mean.

    `probs` is for training, where memory and time count: it may write over the logits.
    """

    log_probs: Rule
    probs: Rule
    sampled: bool  # whether pooling unbiased samples of the members gives an unbiased sample of the pool


POOLS: dict[str, Pooling] = {
    "mixture": Pooling(mixture, mixture_probs, sampled=True),
    "product": Pooling(product, product_probs, sampled=False),
    "power": Pooling(power, power_probs, sampled=False),
}


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights divided by their sum."""
    total = sum(weights)
    assert total > 0 and min(weights) >= 0, weights
    return tuple(weight / total for weight in weights)


def _heard(logits_MNV: Sequence[Tensor], weights_M: Sequence[float]) -> list[tuple[Tensor, float]]:
    """Members of weight 0 have no say, whatever they say."""
    return [(logits, weight) for logits, weight in zip(logits_MNV, weights_M, strict=True) if weight]


def _softmax_(logits_NV: Tensor) -> Tensor:
    """Probabilities in the place of the logits."""
    return torch.softmax(logits_NV, -1, out=logits_NV)


def _weighted_sum(logits_MNV: Sequence[Tensor], weights_M: Sequence[float]) -> Tensor:
    pairs = _heard(logits_MNV, weights_M)
    total = pairs[0][0] if pairs[0][1] == 1.0 else pairs[0][0] * pairs[0][1]
    for logits, weight in pairs[1:]:
        total = total + logits * weight
    return total
