"""Whether two systems differ: paired estimates and exact tests on the items that both answered.

Axes: N items, S seeds (training runs of one system), U paradigms, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.stats import Interval

POWER = 0.8  # with which a detectable difference would have been shown


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
    with the seeds' part as Welch has it and degrees of freedom by Satterthwaite. With as many seeds on both sides it is
    right or conservative, its standard error at most sqrt(2) times too large, because what is neither the seed's nor
    the item's is counted in both parts; of 2 seeds against 8 it called 7 % of equal systems different where 5 % were
    asked for, as Welch's degrees of freedom do (9 %). The multi-bootstrap over seeds and items (Sellam et al. 2021,
    arXiv 2106.16163) answers the same question for many seeds; of two or three it calls equal systems different up to
    three times too often.

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
