"""Choices: does a candidate find the right option more likely than every other?

A choice is won when the right option's score is strictly the highest and all scores are finite. Ties are counted and
shown and are never wins: several public pipelines take the first of equal scores, which is the right one in every
file, and so give a constant model full marks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from benchmarks.request import Request
from corpora.batch import Objective
from corpora.errors import Diverged, InputRefused


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One item: options, of which the first is right. Who scores them sees each alone, and in another order."""

    options: tuple[Request, ...]
    place: str = ""  # `file:line`, for messages
    number: int = 0  # line in the file, from 1: the address of the item
    said: tuple[str, ...] = ()  # how a submission names each option
    name: str = ""  # of the item, where a submission has each alone


@dataclass(frozen=True)
class ChoiceTask:
    """The items of one paradigm, all with as many options.

    `field` and `term` are BLiMP's categories, empty when the file does not say; `benchmark` is what it is a part of.
    """

    uid: str
    field: str
    term: str
    items: tuple[Choice, ...]
    benchmark: str = ""

    @property
    def num_options(self) -> int:
        """Options of each item."""
        return len(self.items[0].options)

    @property
    def chance(self) -> float:
        """Share of wins of a guess, 0 to 1."""
        return 1 / self.num_options


@dataclass(frozen=True)
class ChoiceResult:
    """Scores of the options of each item in nats, float64 [items, options], the right one first, and the verdicts."""

    task: ChoiceTask
    scores: np.ndarray

    @cached_property
    def finite(self) -> np.ndarray:
        """Items whose scores are all numbers, bool [items]."""
        return np.all(np.isfinite(self.scores), axis=1)

    @cached_property
    def wins(self) -> np.ndarray:
        """Items in which the right option is strictly the likeliest, bool [items]."""
        beaten = self.scores[:, 0] > self.scores[:, 1:].max(axis=1)
        return np.where(self.finite, beaten, False)

    @property
    def ties(self) -> int:
        """Items in which another option equals the right one and none exceeds it."""
        return int((self.finite & (self.scores[:, 0] == self.scores[:, 1:].max(axis=1))).sum())

    @property
    def non_finite(self) -> int:
        """Items of which a score is no number."""
        return int((~self.finite).sum())

    @property
    def accuracy(self) -> float:
        """Share of wins among all items, 0 to 1."""
        return float(self.wins.mean())

    @property
    def accuracy_ties_won(self) -> float:
        """The same where the first of equal scores is taken, as the challenges' scorers do: ties are wins."""
        return self.accuracy + self.ties / len(self.scores)


@dataclass(frozen=True)
class ChoiceResults:
    """One candidate on all tasks."""

    candidate: str
    objective: Objective
    tasks: tuple[ChoiceResult, ...]

    @property
    def wins(self) -> list[np.ndarray]:
        """The verdicts task by task: what `stats.bootstrap_macro_mean` resamples."""
        return [task.wins for task in self.tasks]

    @property
    def accuracy(self) -> float:
        """Macro accuracy: the mean over tasks of their accuracies, 0 to 1."""
        return float(np.mean([task.accuracy for task in self.tasks]))

    @property
    def ties(self) -> int:
        """Ties in all tasks together."""
        return sum(task.ties for task in self.tasks)

    @property
    def non_finite(self) -> int:
        """Items with a score that is no number, in all tasks together."""
        return sum(task.non_finite for task in self.tasks)

    @property
    def valid(self) -> bool:
        """Whether every score is a number; an invalid result belongs in no table."""
        return self.non_finite == 0


class Answering(Protocol):
    """Whoever scores requests, such as a `Scorer`."""

    @property
    def name(self) -> str:
        """Of the candidate."""
        ...

    @property
    def objective(self) -> Objective:
        """What it predicts."""
        ...

    def scores(self, requests: Sequence[Request], *, places: Sequence[str] | None = None) -> np.ndarray:
        """Log-likelihoods in nats, float64 [requests]; `places` name the requests in messages."""
        ...


def asked_order(tasks: Iterable[ChoiceTask]) -> list[Request]:
    """Every option of all items, once, in an order that does not know which is right: that of their texts."""
    options = {option for task in tasks for item in task.items for option in item.options}
    return sorted(options, key=lambda option: (option.text, option.context, option.apart, option.mean, option.masks))


def score_choices(scorer: Answering, tasks: Sequence[ChoiceTask], *, report_invalid: bool = False) -> ChoiceResults:
    """Score the options of every item, all tasks together.

    Raises Diverged when a score is not finite, unless `report_invalid`: then the result says so and counts no win
    there. Raises InputRefused, naming the item, for an option that cannot be scored.
    """
    for task in tasks:
        _require_equal_numbers(task)
    place_of = {option: item.place for task in tasks for item in task.items for option in item.options}
    asked = asked_order(tasks)
    scores = scorer.scores(asked, places=[place_of[option] for option in asked])
    score_of = dict(zip(asked, scores.tolist(), strict=True))
    results = [
        ChoiceResult(task, np.array([[score_of[option] for option in item.options] for item in task.items]))
        for task in tasks
    ]
    found = ChoiceResults(scorer.name, scorer.objective, tuple(results))
    if not found.valid and not report_invalid:
        raise Diverged(_first_non_finite(found))
    return found


def _require_equal_numbers(task: ChoiceTask) -> None:
    for item in task.items:
        if len(item.options) != task.num_options or task.num_options < 2:
            raise InputRefused(
                f"{item.place or task.uid}: {len(item.options)} options; expected {max(task.num_options, 2)}, as many "
                "in every item of a task; mend the line"
            )


def _first_non_finite(results: ChoiceResults) -> str:
    """The line that names the first item without a verdict."""
    result = next(result for result in results.tasks if result.non_finite)
    index = int(np.argmin(result.finite))
    found = " and ".join(str(score) for score in result.scores[index])
    return (
        f"{results.candidate} on {result.task.items[index].place}: scores {found} ({results.non_finite} items not "
        "finite); expected finite log-likelihoods; the candidate is invalid, train it again with a lower learning rate"
    )
