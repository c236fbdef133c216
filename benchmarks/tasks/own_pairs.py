"""A user's own minimal pairs: JSON Lines or CSV, with the names of the two columns given."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.choices import Choice, ChoiceTask
from benchmarks.json_lines import MAX_LINE_BYTES, read_rows, refuse, text_of
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
    _require_columns(path, rows[0][2], [name for name in (good, bad, group) if name is not None])
    tasks: dict[str, list[Choice]] = {}
    for number, place, row in rows:
        sentences = (text_of(row, good, place, expected=good), text_of(row, bad, place, expected=bad))
        uid = path.stem if group is None else text_of(row, group, place, expected=group)
        options = tuple(Request("", sentence) for sentence in sentences)
        tasks.setdefault(uid, []).append(Choice(options=options, place=place, number=number, said=sentences))
    return [ChoiceTask(uid, "", "", tuple(items), path.stem) for uid, items in sorted(tasks.items())]


def _rows(path: Path) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    if path.suffix.lower() == ".csv":
        return _csv_rows(path)
    if path.suffix.lower() == ".jsonl":
        return iter(read_rows(path))
    raise InputRefused(f"{path}: ends in {path.suffix or 'nothing'}; expected .jsonl or .csv; rename or convert it")


def _csv_rows(path: Path) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """The rows of a CSV file with a header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(MAX_LINE_BYTES)
            reader = csv.DictReader(file, strict=True)
            if len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
                refuse(f"{path}:1", "a column occurs twice", "names that differ")
            found = False
            for row in reader:
                place, found = f"{path}:{reader.line_num}", True
                if None in row or None in row.values():
                    refuse(place, "more or fewer values than columns", f"{len(reader.fieldnames or ())} values")
                yield reader.line_num, place, row
    except OSError as error:
        raise InputRefused(f"{path}: {error.strerror}; expected a readable .csv file; check its name") from error
    except UnicodeDecodeError as error:
        raise InputRefused(f"{path}: byte {error.start + 1} is not UTF-8; expected UTF-8 text; convert it") from error
    except csv.Error as error:
        after = f"after line {reader.line_num}"
        raise InputRefused(f"{path}: not CSV {after} ({error}); expected quotes that close; mend it") from error
    if not found:
        raise InputRefused(f"{path}: empty; expected a header and one pair on each line; remove the file")


def _require_columns(path: Path, row: Mapping[str, Any], names: list[str]) -> None:
    for name in names:
        if name not in row:
            known = ", ".join(name if name.isprintable() else ascii(name) for name in map(str, row))
            raise InputRefused(
                f"{path}: no column {name!r}; expected one of {known}{suggestion(name, map(str, row))}; name the "
                "columns with --good, --bad and --group"
            )
