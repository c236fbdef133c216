"""Tasks times seeds, into a folder that a second call finds: each run is committed on its own.

FOLDER/TASK/seed_SEED/predictions.json   in the challenge's layout of 2025: {"boolq": {"predictions": [...]}}
FOLDER/TASK/seed_SEED/result.json        scores, how sure they are, and how the checkpoint was chosen
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.finetune.classifier import Classifier
from benchmarks.finetune.config import FinetuneConfig, check_finetune
from benchmarks.finetune.data import SplitRows, TaskRows, read_task
from benchmarks.finetune.encoding import PairEncoder
from benchmarks.finetune.loop import Fit, LabelledRows, fit, predict
from benchmarks.finetune.results import SURE, SeedResult, SplitResult, TaskResult, labels_of, split_result
from benchmarks.finetune.subject import Subject
from benchmarks.finetune.tasks import Task, chosen_tasks
from corpora.addressed import address, permutation
from corpora.errors import Damaged, InputRefused, RecipeError
from corpora.storage import Manifest, locked, new_folder, read_json, read_manifest

KIND = "finetune"
PREDICTIONS, RESULT = "predictions.json", "result.json"


def finetune(
    subject: Subject,
    root: Path,
    *,
    config: FinetuneConfig,
    folder: Path,
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    device: str = "cpu",
    official: bool = False,
    say: Callable[[str], None] = print,
) -> list[TaskResult]:
    """Fine-tune a candidate on tasks of a year's folder `root`, one run for each seed; finished runs are found again.

    `tasks` and `seeds`: none named means all of the year's, and the preset's. `official` refuses files with another
    number of rows than the challenge's. `say` hears each task's result in lines. Raises RecipeError for a
    configuration that cannot be run, InputRefused for files that cannot be read and for a folder made from other
    inputs, Damaged, and Diverged when a run is not finite; runs that were finished before stay.
    """
    check_finetune(config)
    chosen = chosen_tasks(config.layout, tasks)
    results = []
    with locked(folder):
        for task in chosen:
            work = _TaskRuns(subject, read_task(root, task, official=official), config.for_task(task.name))
            runs = tuple(work.run(seed, folder / task.name / f"seed_{seed}", device) for seed in seeds or config.seeds)
            results.append(work.result(runs))
            for line in results[-1].lines():
                say(line)
    return results


@dataclass(frozen=True)
class _Encoded:
    """A task's token rows: what trains, what chooses, what is reported (without its labels)."""

    train: LabelledRows
    selection: LabelledRows
    reported: tuple[list[tuple[int, ...]], ...]


class _TaskRuns:
    """The runs of one task."""

    def __init__(self, subject: Subject, rows: TaskRows, config: FinetuneConfig) -> None:
        if config.select_by == "f1" and rows.task.num_labels != 2:
            raise RecipeError(
                f"select_by: found f1 for {rows.task.name}, whose labels are {rows.task.num_labels}; needs 2"
            )
        self._subject, self._rows, self._config = subject, rows, config
        self._encoder = PairEncoder(
            subject.tokenizer_json,
            config,
            begin_id=subject.begin_id,
            pairs=rows.task.second is not None,
            max_positions=subject.model.config.max_positions,
        )
        self._encoded: _Encoded | None = None  # not before a run needs it

    def run(self, seed: int, folder: Path, device: str) -> SeedResult:
        """One run: found, or made and committed."""
        fingerprint = self._fingerprint(seed)
        if (manifest := read_manifest(folder)) is not None:
            return self._found(manifest.require(KIND, fingerprint), seed)
        done, predictions = self._train(seed, device)
        result = self._seed_result(seed, done.chosen_step, done.steps, predictions, resumed=False)
        with new_folder(folder, kind=KIND, fingerprint=fingerprint) as writer:
            writer.write_json(PREDICTIONS, {split.name: split.submission() for split in result.splits})
            writer.write_json(RESULT, _described(result, done, self._config, self._rows.task))
            writer.facts = {"scores": {split.name: split.scores for split in result.splits}}
        return result

    def result(self, runs: tuple[SeedResult, ...]) -> TaskResult:
        """All runs together."""
        causal_at_end = self._subject.objective == "causal" and self._config.position == "by_objective"
        return TaskResult(
            task=self._rows.task,
            config=self._config,
            runs=runs,
            frame=self._encoder.frame,
            max_length=self._encoder.max_length,
            classified="the last real token" if causal_at_end else "the first token",
            remarks=self._rows.remarks,
        )

    def _train(self, seed: int, device: str) -> tuple[Fit, list[np.ndarray]]:
        """A training, and its predictions for each reported file."""
        task, config = self._rows.task, self._config
        encoded = self._encode()
        place = f"{self._subject.name}: {task.name}, seed {seed}"
        classifier = Classifier(
            deepcopy(self._subject.model), self._subject.objective, config, num_labels=task.num_labels, seed=seed
        ).to(torch.device(device))
        done = fit(classifier, encoded.train, selection=encoded.selection, config=config, seed=seed, place=place)
        predictions = [
            predict(classifier, tokens, config=config, place=place).argmax(1).numpy() for tokens in encoded.reported
        ]
        return done, predictions

    def _encode(self) -> _Encoded:
        if self._encoded is None:
            tokens = self._encoder.rows(self._rows.train.examples)
            reported = tuple(self._encoder.rows(rows.examples) for rows in self._rows.reported)
            chosen = self._kept_out()
            train = sorted(set(range(len(tokens))) - set(chosen))
            if self._config.selection == "reported":
                first = self._rows.reported[0]
                selection = _labelled(first, reported[0], range(len(first.examples)))
            else:
                selection = _labelled(self._rows.train, tokens, chosen)
            self._encoded = _Encoded(_labelled(self._rows.train, tokens, train), selection, reported)
        return self._encoded

    def _kept_out(self) -> list[int]:
        """Numbers of the training rows that choose instead of training."""
        if self._config.selection == "reported":
            return []
        total = len(self._rows.train.examples)
        if total < 2:
            raise InputRefused(
                f"{self._rows.train.examples[0].place}: the only row; expected at least 2, of which one chooses the "
                "checkpoint; fetch the challenge's data again"
            )
        return kept_out(total, self._rows.task.name, self._config)

    def _fingerprint(self, seed: int) -> dict[str, Any]:
        config = asdict(self._config)
        del config["seeds"], config["name"], config["by_task"]  # names and other runs change nothing here
        return {
            "subject": self._subject.fingerprint,
            "task": asdict(self._rows.task),
            "files": {rows.split.file: rows.digest for rows in (self._rows.train, *self._rows.reported)},
            "config": config,
            "seed": seed,
        }

    def _found(self, manifest: Manifest, seed: int) -> SeedResult:
        path = manifest.verified(PREDICTIONS)
        stored, told = read_json(path), read_json(manifest.verified(RESULT))
        try:
            predictions = [
                np.array([each["pred"] for each in stored[rows.split.name]["predictions"]], np.int64)
                for rows in self._rows.reported
            ]
            return self._seed_result(seed, told["chosen_step"], told["steps"], predictions, resumed=True)
        except (KeyError, TypeError) as error:
            raise Damaged(f"{path}: not what fine-tuning writes ({error!r}); delete {manifest.folder}") from error

    def _seed_result(
        self, seed: int, chosen_step: int, steps: int, predictions: Sequence[np.ndarray], *, resumed: bool
    ) -> SeedResult:
        splits: tuple[SplitResult, ...] = tuple(
            split_result(rows, said, num_labels=self._rows.task.num_labels)
            for rows, said in zip(self._rows.reported, predictions, strict=True)
        )
        reported = self._config.selection == "reported"
        selecting_rows = len(self._rows.reported[0].examples) if reported else len(self._kept_out())
        return SeedResult(
            seed=seed,
            splits=splits,
            chosen_step=chosen_step,
            steps=steps,
            selecting_rows=selecting_rows,
            resumed=resumed,
        )


def kept_out(total: int, task: str, config: FinetuneConfig) -> list[int]:
    """Numbers of the rows, of `total`, that choose the checkpoint, ascending: the same for every seed of a run.

    At least one row is kept out, and one left.
    """
    order = permutation(address(config.selection_seed, "selection", task), total)
    return sorted(order[: min(max(round(config.selection_share * total), 1), total - 1)].tolist())


def _labelled(rows: SplitRows, tokens: Sequence[tuple[int, ...]], numbers: Sequence[int]) -> LabelledRows:
    return LabelledRows([tokens[number] for number in numbers], labels_of(rows, numbers))


def _described(result: SeedResult, done: Fit, config: FinetuneConfig, task: Task) -> dict[str, Any]:
    """A run for readers: what it scored, and how its checkpoint was chosen."""
    return {
        "preset": config.name,
        "seed": result.seed,
        "scores": {split.name: split.scores for split in result.splits},
        "confidence": SURE.confidence,
        "intervals": {split.name: split.intervals() for split in result.splits},
        "metric_of_scorer": task.scored,
        "metric_of_readme": task.readme,
        "selected_on": config.selection,
        "selected_by": config.select_by,
        "selecting_rows": result.selecting_rows,
        "chosen_step": result.chosen_step,
        "steps": result.steps,
        "looks": [list(look) for look in done.looks],
        "losses": list(done.losses),
    }
