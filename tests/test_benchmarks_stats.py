"""Intervals, gain kept and stream results against known cases, formulas written out, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.stats import (
    GainKept,
    Interval,
    bootstrap_hierarchical_mean,
    bootstrap_macro_mean,
    bootstrap_mean,
    bootstrap_ratio,
    gain_kept,
)
from benchmarks.stream import StreamResult, stream_gain_kept, stream_result
from corpora.errors import Diverged

HOW = {"confidence": 0.95, "resamples": 2000, "seed": 1}


def _wins(won: int, number: int) -> np.ndarray:
    return np.arange(number) < won


def test_the_interval_of_an_accuracy_is_binomial() -> None:
    """Resampling n wins and losses draws from a binomial distribution, whose percentiles are known."""
    low, high = bootstrap_mean(_wins(60, 100), **HOW)
    assert (low, high) == pytest.approx(tuple(binom.ppf([0.025, 0.975], 100, 0.6) / 100), abs=0.0101)
    assert bootstrap_mean(_wins(60, 100), **HOW) == Interval(low, high)
    wider = bootstrap_mean(_wins(60, 100), confidence=0.99, resamples=2000, seed=1)
    assert wider.low < low and wider.high > high


def test_degenerate_samples_have_an_interval_of_no_width() -> None:
    assert bootstrap_mean(np.ones(30), **HOW) == (1.0, 1.0)
    assert bootstrap_mean(np.zeros(30), **HOW) == (0.0, 0.0)
    assert bootstrap_mean(np.array([0.25]), **HOW) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no value"):
        bootstrap_mean(np.array([]), **HOW)
    with pytest.raises(Diverged, match="1 of 2 values not finite"):
        bootstrap_mean(np.array([1.0, math.nan]), **HOW)


def test_macro_interval_resamples_within_phenomena() -> None:
    small, large = _wins(15, 20), _wins(400, 1000)
    low, high = bootstrap_macro_mean([small, large], **HOW)
    spread = 1.96 * math.sqrt(0.75 * 0.25 / 20 + 0.4 * 0.6 / 1000) / 2
    assert (low, high) == pytest.approx((0.575 - spread, 0.575 + spread), abs=0.015)
    # phenomena that differ, but have no spread inside, leave nothing uncertain
    assert bootstrap_macro_mean([np.ones(5), np.zeros(1)], **HOW) == (0.5, 0.5)


def test_hierarchical_interval_resamples_paradigms_too() -> None:
    """With items that all agree, only paradigms vary: their number won is binomial."""
    samples = [np.full(7, won) for won in _wins(12, 20)]
    low, high = bootstrap_hierarchical_mean(samples, **HOW)
    assert (low, high) == pytest.approx(tuple(binom.ppf([0.025, 0.975], 20, 0.6) / 20), abs=0.0501)
    assert bootstrap_hierarchical_mean(samples, **HOW) == Interval(low, high)
    assert bootstrap_macro_mean(samples, **HOW) == (0.6, 0.6)
    # with paradigms that all agree, items are left, as within paradigms
    alike = [_wins(30, 50)] * 20
    within, both = bootstrap_macro_mean(alike, **HOW), bootstrap_hierarchical_mean(alike, **HOW)
    assert both == pytest.approx(within, abs=0.005)


def test_hierarchical_interval_needs_paradigms() -> None:
    with pytest.raises(ValueError, match="1 paradigm"):
        bootstrap_hierarchical_mean([np.ones(3)], **HOW)
    with pytest.raises(Diverged, match="1 of 2 values not finite"):
        bootstrap_hierarchical_mean([np.ones(3), np.array([1.0, math.inf])], **HOW)


def test_intervals_cover_what_they_speak_of() -> None:
    """Other items of these paradigms: `bootstrap_macro_mean`; other paradigms: `bootstrap_hierarchical_mean` alone."""
    draw = np.random.default_rng(5)
    how = {"confidence": 0.95, "resamples": 200}
    of_these, of_others, missed = [], [], []
    for seed in range(200):
        truths_U = draw.uniform(0.4, 1.0, 25)
        samples = [draw.random(40) < truth for truth in truths_U]
        items, both = (make(samples, seed=seed, **how) for make in (bootstrap_macro_mean, bootstrap_hierarchical_mean))
        of_these.append(items.low <= truths_U.mean() <= items.high)
        of_others.append(both.low <= 0.7 <= both.high)
        missed.append(items.low <= 0.7 <= items.high)
    # three standard errors of a coverage of 0.95 over 200 samples are 0.046
    assert np.mean(of_these) > 0.90 and np.mean(of_others) > 0.90 and np.mean(missed) < 0.75


def test_ratio_resamples_pairs_together() -> None:
    counts = np.array([10.0, 200.0, 35.0])
    assert bootstrap_ratio(3 * counts, counts, **HOW) == pytest.approx((3.0, 3.0))
    interval = bootstrap_ratio(np.array([1.0, 1.0, 1.0]), np.array([1.0, 1.0, -1.9]), **HOW)
    assert interval.high == math.inf and not math.isnan(interval.low)


def _documents() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nats of the control and of the pool, and counts of 40 documents; the pool gains 0.2 to 0.4 nats per target."""
    draw = np.random.default_rng(0)
    counts = draw.integers(20, 200, 40)
    control = counts * draw.normal(4.0, 0.3, 40)
    return control, control - counts * draw.uniform(0.2, 0.4, 40), counts


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 1.2, -0.3])
def test_gain_kept_of_a_known_share(share: float) -> None:
    control, pool, counts = _documents()
    kept = gain_kept(control, control - share * (control - pool), pool, counts, **HOW)
    assert kept.value == pytest.approx(share, abs=1e-12) and kept.reason == ""
    assert kept.interval == pytest.approx((share, share), abs=1e-9)


def test_gain_kept_weighs_targets_not_documents() -> None:
    control, pool, counts = np.array([400.0, 30.0]), np.array([300.0, 20.0]), np.array([100, 10])
    student = np.array([350.0, 30.0])
    assert gain_kept(control, student, pool, counts, **HOW).value == pytest.approx(50 / 110)


def test_gain_kept_interval_holds_the_noise() -> None:
    control, pool, counts = _documents()
    student = control - 0.5 * (control - pool) + np.random.default_rng(1).normal(0, 5, len(counts))
    kept = gain_kept(control, student, pool, counts, **HOW)
    assert kept.interval is not None and kept.value is not None
    assert kept.interval.low < kept.value < kept.interval.high
    assert kept.interval.high - kept.interval.low < 0.3


def test_gain_kept_is_undefined_without_a_gain() -> None:
    control, pool, counts = _documents()
    noise = np.random.default_rng(2).normal(0, 30, len(counts))
    for useless in (control, control + noise, control + (control - pool)):
        kept = gain_kept(control, pool, useless, counts, **HOW)
        assert kept.value is None and kept.interval is None and "not known to be better" in kept.reason
    one = gain_kept(control[:1], pool[:1], pool[:1], counts[:1], **HOW)
    assert one == GainKept(None, None, "1 test document(s) with targets, at least 2 are needed")


def test_documents_without_targets_say_nothing() -> None:
    control, pool, counts = _documents()
    student = (control + pool) / 2
    padded = [np.append(values, 0) for values in (control, student, pool, counts)]
    assert gain_kept(*padded, **HOW) == gain_kept(control, student, pool, counts, **HOW)


def _stream(
    objective: str = "causal", scale: float = 1.0, positions: tuple[int, ...] = (1, 2, 3, 5, 6)
) -> StreamResult:
    """Two documents of 4 and 3 tokens, 20 and 9 bytes; target p costs p / 2 nats."""
    order = np.array(positions)[::-1]
    return stream_result(
        objective, order, order * np.float32(scale / 2), offsets_D1=np.array([0, 4, 7]), bytes_D=np.array([20, 9])
    )


def test_stream_sums_by_hand() -> None:
    result = _stream()
    assert result.positions_N.tolist() == [1, 2, 3, 5, 6] and result.nats_N.dtype == np.float32
    assert result.sums_D.tolist() == [3.0, 5.5] and result.counts_D.tolist() == [3, 2]
    assert result.cross_entropy == pytest.approx(8.5 / 5)
    assert result.bits_per_byte == pytest.approx(8.5 / math.log(2) / 29)
    assert _stream("masked").bits_per_byte is None


def test_bits_per_byte_counts_whole_documents_alone() -> None:
    assert _stream(positions=(1, 2, 3, 5)).bits_per_byte == pytest.approx(3.0 / math.log(2) / 20)
    assert _stream(positions=(1, 2, 5)).bits_per_byte is None


def test_streams_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        _stream(positions=(1, 1))
    with pytest.raises(ValueError, match="the stream ends at 7"):
        _stream(positions=(1, 7))
    with pytest.raises(ValueError, match="no target"):
        _stream(positions=())
    with pytest.raises(Diverged, match="position 1: cross-entropy is not finite"):
        _stream(scale=math.nan)


def test_gain_kept_of_streams_wants_the_same_targets() -> None:
    control, student, pool = _stream(scale=2), _stream(scale=1.5), _stream(scale=1)
    assert stream_gain_kept(control, student, pool, **HOW).value == pytest.approx(0.5)
    for other in (_stream("masked"), _stream(positions=(1, 2, 3, 5))):
        with pytest.raises(ValueError, match="different targets"):
            stream_gain_kept(control, other, pool, **HOW)
