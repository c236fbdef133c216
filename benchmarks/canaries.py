"""Canaries: scorers that know nothing, and what each must get. A benchmark that pays them is broken.

Constant scores tie everywhere and win nothing; scores that are no numbers make every item invalid; good and bad
changed over win what was lost; the length of a text wins what lengths deserve; and whoever prefers what it is asked
first wins as often as the right option is asked first, since options are asked in an order that does not know it.
They run through the same judgement as a candidate; what is expected of them is counted here, another way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.choices import ChoiceResults, ChoiceTask, asked_order, score_choices
from benchmarks.request import Request
from corpora.batch import Objective


@dataclass(frozen=True)
class Verdict:
    """What a canary got on all tasks together, in items."""

    wins: int
    ties: int
    invalid: int

    def __str__(self) -> str:
        return f"{self.wins:,} won, {self.ties:,} tied, {self.invalid:,} invalid"


@dataclass(frozen=True)
class Canary:
    """One of them: what it got and what it must get."""

    name: str
    found: Verdict
    expected: Verdict

    @property
    def lives(self) -> bool:
        """Whether the benchmark gave it exactly what it must get."""
        return self.found == self.expected


@dataclass(frozen=True)
class _Scorer:
    """Answers by a rule that sees all requests at once."""

    name: str
    rule: Callable[[Sequence[Request]], np.ndarray]
    objective: Objective = "causal"

    def scores(self, requests: Sequence[Request], *, places: Sequence[str] | None = None) -> np.ndarray:
        """By the rule."""
        return self.rule(requests)


def canaries(tasks: Sequence[ChoiceTask], scored: ChoiceResults) -> list[Canary]:
    """All five; `scored` is a candidate's own result on the tasks, whose scores the swapped canary gives."""
    items = sum(len(task.items) for task in tasks)
    expected = {
        "constant": Verdict(0, items, 0),
        "not a number": Verdict(0, 0, items),
        "length": _expected_of_lengths(tasks),
        "first asked": _expected_of_order(tasks),
    }
    found = [Canary(name, _verdict(_run(name, tasks)), expected[name]) for name in RULES]
    return [*found, _swapped(tasks, scored)]


RULES: dict[str, Callable[[Sequence[Request]], np.ndarray]] = {
    "constant": lambda requests: np.zeros(len(requests)),
    "not a number": lambda requests: np.full(len(requests), np.nan),
    "length": lambda requests: np.array([-float(len(request.text)) for request in requests]),
    "first asked": lambda requests: -np.arange(float(len(requests))),
}


def _run(name: str, tasks: Sequence[ChoiceTask]) -> ChoiceResults:
    return score_choices(_Scorer(name, RULES[name]), tasks, report_invalid=True)


def _verdict(results: ChoiceResults) -> Verdict:
    return Verdict(sum(int(task.wins.sum()) for task in results.tasks), results.ties, results.non_finite)


def _expected_of_lengths(tasks: Sequence[ChoiceTask]) -> Verdict:
    lengths = [[len(option.text) for option in item.options] for task in tasks for item in task.items]
    wins = sum(right < min(others) for right, *others in lengths)
    return Verdict(wins, sum(right == min(others) for right, *others in lengths), 0)


def _expected_of_order(tasks: Sequence[ChoiceTask]) -> Verdict:
    """Items whose right option comes before every other in the order of asking; equal ones are one, and tie."""
    place = {request: number for number, request in enumerate(asked_order(tasks))}
    places = [[place[option] for option in item.options] for task in tasks for item in task.items]
    wins = sum(right < min(others) for right, *others in places)
    return Verdict(wins, sum(right == min(others) for right, *others in places), 0)


def _swapped(tasks: Sequence[ChoiceTask], scored: ChoiceResults) -> Canary:
    """Of pairs alone: the wrong option is called right, and wins where the right one neither won nor tied."""
    score_of = {
        option: score
        for result in scored.tasks
        for item, scores in zip(result.task.items, result.scores, strict=True)
        for option, score in zip(item.options, scores, strict=True)
    }
    of_pairs = [result for result in scored.tasks if result.task.num_options == 2]
    swapped = [
        replace(result.task, items=tuple(replace(item, options=item.options[::-1]) for item in result.task.items))
        for result in of_pairs
    ]
    rule = _Scorer("swapped", lambda requests: np.array([score_of[request] for request in requests]))
    found = _verdict(score_choices(rule, swapped, report_invalid=True)) if swapped else Verdict(0, 0, 0)
    lost = sum(len(result.scores) - int(result.wins.sum()) - result.ties - result.non_finite for result in of_pairs)
    ties, invalid = (sum(getattr(result, name) for result in of_pairs) for name in ("ties", "non_finite"))
    return Canary("swapped", found, Verdict(lost, ties, invalid))
