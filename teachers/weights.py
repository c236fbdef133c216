"""Mixture weights that fit the tune stream best, by expectation-maximisation."""

from __future__ import annotations

import numpy as np


def fit_mixture(nats_MN: np.ndarray, *, tolerance: float = 1e-9, max_iterations: int = 10_000) -> np.ndarray:
    """Weights [M] that maximise the mean log-likelihood of a mixture on held-out targets.

    `nats_MN` holds the cross-entropy of target n under member m. The likelihood is concave in the weights, so
    expectation-maximisation, w_m <- w_m g_m with g_m = mean over n of p_mn / sum_k w_k p_kn, climbs to its one maximum
    (Dempster et al. 1977). g is the gradient, and by concavity no weights gain more than max(g) - 1 nats per target:
    stops when that is below `tolerance`. Members too alike to be told apart end at `max_iterations`, at most
    log(M) / max_iterations nats below the maximum.
    """
    assert np.isfinite(nats_MN).all(), "caches refuse teachers that are not finite"
    # divided by the best member's probability, so that the largest ratio of a target is 1
    ratios_MN = np.exp(nats_MN.min(0) - nats_MN)
    weights_M = np.full(len(nats_MN), 1 / len(nats_MN))
    for _ in range(max_iterations):
        gradient_M = (ratios_MN / (weights_M @ ratios_MN)).mean(1)
        if gradient_M.max() - 1 < tolerance:
            break
        weights_M = weights_M * gradient_M
    return weights_M / weights_M.sum()
