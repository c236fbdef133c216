"""Paired tests and estimates against scipy, formulas written out, known cases, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom, norm, permutation_test, t, ttest_ind

from benchmarks.paired import (
    PairedEstimate,
    cohens_g,
    holm,
    mcnemar_p_value,
    odds_ratio,
    odds_ratio_interval,
    paired_estimate,
    sign_flip_p_value,
)


def _table(both: int, a_only: int, b_only: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Who won what, bool [items], in a 2 x 2 table."""
    cells = np.repeat([0, 1, 2, 3], [both, a_only, b_only, neither])
    return cells < 2, (cells == 0) | (cells == 2)


def _estimate(*pairs: tuple[np.ndarray, np.ndarray]) -> PairedEstimate:
    return paired_estimate([a[None] for a, _ in pairs], [b[None] for _, b in pairs])


@pytest.mark.parametrize(("a_only", "b_only"), [(5, 0), (0, 6), (3, 9), (150, 86), (7, 7), (0, 1)])
def test_mcnemar_is_a_sum_of_binomial_coefficients(a_only: int, b_only: int) -> None:
    total = a_only + b_only
    tail = sum(math.comb(total, won) for won in range(min(a_only, b_only) + 1)) / 2**total
    assert mcnemar_p_value(a_only, b_only) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_by_hand() -> None:
    assert mcnemar_p_value(5, 0) == pytest.approx(1 / 16)  # 2 / 2^5
    assert mcnemar_p_value(1, 5) == pytest.approx(14 / 64)  # 2 (1 + 6) / 2^6
    assert mcnemar_p_value(0, 0) == 1.0


def test_sign_flips_are_those_of_scipy() -> None:
    """All flips of few items, listed by scipy, against our binomial draws; paradigms of three sizes."""
    tables = [_table(3, 4, 1, 2), _table(0, 2, 0, 1), _table(9, 3, 2, 11)]
    weighted = np.concatenate([(a.astype(float) - b) / (3 * len(a)) for a, b in tables])
    discordant = weighted[weighted != 0]
    exact = permutation_test(
        (discordant,), lambda x, axis: x.sum(axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    found = sign_flip_p_value([a for a, _ in tables], [b for _, b in tables], resamples=100_000, seed=1)
    assert 0.05 < exact.pvalue < 0.15 and found == pytest.approx(exact.pvalue, abs=0.004)


def test_sign_flips_of_one_paradigm_are_mcnemar() -> None:
    a, b = _table(40, 20, 8, 32)
    assert sign_flip_p_value([a], [b], resamples=100_000, seed=1) == pytest.approx(mcnemar_p_value(20, 8), abs=0.003)
    assert sign_flip_p_value([a, a], [a, a], resamples=100, seed=1) == 1.0
    assert sign_flip_p_value([np.ones(50, bool)], [np.zeros(50, bool)], resamples=99, seed=1) == 0.01  # observed alone


def test_holm_by_hand() -> None:
    # sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1, which may not fall below its predecessor
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_none_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= found <= min(1, len(p_values) * p) for p, found in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values)
    assert (np.diff(np.array(adjusted)[order]) >= 0).all() and holm(p_values[::-1]) == adjusted[::-1]


def test_effect_sizes_by_hand() -> None:
    assert cohens_g(15, 5) == 0.25 and cohens_g(5, 15) == -0.25 and cohens_g(0, 0) is None
    # the two surveys of Agresti's approval table, whose g others print as 0.136
    assert cohens_g(150, 86) == pytest.approx(0.1356, abs=1e-4)
    assert odds_ratio(15, 5) == 3.0 and odds_ratio(4, 0) == math.inf and odds_ratio(0, 4) == 0.0
    assert odds_ratio(0, 0) is None and odds_ratio_interval(0, 0, confidence=0.95) is None


@pytest.mark.parametrize(("a_only", "b_only"), [(15, 5), (1, 30), (150, 86)])
def test_odds_ratio_interval_is_that_of_clopper_and_pearson(a_only: int, b_only: int) -> None:
    low, high = beta.ppf(0.025, a_only, b_only + 1), beta.ppf(0.975, a_only + 1, b_only)
    found = odds_ratio_interval(a_only, b_only, confidence=0.95)
    assert found == pytest.approx((low / (1 - low), high / (1 - high)))


def test_odds_ratio_interval_agrees_with_the_test() -> None:
    assert odds_ratio_interval(6, 0, confidence=0.95) == pytest.approx(
        (0.025 ** (1 / 6) / (1 - 0.025 ** (1 / 6)), math.inf)
    )
    for a_only in range(16):
        for b_only in range(1, 16):
            interval = odds_ratio_interval(a_only, b_only, confidence=0.95)
            assert interval is not None
            assert (interval.low > 1 or interval.high < 1) == (mcnemar_p_value(a_only, b_only) < 0.05)


def test_interval_of_one_paradigm_is_that_of_bonett_and_price() -> None:
    """Their method's example in the R package statpsych, `ci.prop.ps(.05, 12, 4, 26, 6)`, printed there to 8 digits."""
    estimate = _estimate(_table(6, 26, 4, 12))
    assert estimate.center == pytest.approx(0.44) and math.sqrt(estimate.variance) == pytest.approx(0.09448809)
    assert estimate.interval(0.95) == pytest.approx((0.2548067, 0.6251933))


def test_interval_of_few_or_no_discordant_items_has_a_width() -> None:
    same = _estimate(_table(70, 0, 0, 30))
    assert same.p_value() == 1.0 and same.interval(0.95) == pytest.approx((-0.0272, 0.0272), abs=1e-4)
    a, b = _table(0, 6, 0, 0)
    opposite = paired_estimate([np.stack([a, a])], [np.stack([b, b])])  # two seeds that are one
    assert 0.01 < opposite.p_value() < 0.05 and opposite.interval(0.95).high == 1.0  # exact McNemar: 0.031


def test_two_added_items_are_shared_by_the_paradigms() -> None:
    """Equal paradigms together are one large one, up to the spread between them."""
    tables = [_table(60, 12, 8, 20)] * 10
    whole = _estimate(_table(600, 120, 80, 200))
    parts = _estimate(*tables)
    assert parts.center == pytest.approx(whole.center) and parts.variance == pytest.approx(whole.variance)
    assert parts.item_unit == pytest.approx(whole.item_unit)


def test_seeds_and_items_make_min_f() -> None:
    """1 / min F' = 1 / F1 + 1 / F2 (Clark 1973, eq. 9 and 10), F1 by seeds from scipy, F2 by items written out."""
    draw = np.random.default_rng(3)
    a, b = draw.random((4, 60)) < draw.uniform(0.6, 0.8, (4, 1)), draw.random((3, 60)) < draw.uniform(0.3, 0.6, (3, 1))
    estimate = paired_estimate([a], [b])
    by_seeds = ttest_ind(a.mean(1), b.mean(1), equal_var=False)
    item_differences = np.append(a.mean(0) - b.mean(0), [1.0, -1.0])
    center = item_differences.mean()
    f1 = (by_seeds.statistic * center / (a.mean() - b.mean())) ** 2
    f2 = center**2 / (item_differences.var() / 62)
    min_f = f1 * f2 / (f1 + f2)
    degrees_of_freedom = (f1 + f2) ** 2 / (f1**2 / 61 + f2**2 / by_seeds.df)
    assert estimate.degrees_of_freedom == pytest.approx(degrees_of_freedom)
    assert estimate.p_value() == pytest.approx(2 * t.sf(math.sqrt(min_f), degrees_of_freedom))
    low, high = estimate.interval(1 - estimate.p_value())
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)  # interval and test are one statement


# Accuracy of a seed on an item = what the item is for its system + what the seed is, in shares; then a coin is thrown.
# (seeds of A, of B, items, paradigms, deviation of seeds, of items within a system)
Population = tuple[int, int, int, int, float, float]
POPULATIONS: list[Population] = [
    (2, 2, 300, 1, 0.05, 0.1),
    (3, 3, 300, 1, 0.0, 0.0),
    (3, 3, 300, 1, 0.1, 0.0),
    (5, 5, 300, 1, 0.03, 0.2),
    (3, 5, 300, 1, 0.05, 0.1),
    (3, 3, 40, 5, 0.05, 0.1),
]


def _systems(
    draw: np.random.Generator, population: Population, advantage: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two systems drawn from one population, the first better by `advantage`; new items and seeds at each call."""
    *seeds, items, paradigms, seed_deviation, item_deviation = population
    ability = [draw.normal(0, seed_deviation, (number, 1)) for number in seeds]
    found: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for _ in range(paradigms):
        difficulty_N = draw.uniform(0.3, 0.8, items)
        for system, gain in enumerate((advantage, 0.0)):
            chance_SN = difficulty_N + gain + draw.normal(0, item_deviation, items) + ability[system]
            found[system].append(draw.random(chance_SN.shape) < chance_SN)
    return found


@pytest.mark.parametrize("population", POPULATIONS, ids=str)
def test_equal_systems_are_told_apart_no_more_often_than_allowed(population: Population) -> None:
    draw = np.random.default_rng(11)
    estimates = [paired_estimate(*_systems(draw, population, 0.0)) for _ in range(1000)]
    # 0.05, and three standard errors of a share over 1,000
    assert np.mean([estimate.p_value() <= 0.05 for estimate in estimates]) <= 0.0707
    covered = [low <= 0.0 <= high for low, high in (estimate.interval(0.95) for estimate in estimates)]
    assert np.mean(covered) >= 0.9293


def test_ignoring_seeds_tells_equal_systems_apart() -> None:
    """Why seeds are a source of variation of their own: items alone find differences that another seed reverses."""
    draw = np.random.default_rng(12)
    found = [_systems(draw, (1, 1, 300, 1, 0.1, 0.0), 0.0) for _ in range(300)]
    told = [mcnemar_p_value(int((a & ~b).sum()), int((b & ~a).sum())) <= 0.05 for (a,), (b,) in found]
    assert np.mean(told) > 0.4


def test_power_grows_with_seeds_and_items() -> None:
    def power(seeds: int, items: int) -> float:
        draw = np.random.default_rng(13)
        tried = [_systems(draw, (seeds, seeds, items, 1, 0.03, 0.1), 0.08) for _ in range(300)]
        return float(np.mean([paired_estimate(a, b).p_value() <= 0.05 for a, b in tried]))

    few = power(3, 150)
    assert power(8, 150) > few + 0.25 and power(3, 1200) > few + 0.25 and power(8, 1200) > 0.95


def test_a_detectable_difference_is_detected_as_often_as_said() -> None:
    """McNemar, 1,000 items of which systems differ on 200, with and without a correction for 10 rows."""
    draw = np.random.default_rng(14)
    estimate = _estimate(_table(500, 100, 100, 300))
    for alpha in (0.05, 0.005):
        difference = estimate.detectable(alpha)
        assert difference is not None
        # Connor 1987 (Biometrics 43:207), solved for the difference
        z, power = norm.ppf(1 - alpha / 2), norm.ppf(0.8)
        needed = (z * math.sqrt(0.2) + power * math.sqrt(0.2 - difference**2)) ** 2 / difference**2
        assert needed == pytest.approx(1000, rel=0.03)
        shares = [0.1 + difference / 2, 0.1 - difference / 2, 0.8]
        drawn = draw.multinomial(1000, shares, size=1500)
        shown = [mcnemar_p_value(int(a_only), int(b_only)) <= alpha for a_only, b_only, _ in drawn]
        assert np.mean(shown) == pytest.approx(0.8, abs=0.06)


def test_what_no_item_speaks_for_needs_items_of_its_own() -> None:
    """Of 100 items no one tells the systems apart: a difference is then one-sided, and six items must show it."""
    difference = _estimate(_table(70, 0, 0, 30)).detectable(0.05)
    assert difference is not None and mcnemar_p_value(6, 0) < 0.05 < mcnemar_p_value(5, 0)
    assert binom.sf(5, 100, difference) == pytest.approx(0.8, abs=0.05)
    assert _estimate(_table(2, 0, 0, 3)).detectable(0.05) is None


def test_detectable_difference_of_systems_with_seeds() -> None:
    """The mean of what is said to be detectable is detected about as often as said; conservative tests find less."""
    population = (5, 5, 300, 1, 0.05, 0.1)
    draw = np.random.default_rng(15)
    said = [paired_estimate(*_systems(draw, population, 0.0)).detectable(0.05) for _ in range(200)]
    difference = float(np.mean([value for value in said if value is not None]))
    shown = [paired_estimate(*_systems(draw, population, difference)).p_value() <= 0.05 for _ in range(400)]
    assert 0.7 < np.mean(shown) < 0.95
