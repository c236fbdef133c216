"""Age of acquisition: does a candidate learn words in the order in which children do?

A word's surprisal falls along a sigmoid over the logarithm of the words seen in training; the candidate has the word
where the curve passes half the way from chance to its lowest point (Chang and Bergen 2022, arXiv 2110.02406). Children
have it at the age at which half of them say it (CDI, 16 to 30 months). The score is Pearson's correlation of the two.

Two rules of where that is stand side by side: see `acquisition_curves`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.acquisition_curves import MIN_AGES, MIN_CHECKPOINTS, RULES, child_age
from benchmarks.csv_rows import number_in, table_rows
from benchmarks.estimates import Estimate, correlation, require_finite
from benchmarks.json_lines import kind_of, parsed, refuse, text_of
from benchmarks.request import Request
from corpora.errors import InputRefused

AGES = range(16, 31)  # months, columns of the CDI's file
TOO_FEW = f"fewer than {MIN_CHECKPOINTS} checkpoints"


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetWord:
    """A word and the beginnings of sentences that it goes on."""

    word: str
    contexts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A moment of training: its name in a submission (chck_10M) and the words seen until then, repeats included."""

    step: str
    words_seen: int


@dataclass(frozen=True)
class Agreement:
    """Ages of the words under one rule, float64 [words used], and their correlation."""

    rule: str
    words: tuple[str, ...]
    model_ages: np.ndarray  # log10(words seen + 1)
    child_ages: np.ndarray  # months
    unusable: Mapping[str, str]  # other words: why they have no age
    correlation: Estimate
    p_value: float | None  # of the correlation, against none

    def lines(self) -> list[str]:
        """The correlation in words, and which words it leaves out."""
        found = f"undefined ({self.correlation.reason})"
        if self.correlation.value is not None:
            interval = self.correlation.interval
            ends = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else f" ({self.correlation.reason})"
            found = f"r = {self.correlation.value:.3f}{ends}, p = {self.p_value:.3g}"
        said = [f"{self.rule}: {found}; {len(self.words)} words used, {len(self.unusable)} not"]
        by_reason: dict[str, list[str]] = {}
        for word, reason in self.unusable.items():
            by_reason.setdefault(reason, []).append(word)
        return said + [f"  {reason}: {', '.join(words)}" for reason, words in by_reason.items()]


@dataclass(frozen=True)
class AcquisitionResult:
    """Surprisals in nats, float64 [checkpoints, contexts] for each word, and what each rule makes of them."""

    checkpoints: tuple[Checkpoint, ...]
    surprisals: Mapping[str, np.ndarray]
    agreements: Mapping[str, Agreement]  # by rule

    def lines(self) -> list[str]:
        """Both rules in words."""
        return [line for agreement in self.agreements.values() for line in agreement.lines()]


def read_target_words(path: Path, *, min_contexts: int = 1) -> list[TargetWord]:
    """The words of the official `cdi_childes.json`, {word: [{"context": text}, ...]}, in its order.

    As in the year, words of one letter and those with fewer contexts are left out (the challenge's file: 504 words with
    8,005 contexts, of which 328 have 20). Raises InputRefused for whatever else the file holds.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputRefused(f"{path}: {error.strerror}; expected a readable JSON file; check its name") from error
    value = parsed(data, str(path))
    if not isinstance(value, dict):
        refuse(str(path), f"found {kind_of(value)}", "an object with a list of contexts for each word")
    words = [TargetWord(word=word, contexts=_contexts(word, rows, path)) for word, rows in value.items()]
    words = [word for word in words if len(word.word) > 1 and len(word.contexts) >= min_contexts]
    if not words:
        raise InputRefused(f"{path}: no word; expected words with {min_contexts} context(s); fetch the file again")
    return words


def read_child_shares(path: Path) -> dict[str, dict[int, float]]:
    """Share of children who say each word, by age in months, from the official `cdi_human.csv`.

    Its columns are `word` and ages from 16 to 30; empty cells are left out. Of a word that stands there twice the first
    row counts, as in the year. Raises InputRefused as `file:line: reason; expected ...; remedy`.
    """
    shares: dict[str, dict[int, float]] = {}
    for place, row in table_rows(path, ("word",)):
        ages = [age for age in AGES if str(age) in row]
        if len(ages) < MIN_AGES:
            refuse(f"{path}:1", f"{len(ages)} columns of ages", f"at least {MIN_AGES} from 16 to 30")
        of_word = {age: number_in(row[str(age)], str(age), place) for age in ages}
        for age, share in of_word.items():
            if share < 0 or share > 1:
                refuse(place, f"column {age} is {share:g}", "a share of children, 0 to 1")
        known = {age: share for age, share in of_word.items() if not math.isnan(share)}
        shares.setdefault(text_of(row, "word", place), known)
    return shares


def acquisition_requests(words: Sequence[TargetWord]) -> list[Request]:
    """Each word after each of its contexts, one space between them: what every checkpoint is asked."""
    return [Request(context.strip(), f" {word.word.strip()}") for word in words for context in word.contexts]


def acquisition_result(
    words: Sequence[TargetWord],
    shares: Mapping[str, Mapping[int, float]],
    *,
    checkpoints: Sequence[Checkpoint],
    log_likelihoods: Sequence[np.ndarray],
    confidence: float,
    resamples: int,
    seed: int,
    chance: Mapping[str, float] | None = None,
) -> AcquisitionResult:
    """Agreement with children, from each checkpoint's log-likelihoods in nats of `acquisition_requests`.

    `shares`: from `read_child_shares`. `checkpoints`: earliest first. `chance`: of each word for the rule `nats`, in
    nats, for instance its number of tokens times ln(size of the vocabulary); else ln(300,000) for all. Intervals
    resample words. With fewer than three words a correlation is undefined; it is never 0 for want of words.
    Raises Diverged, naming checkpoint, word and context, for a log-likelihood that is not finite; InputRefused for
    checkpoints out of order.
    """
    seen = np.array([checkpoint.words_seen for checkpoint in checkpoints], np.float64)
    if (np.diff(seen) <= 0).any():
        raise InputRefused(
            "checkpoints: words seen do not grow; expected each checkpoint once, earliest first; sort them"
        )
    for checkpoint, values in zip(checkpoints, log_likelihoods, strict=True):
        contexts = [f"{word.word}, context {number}" for word in words for number in range(len(word.contexts))]
        require_finite(values, [f"{checkpoint.step}: {context}" for context in contexts])
    ends = np.cumsum([len(word.contexts) for word in words])
    parts = np.split(-np.asarray(log_likelihoods, np.float64), ends[:-1], axis=1)
    surprisals = {word.word: part for word, part in zip(words, parts, strict=True)}
    child_ages = {word.word: child_age(shares.get(word.word)) for word in words}
    log_seen = np.log10(seen + 1)
    how = {"confidence": confidence, "resamples": resamples, "seed": seed}
    agreements = {}
    for rule, model_age in RULES.items():
        model_ages = {
            word: model_age(log_seen, part, (chance or {}).get(word)) if len(seen) >= MIN_CHECKPOINTS else TOO_FEW
            for word, part in surprisals.items()
        }
        agreements[rule] = _agreement(rule, model_ages, child_ages, how)
    return AcquisitionResult(tuple(checkpoints), surprisals, agreements)


def acquisition_rows(words: Sequence[TargetWord], result: AcquisitionResult) -> list[dict[str, Any]]:
    """The `results` of the year's `surprisal.json`."""
    return [
        {
            "step": checkpoint.step,
            "word_count": checkpoint.words_seen,
            "target_word": word.word,
            "context_id": number,
            "context": context,
            "surprisal": float(result.surprisals[word.word][index, number]),
        }
        for index, checkpoint in enumerate(result.checkpoints)
        for word in words
        for number, context in enumerate(word.contexts)
    ]


def _contexts(word: str, rows: Any, path: Path) -> tuple[str, ...]:
    """The contexts of a word; it stands in messages and in the submission, so it must be printable."""
    place = f"{path}:{word!a}"
    if not word.strip() or not word.isprintable():
        refuse(place, "the word is blank or cannot be printed", "a word")
    if not isinstance(rows, list):
        refuse(place, f"found {kind_of(rows)}", "a list of contexts")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or "context" not in row:
            refuse(f"{place}[{number}]", "no context", 'an object {"context": text}')
    return tuple(text_of(row, "context", f"{place}[{number}]") for number, row in enumerate(rows))


def _agreement(
    rule: str, model_ages: Mapping[str, float | str], child_ages: Mapping[str, float | str], how: Mapping[str, Any]
) -> Agreement:
    """The correlation of both ages over the words that have both."""
    from scipy.stats import pearsonr

    unusable: dict[str, str] = {}
    used: dict[str, tuple[float, float]] = {}
    for word, model_age in model_ages.items():
        child_age = child_ages[word]
        if isinstance(child_age, str):
            unusable[word] = f"children: {child_age}"
        elif isinstance(model_age, str):
            unusable[word] = f"model: {model_age}"
        else:
            used[word] = model_age, child_age
    models, children = np.array(list(used.values()), np.float64).reshape(-1, 2).T
    found = correlation(models, children, ranks=False, names=("model's age", "children's age"), **how)
    p_value = None if found.value is None else np.asarray(pearsonr(models, children)[1]).item()
    return Agreement(rule, tuple(used), models, children, unusable, found, p_value)
