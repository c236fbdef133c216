"""Mixture weights that fit the tune stream best, by expectation-maximisation."""

from __future__ import annotations

import numpy as np


def fit_mixture(nats_MN: np.ndarray, *, tolerance: float = 1e-10, max_iterations: int = 10_000) -> np.ndarray:
    """Weights [M] that maximise the mean log-likelihood of a mixture on held-out targets.

    `nats_MN` holds the cross-entropy of target n under member m. The likelihood is concave in the weights, so
    expectation-maximisation, w_m <- mean over n of w_m p_mn / sum_k w_k p_kn, climbs to its one maximum
    (Dempster et al. 1977). Stops when an iteration gains less than `tolerance` nats per target.
    """
    assert np.isfinite(nats_MN).all(), "caches refuse teachers that are not finite"
    # divided by the best member's probability, so that the largest ratio of a target is 1
    ratios_MN = np.exp(nats_MN.min(0) - nats_MN)
    weights_M = np.full(len(nats_MN), 1 / len(nats_MN))
    gained, before = np.inf, -np.inf
    for _ in range(max_iterations):
        mixed_N = weights_M @ ratios_MN
        likelihood = np.log(mixed_N).mean()
        gained, before = likelihood - before, likelihood
        if gained < tolerance:
            break
        weights_M = weights_M * (ratios_MN / mixed_N).mean(1)
    return weights_M / weights_M.sum()
