"""The challenge's choice benchmarks, read from a folder that the user names: what its lines mean is in the YAML files.

What is read is what a submission answers: every line, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from benchmarks.choices import Choice, ChoiceTask
from benchmarks.json_lines import read_rows, refuse, text_of
from benchmarks.minimal_pairs import drawn
from benchmarks.request import Request
from benchmarks.tasks.definition import ChoiceBenchmark, choice_benchmarks
from corpora.errors import InputRefused, suggestion

# below the folder that is named: as the challenge's archive is unpacked, or the data folder itself
LAYOUTS = ("", "evaluation_data/full_eval", "full_eval", "evaluation_data/fast_eval", "fast_eval")
FAST = ("evaluation_data/fast_eval", "fast_eval", "")


def benchmark_folder(name: str, data: Path, *, fast: bool = False) -> Path:
    """Where a benchmark lies below the folder that the user names; raises InputRefused when it does not."""
    benchmark = benchmark_named(name)
    names = benchmark.folders[1:] + benchmark.folders[:1] if fast else benchmark.folders[:1]
    places = [data / layout / folder for folder in names for layout in (FAST if fast else LAYOUTS)]
    for place in places:
        if place.is_dir():
            return place
    raise InputRefused(
        f"{data}: holds no {' or '.join(names)}; expected the challenge's folder of data, or one above it; name it "
        "with --data"
    )


def benchmark_named(name: str) -> ChoiceBenchmark:
    """The benchmark of that name; raises InputRefused with the nearest one."""
    known = choice_benchmarks()
    if name not in known:
        raise InputRefused(
            f"no benchmark is called {name!r}; expected one of {', '.join(known)}{suggestion(name, known)}"
        )
    return known[name]


def read_choices(name: str, folder: Path, *, items: int | None = None, seed: int = 1) -> list[ChoiceTask]:
    """The tasks of a benchmark, in the order of their UIDs; `items` drawn of each, None: all.

    Raises InputRefused as `file:line: reason; expected ...; remedy` for a line that is no item, and when the folder
    holds no file.
    """
    benchmark = benchmark_named(name)
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise InputRefused(f"{folder}: holds no .jsonl file; expected those of {benchmark.title}; check --data")
    of_uid: dict[str, list[tuple[Choice, str, str]]] = {}
    for path in paths:
        for number, place, row in read_rows(path):
            said = _Said(row, path.stem, place)
            uid = said.filled(benchmark.uid) if "{" in benchmark.uid else benchmark.uid
            uid = benchmark.uids.get(uid, uid)
            choice = _choice(benchmark, said, number, place)
            if benchmark.without is not None and any(benchmark.without in option.text for option in choice.options):
                continue
            of_uid.setdefault(uid, []).append((choice, said.optional(benchmark.field), said.optional(benchmark.term)))
    return [_task(benchmark, uid, lines, items, seed) for uid, lines in sorted(of_uid.items())]


def _task(
    benchmark: ChoiceBenchmark, uid: str, lines: list[tuple[Choice, str, str]], items: int | None, seed: int
) -> ChoiceTask:
    choices = drawn([choice for choice, _, _ in lines], uid, items, seed)
    field, term = (
        "" if name in benchmark.shared_by_line else _shared(column)
        for name, column in zip(
            ("field", "term"), ([line[1] for line in lines], [line[2] for line in lines]), strict=True
        )
    )
    return ChoiceTask(uid, field, term, tuple(choices), benchmark.name)


def _shared(values: Iterable[str]) -> str:
    """What all lines say alike, else nothing."""
    found = set(values)
    return found.pop() if len(found) == 1 else ""


def _choice(benchmark: ChoiceBenchmark, said: _Said, number: int, place: str) -> Choice:
    if benchmark.each is None:
        filled = [(option, said) for option in benchmark.options]
    else:
        (option,) = benchmark.options
        filled = [(option, said.with_option(text)) for text in said.texts(benchmark.each)]
    if benchmark.right is not None:
        filled.insert(0, filled.pop(said.number(benchmark.right, len(filled))))
    mean = benchmark.reduction == "mean"
    options = tuple(
        Request(each.filled(option.context), each.filled(option.text), mean=mean) for option, each in filled
    )
    names = tuple(each.filled(option.text if option.said is None else option.said) for option, each in filled)
    return Choice(options=options, place=place, number=number, said=names, name=said.filled(benchmark.item))


class _Said:
    """A line as the templates read it."""

    def __init__(self, row: Mapping[str, Any], file: str, place: str) -> None:
        self._row, self._file, self._place = row, file, place

    def filled(self, template: str) -> str:
        """The template with the line's texts in the place of its keys."""
        return "".join(
            literal + ("" if key is None else self._value(key)) for literal, key, _, _ in Formatter().parse(template)
        )

    def optional(self, template: str) -> str:
        """The same; nothing where the line lacks a key."""
        keys = [key for _, key, _, _ in Formatter().parse(template) if key and key != "file"]
        return self.filled(template) if all(self._row.get(key) is not None for key in keys) else ""

    def texts(self, key: str) -> list[str]:
        """The texts of a list."""
        values = self._row.get(key)
        if not isinstance(values, list) or len(values) < 2:
            refuse(self._place, f"{key} is not a list of options", "at least two texts, the right one first")
        return [text_of({key: value}, key, self._place) for value in values]

    def number(self, key: str, most: int) -> int:
        """The number of one of so many options."""
        value = self._row.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < most:
            refuse(self._place, f"{key} is {value!r}", f"the right option's number, 0 to {most - 1}")
        return value

    def with_option(self, text: str) -> _Said:
        """The line, of which one option is looked at."""
        return _Said({**self._row, "option": text}, self._file, self._place)

    def _value(self, key: str) -> str:
        if key == "file":
            return self._file
        value = self._row.get(key)
        if isinstance(value, int) and not isinstance(value, bool):  # a number of operations
            return str(value)
        return text_of(self._row, key, self._place, expected=key)
