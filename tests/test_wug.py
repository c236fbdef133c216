"""Wugs are read strictly, agree with hand-computed correlations, and a constant candidate agrees with nobody."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.request import Request
from benchmarks.wug import WugItem, WugResult, read_wug_items, wug_predictions, wug_requests, wug_result
from corpora.errors import Diverged, InputRefused

HOW = {"confidence": 0.95, "resamples": 500, "seed": 1}
LINE = {"sentences": "The daxity is high.\tThe daxness is high.", "ratio": 0.25}
ONE_LINE_OF_REFUSAL = re.compile(r"[^\n]+:\d+: [^\n]+; expected [^\n]+; [^\n]+")


def _items(ratios: list[float]) -> list[WugItem]:
    return [
        WugItem(first=f"first {number}", second=f"second {number}", ratio=ratio, place=f"wug.jsonl:{number + 1}")
        for number, ratio in enumerate(ratios)
    ]


def _result(leads: list[float], ratios: list[float]) -> WugResult:
    """Of a candidate that finds the first version so many nats likelier than the second."""
    scores = np.array([[-3.0 + lead, -3.0] for lead in leads]).reshape(-1)
    return wug_result(_items(ratios), scores, **HOW)


def test_agreement_is_what_a_hand_computes() -> None:
    # ranks 4 3 1 2 against 4 1 2 3: the squares of the differences sum to 6, rho = 1 - 6 * 6 / (4 * 15)
    result = _result([2.0, 1.0, -1.0, 0.5], [0.9, 0.1, 0.3, 0.8])
    assert result.correlation.value == pytest.approx(0.4)
    assert result.probabilities[0] == pytest.approx(math.exp(-1) / (math.exp(-1) + math.exp(-3)))
    # they part on the second item alone
    assert result.accuracy.value == 0.75 and result.ties == result.undecided == 0
    interval = result.accuracy.interval
    assert interval is not None and interval.low <= 0.75 <= interval.high


def test_equal_ratios_share_their_rank() -> None:
    # ranks 1 2 3 4 against 1.5 1.5 3.5 3.5: covariance 4, variances 5 and 4
    assert _result([-2, -1, 1, 2], [0.2, 0.2, 0.8, 0.8]).correlation.value == pytest.approx(4 / math.sqrt(20))


def test_ties_and_even_votes_are_no_successes() -> None:
    result = _result([0.0, 0.0, 1.0, 1.0], [0.9, 0.1, 0.5, 0.8])
    assert result.accuracy.value == pytest.approx(1 / 3)
    assert (result.ties, result.undecided) == (2, 1)


def test_a_rising_transformation_of_the_scores_changes_no_rank() -> None:
    draw = np.random.default_rng(0)
    leads, ratios = draw.normal(size=60), draw.random(60)
    one, other = (_result(list(values), list(ratios)) for values in (leads, np.sinh(leads) / 5))
    assert one.correlation == other.correlation and one.accuracy == other.accuracy
    swapped = _result(list(-leads), list(ratios))
    assert one.correlation.value is not None and swapped.correlation.value == pytest.approx(-one.correlation.value)
    assert one.accuracy.value is not None and swapped.accuracy.value == pytest.approx(1 - one.accuracy.value)


def test_planted_agreement_is_found_within_its_interval() -> None:
    draw = np.random.default_rng(5)
    ratios = draw.random(200)
    result = _result(list(4 * ratios - 2 + draw.normal(size=200)), list(ratios))
    assert result.correlation.value is not None and result.correlation.interval is not None
    assert 0.65 < result.correlation.value < 0.85
    low, high = result.correlation.interval
    assert low < result.correlation.value < high and 0.05 < high - low < 0.25
    assert _result(list(ratios), list(ratios)).correlation.value == pytest.approx(1.0)


def test_a_constant_candidate_agrees_with_nobody_and_crashes_nothing() -> None:
    result = _result([0.0] * 20, list(np.linspace(0.05, 0.95, 20)))
    assert result.correlation == (None, None, "the probability of all 20 items is 0.5")
    assert result.accuracy.value == 0.0 and result.ties == 20


def test_undefined_values_say_why() -> None:
    alike = _result([1.0, 2.0, 3.0], [0.5, 0.5, 0.5])
    assert alike.correlation == (None, None, "the human ratio of all 3 items is 0.5")
    assert alike.accuracy == (None, None, "people are divided evenly on all 3 items")
    assert "at least 3 are needed" in _result([1.0, 2.0], [0.1, 0.2]).correlation.reason
    above = _result([1.0, 2.0, 3.0], [0.5, 1.5, 2.0])
    assert above.accuracy.value is None and "ratios above 1" in above.accuracy.reason
    assert above.correlation.value == pytest.approx(1.0)
    # some resample of three pairs holds one of them alone
    assert above.correlation.interval is None and "too few" in above.correlation.reason


def test_what_is_not_finite_is_named() -> None:
    scores = np.array([-1.0, -2.0, -1.0, math.nan, -math.inf, -1.0])
    with pytest.raises(Diverged, match=r"wug.jsonl:2: log-likelihood nan \(2 of 6 not finite\); expected"):
        wug_result(_items([0.1, 0.2, 0.3]), scores, **HOW)


def test_files_become_requests_and_predictions(tmp_path: Path) -> None:
    path = tmp_path / "wug_adj_nominalization.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (LINE, LINE | {"ratio": 1, "more": []})))
    items = read_wug_items(path)
    assert [(item.ratio, item.place) for item in items] == [(0.25, f"{path}:1"), (1.0, f"{path}:2")]
    assert wug_requests(items[:1]) == [Request("", "The daxity is high."), Request("", "The daxness is high.")]
    result = wug_result(items, np.array([-2.0, -1.0, -1.0, -1.0]), **HOW)
    rows = wug_predictions("wug_adj", items, result)["wug_adj"]["predictions"]
    assert rows[0] == {"id": "wug_adj_0", "pred": "The daxness is high.", "prob": pytest.approx(1 / (1 + math.e))}
    assert rows[1] == {"id": "wug_adj_1", "pred": "The daxity is high.", "prob": 0.5}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "not JSON"),
        ("[1]", "found a list"),
        ('{"ratio": 1}', "key sentences is missing"),
        ('{"sentences": "a\\tb"}', "ratio is missing"),
        ('{"sentences": ["a", "b"], "ratio": 1}', "sentences is a list"),
        ('{"sentences": "a b", "ratio": 1}', "1 part"),
        ('{"sentences": "a\\tb\\tc", "ratio": 1}', "3 part"),
        ('{"sentences": "a\\t ", "ratio": 1}', "blank ones included"),
        ('{"sentences": "a\\ta", "ratio": 1}', "are equal"),
        ('{"sentences": "a\\tb", "ratio": "1"}', "ratio is a string"),
        ('{"sentences": "a\\tb", "ratio": true}', "ratio is a truth value"),
        ('{"sentences": "a\\tb", "ratio": null}', "ratio is null"),
        ('{"sentences": "a\\tb", "ratio": NaN}', "NaN"),
        ('{"sentences": "a\\tb", "ratio": 1e999}', "too large"),
        ('{"sentences": "a\\tb", "ratio": -0.1}', "negative"),
        ('{"sentences": "a\\tb", "ratio": 1, "ratio": 0}', "'ratio' occurs twice"),
    ],
)
def test_what_is_not_an_item_is_refused_by_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{line}\n")
    with pytest.raises(InputRefused) as refusal:
        read_wug_items(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}:2: ") and reason in message and ONE_LINE_OF_REFUSAL.fullmatch(message)


def test_files_without_items_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputRefused, match="empty.jsonl: empty; expected"):
        read_wug_items(tmp_path / "empty.jsonl")
    with pytest.raises(InputRefused, match="missing.jsonl: No such file"):
        read_wug_items(tmp_path / "missing.jsonl")
