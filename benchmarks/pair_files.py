"""Minimal-pair files in BLiMP's format (arXiv 1912.00582): JSON Lines, read strictly.

A benchmark that skips or repairs a broken line reports a number about other data than its name says, so every line is
either understood or refused with its file and line number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from corpora.errors import InputRefused

MAX_LINE_BYTES = 64 * 1024
MAX_DEPTH = 8  # of lists and objects in one line; BLiMP's have depth 1
_REMEDY = "mend or remove the line"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two sentences, of which the first is acceptable and the second is not."""

    good: str
    bad: str
    uid: str  # name of the paradigm
    field: str = ""  # field of linguistics: syntax, morphology, ...; empty: not said
    term: str = ""  # BLiMP's `linguistics_term`, the phenomenon; empty: not said
    place: str = ""  # `file:line`, for messages
    number: int = 0  # line in the file, from 1: the address of the pair


def read_pairs(path: Path, *, allow_equal: bool = False) -> list[Pair]:
    """Every pair of a file, in its order; `UID` defaults to the file's stem, keys that we do not know are ignored.

    `allow_equal` keeps pairs of equal sentences, which nobody can win; else they are refused.

    Raises InputRefused, as `file:line: reason; expected ...; remedy`, for whatever is not a pair: bytes that are not
    UTF-8, text that is not JSON, a missing, blank or repeated key, equal sentences, NUL, lone surrogates, NaN, lines
    above 64 KiB, nesting deeper than 8; and for a file without any line.
    """
    try:
        with path.open("rb") as file:
            return pairs_in(file, path, allow_equal=allow_equal)
    except OSError as error:
        raise InputRefused(
            f"{path}: {error.strerror}; expected a readable .jsonl file; check benchmarks.blimp.root"
        ) from error


def pairs_in(file: BinaryIO, path: Path, *, allow_equal: bool = False) -> list[Pair]:
    """The pairs of an open file, as `read_pairs` gives them; `path` is its name in messages."""
    pairs = [
        pair_from_row(_parsed(line, place), uid=path.stem, place=place, number=number, allow_equal=allow_equal)
        for number, place, line in _lines(file, path)
    ]
    if not pairs:
        raise InputRefused(f"{path}: empty; expected one minimal pair on each line; remove the file")
    return pairs


def pair_from_row(row: Any, *, uid: str, place: str, number: int, allow_equal: bool = False) -> Pair:
    """The pair in one parsed line; raises InputRefused that begins with `place`."""
    if not isinstance(row, Mapping):
        _refuse(place, f"found {_kind(row)}", "an object with sentence_good and sentence_bad")
    good, bad = (_text(row, key, place) for key in ("sentence_good", "sentence_bad"))
    if good == bad and not allow_equal:
        _refuse(place, "sentence_good and sentence_bad are equal", "two different sentences")
    named = {key: _text(row, key, place) for key in ("UID", "field", "linguistics_term") if row.get(key) is not None}
    return Pair(
        good=good,
        bad=bad,
        uid=named.get("UID", uid),
        field=named.get("field", ""),
        term=named.get("linguistics_term", ""),
        place=place,
        number=number,
    )


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str, bytes]]:
    """(number, `file:line`, bytes) of each line; a longer line than allowed is never read whole."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        place = f"{path}:{number}"
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(line) > MAX_LINE_BYTES:
            _refuse(place, f"more than {MAX_LINE_BYTES:,} bytes", "one sentence pair on each line")
        yield number, place, line


def _parsed(line: bytes, place: str) -> Any:
    """The JSON value of a line."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(place, f"byte {error.start + 1} is not UTF-8", "UTF-8 text", cause=error)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        reason = "nested too deeply" if isinstance(error, RecursionError) else f"not JSON ({error})"
        _refuse(place, reason, "one JSON object", cause=error)
    if _depth(value) > MAX_DEPTH:
        _refuse(place, "nested too deeply", f"at most {MAX_DEPTH} levels")
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


def _text(row: Mapping[str, Any], key: str, place: str) -> str:
    """A value that is a text which can be tokenised and printed."""
    if key not in row:
        _refuse(place, f"key {key} is missing", "sentence_good and sentence_bad")
    value = row[key]
    if not isinstance(value, str):
        _refuse(place, f"{key} is {_kind(value)}", "a string")
    if not value.strip():
        _refuse(place, f"{key} is blank", "a text")
    if "\0" in value:
        _refuse(place, f"{key} holds a NUL character", "text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        _refuse(place, f"{key} holds a lone surrogate", "Unicode text")
    return value


def _kind(value: Any) -> str:
    """What a JSON value is called in a message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _refuse(place: str, reason: str, expected: str, *, cause: BaseException | None = None) -> NoReturn:
    raise InputRefused(f"{place}: {reason}; expected {expected}; {_REMEDY}") from cause
