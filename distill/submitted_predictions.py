"""The predictions of a submission: what a year asks of a model, and what the model's scores come to in its rows.

Whoever answers is an `Answering`; a `Blank` one shows, before hours of scoring, whether rows fit the year's table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.acquisition import (
    AcquisitionResult,
    Checkpoint,
    TargetWord,
    acquisition_requests,
    acquisition_result,
    read_child_shares,
    read_target_words,
)
from benchmarks.choices import Answering, ChoiceResult, ChoiceTask, score_choices
from benchmarks.estimates import require_finite
from benchmarks.evaluation import READING, benchmark_file
from benchmarks.finetune.run import KIND as FINETUNED
from benchmarks.reading import (
    ReadingItem,
    read_reading_items,
    reading_predictions,
    reading_requests,
    reading_result,
)
from benchmarks.request import Request
from benchmarks.scoring_tokenizer import ScoringTokenizer
from benchmarks.submission.layout import Task, Year, benchmark_of
from benchmarks.submission.submitted_run import Items
from benchmarks.tasks.choice_files import benchmark_folder, read_choices
from benchmarks.wug import WugItem, read_wug_items, wug_predictions, wug_requests, wug_result
from corpora.batch import Objective
from corpora.errors import Damaged, InputRefused
from corpora.storage import read_json, read_manifest

Rows = dict[str, list[dict[str, Any]]]  # by UID

WORDS, CHILDREN = "cdi_childes.json", "cdi_human.csv"
# the scorer of 2026 says 0 for a correlation that is undefined, or whose p exceeds this
MOST_P = 0.1
# no interval is handed in, so that as few resamples are drawn as have a spread
_HOW: Mapping[str, Any] = {"confidence": 0.95, "resamples": 2, "seed": 1}


@dataclass
class Questions:
    """The items of a year's tasks, by their names there; `unread` says what is wrong with the others."""

    choices: dict[str, list[ChoiceTask]] = field(default_factory=dict)
    wugs: dict[str, list[WugItem]] = field(default_factory=dict)
    reading: dict[str, list[ReadingItem]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    benchmarks: dict[str, str] = field(default_factory=dict)  # what each task is called here

    @property
    def items(self) -> Items:
        """The texts that may be chosen."""
        texts = {
            name: _by_uid((_uid(task, number), [item.said]) for task in tasks for number, item in enumerate(task.items))
            for name, tasks in self.choices.items()
        }
        for name, items in self.wugs.items():
            texts[name] = {self.benchmarks[name]: [(item.first, item.second) for item in items]}
        return texts


class Blank:
    """Nobody: every text is as likely as every other."""

    name = "nobody"
    objective: Objective = "causal"

    def scores(self, requests: Sequence[Request], *, places: Sequence[str] | None = None) -> np.ndarray:
        """Zeros."""
        return np.zeros(len(requests))


def read_questions(tasks: Mapping[str, Task], year: Year, data: Path, *, fast: bool) -> Questions:
    """The items of the tasks that a model is asked without training it, from the challenge's folder of data."""
    questions = Questions()
    for name, task in tasks.items():
        benchmark = questions.benchmarks[name] = benchmark_of(name, year)
        try:
            if task.kind == "choice":
                folder = benchmark_folder(benchmark, data, fast=fast)
                questions.choices[name] = read_choices(benchmark, folder)
            elif task.kind == "probability":
                questions.wugs[name] = read_wug_items(benchmark_file(benchmark, data, fast=fast))
            elif task.kind == "reading":
                questions.reading[name] = read_reading_items(benchmark_file(READING, data, fast=fast))
        except InputRefused as error:
            questions.unread[name] = str(error)
    return questions


def answered(
    scorer: Answering, questions: Questions, tasks: Mapping[str, Task]
) -> tuple[dict[str, Rows], dict[str, dict[str, float | None]]]:
    """Rows by task and UID, and scores by the task's key and subtask, as shares of 1.

    Raises Diverged for a score that is not finite: such a model hands in nothing.
    """
    rows: dict[str, Rows] = {}
    scores: dict[str, dict[str, float | None]] = {}
    for name, of_benchmark in questions.choices.items():
        task, results = tasks[name], score_choices(scorer, of_benchmark)
        rows[name] = _by_uid(pair for result in results.tasks for pair in _choice_rows(result))
        each: dict[str, float | None] = {result.task.uid: result.accuracy for result in results.tasks}
        scores[task.key] = each if task.scores is None else dict.fromkeys(task.scores, results.accuracy)
    for name, items in questions.wugs.items():
        key, found = questions.benchmarks[name], wug_result(items, scorer.scores(wug_requests(items)), **_HOW)
        rows[name] = {key: wug_predictions(key, items, found)[key]["predictions"]}
        scores[tasks[name].key] = {key: found.correlation.value}
    for name, words in questions.reading.items():
        found = reading_result(words, scorer.scores(reading_requests(words)), **_HOW)
        rows[name] = {name: reading_predictions(found)["reading"]["predictions"]}
        scores[tasks[name].key] = {"spr": _share(found.self_paced.value), "rt": _share(found.eye_tracking.value)}
    return rows, scores


def _choice_rows(result: ChoiceResult) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What a model chose; of a tie it is the likeliest wrong option, so that knowing nothing is not rewarded."""
    wrong = 1 + result.scores[:, 1:].argmax(axis=1)
    for number, (item, chosen) in enumerate(zip(result.task.items, np.where(result.wins, 0, wrong), strict=True)):
        uid = _uid(result.task, number)
        place = 0 if item.name else number
        yield uid, [{"id": f"{uid}_{place}", "pred": item.said[chosen]}]


def _uid(task: ChoiceTask, number: int) -> str:
    return task.items[number].name or task.uid


def _by_uid(pairs: Any) -> Any:
    """Lists under the same UID as one."""
    found: dict[str, list[Any]] = {}
    for uid, more in pairs:
        found.setdefault(uid, []).extend(more)
    return found


def _share(per_cent: float | None) -> float | None:
    return None if per_cent is None else per_cent / 100


# labels


def read_labels(name: str, folder: Path, seed: int, *, weights: str) -> Rows:
    """The predictions of a fine-tuned task, as `cuvee finetune` left them.

    Raises InputRefused when they are missing, or were made with other weights than those of the digest; Damaged.
    """
    place = folder / name.removesuffix("-mm") / f"seed_{seed}"  # mnli is reported on two splits
    manifest = read_manifest(place)
    if manifest is None:
        there = sorted(path.name.removeprefix("seed_") for path in place.parent.glob("seed_*"))
        found = f"only the seeds {', '.join(there)}" if there else "nothing"
        raise InputRefused(
            f"{name}: {place.parent} holds {found}; expected {place.name}/predictions.json; run `cuvee finetune` and "
            "name its folder with --finetuned, and another seed with --seed"
        )
    if manifest.kind != FINETUNED:
        raise InputRefused(
            f"{name}: {place} holds a {manifest.kind}; expected predictions of `cuvee finetune`; name its folder with "
            "--finetuned"
        )
    used = manifest.fingerprint["subject"]["weights"]
    if used != weights:
        raise InputRefused(
            f"{name}: {place} was made with the weights {used[:8]}; expected {weights[:8]}, those of the run; "
            "fine-tune the run itself"
        )
    stored = read_json(manifest.verified("predictions.json"))
    if name not in stored:
        raise Damaged(f"{place}: no predictions of {name}; expected them among {', '.join(stored)}; fine-tune again")
    return {name: stored[name]["predictions"]}


# age of acquisition


@dataclass(frozen=True)
class Acquisition:
    """What every checkpoint is asked about words that children learn."""

    words: list[TargetWord]
    shares: dict[str, dict[int, float]]  # of children, by word and age; empty where no score is asked for

    @property
    def requests(self) -> list[Request]:
        """Each word after each of its contexts."""
        return acquisition_requests(self.words)

    def rows(self, step: str, words_seen: int, log_likelihoods: np.ndarray) -> list[dict[str, Any]]:
        """The rows of a checkpoint, from the log-likelihoods in nats of `requests`; raises Diverged."""
        asked = [(word.word, number, text) for word in self.words for number, text in enumerate(word.contexts)]
        require_finite(log_likelihoods, [f"{step}: {word}, context {number}" for word, number, _ in asked])
        return [
            {
                "step": step,
                "word_count": words_seen,
                "target_word": word,
                "context_id": number,
                "context": text,
                "surprisal": -float(value),
            }
            for (word, number, text), value in zip(asked, log_likelihoods, strict=True)
        ]

    def result(
        self,
        checkpoints: Sequence[Checkpoint],
        log_likelihoods: Sequence[np.ndarray],
        *,
        tokenizer: ScoringTokenizer,
        vocab_size: int,
        how: Mapping[str, Any] = _HOW,
    ) -> AcquisitionResult:
        """Agreement with children, as sure as `how` says.

        Chance is a word's number of tokens times ln(types), as in the scorer of 2026.
        """
        encoded = tokenizer.encode([f" {word.word.strip()}" for word in self.words])
        guess = math.log(vocab_size)
        return acquisition_result(
            self.words,
            self.shares,
            checkpoints=checkpoints,
            log_likelihoods=log_likelihoods,
            chance={word.word: len(each.ids) * guess for word, each in zip(self.words, encoded, strict=True)},
            **how,
        )


def read_acquisition(folder: Path, *, scored: bool) -> Acquisition:
    """The challenge's words and, where their score is handed in, the children's; raises InputRefused."""
    words = read_target_words(folder / WORDS)
    return Acquisition(words, read_child_shares(folder / CHILDREN) if scored else {})


def acquisition_score(result: AcquisitionResult) -> float:
    """What is handed in as the score: by the rule in nats, as the scorer of 2026 has it, and as it counts nothing."""
    agreement = result.agreements["nats"]
    value, p_value = agreement.correlation.value, agreement.p_value
    return value if value is not None and p_value is not None and p_value <= MOST_P else 0.0
