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
    return -(teacher.weights_NK * log_probs_NV).sum(-1) - teacher.entropy_N


def forward_kl_gradient(probs_NV: Tensor, teacher: Expanded) -> Tensor:
    """Gradient of `forward_kl` in the student's logits: student - teacher, [N, V]."""
    return probs_NV - teacher.weights_NK


@dataclass(frozen=True)
class DistillationLoss:
    """A divergence from a teacher's distribution, its gradient, and the kinds of signal it is right for."""

    divergence: Callable[[Tensor, Expanded], Tensor]  # of the student's log-probabilities
    gradient: Callable[[Tensor, Expanded], Tensor]  # of the student's probabilities; in the logits
    accepts: frozenset[Kind]


# cross_entropy needs no teacher and is a loss by itself
DISTILLATION_LOSSES = {"forward_kl": DistillationLoss(forward_kl, forward_kl_gradient, frozenset({"dense"}))}
