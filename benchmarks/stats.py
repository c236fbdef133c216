"""How sure a number is: bootstrap intervals, and gain kept.

Intervals are percentile intervals with a given seed. Axes: N items, D documents, U paradigms, R resamples; the last
axis of what a statistic receives is the one it reduces, those before it are resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from corpora.errors import Diverged

# Values drawn at once: tens of megabytes whatever the size of the test set, and faster than more, which leave caches.
_DRAWN_AT_ONCE = 1_000_000


class Interval(NamedTuple):
    """Both ends of an interval, in the unit of the statistic."""

    low: float
    high: float


class GainKept(NamedTuple):
    """How much of the pool's advantage over the control a student has: 0 none, 1 all of it.

    `value` is None where it is undefined; `reason` says why, and is empty otherwise.
    """

    value: float | None
    interval: Interval | None
    reason: str = ""


def bootstrap_mean(values_N: np.ndarray, *, confidence: float, resamples: int, seed: int) -> Interval:
    """Interval of the mean of values, for instance of an accuracy over all items (values 0 and 1).

    When all values are equal the interval is that value. Raises ValueError when there is none, Diverged when one is
    not finite.
    """
    return bootstrap_macro_mean([values_N], confidence=confidence, resamples=resamples, seed=seed)


def bootstrap_macro_mean(samples: Sequence[np.ndarray], *, confidence: float, resamples: int, seed: int) -> Interval:
    """Interval of the mean over samples (phenomena) of their means; items are resampled within each sample.

    The samples themselves are kept: the interval speaks of other items of these phenomena, not of other phenomena.
    Errors as in `bootstrap_mean`.
    """

    floats, draw = [_checked(sample) for sample in samples], np.random.default_rng(seed)
    means_R = np.mean([_resampled_means(sample, resamples, draw) for sample in floats], axis=0)
    return _percentiles(means_R, confidence)


def bootstrap_hierarchical_mean(
    samples: Sequence[np.ndarray], *, confidence: float, resamples: int, seed: int
) -> Interval:
    """Interval of the mean over samples (paradigms) of their means, when the paradigms too might have been others.

    Paradigms are drawn with replacement, then the items of each one drawn (Davison and Hinkley 1997, section 3.8). That
    counts the noise of items twice, so it errs on the wide side where paradigms hardly differ; of fewer than about ten
    paradigms it is too narrow, as any bootstrap is. Raises ValueError with fewer than two, Diverged when a value is not
    finite.
    """
    floats = [_checked(sample) for sample in samples]
    if len(floats) < 2:
        raise ValueError(f"{len(floats)} paradigm(s) to resample; at least 2 are needed")
    draw = np.random.default_rng(seed)
    drawn_RU = draw.integers(len(floats), size=(resamples, len(floats)))
    sums_R = np.zeros(resamples)
    for paradigm, sample in enumerate(floats):
        # a resample that draws a paradigm twice has its items drawn twice
        resample_of_copy = np.nonzero(drawn_RU == paradigm)[0]
        means = _resampled_means(sample, len(resample_of_copy), draw)
        sums_R += np.bincount(resample_of_copy, weights=means, minlength=resamples)
    return _percentiles(sums_R / len(floats), confidence)


def bootstrap_statistic(
    samples: list[np.ndarray],
    statistic: Callable[..., np.ndarray],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    """Interval of a statistic of samples that are resampled together, called as `statistic(*samples, axis=-1)`."""
    from scipy.stats import bootstrap  # slow to import, and scoring alone does not need it

    # scipy wants two items; an item and its double have the distribution of the item for means and ratios of sums
    samples = [np.repeat(sample, 2) if len(sample) == 1 else sample for sample in samples]
    with np.errstate(invalid="ignore"):  # scipy also takes a standard error, which unbounded ratios do not have
        low, high = bootstrap(
            samples,
            statistic,
            n_resamples=resamples,
            batch=max(1, _DRAWN_AT_ONCE // sum(map(len, samples))),
            vectorized=True,
            paired=True,
            axis=-1,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return Interval(float(low), float(high))


def bootstrap_ratio(
    numerators_D: np.ndarray, denominators_D: np.ndarray, *, confidence: float, resamples: int, seed: int
) -> Interval:
    """Interval of sum(numerators) / sum(denominators), the pairs resampled together.

    An end is infinite where so many resamples have a sum of denominators that is not positive that the ratio has no
    bound there. Errors as in `bootstrap_mean`.
    """

    def ratio(numerators: np.ndarray, denominators: np.ndarray, axis: int) -> np.ndarray:
        numerator, denominator = numerators.sum(axis), denominators.sum(axis)
        unbounded = np.where(numerator < 0, -np.inf, np.inf)
        return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), unbounded)

    samples = [_checked(numerators_D), _checked(denominators_D)]
    return bootstrap_statistic(samples, ratio, confidence=confidence, resamples=resamples, seed=seed)


def gain_kept(
    control_D: np.ndarray,
    student_D: np.ndarray,
    pool_D: np.ndarray,
    counts_D: np.ndarray,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> GainKept:
    """(CE of the control - CE of the student) / (CE of the control - CE of the pool), over the same targets.

    The first three are the summed nats of each document, `counts_D` its number of targets. The interval resamples
    documents, all three models together. Undefined with fewer than two documents, and where the interval of the
    denominator (in nats per target) is not wholly above 0: then the pool is not known to be better than the control,
    and there is no gain to keep. Raises Diverged when a sum is not finite.
    """
    scored_D = np.asarray(counts_D) > 0  # a document without targets says nothing
    control_D, student_D, pool_D, counts_D = (
        _checked(np.asarray(values)[scored_D], allow_empty=True) for values in (control_D, student_D, pool_D, counts_D)
    )
    if len(counts_D) < 2:
        return GainKept(None, None, f"{len(counts_D)} test document(s) with targets, at least 2 are needed")
    how = {"confidence": confidence, "resamples": resamples, "seed": seed}
    advantage_D = control_D - pool_D
    advantage = bootstrap_ratio(advantage_D, counts_D, **how)
    if advantage.low <= 0:
        return GainKept(
            None,
            None,
            f"the pool is not known to be better than the control: {advantage_D.sum() / counts_D.sum():.4f} nats per "
            f"target, interval [{advantage.low:.4f}, {advantage.high:.4f}]",
        )
    # the number of targets cancels
    kept_D = control_D - student_D
    interval = bootstrap_ratio(kept_D, advantage_D, **how)
    bounded = bool(np.isfinite(interval).all())
    return GainKept(float(kept_D.sum() / advantage_D.sum()), interval if bounded else None)


def _resampled_means(sample: np.ndarray, number: int, draw: np.random.Generator) -> np.ndarray:
    """Means of so many resamples of a sample.

    Of n items that are 0 or 1, the sum of a resample is binomial: drawn at once, not as n items.
    """
    if np.isin(sample, (0, 1)).all():
        return draw.binomial(len(sample), sample.mean(), size=number) / len(sample)
    at_once = max(1, _DRAWN_AT_ONCE // len(sample))
    parts = [
        sample[draw.integers(len(sample), size=(min(at_once, number - start), len(sample)))].mean(1)
        for start in range(0, number, at_once)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _percentiles(statistics_R: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(statistics_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _checked(values: np.ndarray, *, allow_empty: bool = False) -> np.ndarray:
    """Values as float64, none missing and all finite."""
    floats = np.asarray(values, np.float64)
    if floats.size == 0 and not allow_empty:
        raise ValueError("no value to resample")
    if not np.isfinite(floats).all():
        raise Diverged(
            f"statistics: {int((~np.isfinite(floats)).sum())} of {floats.size} values not finite; expected numbers; "
            "the candidate is invalid"
        )
    return floats
