"""Wugs: does a candidate inflect and derive words that do not exist as people do?

Each item is a sentence in two versions, which differ in the form of an invented word: the noun in -ity or in -ness of
an adjective (Hofmann et al. 2024, arXiv 2411.07990), or a past tense (Weissweiler et al. 2023). Nothing is right or
wrong here: the score is how well the candidate's preferences follow those of people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.estimates import Estimate, correlation, require_finite
from benchmarks.json_lines import kind_of, read_rows, refuse, text_of
from benchmarks.request import Request
from benchmarks.stats import bootstrap_mean

# where BabyLM 2025 keeps each task below `full_eval` and `fast_eval`, by the task's name in a submission
FILES = {
    "wug_adj": "wug_adj_nominalization/wug_adj_nominalization.jsonl",
    "wug_past": "wug_past_tense/wug_past_tense.jsonl",
}
_LARGEST_RATIO = 1_000_000  # shares end at 1, but a ratio of ratings may exceed it
_KEYS = "sentences (two, with a tab between) and ratio"


@dataclass(frozen=True, kw_only=True, slots=True)
class WugItem:
    """Two versions of a sentence, and the share of people's answers that the first one got."""

    first: str
    second: str
    ratio: float
    place: str = ""  # `file:line`, for messages


@dataclass(frozen=True)
class WugResult:
    """Preferences of a candidate, float64 [items], and how they agree with people's."""

    probabilities: np.ndarray  # of the first version against the second, 0 to 1
    correlation: Estimate  # Spearman's, -1 to 1, with people's ratios: the year's score
    accuracy: Estimate  # share of items in which candidate and majority prefer the same version, 0 to 1
    ties: int  # items whose two versions are as likely: never a success
    undecided: int  # items without a majority of people: not in the accuracy


def read_wug_items(path: Path) -> list[WugItem]:
    """Every item of an official JSON Lines file, in its order; keys that we do not know are ignored.

    Raises InputRefused, as `file:line: reason; expected ...; remedy`, for whatever is not JSON in UTF-8, a missing or
    repeated key, other than two different sentences, a ratio that is no number, and for a file without any line.
    """
    return [_item(row, place) for _, place, row in read_rows(path)]


def wug_requests(items: Sequence[WugItem]) -> list[Request]:
    """The two versions of each item, one after the other, as whole sentences."""
    return [Request("", sentence) for item in items for sentence in (item.first, item.second)]


def wug_result(
    items: Sequence[WugItem], log_likelihoods: np.ndarray, *, confidence: float, resamples: int, seed: int
) -> WugResult:
    """Agreement with people, from the log-likelihoods in nats of `wug_requests`, in their order.

    The probability of a version is the softmax over the scores of the two. Until August 2025 the challenge reported an
    accuracy, since then Spearman's correlation; both are given. Raises Diverged, naming the item, for a log-likelihood
    that is not finite.
    """
    from scipy.special import expit

    require_finite(log_likelihoods, [item.place for item in items for _ in range(2)])
    scores = np.asarray(log_likelihoods, np.float64).reshape(-1, 2)
    leads = scores[:, 0] - scores[:, 1]
    ratios = np.array([item.ratio for item in items], np.float64)
    how = {"confidence": confidence, "resamples": resamples, "seed": seed}
    probabilities = expit(leads)
    return WugResult(
        probabilities,
        correlation(probabilities, ratios, ranks=True, names=("probability", "human ratio"), **how),
        _accuracy(leads, ratios, how),
        int((leads == 0).sum()),
        int((ratios == 0.5).sum()),
    )


def wug_predictions(task: str, items: Sequence[WugItem], result: WugResult) -> dict[str, Any]:
    """What the year's `predictions.json` holds; `task` is its name there, `wug_adj` or `wug_past`.

    Its scorer reads `prob` alone. Of two versions that are as likely `pred` is the first, as everywhere in that format.
    """
    rows = [
        {
            "id": f"{task}_{number}",
            "pred": item.first if probability >= 0.5 else item.second,
            "prob": float(probability),
        }
        for number, (item, probability) in enumerate(zip(items, result.probabilities, strict=True))
    ]
    return {task: {"predictions": rows}}


def _accuracy(leads_N: np.ndarray, ratios_N: np.ndarray, how: Mapping[str, Any]) -> Estimate:
    """Share of items in which the likelier version is the one that most people gave."""
    if (ratios_N > 1).any():
        return Estimate(None, None, "ratios above 1 are no shares of answers, so there is no majority")
    decided = ratios_N != 0.5
    if not decided.any():
        return Estimate(None, None, f"people are divided evenly on all {len(ratios_N)} items")
    agreed = np.sign(leads_N[decided]) == np.sign(ratios_N[decided] - 0.5)
    return Estimate(float(agreed.mean()), bootstrap_mean(agreed, **how))


def _item(row: Mapping[str, Any], place: str) -> WugItem:
    sentences = text_of(row, "sentences", place, expected=_KEYS).split("\t")
    if len(sentences) != 2 or not all(sentence.strip() for sentence in sentences):
        refuse(
            place, f"sentences holds {len(sentences)} part(s), blank ones included", "two sentences with a tab between"
        )
    if sentences[0] == sentences[1]:
        refuse(place, "the two sentences are equal", "two different sentences")
    ratio = row.get("ratio")
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        refuse(place, f"ratio is {kind_of(ratio) if 'ratio' in row else 'missing'}", "a number")
    if not 0 <= ratio <= _LARGEST_RATIO:
        refuse(place, "ratio is negative or too large", f"a number from 0 to {_LARGEST_RATIO:,}, usually at most 1")
    return WugItem(first=sentences[0], second=sentences[1], ratio=float(ratio), place=place)
