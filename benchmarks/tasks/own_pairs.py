"""A user's own minimal pairs: JSON Lines or CSV, with the names of the two columns given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.choices import Choice, ChoiceTask
from benchmarks.csv_rows import table_rows
from benchmarks.json_lines import read_rows, text_of
from benchmarks.request import Request
from corpora.errors import InputRefused, suggestion


def read_own_pairs(
    path: Path, *, good: str = "sentence_good", bad: str = "sentence_bad", group: str | None = None
) -> list[ChoiceTask]:
    """One task for each value of the column `group`, in the order of their names; without it the file is one task.

    Raises InputRefused as `file:line: reason; expected ...; remedy` for a line that is not a pair, and for a column
    that no line has, with the names that there are.
    """
    rows = list(_rows(path))
    _require_columns(path, rows[0][1], [name for name in (good, bad, group) if name is not None])
    tasks: dict[str, list[Choice]] = {}
    for place, row in rows:
        number = int(place.rpartition(":")[2])
        sentences = (text_of(row, good, place, expected=good), text_of(row, bad, place, expected=bad))
        uid = path.stem if group is None else text_of(row, group, place, expected=group)
        options = tuple(Request("", sentence) for sentence in sentences)
        tasks.setdefault(uid, []).append(Choice(options=options, place=place, number=number, said=sentences))
    return [ChoiceTask(uid, "", "", tuple(items), path.stem) for uid, items in sorted(tasks.items())]


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix.lower() == ".csv":
        return table_rows(path, ())
    if path.suffix.lower() == ".jsonl":
        return ((place, row) for _, place, row in read_rows(path))
    raise InputRefused(f"{path}: ends in {path.suffix or 'nothing'}; expected .jsonl or .csv; rename or convert it")


def _require_columns(path: Path, row: Mapping[str, Any], names: list[str]) -> None:
    for name in names:
        if name not in row:
            known = ", ".join(name if name.isprintable() else ascii(name) for name in map(str, row))
            raise InputRefused(
                f"{path}: no column {name!r}; expected one of {known}{suggestion(name, map(str, row))}; name the "
                "columns with --good, --bad and --group"
            )
