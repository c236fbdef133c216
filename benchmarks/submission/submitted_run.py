"""What is handed in: the run with its data and teachers, and its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Backend = Literal["causal", "mlm", "mntp"]

# by task and UID, in the order of the year's data files
Predictions = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
# by task and UID, for each item the texts that may be chosen; none for tasks with labels
Items = Mapping[str, Mapping[str, Sequence[Sequence[str]]]]
# by the task's key in the collated file and subtask, as shares of 1; None where the metric is undefined
Scores = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class Text:
    """Text that a model was trained on."""

    name: str
    words: int | None  # each word counted once; None: not known
    digest: str | None  # equal texts have equal digests; None: not known


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """An auxiliary model that a submission listened to."""

    name: str
    architecture: str
    parameters: int
    data: tuple[Text, ...]  # empty: not known
    words_seen: int | None  # repeats included; None: not known
    licence: str  # of its weights


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights on the way: a run folder, or a folder of transformers."""

    folder: Path
    words: int  # seen until then, repeats included


@dataclass(frozen=True, kw_only=True)
class SubmittedRun:
    """The model that is handed in, and everything that the rules ask about it."""

    name: str  # what the model is called in the submission
    year: int
    track: str
    backend: Backend
    model: Path  # a run folder, or a folder of transformers
    corpus: tuple[Text, ...]
    words_seen: int  # repeats included
    epochs: float  # passes over the corpus
    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)  # by the challenge's name: chck_1M, ...
    teachers: tuple[Teacher, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The predictions of the model and of its checkpoints. `items` are optional: with them, choices are looked up.

    Rows: choices `{"id": "UID_0", "pred": text}`, with "prob" for WUG; labels `{"id": "boolq_0", "pred": 0}`; reading
    times `{"id": 0, "pred": nats, "prev_pred": nats or None}`; age of acquisition, by checkpoint instead of UID,
    `{"step", "word_count", "target_word", "context_id", "context", "surprisal"}`; its score `{"aoa": correlation}`.
    """

    full: Predictions
    fast: Mapping[str, Predictions] = field(default_factory=dict)  # by checkpoint
    fast_scores: Mapping[str, Scores] = field(default_factory=dict)  # by checkpoint, as the year's collation has them
    items: Items = field(default_factory=dict)  # of the full tasks
    fast_items: Items = field(default_factory=dict)
