"""Ages of acquisition from curves: when a candidate, and when half of the children, have a word.

A candidate has a word where its surprisal has come half the way from chance to its lowest point. Two rules of what that
is stand side by side. `babylm2025` is what the challenge computed: its chance is log2(300,000) = 18.2, which is bits,
while its surprisals are nats; its lowest point is that of a single context; and its unbounded fit loses words whose
curve it does not converge on. `nats` mends these three: chance in nats, means over contexts, and a fit that looks
everywhere. (Later revisions of the challenge's scorer take the word's number of tokens times the logarithm of the size
of the vocabulary as chance, and means over contexts; they report 0 where p exceeds 0.1.)

Axes: K checkpoints, C contexts of a word, P points of a curve, G points of a grid.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

GUESSED_TYPES = 300_000  # the vocabulary over which the year spreads a guess
MIN_CHECKPOINTS = 4  # a sigmoid has four parameters
MIN_AGES = 3  # with a share of children, as in the year


def child_age(shares: Mapping[int, float] | None) -> float | str:
    """Months at which half of the children say a word, as the year fits them, or why there is none."""
    if shares is None:
        return "not in the file of children"
    if len(shares) < MIN_AGES:
        return f"fewer than {MIN_AGES} ages with a share of children"
    ages = np.array(sorted(shares), np.float64)
    start = (1.0, 0.1, float(ages.mean()), 0.0)
    bounds = ([0, 0, ages[0], -0.5], [2, 1, ages[-1], 0.5])
    return _crossing(_curve_fit(ages, np.array([shares[age] for age in sorted(shares)]), start, bounds), 0.5, ages)


def _age_babylm2025(log_seen_K: np.ndarray, surprisals_KC: np.ndarray, chance: float | None) -> float | str:
    """The year's age, log10(words seen + 1), or why there is none; its chance is the same for all words."""
    x_P, rising_P = np.repeat(log_seen_K, surprisals_KC.shape[1]), -surprisals_KC.ravel()
    threshold = -(math.log2(GUESSED_TYPES) + surprisals_KC.min()) / 2
    start = (float(np.ptp(rising_P)), 1.0, float(x_P.mean()), float(rising_P.min()))
    return _crossing(_curve_fit(x_P, rising_P, start), threshold, log_seen_K)


def _age_nats(log_seen_K: np.ndarray, surprisals_KC: np.ndarray, chance: float | None) -> float | str:
    """The age with chance in nats, from means over contexts."""
    means_K = surprisals_KC.mean(1)
    span = float(np.ptp(means_K))
    if span == 0:
        return "surprisal never changes"
    guessed = math.log(GUESSED_TYPES) if chance is None else chance
    threshold = (guessed + means_K.min()) / 2
    # risen from 0 to 1, so that one set of bounds serves all words
    risen_K = (means_K.max() - means_K) / span
    return _crossing(_best_sigmoid(log_seen_K, risen_K), (means_K.max() - threshold) / span, log_seen_K)


RULES: dict[str, Callable[[np.ndarray, np.ndarray, float | None], float | str]] = {
    "babylm2025": _age_babylm2025,
    "nats": _age_nats,
}


def sigmoid(x: np.ndarray, height: float, slope: float, middle: float, floor: float) -> np.ndarray:
    """height / (1 + exp(-slope (x - middle))) + floor."""
    from scipy.special import expit

    return height * expit(slope * (x - middle)) + floor


def _curve_fit(x_P: np.ndarray, y_P: np.ndarray, start: Sequence[float], bounds: Any = None) -> np.ndarray | None:
    """Parameters of a sigmoid by the year's settings; None where the fit does not converge."""
    from scipy.optimize import OptimizeWarning, curve_fit

    limits = {} if bounds is None else {"bounds": bounds}
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # an unbounded slope overflows on its way
        warnings.simplefilter("ignore", OptimizeWarning)  # about the covariance, which nobody reads
        try:
            return curve_fit(sigmoid, x_P, y_P, p0=start, maxfev=1000, **limits)[0]
        except RuntimeError:  # evaluations spent
            return None


def _best_sigmoid(x_K: np.ndarray, risen_K: np.ndarray) -> np.ndarray:
    """Least-squares parameters of a rise from 0 to 1, found from the best of many slopes and middles.

    Given these two, height and floor are a linear regression, so the whole plane is looked at.
    """
    from scipy.optimize import least_squares
    from scipy.special import expit

    low = np.array([0, 0, x_K[0] - 1, -10])  # of height, slope, middle and floor
    high = np.array([10, 100, x_K[-1] + 1, 1])
    slopes, middles = np.meshgrid(np.geomspace(0.5, 50, 24), np.linspace(low[2] + 0.01, high[2] - 0.01, 60))
    shapes_GK = expit(slopes.reshape(-1, 1) * (x_K - middles.reshape(-1, 1)))
    centred_GK, aim_K = shapes_GK - shapes_GK.mean(1, keepdims=True), risen_K - risen_K.mean()
    shared_G, square_G = centred_GK @ aim_K, (centred_GK**2).sum(1)
    heights_G = np.clip(shared_G / np.maximum(square_G, 1e-12), 0.01, 9.9)
    best = int(np.argmin(heights_G**2 * square_G - 2 * heights_G * shared_G))
    floor = float(np.clip(risen_K.mean() - heights_G[best] * shapes_GK[best].mean(), -9.9, 0.99))
    start = np.array([heights_G[best], slopes.flat[best], middles.flat[best], floor])
    return least_squares(lambda parameters: sigmoid(x_K, *parameters) - risen_K, start, bounds=(low, high)).x


def _crossing(parameters: np.ndarray | None, threshold: float, x_K: np.ndarray) -> float | str:
    """Where a rising sigmoid passes a threshold, or why it does not."""
    if parameters is None or not np.isfinite(parameters).all():
        return "no curve fits"
    height, slope, middle, floor = (float(parameter) for parameter in parameters)
    if height <= 0 or slope <= 0:
        return "the curve goes the wrong way"
    if threshold <= floor:
        return "beyond the threshold from the start"
    odds = height / (threshold - floor) - 1
    if odds <= 0:
        return "the threshold is never reached"
    age = middle - math.log(odds) / slope
    if not x_K[0] <= age <= x_K[-1]:
        return "the threshold is reached outside the measured range"
    return age
