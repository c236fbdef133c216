"""Reading times: how much of them does a candidate's surprisal explain, beyond a word's frequency, length and place?

The words are those of 205 English sentences whose reading was measured (de Varda et al. 2023, doi
10.3758/s13428-023-02261-8), laid out as BabyLM 2025's `reading/reading_data.csv`. A score is the share, in percent,
of the variance left by a baseline regression that surprisal explains: (R2 with it - R2 without) / (1 - R2 without).

Axes: N words, C covariates, Q columns of a regression, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.csv_rows import number_in, table_rows
from benchmarks.estimates import Estimate, estimate, require_finite
from benchmarks.json_lines import text_of
from benchmarks.request import Request

EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")  # milliseconds
SELF_PACED = "self_paced_reading_time"  # milliseconds
COVARIATES = ("Subtlex_log10", "length", "context_length")  # log frequency, letters, words before
MASKS = 3  # mask tokens in place of the word and what follows, where a masked model reads
PREVIOUS = ("prev_length", "prev_pred")  # what spills over from the word before: its letters, its surprisal
_NUMBERS = (*COVARIATES, "prev_length", *EYE_TRACKING, SELF_PACED)
_TEXTS = ("item", "word", "prev_item", "prev_word")
# Share of a column's variance below which it is rounding: what remains is explained by the columns before it.
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingItem:
    """A word after the beginning of its sentence, and how long it was looked at."""

    context: str  # the sentence before the word
    word: str
    previous: tuple[str, str] | None  # context and word one word earlier; None: that word has no context
    numbers: Mapping[str, float]  # by column: covariates and reading times, NaN where the cell is empty
    place: str  # `file:line`, for messages


@dataclass(frozen=True)
class ReadingResult:
    """Surprisals in nats, float64 [items], and what they explain of the reading times, in percent."""

    surprisals: np.ndarray
    previous_surprisals: np.ndarray  # of the word before, NaN where it has no context
    measures: Mapping[str, Estimate]  # by reading time, without intervals
    eye_tracking: Estimate  # mean over the four reading times of EYE_TRACKING
    self_paced: Estimate


def read_reading_items(path: Path) -> list[ReadingItem]:
    """Every word of the official CSV file, in its order.

    Raises InputRefused, as `file:line: reason; expected ...; remedy`, for a missing column, a row of another length, a
    blank context or word, a number that is none, broken quotes, bytes that are not UTF-8, and a file without rows.
    """
    rows = table_rows(path, (*_TEXTS, *_NUMBERS))
    return [_item(row, place) for place, row in rows]


def reading_requests(items: Sequence[ReadingItem], *, with_space: bool = False) -> list[Request]:
    """Each word after its context, then each previous word that has one, in the order of the items.

    The year scores the word as its file has it, tokenised alone; in the file of June 2025 it has no leading space, so
    that most byte-level tokenizers give it another token than in running text. `with_space` writes the space before the
    word, as it is read. The numbers differ: say which of them you report. Masked models see MASKS behind the context
    (Samuel 2024, arXiv 2410.24159).
    """
    asked = [(item.context, item.word) for item in items] + [item.previous for item in items if item.previous]
    if with_space:
        return [Request(context.rstrip(), f" {word.lstrip()}", masks=MASKS) for context, word in asked]
    return [Request(context, word, apart=True, masks=MASKS) for context, word in asked]


def reading_result(
    items: Sequence[ReadingItem], log_likelihoods: np.ndarray, *, confidence: float, resamples: int, seed: int
) -> ReadingResult:
    """What surprisal explains, from the log-likelihoods in nats of `reading_requests`, in their order.

    Eye tracking: ordinary least squares of each reading time on COVARIATES and the products of each two, with and
    without surprisal. Self-paced reading: PREVIOUS joins the covariates, because times spill over to the next word.
    A regression leaves out words that lack any of its values. Intervals resample words, the same ones in all
    regressions. Raises Diverged, naming the word, for a log-likelihood that is not finite.
    """
    places = [item.place for item in items]
    require_finite(log_likelihoods, places + [f"{item.place} (prev_word)" for item in items if item.previous])
    surprisals = -np.asarray(log_likelihoods[: len(items)], np.float64)
    previous = np.full(len(items), np.nan)
    previous[[item.previous is not None for item in items]] = -log_likelihoods[len(items) :]
    columns = {name: np.array([item.numbers[name] for item in items], np.float64) for name in _NUMBERS}
    columns["prev_pred"] = previous
    rotated = {
        measure: _rotated(columns[measure], [columns[name] for name in covariates], surprisals)
        for measure, covariates in [(name, COVARIATES) for name in EYE_TRACKING]
        + [(SELF_PACED, (*COVARIATES, *PREVIOUS))]
    }
    how = {"confidence": confidence, "resamples": resamples, "seed": seed}
    return ReadingResult(
        surprisals,
        previous,
        {measure: _explained([regression], len(items), None) for measure, regression in rotated.items()},
        _explained([rotated[measure] for measure in EYE_TRACKING], len(items), how),
        _explained([rotated[SELF_PACED]], len(items), how),
    )


def reading_predictions(result: ReadingResult) -> dict[str, Any]:
    """What the year's `predictions.json` holds; a missing `prev_pred` is null, which its scorer reads as NaN."""
    rows = [
        {"id": number, "pred": float(surprisal), "prev_pred": None if np.isnan(previous) else float(previous)}
        for number, (surprisal, previous) in enumerate(zip(result.surprisals, result.previous_surprisals, strict=True))
    ]
    return {"reading": {"predictions": rows}}


def _item(row: Mapping[str, str], place: str) -> ReadingItem:
    previous = None
    # pandas, and so the year, reads the text None as a missing value; it mends that in `item`, not in `prev_item`
    if row["prev_item"] not in {"", "None"}:
        previous = text_of(row, "prev_item", place), text_of(row, "prev_word", place)
    return ReadingItem(
        context=text_of(row, "item", place),
        word=text_of(row, "word", place),
        previous=previous,
        numbers={name: number_in(row[name], name, place) for name in _NUMBERS},
        place=place,
    )


class _Regression(NamedTuple):
    """A regression turned so that its columns are orthonormal, which keeps resamples of it well conditioned."""

    rows_N: np.ndarray  # bool: words without a missing value
    columns_NQ: np.ndarray  # of those words: a basis of the baseline, what it leaves of surprisal and of the time


def _rotated(outcome_N: np.ndarray, covariates: Sequence[np.ndarray], surprisal_N: np.ndarray) -> _Regression | str:
    """The regression of a reading time; the reason where there is none."""
    from scipy.linalg import orth

    rows_N = np.logical_and.reduce([np.isfinite(column_N) for column_N in (outcome_N, surprisal_N, *covariates)])
    if not rows_N.any():
        return "no word has all values"
    # R2 depends on the space that the columns span alone, and so neither on their units nor on their origins; those
    # with mean 0 and variance 1 have products that do not drown in rounding
    units = [_standardised(covariate[rows_N]) for covariate in covariates]
    products = [units[first] * units[second] for first in range(len(units)) for second in range(first)]
    base_NQ = orth(np.stack([np.ones(int(rows_N.sum())), *units, *products], axis=1), rcond=1e-10)
    rests = []
    for column in (_standardised(surprisal_N[rows_N]), _standardised(outcome_N[rows_N])):
        rest = column / np.sqrt(len(column))
        for _ in range(2):  # the second time removes what rounding left of the first
            rest = rest - base_NQ @ (base_NQ.T @ rest)
        rests.append(rest)
    if rests[1] @ rests[1] < _ROUNDING:
        return f"the baseline explains the time of all {int(rows_N.sum())} words"
    return _Regression(rows_N, np.stack([*base_NQ.T, *rests], axis=1))


def _standardised(values: np.ndarray) -> np.ndarray:
    """Values with mean 0 and variance 1; 0 where all are equal."""
    centred = values - values.mean()
    scale = np.abs(centred).max()
    # the mean of equal values may differ from them by rounding
    if scale <= 1e-14 * np.abs(values).max():
        return np.zeros_like(values)
    centred = centred / scale  # before squaring, which could overflow
    return centred / centred.std()


def _explained(regressions: Sequence[_Regression | str], number: int, how: Mapping[str, Any] | None) -> Estimate:
    """Mean percentage over regressions of `number` words, with its interval where `how` is given."""
    usable = [regression for regression in regressions if not isinstance(regression, str)]
    if len(usable) < len(regressions):
        return Estimate(None, None, next(reason for reason in regressions if isinstance(reason, str)))

    def mean_percentage(counts_RN: np.ndarray) -> np.ndarray:
        return 100 * np.mean([_explained_shares(regression, counts_RN) for regression in usable], axis=0)

    def resampled(words_RN: np.ndarray, axis: int) -> np.ndarray:
        words_RN = words_RN.reshape(-1, words_RN.shape[axis]).astype(np.int64)
        return mean_percentage(np.stack([np.bincount(words, minlength=number) for words in words_RN]))

    value = float(mean_percentage(np.ones((1, number)))[0])
    return Estimate(value, None) if how is None else estimate(value, [np.arange(number)], resampled, **how)


def _explained_shares(regression: _Regression, counts_RN: np.ndarray) -> np.ndarray:
    """Partial R2 of surprisal, 0 to 1, where each word counts so often; NaN where the baseline explains all.

    With residuals p and y that the baseline leaves of surprisal and time, (R2 with - R2 without) / (1 - R2 without) is
    (p y)^2 / (p p)(y y); the products are the Schur complement of the weighted Gram matrix.
    """
    columns_NQ = regression.columns_NQ
    size = columns_NQ.shape[1]
    products_NQQ = columns_NQ[:, :, None] * columns_NQ[:, None, :]
    counts_RN = counts_RN[:, regression.rows_N].astype(np.float64)
    gram_RQQ = (counts_RN @ products_NQQ.reshape(len(columns_NQ), -1)).reshape(-1, size, size)
    base, rests = slice(0, size - 2), slice(size - 2, size)
    cross = gram_RQQ[:, base, rests]
    # a resample may leave fewer dimensions than columns
    inverse = np.linalg.pinv(gram_RQQ[:, base, base], rcond=1e-10, hermitian=True)
    left = gram_RQQ[:, rests, rests] - cross.transpose(0, 2, 1) @ inverse @ cross
    surprisal, outcome = left[:, 0, 0], left[:, 1, 1]
    new = surprisal > _ROUNDING  # else surprisal says what the baseline says, or nothing, and explains nothing more
    fits = outcome > _ROUNDING
    explained = left[:, 0, 1] ** 2 / np.where(new & fits, surprisal * outcome, 1)
    return np.where(fits, np.where(new, explained, 0.0), np.nan)
