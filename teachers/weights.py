"""Weights of an ensemble's members that fit held-out text best, and how sure they are.

A mixture is fitted by expectation-maximisation, a product by L-BFGS with its temperature. Intervals come from a
bootstrap over documents, because the tokens of a document are not independent.
Axes: M members, N targets, V vocabulary, D documents, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from corpora.errors import InputRefused
from teachers.signal import row_chunks

FIT_BYTES = 512 << 20  # of log-probabilities, for all members of a product together
RESAMPLES = 200
CHUNK_BYTES = 16 << 20  # of logits at once, for each member


@dataclass(frozen=True, kw_only=True)
class FittedWeights:
    """What a fit found. Intervals are None when there is one document alone: nothing can be resampled then."""

    weights: dict[str, float]  # adding up to 1
    temperature: float  # divides the weighted mean of a product's log-probabilities; of a mixture it is 1
    weight_intervals: dict[str, tuple[float, float]] | None
    inverse_temperature_interval: tuple[float, float] | None  # of 1 / temperature; None for a mixture
    targets: int  # that the fit has read
    documents: int  # that they are in


def fitted_mixture(
    names: Sequence[str], nats_MN: np.ndarray, documents_N: np.ndarray, *, confidence: float, seed: int
) -> FittedWeights:
    """The mixture that costs least on held-out targets: each one's nats under every member, and its document."""
    weights_M = fit_mixture(nats_MN)
    says = mixture_information(nats_MN, documents_N, weights_M)
    return _with_intervals(names, weights_M, says, confidence=confidence, seed=seed, tempered=False)


def fitted_product(
    names: Sequence[str],
    log_probs_MNV: Tensor,
    targets_N: Tensor,
    documents_N: np.ndarray,
    *,
    confidence: float,
    seed: int,
) -> FittedWeights:
    """The product that costs least on held-out targets: every member's distribution at each, its token and document.

    Raises InputRefused when no member knows more than that all tokens are equally likely.
    """
    weights_M = fit_product(log_probs_MNV, targets_N)
    if not weights_M.any():
        raise InputRefused(
            f"weights of {'+'.join(names)}: on the tune stream no member is better than a guess; train the teachers "
            "longer, or write weights: given"
        )
    says = product_information(log_probs_MNV, targets_N, documents_N, weights_M)
    return _with_intervals(names, weights_M, says, confidence=confidence, seed=seed, tempered=True)


def fit_mixture(nats_MN: np.ndarray, *, tolerance: float = 1e-9, max_iterations: int = 10_000) -> np.ndarray:
    """Weights [M] that maximise the mean log-likelihood of a mixture on held-out targets.

    `nats_MN` holds the cross-entropy of target n under member m. The likelihood is concave in the weights, so
    expectation-maximisation, w_m <- w_m g_m with g_m = mean over n of p_mn / sum_k w_k p_kn, climbs to its one maximum
    (Dempster et al. 1977). g is the gradient, and by concavity no weights gain more than max(g) - 1 nats per target:
    stops when that is below `tolerance`. Members too alike to be told apart end at `max_iterations`, at most
    log(M) / max_iterations nats below the maximum.
    """
    ratios_MN = _ratios(nats_MN)
    weights_M = np.full(len(nats_MN), 1 / len(nats_MN))
    for _ in range(max_iterations):
        gradient_M = (ratios_MN / (weights_M @ ratios_MN)).mean(1)
        if gradient_M.max() - 1 < tolerance:
            break
        weights_M = weights_M * gradient_M
    return weights_M / weights_M.sum()


def fit_product(log_probs_MNV: Tensor, targets_N: Tensor) -> np.ndarray:
    """Weights [M], not negative, that minimise the cross-entropy of p ~ exp(sum_m w_m log p_m) on held-out targets.

    They need not add up to 1: their sum is the inverse of the pool's temperature. The cross-entropy, the mean of
    log sum_v exp(sum_m w_m log p_mv) - sum_m w_m log p_m[target], is convex in w, with the gradient E_p[log p_m] -
    log p_m[target]; L-BFGS-B (Byrd et al. 1995) walks down to its minimum.
    """
    from scipy.optimize import minimize  # slow to import, and most runs fit nothing

    def cost(weights_M: np.ndarray) -> tuple[float, np.ndarray]:
        total, gradient_M = 0.0, np.zeros(len(weights_M))
        for rows in _chunks(log_probs_MNV):
            chunk = _ProductChunk(log_probs_MNV[:, rows], targets_N[rows], weights_M)
            total += float(chunk.nats_N.sum(dtype=torch.float64))
            gradient_M += chunk.gradient_MN.sum(1, dtype=torch.float64).numpy()
        return total / len(targets_N), gradient_M / len(targets_N)

    members = len(log_probs_MNV)
    found = minimize(
        cost,
        np.full(members, 1 / members),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * members,
        options={"ftol": 1e-9, "gtol": 1e-5},  # what sums in fp32 can tell
    )
    return found.x


class Information(NamedTuple):
    """What each document says about the weights near a fit: sums over its targets of the cost's two derivatives."""

    gradients_DM: np.ndarray
    hessians_DMM: np.ndarray
    targets_D: np.ndarray


def mixture_information(nats_MN: np.ndarray, documents_N: np.ndarray, weights_M: np.ndarray) -> Information:
    """Of the cost sum_m w_m - log sum_m w_m p_m.

    Over all w >= 0 it has its minimum where the weights add up to 1, so that the constraint need not be carried along
    (Kim et al., arXiv 1806.01412).
    """
    _, places_N, targets_D = np.unique(documents_N, return_inverse=True, return_counts=True)
    ratios_MN = _ratios(nats_MN)
    shares_MN = ratios_MN / (weights_M @ ratios_MN)

    def by_document(values_N: np.ndarray) -> np.ndarray:
        return np.bincount(places_N, weights=values_N, minlength=len(targets_D))

    gradients_MD = np.stack([targets_D - by_document(shares_N) for shares_N in shares_MN])
    hessians_MMD = np.stack([[by_document(one_N * other_N) for other_N in shares_MN] for one_N in shares_MN])
    return Information(gradients_MD.T, np.moveaxis(hessians_MMD, 2, 0), targets_D)


def product_information(
    log_probs_MNV: Tensor, targets_N: Tensor, documents_N: np.ndarray, weights_M: np.ndarray
) -> Information:
    """Of the cost in `fit_product`; its second derivative is the covariance of the members' log-probabilities."""
    _, places_N, targets_D = np.unique(documents_N, return_inverse=True, return_counts=True)
    members, places_N = len(log_probs_MNV), torch.from_numpy(places_N)
    gradients_DM = torch.zeros(len(targets_D), members, dtype=torch.float64)
    hessians_DMM = torch.zeros(len(targets_D), members, members, dtype=torch.float64)
    for rows in _chunks(log_probs_MNV):
        chunk = _ProductChunk(log_probs_MNV[:, rows], targets_N[rows], weights_M)
        gradients_DM.index_add_(0, places_N[rows], chunk.gradient_MN.T.double())
        hessians_DMM.index_add_(0, places_N[rows], chunk.covariance_NMM().double())
    return Information(gradients_DM.numpy(), hessians_DMM.numpy(), targets_D)


def resampled_weights(weights_M: np.ndarray, says: Information, *, resamples: int, seed: int) -> np.ndarray:
    """The fit to as many documents drawn with replacement, again and again: [R, M], sums left free.

    Each is one Newton step from the fit to all documents, kept at w >= 0: such a step is as near to a refit as the
    bootstrap is to the truth (Davidson and MacKinnon 1999, "Bootstrap testing in nonlinear models"), and no resample
    reads a target again. Where the members are so alike that documents say nothing, weights stay as they were fitted.
    """
    counts_RD = np.random.default_rng(seed).multinomial(
        len(says.targets_D), np.full(len(says.targets_D), 1 / len(says.targets_D)), size=resamples
    )
    targets_R = counts_RD @ says.targets_D
    gradients_RM = counts_RD @ says.gradients_DM / targets_R[:, None]
    hessians_RMM = np.tensordot(counts_RD, says.hessians_DMM, 1) / targets_R[:, None, None]
    steps = zip(gradients_RM, hessians_RMM, strict=True)
    return np.stack([_newton_step(weights_M, gradient_M, hessian_MM) for gradient_M, hessian_MM in steps])


def _newton_step(weights_M: np.ndarray, gradient_M: np.ndarray, hessian_MM: np.ndarray) -> np.ndarray:
    """Where a cost's parabola at the weights is lowest among w >= 0: a problem of non-negative least squares."""
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    # twins make it singular: their difference then moves by no more than rounding
    ridge = 1e-6 * np.trace(hessian_MM) / len(weights_M)
    lower_MM = np.linalg.cholesky(hessian_MM + ridge * np.eye(len(weights_M)))
    # g (w - w0) + (w - w0)' L L' (w - w0) / 2 is |L' w - (L' w0 - L^-1 g)|^2 / 2 and a constant
    wanted_M = lower_MM.T @ weights_M - solve_triangular(lower_MM, gradient_M, lower=True)
    return nnls(lower_MM.T, wanted_M)[0]


def _with_intervals(
    names: Sequence[str], weights_M: np.ndarray, says: Information, *, confidence: float, seed: int, tempered: bool
) -> FittedWeights:
    """Percentile intervals around a fit."""
    total, documents = weights_M.sum(), len(says.targets_D)
    intervals, of_total = None, None
    if documents > 1:
        resampled_RM = resampled_weights(weights_M, says, resamples=RESAMPLES, seed=seed)
        totals_R = resampled_RM.sum(1)
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        low_M, high_M = np.quantile(resampled_RM / totals_R[:, None], ends, axis=0).tolist()
        intervals = dict(zip(names, zip(low_M, high_M, strict=True), strict=True))
        of_total = tuple(np.quantile(totals_R, ends).tolist())
    return FittedWeights(
        weights=dict(zip(names, (weights_M / total).tolist(), strict=True)),
        temperature=float(1 / total) if tempered else 1.0,
        weight_intervals=intervals,
        inverse_temperature_interval=of_total if tempered else None,
        targets=int(says.targets_D.sum()),
        documents=documents,
    )


class _ProductChunk:
    """A product over some targets: what each costs, and the derivatives in the weights."""

    def __init__(self, log_probs_MNV: Tensor, targets_N: Tensor, weights_M: np.ndarray) -> None:
        weights = torch.from_numpy(weights_M).to(log_probs_MNV.dtype)
        pooled_NV = torch.tensordot(weights, log_probs_MNV, 1).log_softmax(-1)
        targets_N1 = targets_N[:, None]
        self.nats_N = -pooled_NV.gather(1, targets_N1)[:, 0]
        self._log_probs_MNV, self._probs_NV = log_probs_MNV, pooled_NV.exp()
        self._mean_MN = torch.einsum("nv,mnv->mn", self._probs_NV, log_probs_MNV)
        self.gradient_MN = self._mean_MN - log_probs_MNV.gather(2, targets_N1.expand(len(weights), -1, 1))[:, :, 0]

    def covariance_NMM(self) -> Tensor:
        """Of the members' log-probabilities under the product, at every target."""
        scaled_MNV = (self._log_probs_MNV - self._mean_MN[:, :, None]) * self._probs_NV.sqrt()
        return torch.einsum("anv,bnv->nab", scaled_MNV, scaled_MNV)


def _chunks(log_probs_MNV: Tensor) -> list[slice]:
    return row_chunks(log_probs_MNV.shape[1], log_probs_MNV.shape[2], CHUNK_BYTES)


def _ratios(nats_MN: np.ndarray) -> np.ndarray:
    """Every member's probability of a target, divided by the best member's so that the largest is 1."""
    assert np.isfinite(nats_MN).all(), "caches refuse teachers that are not finite"
    return np.exp(nats_MN.min(0) - nats_MN)
