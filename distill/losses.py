"""Losses: one value for each target, in nats; `objective` alone decides how they are weighted and averaged.

Axes: N target rows, V vocabulary, K kept tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from teachers.signal import Expanded, Kind


def cross_entropy(log_probs_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-log p(target), [N]."""
    return -log_probs_NV.gather(1, targets_N[:, None])[:, 0]


def forward_kl(log_probs_NV: Tensor, teacher: Expanded) -> Tensor:
    """KL(teacher, student) of each row, [N] (Hinton et al., arXiv 1503.02531, without the factor T^2)."""
    probs_NV = teacher.log_weights_NK.exp()
    return -(probs_NV * log_probs_NV).sum(-1) - teacher.entropy_N


@dataclass(frozen=True)
class DistillationLoss:
    """A divergence from a teacher's distribution, and the kinds of signal it is right for."""

    divergence: Callable[[Tensor, Expanded], Tensor]
    accepts: frozenset[Kind]


# cross_entropy needs no teacher and is a loss by itself
DISTILLATION_LOSSES = {"forward_kl": DistillationLoss(forward_kl, frozenset({"dense"}))}
