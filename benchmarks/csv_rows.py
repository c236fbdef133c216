"""CSV tables from anybody, read strictly: every row is understood, or refused by file and line number."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.json_lines import MAX_LINE_BYTES, refuse
from corpora.errors import InputRefused

MISSING = frozenset({"", "NA", "NaN", "nan"})  # cells that hold no number
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def table_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(`file:line`, cells by column) of each row of a CSV file that has at least these columns, each once.

    Without `columns`, whatever it has. A byte order mark is dropped. Raises InputRefused as `file:line: reason;
    expected ...; remedy` for what is no such table, or has no row.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputRefused(f"{path}: {error.strerror}; expected a readable CSV file; check its name") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        refuse(f"{path}:{line}", f"byte {error.start + 1} of the file is not UTF-8", "UTF-8 text", cause=error)
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    number, read = 1, 0
    try:
        for row in lines:
            place, number = f"{path}:{number}", lines.line_num + 1  # a quoted cell may go on for lines
            if not header:
                header = _checked_header(row, columns or row, place)
                continue
            if len(row) != len(header):
                refuse(place, f"{len(row)} cells", f"{len(header)}, as many as the header has")
            read += 1
            yield place, dict(zip(header, row, strict=True))
    except csv.Error as error:
        refuse(f"{path}:{number}", f"not CSV ({error})", "comma-separated cells", cause=error)
    if not read:
        raise InputRefused(f"{path}: no row; expected a header and rows below it; fetch the file again")


def number_in(cell: str, column: str, place: str) -> float:
    """The finite number in a cell, NaN where the cell says that there is none; raises InputRefused for another text."""
    if cell in MISSING:
        return float("nan")
    if not _NUMBER.fullmatch(cell) or not np.isfinite(float(cell)):
        refuse(place, f"{column} is {cell[:40]!a}", "a finite number or an empty cell")
    return float(cell)


def _checked_header(header: list[str], columns: Sequence[str], place: str) -> list[str]:
    for column in columns:
        if header.count(column) != 1:
            found = f"column {column} {'occurs twice' if column in header else 'is missing'}"
            refuse(place, found, f"a header with {', '.join(columns)}")
    return header
