"""Losses: one value for each target, divergences in nats; `objective` alone decides how they are weighted.

A distillation loss is a plain function of the student's log-probabilities, and beside it stands its slope: the gradient
in those log-probabilities s = dL / d log q, each taken as free. Log-probabilities are not free; through the softmax the
gradient in the logits is s - q sum(s). Axes: N target rows, V vocabulary, K kept tokens (dense: K = V), D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from distill.config import TermConfig
from teachers.signal import Expanded, Kind

Measure = Callable[[Tensor, Expanded, TermConfig], Tensor]


def cross_entropy(log_probs_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-log p(target), [N]."""
    return -log_probs_NV.gather(1, targets_N[:, None])[:, 0]


def smoothed_cross_entropy(log_probs_NV: Tensor, targets_N: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy from a target that shares out `smoothing` over the vocabulary (arXiv 1512.00567, eq. 3), [N]."""
    return (1 - smoothing) * cross_entropy(log_probs_NV, targets_N) - smoothing * log_probs_NV.mean(-1)


def z_loss(log_normaliser_N: Tensor) -> Tensor:
    """log(Z)^2 of the softmax's normaliser Z, which keeps logits from drifting (arXiv 2204.02311, section 5), [N]."""
    return log_normaliser_N**2


# divergences: value [N] and slope [N, K] from log_probs_NK, both sides at the temperature, without the factor T^2


def forward_kl(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    """KL(teacher, student) (Hinton et al., arXiv 1503.02531)."""
    assert teacher.entropy_N is not None
    return -(teacher.weights_NK * log_probs_NK).sum(-1) - teacher.entropy_N


def forward_kl_slope(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    return -teacher.weights_NK


def reverse_kl(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    """KL(student, teacher) (MiniLLM, arXiv 2306.08543)."""
    return (log_probs_NK.exp() * (log_probs_NK - _log_weights(teacher))).sum(-1)


def reverse_kl_slope(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    # q (log q/p + 1); the 1 is the same for all tokens and vanishes through the softmax
    return log_probs_NK.exp() * (log_probs_NK - _log_weights(teacher))


def jensen_shannon(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    """beta KL(p, m) + (1 - beta) KL(q, m) with m = beta p + (1 - beta) q (GKD, arXiv 2306.13649, eq. 1)."""
    log_p, log_q, beta = _log_weights(teacher), log_probs_NK, term.beta
    log_m = _log_blend(log_p, log_q, beta)
    return (beta * teacher.weights_NK * (log_p - log_m) + (1 - beta) * log_q.exp() * (log_q - log_m)).sum(-1)


def jensen_shannon_slope(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    # the parts by way of m add up to a constant, as sum(m) does
    log_m = _log_blend(_log_weights(teacher), log_probs_NK, term.beta)
    return (1 - term.beta) * log_probs_NK.exp() * (log_probs_NK - log_m)


def total_variation(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    """Half the sum of |p - q|."""
    return 0.5 * (teacher.weights_NK - log_probs_NK.exp()).abs().sum(-1)


def total_variation_slope(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    probs_NK = log_probs_NK.exp()
    return 0.5 * probs_NK * (probs_NK - teacher.weights_NK).sign()


def skew_forward_kl(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    """KL(p, skew p + (1 - skew) q) (DistiLLM, arXiv 2402.03898, eq. 4)."""
    log_p = _log_weights(teacher)
    return (teacher.weights_NK * (log_p - _log_blend(log_p, log_probs_NK, term.skew))).sum(-1)


def skew_forward_kl_slope(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    log_m = _log_blend(_log_weights(teacher), log_probs_NK, term.skew)
    return -(1 - term.skew) * teacher.weights_NK * (log_probs_NK - log_m).exp()


def skew_reverse_kl(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    """KL(q, (1 - skew) p + skew q) (DistiLLM, arXiv 2402.03898, eq. 5)."""
    log_m = _log_blend(_log_weights(teacher), log_probs_NK, 1 - term.skew)
    return (log_probs_NK.exp() * (log_probs_NK - log_m)).sum(-1)


def skew_reverse_kl_slope(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    ratio = log_probs_NK - _log_blend(_log_weights(teacher), log_probs_NK, 1 - term.skew)
    return log_probs_NK.exp() * (ratio + 1 - term.skew * ratio.exp())


def logit_mse(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    """Mean squared difference of the logits (arXiv 2105.08919), each side's less its mean, unseen by the softmax."""
    return _centred_difference(log_probs_NK, teacher).square().mean(-1)


def logit_mse_slope(log_probs_NK: Tensor, teacher: Expanded, term: TermConfig) -> Tensor:
    return _centred_difference(log_probs_NK, teacher) * (2 / log_probs_NK.shape[-1])


@dataclass(frozen=True)
class Divergence:
    """A loss from a teacher's distribution, its slope, and the kinds of signal it is right for."""

    value: Measure
    slope: Measure
    accepts: frozenset[Kind]
    needs_log_weights: bool = True  # logs of the teacher's probabilities


_EXACT: frozenset[Kind] = frozenset({"dense"})
_COARSE: frozenset[Kind] = frozenset({"dense", "truncated"})  # a divergence between coarser events is one as well
_LINEAR: frozenset[Kind] = frozenset({"dense", "truncated", "sampled"})  # linear in the target: unbiased from draws

DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(forward_kl, forward_kl_slope, _LINEAR, needs_log_weights=False),
    "reverse_kl": Divergence(reverse_kl, reverse_kl_slope, _COARSE),
    "jensen_shannon": Divergence(jensen_shannon, jensen_shannon_slope, _COARSE),
    "total_variation": Divergence(total_variation, total_variation_slope, _COARSE, needs_log_weights=False),
    "skew_forward_kl": Divergence(skew_forward_kl, skew_forward_kl_slope, _COARSE),
    "skew_reverse_kl": Divergence(skew_reverse_kl, skew_reverse_kl_slope, _COARSE),
    "logit_mse": Divergence(logit_mse, logit_mse_slope, _EXACT),
}


def feature_mse(projected_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Mean squared difference of the projected feature vector and the teacher's (FitNets, arXiv 1412.6550)."""
    return (projected_ND - teacher_ND).square().mean(-1)


def feature_cosine(projected_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """1 - cosine of the student's projected feature vector and the teacher's (DistilBERT, arXiv 1910.01108)."""
    return 1 - functional.cosine_similarity(projected_ND, teacher_ND, dim=-1)


# of feature vectors, one loss for each member; a learned projection takes the student's width to the teacher's
FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "feature_mse": feature_mse,
    "feature_cosine": feature_cosine,
}


def bucketed(log_probs_NV: Tensor, teacher: Expanded) -> tuple[Tensor, Expanded]:
    """Both sides with all tokens outside a truncated teacher's as one more: log q [N, K + 1], and the teacher."""
    assert teacher.ids_NK is not None and teacher.log_weights_NK is not None
    kept_NK = log_probs_NV.gather(1, teacher.ids_NK)
    log_p_NK = teacher.log_weights_NK
    if teacher.log_outside_N is not None:
        outside_N = log_probs_NV.scatter(1, teacher.ids_NK, -torch.inf).logsumexp(-1)
        kept_NK = torch.cat([kept_NK, outside_N[:, None]], 1)
        log_p_NK = torch.cat([log_p_NK, teacher.log_outside_N[:, None]], 1)
    probs_NK = log_p_NK.exp()
    coarse = replace(
        teacher,
        kind="dense",
        weights_NK=probs_NK,
        log_weights_NK=log_p_NK,
        ids_NK=None,
        log_outside_N=None,
        entropy_N=-(probs_NK * log_p_NK).sum(-1),
    )
    return kept_NK, coarse


def unbucketed(slope_NK: Tensor, bucketed_NK: Tensor, log_probs_NV: Tensor, teacher: Expanded) -> Tensor:
    """The slope of a bucketed loss in all log-probabilities [N, V]; tokens outside share their bucket's by q."""
    assert teacher.ids_NK is not None
    kept = teacher.ids_NK.shape[1]
    if teacher.log_outside_N is None:
        slope_NV = torch.zeros_like(log_probs_NV)
    else:
        slope_NV = (log_probs_NV - bucketed_NK[:, kept:]).exp() * slope_NK[:, kept:]
    return slope_NV.scatter_(1, teacher.ids_NK, slope_NK[:, :kept].to(slope_NV.dtype))


def _log_weights(teacher: Expanded) -> Tensor:
    assert teacher.log_weights_NK is not None, "the loss needs logs of the teacher's probabilities"
    return teacher.log_weights_NK


def _log_blend(log_p_NK: Tensor, log_q_NK: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q)."""
    if share == 0.0:
        return log_q_NK
    if share == 1.0:
        return log_p_NK
    return torch.logaddexp(log_p_NK + math.log(share), log_q_NK + math.log1p(-share))


def _centred_difference(log_probs_NK: Tensor, teacher: Expanded) -> Tensor:
    difference_NK = log_probs_NK - _log_weights(teacher)
    return difference_NK - difference_NK.mean(-1, keepdim=True)
