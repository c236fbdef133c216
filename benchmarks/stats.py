"""How sure a number is: bootstrap intervals, gain kept, and whether two systems differ on the same items.

Bootstrap intervals are percentile intervals with a given seed. Axes: N items, D documents, S seeds (training runs of
one system), U paradigms, R resamples; the last axis of what a statistic receives is the one it reduces, those before
it are resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from corpora.errors import Diverged

# Values drawn at once: tens of megabytes whatever the size of the test set, and faster than more, which leave caches.
_DRAWN_AT_ONCE = 1_000_000
POWER = 0.8  # with which a detectable difference would have been shown


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
    return _bootstrap(samples, ratio, paired=True, confidence=confidence, resamples=resamples, seed=seed)


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


@dataclass(frozen=True, kw_only=True)
class PairedEstimate:
    """A difference of macro accuracies, A - B, on the same items, and how far it may be off."""

    center: float  # of the interval: nearer to 0 than the observed difference, by the two added items
    variance: float  # all of it
    seed_variance: float  # the part that other seeds would bring
    degrees_of_freedom: float  # infinite with one seed each
    item_unit: float  # what items would bring if the systems differed on every one

    def interval(self, confidence: float) -> Interval:
        """The differences that the data do not speak against."""
        from scipy.stats import t

        half = float(t.ppf((1 + confidence) / 2, self.degrees_of_freedom)) * math.sqrt(self.variance)
        return Interval(max(-1.0, self.center - half), min(1.0, self.center + half))

    def p_value(self) -> float:
        """How often a difference at least so large arises when there is none; two-sided."""
        from scipy.stats import t

        return float(2 * t.sf(abs(self.center) / math.sqrt(self.variance), self.degrees_of_freedom))

    def detectable(self, alpha: float) -> float | None:
        """Minimum detectable effect: the true difference that would be shown at level alpha with a power of 80 %.

        (t of 1 - alpha/2 + t of 80 %) standard errors (Bloom 1995, Evaluation Review 19:547). A difference is never
        larger than the share of items on which systems differ, so one beyond that share brings its own variance along.
        None where not even a difference of 1 would be shown.
        """
        from scipy.stats import t

        errors = float(t.ppf(1 - alpha / 2, self.degrees_of_freedom) + t.ppf(POWER, self.degrees_of_freedom))
        smallest = max(errors * math.sqrt(self.variance), errors**2 * self.item_unit)
        return smallest if smallest <= 1 else None


def paired_estimate(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> PairedEstimate:
    """The difference of two systems' macro accuracies, with items and seeds as two sources of variation.

    `a` and `b` hold for each paradigm who won, bool [seeds of the system, items]; a system has the same seeds in all
    paradigms, the two systems share the items and nothing else, and have one seed each or several each.

    variance = variance of A's seeds / S_A + variance of B's seeds / S_B + variance of the items' differences, where a
    seed is one macro average, and an item's difference the mean over seeds of A's wins - that of B's. So the statistic
    center / sqrt(variance), squared, is min F' (Clark 1973, Journal of Verbal Learning and Verbal Behavior 12:335),
    with the seeds' part as Welch has it and degrees of freedom by Satterthwaite. It is right or conservative, its
    standard error at most sqrt(2) times too large, because what is neither the seed's nor the item's is counted in both
    parts. The multi-bootstrap over seeds and items (Sellam et al. 2021, arXiv 2106.16163) answers the same question for
    many seeds; of two or three it calls equal systems different up to three times too often.

    Two items are added before the items' part is taken, one that A wins alone and one that B does, shared equally by
    the paradigms: with one paradigm and one seed each this is the interval of Bonett and Price (2012, Journal of
    Educational and Behavioral Statistics 37:479), which keeps its confidence where few items, or none, tell systems
    apart.
    """
    added = 1 / len(a)  # of each of the two items, in each paradigm
    centers, item_parts, units = [], [], []
    for wins_a_SN, wins_b_SN in zip(a, b, strict=True):
        differences_N = wins_a_SN.mean(0) - wins_b_SN.mean(0)
        number = differences_N.size + 2 * added
        center = float(differences_N.sum()) / number
        second_moment = (float(differences_N @ differences_N) + 2 * added) / number
        centers.append(center)
        item_parts.append(((second_moment - center**2) / number / len(a) ** 2, number - 1))
        units.append(1 / number)
    seed_parts = [_seed_part(wins) for wins in (a, b) if len(wins[0]) > 1]
    variance = sum(part for part, _ in (*seed_parts, *item_parts))
    # Satterthwaite; with one seed each the normal distribution, as Bonett and Price have it
    spread = sum(part**2 / freedom for part, freedom in (*seed_parts, *item_parts))
    return PairedEstimate(
        center=sum(centers) / len(a),
        variance=variance,
        seed_variance=sum(part for part, _ in seed_parts),
        degrees_of_freedom=variance**2 / spread if seed_parts else math.inf,
        item_unit=sum(units) / len(a) ** 2,
    )


def mcnemar_p_value(a_only: int, b_only: int) -> float:
    """Exact McNemar test: two-sided binomial test of the items that one of two systems wins alone (McNemar 1947)."""
    from scipy.stats import binomtest

    return float(binomtest(a_only, a_only + b_only).pvalue) if a_only + b_only else 1.0


def sign_flip_p_value(a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, resamples: int, seed: int) -> float:
    """Paired permutation test of a difference of macro accuracies: A and B change places at random, item by item.

    `a` and `b` hold for each paradigm who won, bool [items]; two-sided. Flips of m items of one weight sum to a
    binomial number, so we draw that instead of m signs: the distribution that `scipy.stats.permutation_test` draws
    with `permutation_type="samples"`, a thousand times sooner. The observed sides are one of the permutations
    (Phipson and Smyth 2010), so p is at least 1 / (resamples + 1).
    """
    items_U = np.array([len(wins) for wins in a])
    a_only_U = np.array([(wins & ~others).sum() for wins, others in zip(a, b, strict=True)])
    b_only_U = np.array([(others & ~wins).sum() for wins, others in zip(a, b, strict=True)])
    observed = abs(float(((a_only_U - b_only_U) / items_U).mean()))
    discordant_U = a_only_U + b_only_U
    flipped_RU = np.random.default_rng(seed).binomial(discordant_U, 0.5, size=(resamples, len(items_U)))
    drawn_R = np.abs(((2 * flipped_RU - discordant_U) / items_U).mean(1))
    # equal differences may differ in the last bit
    return (1 + int((drawn_R >= observed - 1e-12).sum())) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of one family, in the order given: its chance of any false positive is alpha (Holm 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, highest)
    return adjusted


def cohens_g(a_only: float, b_only: float) -> float | None:
    """Share of the discordant items that A wins - 1/2: small from 0.05, medium 0.15, large 0.25 (Cohen 1988, ch. 5).

    None where there is no discordant item.
    """
    return a_only / (a_only + b_only) - 0.5 if a_only + b_only else None


def odds_ratio(a_only: float, b_only: float) -> float | None:
    """Items that A wins alone for each that B wins alone; infinite where B wins none, None where neither does."""
    if not b_only:
        return math.inf if a_only else None
    return a_only / b_only


def odds_ratio_interval(a_only: int, b_only: int, *, confidence: float) -> Interval | None:
    """Exact interval of the odds ratio of discordant items; None where there is none.

    A's share of them has Clopper and Pearson's binomial interval, and share / (1 - share) is the odds ratio (Breslow
    and Day 1980, section 5.2). It excludes 1 exactly when the McNemar test's p is below 1 - confidence.
    """
    from scipy.stats import binomtest

    if not a_only + b_only:
        return None
    shares = binomtest(a_only, a_only + b_only).proportion_ci(confidence, method="exact")
    low, high = (float(share / (1 - share)) if share < 1 else math.inf for share in (shares.low, shares.high))
    return Interval(low, high)


def _seed_part(wins: Sequence[np.ndarray]) -> tuple[float, int]:
    """Variance of a system's mean over its seeds, and the degrees of freedom of that variance."""
    scores_S = np.mean([wins_SN.mean(1) for wins_SN in wins], axis=0)
    return float(scores_S.var(ddof=1)) / len(scores_S), len(scores_S) - 1


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


def _bootstrap(
    samples: list[np.ndarray],
    statistic: Callable[..., np.ndarray],
    *,
    paired: bool,
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    """Percentile interval of a vectorised statistic."""
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
            paired=paired,
            axis=-1,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return Interval(float(low), float(high))
