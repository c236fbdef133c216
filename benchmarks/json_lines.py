"""JSON Lines from anybody, read strictly: every line is understood, or refused by file and line number.

A benchmark that skips or repairs a broken line reports a number about other data than its name says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from corpora.errors import InputRefused

MAX_LINE_BYTES = 64 * 1024
MAX_DEPTH = 8  # of lists and objects in one line
REMEDY = "mend or remove the line"
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_rows(path: Path) -> list[tuple[int, str, Mapping[str, Any]]]:
    """(line number from 1, `file:line`, object) of every line of a file.

    Raises InputRefused, as `file:line: reason; expected ...; remedy`, for bytes that are not UTF-8, text that is not a
    JSON object, repeated keys, NaN, lines above 64 KiB, nesting deeper than 8; and for a file without any line.
    """
    rows = []
    try:
        with path.open("rb") as file:
            for number, place, line in lines_of(file, path):
                row = parsed(line, place)
                if not isinstance(row, Mapping):
                    refuse(place, f"found {kind_of(row)}", "an object")
                rows.append((number, place, row))
    except OSError as error:
        raise InputRefused(f"{path}: {error.strerror}; expected a readable .jsonl file; check the folder") from error
    if not rows:
        raise InputRefused(f"{path}: empty; expected one item on each line; remove the file")
    return rows


def lines_of(file: BinaryIO, path: Path) -> Iterator[tuple[int, str, bytes]]:
    """(number, `file:line`, bytes) of each line; a longer line than allowed is never read whole."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        place = f"{path}:{number}"
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(line) > MAX_LINE_BYTES:
            refuse(place, f"more than {MAX_LINE_BYTES:,} bytes", "one item on each line")
        yield number, place, line


def parsed(line: bytes, place: str) -> Any:
    """The JSON value of a line."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse(place, f"byte {error.start + 1} is not UTF-8", "UTF-8 text", cause=error)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        reason = "nested too deeply" if isinstance(error, RecursionError) else f"not JSON ({error})"
        refuse(place, reason, "one JSON object", cause=error)
    if _depth(value) > MAX_DEPTH:
        refuse(place, "nested too deeply", f"at most {MAX_DEPTH} levels")
    return value


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ: of two equal ones, readers disagree which counts."""
    value = dict(items)
    if len(value) < len(items):
        keys = [key for key, _ in items]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!a} occurs twice")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _depth(value: Any) -> int:
    """Levels of lists and objects, counted one level at a time: recursion is what is being guarded against."""
    depth, level = 0, [value]
    while containers := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def text_of(row: Mapping[str, Any], key: str, place: str, *, expected: str = "it in every line") -> str:
    """A value that is a text which can be tokenised and printed; `expected` says which keys a line has."""
    if key not in row:
        refuse(place, f"key {key} is missing", expected)
    value = row[key]
    if not isinstance(value, str):
        refuse(place, f"{key} is {kind_of(value)}", "a string")
    if not value.strip():
        refuse(place, f"{key} is blank", "a text")
    if "\0" in value:
        refuse(place, f"{key} holds a NUL character", "text")
    if _SURROGATE.search(value):
        refuse(place, f"{key} holds a lone surrogate", "Unicode text")
    return value


def kind_of(value: Any) -> str:
    """What a JSON value is called in a message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def refuse(place: str, reason: str, expected: str, *, cause: BaseException | None = None) -> NoReturn:
    """Raise InputRefused for a line."""
    raise InputRefused(f"{place}: {reason}; expected {expected}; {REMEDY}") from cause
