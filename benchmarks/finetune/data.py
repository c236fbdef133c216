"""The challenge's task files: texts and labels, read strictly. Those named `.json` are JSON Lines too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.finetune.tasks import Split, Task
from benchmarks.json_lines import read_rows, refuse, text_of
from corpora.errors import InputRefused
from corpora.storage import file_digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row of a file: the texts made of it, and its label."""

    first: str
    second: str | None  # None: the task has one text
    label: int
    scored: bool = True  # whether its prediction counts; it is predicted all the same
    place: str = ""  # `file:line`


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """The rows of a file, in its order: the n-th prediction is the n-th line's."""

    split: Split
    examples: tuple[Example, ...]
    digest: str  # of the file

    @property
    def remark(self) -> str | None:
        """What tells it from the challenge's file, in one line; None where nothing does, or nothing is known."""
        if self.split.rows in (None, len(self.examples)):
            return None
        return f"{self.split.file} has {len(self.examples)} rows, the challenge's {self.split.rows}"


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """What a task is learned from, and what is reported."""

    task: Task
    train: SplitRows
    reported: tuple[SplitRows, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What tells its files from the challenge's."""
        return tuple(rows.remark for rows in (self.train, *self.reported) if rows.remark is not None)


def read_task(root: Path, task: Task, *, official: bool = False) -> TaskRows:
    """The rows of a task from a year's folder: 2023 `filter-data`, 2024 `evaluation_data`, 2025 its `full_eval`.

    With `official`, files with another number of rows than the challenge's are refused. Raises InputRefused for that,
    for whatever `read_rows` refuses, and, by line, for missing keys, for what is no text, for rows without a word, and
    for labels that the task does not have.
    """
    rows = TaskRows(
        task=task,
        train=_read_split(root, task, task.train),
        reported=tuple(_read_split(root, task, split) for split in task.reported),
    )
    if official and rows.remarks:
        raise InputRefused(f"{root}: {rows.remarks[0]}; expected the same; fetch the challenge's data again")
    if not any(example.scored for example in rows.reported[0].examples):
        raise InputRefused(
            f"{root / task.reported[0].file}: no row has the condition {task.condition!r}; expected some that are "
            "scored; fetch the challenge's data again"
        )
    return rows


def _read_split(root: Path, task: Task, split: Split) -> SplitRows:
    path = root / split.file
    examples = tuple(_example(row, task, place) for _, place, row in read_rows(path))
    return SplitRows(split=split, examples=examples, digest=file_digest(path))


def _example(row: Mapping[str, Any], task: Task, place: str) -> Example:
    texts = {key: _text(row, key, task, place) for key in task.keys}
    if not any(text.strip() for text in texts.values()):
        refuse(place, f"{' and '.join(texts)} are blank" if len(texts) > 1 else f"{task.keys[0]} is blank", "a text")
    condition = row.get("condition")
    return Example(
        first=task.first.format(**texts),
        second=None if task.second is None else task.second.format(**texts),
        label=_label(row, task, place),
        scored=task.condition is None or condition is None or condition == task.condition,
        place=place,
    )


def _text(row: Mapping[str, Any], key: str, task: Task, place: str) -> str:
    value = row.get(key)
    # one of two may be blank: the challenge filters by words, so such pairs stay in
    if isinstance(value, str) and not value.strip():
        return value
    return text_of(row, key, place, expected=", ".join((*task.keys, "label")))


def _label(row: Mapping[str, Any], task: Task, place: str) -> int:
    label = row.get("label")
    # True is a whole number to Python, and to no other reader of the file
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < task.num_labels:
        found = f"label is {label!r}" if "label" in row else "key label is missing"
        refuse(place, found[:80], f"a whole number from 0 to {task.num_labels - 1}")
    return label
