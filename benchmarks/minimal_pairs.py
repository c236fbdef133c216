"""Minimal pairs: does a candidate find the acceptable sentence more likely than the other?

A win is `good > bad` with both scores finite. Ties are counted and shown and are never wins: several public pipelines
take the first of two equal scores, which gives a constant model full marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.likelihood import require_scorable, sentence_scores
from benchmarks.pair_files import Pair, pair_from_row, read_pairs
from benchmarks.scorer import Candidate
from corpora.batch import Objective
from corpora.errors import Diverged, InputRefused
from corpora.storage import digest


@dataclass(frozen=True)
class PairTask:
    """The pairs of one paradigm; `field` and `term` are BLiMP's categories, empty when the file does not say."""

    uid: str
    field: str
    term: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class TaskResult:
    """Scores of both sentences of each pair in nats, float64 [pairs of the task], and the verdicts on them."""

    task: PairTask
    good_scores: np.ndarray
    bad_scores: np.ndarray

    @property
    def finite(self) -> np.ndarray:
        """Pairs whose two scores are numbers, bool."""
        return np.isfinite(self.good_scores) & np.isfinite(self.bad_scores)

    @property
    def wins(self) -> np.ndarray:
        """Pairs in which the acceptable sentence is strictly more likely, bool."""
        return self.finite & (self.good_scores > self.bad_scores)

    @property
    def ties(self) -> int:
        """Pairs with equal finite scores."""
        return int((self.finite & (self.good_scores == self.bad_scores)).sum())

    @property
    def non_finite(self) -> int:
        """Pairs of which a score is no number."""
        return int((~self.finite).sum())

    @property
    def accuracy(self) -> float:
        """Share of wins among all pairs, 0 to 1."""
        return float(self.wins.mean())


@dataclass(frozen=True)
class PairResults:
    """One candidate on all tasks."""

    candidate: str
    objective: Objective
    tasks: tuple[TaskResult, ...]

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
        """Pairs with a score that is no number, in all tasks together."""
        return sum(task.non_finite for task in self.tasks)

    @property
    def valid(self) -> bool:
        """Whether every score is a number; an invalid result belongs in no table."""
        return self.non_finite == 0


def blimp_tasks(root: Path, pairs: int | None, *, seed: int) -> list[PairTask]:
    """One task for each `.jsonl` file of a folder, in the order of their names; `pairs` of each file, None: all.

    The draw is addressed: each pair has a place in an order that depends on seed, UID and line number alone, so a
    larger draw contains the smaller one and no file changes another's. A file with fewer pairs gives all it has. A pair
    of equal sentences stays in: it is a tie.
    Raises InputRefused when the folder is missing or holds no such file, when two files carry one UID, and for every
    line that is not a pair.
    """
    paths = sorted(root.glob("*.jsonl")) if root.is_dir() else []
    if not paths:
        found = "holds no .jsonl file" if root.is_dir() else "is not a folder"
        raise InputRefused(f"{root}: {found}; expected one .jsonl file for each paradigm; check benchmarks.blimp.root")
    # equal sentences: the published BLiMP holds seven such pairs (passive_1:325 and 811, principle_A_case_2:106, ...)
    tasks = [_task(path.stem, _drawn(read_pairs(path, allow_equal=True), pairs, seed)) for path in paths]
    file_of: dict[str, Path] = {}
    for path, task in zip(paths, tasks, strict=True):
        first = file_of.setdefault(task.uid, path)
        if first != path:
            raise InputRefused(f"{path}: UID {task.uid} is also in {first}; expected one file for each UID; remove one")
    return tasks


def tasks_from_rows(rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[PairTask]:
    """Tasks from rows in BLiMP's format by UID, such as the embedded corpus's; raises InputRefused as files do."""
    tasks = []
    for uid, task_rows in rows.items():
        pairs = [
            pair_from_row(row, uid=uid, place=f"{uid}:{number}", number=number)
            for number, row in enumerate(task_rows, start=1)
        ]
        if not pairs:
            raise InputRefused(f"{uid}: no pair; expected at least one; remove the phenomenon")
        tasks.append(_task(uid, pairs))
    return tasks


def score_pairs(
    candidate: Candidate,
    tasks: Sequence[PairTask],
    encode: Callable[[str], list[int]],
    *,
    begin_id: int,
    mask_id: int,
    max_tokens: int,
    report_invalid: bool = False,
) -> PairResults:
    """Score both sentences of every pair by `sentence_scores`, all tasks together.

    `encode` gives the token ids of a sentence without the begin token, which is put before each here. Raises Diverged
    when a score is not finite, unless `report_invalid`: then the result says so and counts no win there. Raises
    InputRefused, naming the pair, for a sentence without a token or longer than the candidate reads.
    """
    token_rows = []
    for pair in (pair for task in tasks for pair in task.pairs):
        for sentence in (pair.good, pair.bad):
            row = [begin_id, *encode(sentence)]
            require_scorable(row, pair.place, candidate, max_tokens)
            token_rows.append(row)
    scores = sentence_scores(candidate, token_rows, mask_id=mask_id, max_tokens=max_tokens).reshape(-1, 2)
    ends = np.cumsum([len(task.pairs) for task in tasks])
    parts = np.split(scores, ends[:-1])
    results = PairResults(
        candidate.name,
        candidate.objective,
        tuple(TaskResult(task, part[:, 0], part[:, 1]) for task, part in zip(tasks, parts, strict=True)),
    )
    if not results.valid and not report_invalid:
        raise Diverged(_first_non_finite(results))
    return results


def _drawn(pairs: list[Pair], wanted: int | None, seed: int) -> list[Pair]:
    """The first `wanted` pairs of the addressed order, put back into the file's order."""
    order = sorted(pairs, key=lambda pair: digest(f"{seed}|{pair.uid}|{pair.number}".encode()))
    return sorted(order[:wanted], key=lambda pair: pair.number)


def _task(name: str, pairs: Sequence[Pair]) -> PairTask:
    """A task is called by the UID, field and term that its pairs share; a file of several UIDs by the file's name."""

    def shared(values: set[str], otherwise: str) -> str:
        return values.pop() if len(values) == 1 else otherwise

    return PairTask(
        uid=shared({pair.uid for pair in pairs}, name),
        field=shared({pair.field for pair in pairs}, ""),
        term=shared({pair.term for pair in pairs}, ""),
        pairs=tuple(pairs),
    )


def _first_non_finite(results: PairResults) -> str:
    """The line that names the first pair without a verdict."""
    result = next(result for result in results.tasks if result.non_finite)
    index = int(np.argmin(result.finite))
    return (
        f"{results.candidate} on {result.task.pairs[index].place}: scores {result.good_scores[index]} and "
        f"{result.bad_scores[index]} ({results.non_finite} pairs not finite); expected finite log-likelihoods; "
        "the candidate is invalid, train it again with a lower learning rate"
    )
