"""What log-likelihoods come to beside people's data: a statistic with its interval, or why it has none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.stats import Interval, bootstrap_statistic
from corpora.errors import Diverged


class Estimate(NamedTuple):
    """A statistic of a candidate; `value` is None where it is undefined, and `reason` says why.

    `interval` is None too where the statistic is not defined in every resample.
    """

    value: float | None
    interval: Interval | None
    reason: str = ""


def estimate(
    value: float,
    samples: list[np.ndarray],
    statistic: Callable[..., np.ndarray],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Estimate:
    """A value with the interval of its statistic, whose samples are resampled together, where that is defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's about NaN, the value of a resample without one; looked for below
        interval = bootstrap_statistic(samples, statistic, confidence=confidence, resamples=resamples, seed=seed)
    if np.isfinite(interval).all():
        return Estimate(value, interval)
    return Estimate(value, None, "too few items for an interval")


def correlation(
    first_N: np.ndarray,
    second_N: np.ndarray,
    *,
    ranks: bool,
    names: tuple[str, str],
    confidence: float,
    resamples: int,
    seed: int,
) -> Estimate:
    """Pearson's correlation of two samples, or Spearman's with `ranks`, and an interval that resamples their pairs.

    Undefined, with a reason that says the `names` of the samples, for fewer than three pairs, and where one of the
    samples has but one value.
    """
    from scipy.stats import pearsonr, rankdata

    def coefficients(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
        if ranks:
            first, second = rankdata(first, axis=axis), rankdata(second, axis=axis)
        return np.asarray(pearsonr(first, second, axis=axis)[0])

    if len(first_N) < 3:
        return Estimate(None, None, f"{len(first_N)} pair(s) of {names[0]} and {names[1]}, at least 3 are needed")
    for sample, name in zip((first_N, second_N), names, strict=True):
        if (sample == sample[0]).all():
            return Estimate(None, None, f"the {name} of all {len(sample)} items is {sample[0]:g}")
    value = float(coefficients(first_N, second_N, -1))
    how = {"confidence": confidence, "resamples": resamples, "seed": seed}
    return estimate(value, [first_N, second_N], coefficients, **how)


def require_finite(log_likelihoods: np.ndarray, places: Sequence[str]) -> None:
    """Raise Diverged, naming the first place, unless there is one finite log-likelihood for each place."""
    assert len(log_likelihoods) == len(places), f"{len(log_likelihoods)} log-likelihoods of {len(places)} requests"
    finite = np.isfinite(log_likelihoods)
    if not finite.all():
        first = int(np.argmin(finite))
        raise Diverged(
            f"{places[first]}: log-likelihood {log_likelihoods[first]} ({int((~finite).sum())} of {len(places)} not "
            "finite); expected finite ones; the candidate is invalid, train it again with a lower learning rate"
        )
