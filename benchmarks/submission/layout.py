"""A year of the challenge: its tasks and their sizes, its tracks, its rules, and where each file of a submission lies.

The facts are data: `years/YEAR.yaml`, and `years/counts.yaml` for the sizes that years share. Each says where it was
read, or that it was not verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.submission.submitted_run import SubmittedRun
from corpora.errors import InputRefused

YEARS = Path(__file__).with_name("years")

# what the years' tasks are called in `benchmarks/tasks` and `wug`, where the names differ
_BENCHMARKS = {
    "blimp_fast": "blimp_filtered",
    "supplement_fast": "supplement_filtered",
    "ewok_fast": "ewok_filtered",
    "entity_tracking_fast": "entity_tracking",
    "wug_adj_nominalization": "wug_adj",
    "wug_past_tense": "wug_past",
}
# tasks that later years ask in another way, and the first of these years
_VARIANTS = {"ewok_filtered": "ewok_2026", "entity_tracking": "entity_tracking_2026"}
_VARIANTS_FROM = 2026

Kind = Literal["choice", "probability", "label", "reading", "surprisal", "score"]
FILE_OF_KIND: dict[Kind, str] = {
    "choice": "predictions.json",
    "probability": "predictions.json",
    "label": "predictions.json",
    "reading": "predictions.json",
    "surprisal": "surprisal.json",
    "score": "aoa_score.json",
}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many predictions a task has: by UID, or the number of UIDs and the predictions of each."""

    counts: Mapping[str, int | None] | None = None  # by UID; a number is None where none is published
    uids: int | Literal["checkpoints"] | None = None  # how many there are; checkpoints: those of the run
    each: int | None = None
    source: str
    verified: bool

    def by_uid(self, checkpoints: Sequence[str]) -> Mapping[str, int | None] | None:
        """Predictions of each UID; None where the names of UIDs are not published."""
        return dict.fromkeys(checkpoints, self.each) if self.uids == "checkpoints" else self.counts


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of the year: what its predictions look like, how many there are, and where they lie."""

    key: str  # in the collated file
    kind: Kind
    counts: Counts
    folder: str | None = None  # of its file, below the checkpoint's results; None: it has none of its own
    chosen: Literal["completion", "sentence"] = "completion"  # what a choice says: the scored text, or its context too
    scores: tuple[str, ...] | None = None  # what the scores of a checkpoint are called; None: the UIDs


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The most that a rule allows; None: no limit."""

    at_most: int | None
    source: str
    verified: bool


@dataclass(frozen=True, kw_only=True)
class Track:
    """What a track allows, and the words (millions, repeats included) after which it wants checkpoints."""

    corpus_words: Limit
    words_seen: Limit
    epochs: Limit
    checkpoints: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AuxiliaryRule:
    """The year's rule on models that helped to train the submission; `kind` says how it is judged (`rules.JUDGES`)."""

    kind: str
    text: str
    source: str
    verified: bool


@dataclass(frozen=True, kw_only=True)
class Year:
    """Everything that is known about one year."""

    year: int
    layout: Literal["folders", "gzip", "lines"]
    full: Mapping[str, Task]
    fast: Mapping[str, Task]  # of each checkpoint
    tracks: Mapping[str, Track]
    auxiliary_models: AuxiliaryRule
    notes: tuple[str, ...]
    source: str  # of the tasks, their names and places
    verified: bool
    scorer_file: str | None = None  # what the year's own scorer opens, where it is not what its collation writes


def known_years() -> list[int]:
    """The years that have a file."""
    return sorted(int(path.stem) for path in YEARS.glob("[0-9]*.yaml"))


def read_year(year: int) -> Year:
    """The year's file; raises InputRefused for a year without one."""
    if year not in known_years():
        known = ", ".join(map(str, known_years()))
        raise InputRefused(f"year: {year} is not known; expected one of {known}; choose one of them")
    described = _read_yaml(f"{year}.yaml")
    tables = _tables(_read_yaml("counts.yaml"))
    inline = {"source": described["source"], "verified": described["verified"]}
    return Year(
        **described
        | {
            "year": year,
            "full": {name: _task(task, tables, inline) for name, task in described["full"].items()},
            "fast": {name: _task(task, tables, inline) for name, task in described["fast"].items()},
            "tracks": {name: _track(track) for name, track in described["tracks"].items()},
            "auxiliary_models": AuxiliaryRule(**described["auxiliary_models"]),
            "notes": tuple(described["notes"]),
        }
    )


def benchmark_of(task: str, year: Year) -> str:
    """The benchmark that a year's task asks, by its name here."""
    name = _BENCHMARKS.get(task, task)
    return _VARIANTS.get(name, name) if year.year >= _VARIANTS_FROM else name


def wanted_checkpoints(track: Track, words_seen: int) -> list[str]:
    """Names of the checkpoints that a run of so many words has to hand in."""
    return [f"chck_{million}M" for million in track.checkpoints if million * 1_000_000 <= words_seen]


def results_folder(run: SubmittedRun) -> str:
    """Where a pipeline of folders keeps everything about a model."""
    return f"results/{run.name}"


def task_file(task: Task, run: SubmittedRun, revision: str) -> str:
    """Where the predictions of a task lie; `revision` is main, or the name of a checkpoint."""
    assert task.folder is not None, "years of other layouts have one file for all tasks"
    folder = task.folder.replace("zero_shot/", f"zero_shot/{run.backend}/")
    return f"{results_folder(run)}/{revision}/{folder}/{FILE_OF_KIND[task.kind]}"


def _read_yaml(name: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load((YEARS / name).read_text(encoding="utf-8"))


def _tables(described: dict[str, dict[str, Any]]) -> dict[str, Counts]:
    """The tables by name; one that is `like` another has its UIDs."""
    tables = {}
    for name, table in described.items():
        if like := table.pop("like", None):
            table["counts"] = dict.fromkeys(described[like]["counts"], table.pop("each"))
        tables[name] = Counts(**table)
    return tables


def _task(described: dict[str, Any], tables: dict[str, Counts], inline: dict[str, Any]) -> Task:
    """A task as the file describes it; its counts are a table's name, or stand there and have the file's source."""
    counts = described["counts"]
    named: dict[str, Any] = {"counts": tables[counts] if isinstance(counts, str) else Counts(counts=counts, **inline)}
    if scores := described.get("scores"):
        named["scores"] = tuple(scores)
    return Task(**described | named)


def _track(described: dict[str, Any]) -> Track:
    limits = {name: Limit(**described[name]) for name in ("corpus_words", "words_seen", "epochs")}
    return Track(**limits, checkpoints=tuple(described["checkpoints"]))
