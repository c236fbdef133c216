"""Reading scores equal hand-computed ones and plain least squares in any unit, and say when they are undefined."""

from __future__ import annotations

import csv
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.reading import (
    COVARIATES,
    EYE_TRACKING,
    PREVIOUS,
    SELF_PACED,
    ReadingItem,
    ReadingResult,
    _explained_shares,
    _Regression,
    _rotated,
    read_reading_items,
    reading_predictions,
    reading_requests,
    reading_result,
)
from benchmarks.request import Request
from corpora.errors import Diverged, InputRefused

HOW = {"confidence": 0.95, "resamples": 300, "seed": 1}
NUMBERS = (*COVARIATES, "prev_length", *EYE_TRACKING, SELF_PACED)
ROW = {
    "": "0",
    "item": "Arthur placed",
    "word": "the",
    "prev_item": "Arthur",
    "prev_word": "placed",
    "N400": "",
    **dict.fromkeys(NUMBERS, "1.5"),
}
ONE_LINE_OF_REFUSAL = re.compile(r"[^\n]+:\d+: [^\n]+; expected [^\n]+; [^\n]+")


def _items(columns: dict[str, np.ndarray], has_previous: np.ndarray | None = None) -> list[ReadingItem]:
    """Items with these numbers; columns that are not given are 1 throughout."""
    number = len(next(iter(columns.values())))
    columns = {name: np.ones(number) for name in NUMBERS} | columns
    return [
        ReadingItem(
            context=f"word {index}",
            word="w",
            previous=("word", str(index)) if has_previous is None or has_previous[index] else None,
            numbers={name: float(columns[name][index]) for name in NUMBERS},
            place=f"reading.csv:{index + 2}",
        )
        for index in range(number)
    ]


def _result(
    columns: dict[str, np.ndarray], surprisals: np.ndarray, previous: np.ndarray | None = None, **how: Any
) -> ReadingResult:
    """`previous` is NaN where a word has no previous one; None: its surprisal is 1 throughout."""
    previous = np.ones(len(surprisals)) if previous is None else previous
    known = np.isfinite(previous)
    return reading_result(_items(columns, known), -np.concatenate([surprisals, previous[known]]), **(HOW | how))


def _synthetic(number: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Columns in the ranges of the official file, surprisals, and surprisals of previous words."""
    draw = np.random.default_rng(seed)
    columns = {
        "Subtlex_log10": draw.uniform(0, 7, number),
        "length": draw.integers(1, 14, number).astype(float),
        "context_length": draw.integers(1, 15, number).astype(float),
        "prev_length": draw.integers(1, 14, number).astype(float),
    }
    surprisals, previous = draw.gamma(4, 1.5, (2, number))
    for name in (*EYE_TRACKING, SELF_PACED):
        columns[name] = (
            250
            - 6 * columns["Subtlex_log10"]
            + 3 * columns["length"]
            - columns["length"] * columns["context_length"] / 5
            + 4 * surprisals
            + draw.normal(0, 20, number)
        )
    columns[SELF_PACED] += 2 * previous
    return columns, surprisals, previous


def _plain_score(outcome: np.ndarray, covariates: list[np.ndarray], surprisals: np.ndarray) -> float:
    """The definition, word for word: two least-squares fits and their R2, by numpy, in the columns' own units."""
    rows = np.isfinite(outcome) & np.isfinite(surprisals) & np.isfinite(covariates).all(0)
    outcome, surprisals = outcome[rows], surprisals[rows]
    covariates = [covariate[rows] for covariate in covariates]
    pairs = [a * b for index, a in enumerate(covariates) for b in covariates[:index]]
    base = np.stack([np.ones(len(outcome)), *covariates, *pairs], axis=1)

    def r2(design: np.ndarray) -> float:
        left = outcome - design @ np.linalg.lstsq(design, outcome, rcond=None)[0]
        return 1 - left @ left / ((outcome - outcome.mean()) ** 2).sum()

    without, with_it = r2(base), r2(np.column_stack([base, surprisals]))
    return 100 * (with_it - without) / (1 - without)


def test_scores_are_what_a_hand_computes() -> None:
    """z and s are orthogonal, time = z + 2 s + 2 z s: squares 1, 4 and 4 of 9 by surprisal, 4 of 8 once z is known."""
    z, s = np.array([-1.0, -1.0, 1.0, 1.0] * 3), np.array([-1.0, 1.0, -1.0, 1.0] * 3)
    time = z + 2 * s + 2 * z * s
    result = _result(dict.fromkeys((*EYE_TRACKING, SELF_PACED), time), s + 5, z + 9)
    assert result.eye_tracking.value == pytest.approx(100 * 4 / 9)
    assert result.self_paced.value == pytest.approx(50)
    # without covariates the score is the squared correlation: (1 2 3 4) and (1 3 2 4) have r = 0.8
    result = _result({"RTgopast": np.arange(4.0), **dict.fromkeys(EYE_TRACKING[:2], z[:4])}, np.array([1.0, 3, 2, 4]))
    assert result.measures["RTgopast"].value == pytest.approx(64)


def test_scores_equal_plain_least_squares() -> None:
    columns, surprisals, previous = _synthetic(400)
    draw = np.random.default_rng(2)
    for name in (*EYE_TRACKING, SELF_PACED, "Subtlex_log10"):  # other words are missing for each
        columns[name][draw.random(400) < 0.1] = math.nan
    previous[draw.random(400) < 0.2] = math.nan
    result = _result(columns, surprisals, previous)
    known = [columns[name] for name in COVARIATES]
    expected = {name: _plain_score(columns[name], known, surprisals) for name in EYE_TRACKING}
    expected[SELF_PACED] = _plain_score(columns[SELF_PACED], [*known, columns[PREVIOUS[0]], previous], surprisals)
    assert {name: estimate.value for name, estimate in result.measures.items()} == pytest.approx(expected, rel=1e-9)
    assert result.eye_tracking.value == pytest.approx(np.mean([expected[name] for name in EYE_TRACKING]))
    assert result.self_paced.value == pytest.approx(expected[SELF_PACED])


def test_planted_variance_is_found_at_full_size() -> None:
    """Surprisal brings 4^2 * 9 beside noise of 20^2: 26.5 % of what the baseline leaves."""
    columns, surprisals, previous = _synthetic(1726)
    result = _result(columns, surprisals, previous, resamples=2000)
    for estimate in (result.eye_tracking, result.self_paced):
        assert estimate.value is not None and estimate.interval is not None
        low, high = estimate.interval
        assert low < 100 * 144 / 544 < high and low < estimate.value < high and 1 < high - low < 10
    # the mean of four measures of the same words is surer than one
    assert np.ptp(result.eye_tracking.interval or ()) < np.ptp(result.self_paced.interval or ())
    assert _result(columns, surprisals, previous, resamples=2000).eye_tracking == result.eye_tracking
    shuffled = np.random.default_rng(1).permutation(surprisals)
    assert (_result(columns, shuffled, previous).eye_tracking.value or 0) < 1


def test_units_and_origins_do_not_matter() -> None:
    columns, surprisals, previous = _synthetic(300)
    result = _result(columns, surprisals, previous)
    scaled = columns | {
        "length": 1e6 * columns["length"] + 3e6,
        "Subtlex_log10": 1e-9 * columns["Subtlex_log10"],
        "prev_length": -columns["prev_length"],
        SELF_PACED: columns[SELF_PACED] / 1e9,
    }
    other = _result(scaled, surprisals / math.log(2) + 1000, 1e4 * previous)
    for name in result.measures:
        assert other.measures[name].value == pytest.approx(result.measures[name].value, rel=1e-6)
    assert other.self_paced.interval == pytest.approx(result.self_paced.interval, rel=1e-6)


def test_the_order_of_words_does_not_matter() -> None:
    columns, surprisals, previous = _synthetic(200)
    turned = {name: column[::-1] for name, column in columns.items()}
    one, other = _result(columns, surprisals, previous), _result(turned, surprisals[::-1], previous[::-1])
    assert one.self_paced.value == pytest.approx(other.self_paced.value)


def test_resamples_are_regressions_on_repeated_words() -> None:
    columns, surprisals, _ = _synthetic(80)
    columns["RTgopast"][::9] = math.nan
    covariates = [columns[name] for name in COVARIATES]
    regression = _rotated(columns["RTgopast"], covariates, surprisals)
    assert isinstance(regression, _Regression)
    counts = np.random.default_rng(0).multinomial(80, np.full(80, 1 / 80), size=20)
    shares = _explained_shares(regression, counts)
    for share, times in zip(shares, counts, strict=True):
        repeated = [np.repeat(column, times) for column in (columns["RTgopast"], *covariates, surprisals)]
        assert 100 * share == pytest.approx(_plain_score(repeated[0], repeated[1:-1], repeated[-1]), rel=1e-8)


def test_surprisal_that_says_nothing_new_explains_nothing() -> None:
    columns, surprisals, previous = _synthetic(100)
    constant = _result(columns, np.full(100, 3.3), np.full(100, 3.3))
    assert constant.eye_tracking == (0.0, (0.0, 0.0), "") and constant.self_paced == (0.0, (0.0, 0.0), "")
    known = _result(columns, columns["length"] * columns["context_length"] - 7, previous)
    assert known.eye_tracking.value == 0.0
    assert (_result(columns, surprisals, np.full(100, 2.0)).self_paced.value or 0) > 5


def test_undefined_scores_say_why() -> None:
    columns, surprisals, previous = _synthetic(50)
    exact = _result(columns | {"RTgopast": 2 * columns["length"] + 1}, surprisals, previous)
    assert exact.eye_tracking == (None, None, "the baseline explains the time of all 50 words")
    assert exact.measures["RTfirstfix"].value is not None and exact.self_paced.value is not None
    unread = _result(columns, surprisals, np.full(50, math.nan))
    assert unread.self_paced == (None, None, "no word has all values") and unread.eye_tracking.value is not None
    few = _result({name: column[:9] for name, column in columns.items()}, surprisals[:9], previous[:9])
    assert few.eye_tracking.value is not None and few.eye_tracking.interval is None
    assert few.eye_tracking.reason == "too few items for an interval"


def test_what_is_not_finite_is_named() -> None:
    items = _items({"length": np.ones(3)}, np.array([False, True, True]))
    scores = np.array([-1.0, -math.inf, -1.0, -1.0, math.nan])
    with pytest.raises(Diverged, match=r"^reading.csv:3: log-likelihood -inf \(2 of 5 not finite\); expected"):
        reading_result(items, scores, **HOW)
    scores[1] = -1.0
    with pytest.raises(Diverged, match=r"^reading.csv:4 \(prev_word\): log-likelihood nan"):
        reading_result(items, scores, **HOW)


def _write(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_files_become_requests_and_predictions(tmp_path: Path) -> None:
    first = ROW | {"item": "Arthur", "word": "placed", "prev_item": "", "prev_word": "Arthur", "RTgopast": ""}
    third = ROW | {"item": "None, of\ncourse", "prev_item": "None", "prev_word": "of", "length": "-2e1"}
    items = read_reading_items(_write(tmp_path / "r.csv", first, ROW, third, ROW))
    assert [item.previous for item in items] == [None, ("Arthur", "placed"), None, ("Arthur", "placed")]
    assert [item.place.rpartition(":")[2] for item in items] == ["2", "3", "4", "6"]  # the third has two lines
    assert math.isnan(items[0].numbers["RTgopast"]) and items[1].numbers["RTgopast"] == 1.5
    assert items[2].numbers["length"] == -20
    assert reading_requests(items[:2]) == [
        Request("Arthur", "placed", apart=True, masks=3),
        Request("Arthur placed", "the", apart=True, masks=3),
        Request("Arthur", "placed", apart=True, masks=3),
    ]
    assert reading_requests(items[:2], with_space=True) == [
        Request("Arthur", " placed", masks=3),
        Request("Arthur placed", " the", masks=3),
        Request("Arthur", " placed", masks=3),
    ]
    result = reading_result(items[:2], np.array([-1.0, -2.0, -3.0]), **HOW)
    assert reading_predictions(result) == {
        "reading": {
            "predictions": [{"id": 0, "pred": 1.0, "prev_pred": None}, {"id": 1, "pred": 2.0, "prev_pred": 3.0}]
        }
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"item": ""}, "item is blank"),
        ({"word": " "}, "word is blank"),
        ({"word": "a\0"}, "word holds a NUL character"),
        ({"prev_word": ""}, "prev_word is blank"),
        ({"length": "long"}, "length is 'long'"),
        ({"length": "1_0"}, "length is '1_0'"),
        ({"length": "١"}, "length is '\\u0661'"),
        ({"RTgopast": "inf"}, "RTgopast is 'inf'"),
        ({"RTgopast": "1e999"}, "RTgopast is '1e999'"),
        ({"RTgopast": "1 "}, "RTgopast is '1 '"),
    ],
)
def test_what_is_not_a_word_is_refused_by_line(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    path = _write(tmp_path / "broken.csv", ROW, ROW | change)
    with pytest.raises(InputRefused) as refusal:
        read_reading_items(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}:3: ") and reason in message and ONE_LINE_OF_REFUSAL.fullmatch(message)


@pytest.mark.parametrize(
    ("spoil", "line", "reason"),
    [
        (lambda data: data + b"1,2,3\n", 3, "3 cells"),
        (lambda data: data + b"\n", 3, "0 cells"),
        (lambda data: data + b'1,"Arthur', 3, "not CSV"),
        (lambda data: data + b"1,\xff", 3, "not UTF-8"),
        (lambda data: data.replace(b"RTgopast", b"RT"), 1, "column RTgopast is missing"),
        (lambda data: data.replace(b"N400", b"word"), 1, "column word occurs twice"),
        (lambda data: data + b"x" * 140_000, 3, "not CSV"),
    ],
)
def test_what_is_no_table_is_refused_by_line(tmp_path: Path, spoil: Any, line: int, reason: str) -> None:
    path = _write(tmp_path / "broken.csv", ROW)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputRefused) as refusal:
        read_reading_items(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}:{line}: ") and reason in message and ONE_LINE_OF_REFUSAL.fullmatch(message)


_SNIPPETS = [
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"NaN",
    b"None",
    b"1e999",
    b" ",
    b"\xe2\x80\xa8",
    b"\xef\xbb\xbf",
]


def test_mutated_files_are_refused_or_read(tmp_path: Path) -> None:
    whole = _write(tmp_path / "whole.csv", ROW, ROW, ROW).read_bytes()
    path, draw, read = tmp_path / "mutated.csv", random.Random(3), 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            start = draw.randrange(len(data))
            data[start : start + draw.randint(0, 3)] = draw.choice(_SNIPPETS)
        path.write_bytes(data)
        try:
            for item in read_reading_items(path):
                assert item.context.strip() and item.word.strip() and len(item.numbers) == len(NUMBERS)
            read += 1
        except InputRefused as refusal:
            assert ONE_LINE_OF_REFUSAL.fullmatch(str(refusal)), str(refusal)
    assert 20 < read < 300


def test_files_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="r.csv: no row; expected"):
        read_reading_items(_write(tmp_path / "r.csv"))
    with pytest.raises(InputRefused, match="missing.csv: No such file"):
        read_reading_items(tmp_path / "missing.csv")
