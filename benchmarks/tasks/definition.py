"""What a file of this folder may say, and the benchmarks that there are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml


@dataclass(frozen=True, kw_only=True)
class Option:
    """How one option of an item is made of its line; keys of the line stand in braces, `{file}` is the file's stem."""

    text: str
    context: str = ""
    said: str | None = None  # how a submission names it; None: its text


@dataclass(frozen=True, kw_only=True)
class ChoiceBenchmark:
    """A folder of JSON Lines, each of which is a choice."""

    name: str
    title: str
    folders: tuple[str, ...]  # names under which the challenge lays it, the whole one first
    options: tuple[Option, ...]
    uid: str
    field: str = ""
    term: str = ""
    each: str | None = None  # key of a list of texts, `{option}` in `options`, which are then one
    uids: dict[str, str] = dataclasses.field(default_factory=dict)  # what a UID is called in submissions
    shared_by_line: tuple[Literal["field", "term"], ...] = ()  # said of lines, not of paradigms
    without: str | None = None  # items are left out of which an option holds this text
    right: str | None = None  # key of the right option's number, from 0; None: the first is right in every line
    item: str = ""  # what an item is called, where a submission has each alone
    reduction: Literal["mean"] | None = None  # over the tokens of an option; None: as the protocol says


@cache
def choice_benchmarks() -> dict[str, ChoiceBenchmark]:
    """The benchmarks of this folder by name."""
    return {path.stem: _read(path) for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def _read(path: Path) -> ChoiceBenchmark:
    value: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    options = tuple(Option(**({"text": each} if isinstance(each, str) else each)) for each in value.pop("options"))
    tuples = {key: tuple(value.pop(key)) for key in ("folders", "shared_by_line") if key in value}
    return ChoiceBenchmark(name=path.stem, options=options, **tuples, **value)
