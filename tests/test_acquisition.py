"""Planted ages of acquisition are recovered; both rules are told apart; words without an age are named."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.special import expit

from benchmarks.acquisition import (
    AGES,
    AcquisitionResult,
    Checkpoint,
    TargetWord,
    acquisition_requests,
    acquisition_result,
    acquisition_rows,
    read_child_shares,
    read_target_words,
)
from benchmarks.acquisition_curves import RULES
from benchmarks.request import Request
from corpora.errors import Diverged, InputRefused

HOW = {"confidence": 0.95, "resamples": 300, "seed": 1}
# the challenge's checkpoints for 100 million words read ten times, in millions
MILLIONS = [*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100)]
CHECKPOINTS = [Checkpoint(step=f"chck_{number}M", words_seen=number * 1_000_000) for number in MILLIONS]
LOG_SEEN = np.log10(np.array([checkpoint.words_seen for checkpoint in CHECKPOINTS]) + 1.0)
LOWEST = 3.0  # nats, where planted curves end


def _words(number: int, contexts: int = 4) -> list[TargetWord]:
    return [
        TargetWord(word=f"word{index}", contexts=tuple(f"after {place} " for place in range(contexts)))
        for index in range(number)
    ]


def _curves(middles: Sequence[float] | np.ndarray, highest: float, slope: float = 4.0) -> np.ndarray:
    """Surprisals [checkpoints, words] that fall from `highest` to LOWEST around these middles."""
    return highest - (highest - LOWEST) * expit(slope * (LOG_SEEN[:, None] - np.asarray(middles)))


def _shares(ages: Sequence[float | None]) -> dict[str, dict[int, float]]:
    """Shares of children that pass one half at these ages; None: a word that few ever say."""
    return {
        f"word{index}": {month: float(expit(0.4 * (month - age))) if age else 0.1 for month in AGES}
        for index, age in enumerate(ages)
    }


def _result(surprisals: np.ndarray, shares: dict[str, dict[int, float]], **how: Any) -> AcquisitionResult:
    """`surprisals`: [checkpoints, words] or [checkpoints, words, contexts]."""
    contexts = surprisals.shape[2] if surprisals.ndim == 3 else 1
    scores = -surprisals.reshape(len(surprisals), -1)
    words = _words(surprisals.shape[1], contexts)
    given = {"checkpoints": CHECKPOINTS, "log_likelihoods": list(scores)} | HOW | how
    return acquisition_result(words, shares, **given)


def test_planted_ages_are_recovered() -> None:
    """A curve that falls from chance to its lowest point passes half the way at its middle."""
    middles = np.linspace(6.6, 8.2, 9)
    chance = math.log(300_000)
    result = _result(_curves(middles, chance, slope=6), _shares(list(np.linspace(18, 28, 9))))
    found = result.agreements["nats"]
    assert found.words == tuple(f"word{index}" for index in range(9)) and not found.unusable
    # the lowest surprisal measured lies a little above where the curve ends
    assert found.model_ages == pytest.approx(middles, abs=0.02)
    assert found.child_ages == pytest.approx(np.linspace(18, 28, 9), abs=0.02)
    assert found.correlation.value == pytest.approx(1, abs=1e-3) and (found.p_value or 1) < 1e-6


def test_planted_ages_are_recovered_from_noisy_contexts() -> None:
    draw = np.random.default_rng(0)
    middles = draw.uniform(6.8, 8.2, 40)
    clean = _curves(middles, math.log(300_000))
    noisy = clean[:, :, None] + draw.normal(0, 0.5, (*clean.shape, 8))
    shares = _shares(list(18 + 10 * (middles - 6.8) / 1.4 + draw.normal(0, 2, 40)))
    found = _result(noisy, shares).agreements["nats"]
    used = [int(word.removeprefix("word")) for word in found.words]
    assert len(used) > 30 and np.abs(found.model_ages - middles[used]).max() < 0.15
    assert found.correlation.value is not None and found.correlation.interval is not None
    low, high = found.correlation.interval
    assert 0.6 < low < found.correlation.value < high < 1
    assert found.correlation.value == pytest.approx(np.corrcoef(found.model_ages, found.child_ages)[0, 1])


def test_correlation_is_what_a_hand_computes() -> None:
    """Ages -1 0 1 against -4 4 0: covariance 4, variances 2 and 32, r = 4 / 8."""
    found = _result(_curves([6.8, 7.4, 8.0], 12.61, slope=8), _shares([18, 26, 22])).agreements["nats"]
    assert found.correlation.value == pytest.approx(0.5, abs=0.02)
    # of three words a resample may hold one alone
    assert found.correlation.interval is None and found.correlation.reason == "too few items for an interval"
    assert found.lines()[0].startswith("nats: r = 0.5") and "3 words used, 0 not" in found.lines()[0]


def test_the_year_compares_bits_with_nats() -> None:
    """A curve from 14 to 3 nats: the year's threshold is (18.2 + 3) / 2 = 10.6, that in nats (12.6 + 3) / 2 = 7.8."""
    result = _result(_curves([7.2, 7.5, 7.8], 14, slope=6), _shares([18, 20, 24]))
    year, mended = (result.agreements[rule] for rule in ("babylm2025", "nats"))
    at = [7.2 + math.log(odds) / 6 for odds in (1 / ((10.6 - 3) / 11) - 1, 1 / ((7.81 - 3) / 11) - 1)]
    assert year.model_ages[0] == pytest.approx(at[0], abs=0.01) and mended.model_ages[0] == pytest.approx(
        at[1], abs=0.01
    )
    # a word that starts below the year's threshold has no age there
    low = _result(_curves([7.2, 7.5, 7.8], 10, slope=6), _shares([18, 20, 24]))
    assert set(low.agreements["babylm2025"].unusable.values()) == {"model: beyond the threshold from the start"}
    assert (
        low.agreements["babylm2025"].correlation.value is None and low.agreements["nats"].correlation.value is not None
    )
    assert [line.split(":")[0] for line in low.lines() if not line.startswith(" ")] == list(RULES)


def test_the_rule_of_the_year_is_its_published_procedure() -> None:
    """Every context is a point of the curve, the fit starts where the year's does, the lowest single point counts."""

    def published(x: np.ndarray, a: float, b: float, c: float, d: float) -> np.ndarray:
        return a / (1 + np.exp(-b * (x - c))) + d

    draw = np.random.default_rng(4)
    clean = _curves(draw.uniform(6.5, 8.5, 12), 16, slope=3)
    surprisals = clean[:, :, None] + draw.normal(0, 1.0, (*clean.shape, 5))
    found = _result(surprisals, _shares(list(np.linspace(18, 28, 12)))).agreements["babylm2025"]
    ages = dict(zip(found.words, found.model_ages, strict=True))
    assert 6 < len(ages) < 13
    for index in range(12):
        x, y = np.repeat(LOG_SEEN, 5), -surprisals[:, index].reshape(-1)
        start = [y.max() - y.min(), 1.0, x.mean(), y.min()]
        (a, b, c, d), _ = curve_fit(published, x, y, p0=start, maxfev=1000)
        threshold = -(np.log2(300_000) - 0.5 * (np.log2(300_000) + y.max()))
        usable = a > 0 and b > 0 and d < threshold < a + d
        age = c - np.log(a / (threshold - d) - 1) / b if usable else math.nan
        in_range = LOG_SEEN[0] <= age <= LOG_SEEN[-1]
        assert ages.get(f"word{index}", math.nan) == pytest.approx(age if in_range else math.nan, abs=1e-4, nan_ok=True)


def test_the_chance_of_a_word_may_be_given() -> None:
    """Two tokens of a vocabulary of 16,384 types: 19.4 nats, so that the threshold lies at 11.2 of 19.4 to 3."""
    chance = {f"word{index}": 2 * math.log(16_384) for index in range(3)}
    surprisals = _curves([7.0, 7.5, 8.0], 2 * math.log(16_384), slope=8)
    given = _result(surprisals, _shares([18, 20, 24]), chance=chance)
    assert given.agreements["nats"].model_ages == pytest.approx([7.0, 7.5, 8.0], abs=0.01)
    assert _result(surprisals, _shares([18, 20, 24])).agreements["nats"].model_ages[0] > 7.05


def test_words_without_an_age_are_named_and_never_make_a_zero() -> None:
    surprisals = _curves([7.0, 7.2, 7.4, 7.6, 7.8, 8.0], 12.61, slope=8)
    surprisals[:, 2] = 12.0  # never learned
    surprisals[:, 3] = np.linspace(13, 40, len(LOG_SEEN))  # unlearned
    shares = _shares([18, None, 20, 22, 24, 26])
    del shares["word0"]
    shares["word5"] = {16: 0.2, 30: 0.9}
    result = _result(surprisals, shares)
    found = result.agreements["nats"]
    assert found.words == ("word4",) and len(found.unusable) == 5
    assert found.unusable["word0"] == "children: not in the file of children"
    assert found.unusable["word1"].startswith("children: ")
    assert found.unusable["word2"] == "model: surprisal never changes"
    assert found.unusable["word3"].startswith("model: ")
    assert found.unusable["word5"] == "children: fewer than 3 ages with a share of children"
    assert found.correlation == (None, None, "1 pair(s) of model's age and children's age, at least 3 are needed")
    assert found.p_value is None and "undefined (1 pair(s)" in found.lines()[0]
    assert all(any(word in line for line in found.lines()[1:]) for word in found.unusable)


def test_constant_ages_have_no_correlation() -> None:
    found = _result(_curves([7.0, 7.0, 7.0], 12.61), _shares([18, 20, 22])).agreements["nats"]
    assert found.correlation.value is None and found.correlation.reason.startswith("the model's age of all 3 items is ")


def test_the_order_of_contexts_and_words_does_not_matter() -> None:
    draw = np.random.default_rng(2)
    clean = _curves(draw.uniform(6.8, 8.2, 12), 15)
    surprisals = clean[:, :, None] + draw.normal(0, 0.3, (*clean.shape, 4))
    ages = list(draw.uniform(18, 28, 12))
    one = _result(surprisals, _shares(ages))
    contexts = _result(surprisals[:, :, ::-1], _shares(ages))
    words = _result(surprisals[:, ::-1], _shares(ages[::-1]))
    for rule in RULES:
        value = one.agreements[rule].correlation.value
        assert value is not None and value == pytest.approx(contexts.agreements[rule].correlation.value, abs=1e-4)
        assert value == pytest.approx(words.agreements[rule].correlation.value)


def test_checkpoints_must_be_enough_and_in_order() -> None:
    surprisals, shares = _curves([7.0, 7.2, 7.4], 12.61), _shares([18, 20, 22])
    few = _result(surprisals[:3], shares, checkpoints=CHECKPOINTS[:3])
    assert set(few.agreements["babylm2025"].unusable.values()) == {"model: fewer than 4 checkpoints"}
    with pytest.raises(InputRefused, match="words seen do not grow; expected"):
        _result(surprisals, shares, checkpoints=CHECKPOINTS[::-1])


def test_what_is_not_finite_is_named() -> None:
    surprisals = _curves([7.0, 7.2, 7.4], 12.61)[:, :, None].repeat(2, axis=2)
    surprisals[4, 1, 1] = math.inf
    with pytest.raises(Diverged, match=r"^chck_5M: word1, context 1: log-likelihood -inf \(1 of 6 not finite\)"):
        _result(surprisals, _shares([18, 20, 22]))


def test_files_become_requests_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "cdi_childes.json"
    contexts = [{"context": "I raised a ", "count": 3}, {"context": "the big"}]
    path.write_text(json.dumps({"dog": contexts, "I": contexts, "cat": contexts[:1], "ball": []}))
    words = read_target_words(path)
    assert [(word.word, len(word.contexts)) for word in words] == [("dog", 2), ("cat", 1)]
    assert [word.word for word in read_target_words(path, min_contexts=2)] == ["dog"]
    assert acquisition_requests(words) == [
        Request("I raised a", " dog"),
        Request("the big", " dog"),
        Request("I raised a", " cat"),
    ]
    scores = [np.array([-3.0, -2.0, -1.0 - index]) for index in range(2)]
    result = acquisition_result(words, {}, checkpoints=CHECKPOINTS[:2], log_likelihoods=scores, **HOW)
    rows = acquisition_rows(words, result)
    assert len(rows) == 6 and rows[1]["surprisal"] == 2.0
    assert rows[5] == {
        "step": "chck_2M",
        "word_count": 2_000_000,
        "target_word": "cat",
        "context_id": 0,
        "context": "I raised a ",
        "surprisal": 2.0,
    }


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"[]", "found a list"),
        (b"\xff", "not UTF-8"),
        (b'{"dog": {}}', "found an object"),
        (b'{"dog": ["a"]}', "'dog'[0]: no context"),
        (b'{"dog": [{"context": "a"}, {"text": "a"}]}', "'dog'[1]: no context"),
        (b'{"dog": [{"context": 3}]}', "context is a number"),
        (b'{"dog": [{"context": " "}]}', "context is blank"),
        (b'{"dog": [{"context": "a\\u0000"}]}', "NUL"),
        (b'{"d\\nog": []}', "cannot be printed"),
        (b'{" ": []}', "is blank"),
        (b'{"dog": [], "dog": []}', "'dog' occurs twice"),
        (b'{"I": [{"context": "a"}]}', "no word"),
    ],
)
def test_what_is_no_file_of_words_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(data)
    with pytest.raises(InputRefused) as refusal:
        read_target_words(path)
    message = str(refusal.value)
    assert reason in message and re.fullmatch(
        re.escape(str(path)) + r"[^\n]*: [^\n]+; expected [^\n]+; [^\n]+", message
    )
    with pytest.raises(InputRefused, match="missing.json: No such file"):
        read_target_words(tmp_path / "missing.json")


def test_shares_of_children_are_read(tmp_path: Path) -> None:
    path = tmp_path / "cdi_human.csv"
    path.write_text("word,category,16,17,30\ndog,animals,0.1,NA,1\nbat,animals,,,0.5\ndog,toys,0.2,0.3,0.4\n")
    assert read_child_shares(path) == {"dog": {16: 0.1, 30: 1.0}, "bat": {30: 0.5}}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("word,16,17,18\ndog,0.1,0.2,1.2\n", 2, "column 18 is 1.2"),
        ("word,16,17,18\ndog,0.1,0.2,-1\n", 2, "column 18 is -1"),
        ("word,16,17,18\ndog,0.1,0.2,0.3\ncat,0.1,half,0.3\n", 3, "17 is 'half'"),
        ("word,16,17,18\n,0.1,0.2,0.3\n", 2, "word is blank"),
        ("word,16,17\ndog,0.1,0.2\n", 1, "2 columns of ages"),
        ("words,16,17,18\ndog,0.1,0.2,0.3\n", 1, "column word is missing"),
        ("word,16,17,18\ndog,0.1,0.2\n", 2, "3 cells"),
    ],
)
def test_what_is_no_file_of_children_is_refused_by_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "broken.csv"
    path.write_text(text)
    with pytest.raises(InputRefused) as refusal:
        read_child_shares(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}:{line}: ") and reason in message and "; expected " in message
