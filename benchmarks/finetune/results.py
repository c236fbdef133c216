"""What fine-tuning found: predictions and scores of each seed, and a task's median over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.finetune.config import FinetuneConfig, Metric
from benchmarks.finetune.data import SplitRows
from benchmarks.finetune.metrics import Sureness, all_scores, median_interval
from benchmarks.finetune.tasks import Task
from benchmarks.stats import Interval

SURE = Sureness()  # of printed intervals


@dataclass(frozen=True)
class SplitResult:
    """Predictions for one file of a task, in the order of its lines, and the labels there."""

    name: str
    num_labels: int
    predictions_N: np.ndarray  # int64
    labels_N: np.ndarray  # int64
    scored_N: np.ndarray  # bool; the others are predicted for the submission alone

    @cached_property
    def scores(self) -> dict[Metric, float]:
        """Every metric over the scored rows."""
        return all_scores(self.labels_N[self.scored_N], self.predictions_N[self.scored_N], self.num_labels)

    def intervals(self, sure: Sureness = SURE) -> dict[Metric, Interval]:
        """Of every metric, on other rows of this kind."""
        labels_N, said_1N = self.labels_N[self.scored_N], self.predictions_N[None, self.scored_N]
        return {
            metric: median_interval(labels_N, said_1N, metric, num_labels=self.num_labels, sure=sure)
            for metric in self.scores
        }

    @property
    def correct_N(self) -> np.ndarray:
        """Whether each scored row is right, bool: what an interval is resampled from."""
        return (self.labels_N == self.predictions_N)[self.scored_N]

    @property
    def chance(self) -> float:
        """Accuracy of saying the commonest label of the scored rows for all of them."""
        return float(np.bincount(self.labels_N[self.scored_N]).max() / self.scored_N.sum())

    def submission(self) -> dict[str, Any]:
        """The entry of this file in the challenge's predictions of 2024 and later."""
        return {
            "predictions": [
                {"id": f"{self.name}_{number}", "pred": label}
                for number, label in enumerate(self.predictions_N.tolist())
            ]
        }


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One run of a task."""

    seed: int
    splits: tuple[SplitResult, ...]
    chosen_step: int  # whose weights were chosen
    steps: int  # that were taken
    selecting_rows: int  # that chose
    resumed: bool  # whether it was found finished

    def split(self, name: str) -> SplitResult:
        """The result for one file."""
        return next(split for split in self.splits if split.name == name)


@dataclass(frozen=True)
class Summary:
    """A metric over seeds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one, or the mean of the two in the middle."""
        return statistics.median(self.values)

    @property
    def minimum(self) -> float:
        """The lowest."""
        return min(self.values)

    @property
    def maximum(self) -> float:
        """The highest."""
        return max(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.median:.4f}"
        return f"{self.median:.4f} [{self.minimum:.4f}, {self.maximum:.4f}]"


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """All runs of a task."""

    task: Task
    config: FinetuneConfig  # of this task
    runs: tuple[SeedResult, ...]
    frame: str  # special tokens around its texts A and B
    max_length: int  # tokens at which rows were cut
    classified: str  # which output was
    remarks: tuple[str, ...]  # what tells its files from the challenge's

    @property
    def selected_on_reported(self) -> bool:
        """Whether the rows that are reported chose the checkpoint: then scores are too good."""
        return self.config.selection == "reported"

    @property
    def official(self) -> bool:
        """Whether nothing tells its files from the challenge's."""
        return not self.remarks

    def summary(self, split: str, metric: Metric) -> Summary:
        """A metric of one file over all seeds."""
        return Summary(tuple(run.split(split).scores[metric] for run in self.runs))

    def interval(self, split: str, metric: Metric, sure: Sureness = SURE) -> Interval:
        """Of the median over these seeds, on other rows of this kind."""
        results = [run.split(split) for run in self.runs]
        scored_N = results[0].scored_N
        predictions_SN = np.stack([result.predictions_N[scored_N] for result in results])
        labels_N = results[0].labels_N[scored_N]
        return median_interval(labels_N, predictions_SN, metric, num_labels=results[0].num_labels, sure=sure)

    def lines(self) -> list[str]:
        """The result in words, every choice beside it."""
        task, selecting_rows = self.task, self.runs[0].selecting_rows
        seeds = ", ".join(str(run.seed) for run in self.runs)
        how = "one seed" if len(self.runs) == 1 else "median [lowest, highest] of seeds"
        found = []
        for split in task.reported:
            found.append(f"{split.name}: {self._as_scored(split.name)} ({self.config.name}, {how}: {seeds})")
            found.append(f"  {self._intervals(split.name)}")
            chance = self.runs[0].split(split.name).chance
            found.append(f"  accuracy of its commonest label alone: {chance:.4f}")
        if self.selected_on_reported:
            found.append(
                f"  checkpoint chosen on the {selecting_rows} rows of {task.reported[0].file}, which are reported "
                f"({self.config.name}'s way): the score is biased upwards"
            )
        else:
            found.append(f"  checkpoint chosen on {selecting_rows} rows of {task.train.file}, kept out of training")
        found.append(f"  {self.classified} is classified; texts stand as {self.frame}, cut at {self.max_length} tokens")
        return found + [f"  not the challenge's data: {remark}" for remark in self.remarks]

    def _intervals(self, split: str) -> str:
        """How sure both metrics are."""
        ends = [
            f"{metric} [{interval.low:.4f}, {interval.high:.4f}]"
            for metric in dict.fromkeys((self.task.scored, self.task.readme))
            for interval in [self.interval(split, metric)]
        ]
        return f"{SURE.confidence:.0%} interval over rows: {', '.join(ends)}"

    def _as_scored(self, split: str) -> str:
        """The metric of the year's scorer and that of its README, both."""
        task = self.task
        scored = f"{task.scored} {self.summary(split, task.scored)} as the scorer computes it"
        return f"{scored}, {task.readme} {self.summary(split, task.readme)} as the README says"


def split_result(rows: SplitRows, predictions_N: np.ndarray, *, num_labels: int) -> SplitResult:
    """Predictions for a file's lines beside its labels."""
    assert len(predictions_N) == len(rows.examples), "one prediction for each line"
    return SplitResult(
        rows.split.name,
        num_labels,
        predictions_N,
        labels_of(rows),
        np.array([example.scored for example in rows.examples]),
    )


def labels_of(rows: SplitRows, numbers: Sequence[int] | None = None) -> np.ndarray:
    """Labels of a file's lines, or of some of them, int64."""
    examples = rows.examples if numbers is None else [rows.examples[number] for number in numbers]
    return np.array([example.label for example in examples], np.int64)
