"""Minimal-pair files in BLiMP's format (arXiv 1912.00582): JSON Lines, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.json_lines import kind_of, lines_of, parsed, refuse, text_of
from corpora.errors import InputRefused

KEYS = "sentence_good and sentence_bad"


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
        pair_from_row(parsed(line, place), uid=path.stem, place=place, number=number, allow_equal=allow_equal)
        for number, place, line in lines_of(file, path)
    ]
    if not pairs:
        raise InputRefused(f"{path}: empty; expected one minimal pair on each line; remove the file")
    return pairs


def pair_from_row(row: Any, *, uid: str, place: str, number: int, allow_equal: bool = False) -> Pair:
    """The pair in one parsed line; raises InputRefused that begins with `place`."""
    if not isinstance(row, Mapping):
        refuse(place, f"found {kind_of(row)}", f"an object with {KEYS}")
    good, bad = (text_of(row, key, place, expected=KEYS) for key in ("sentence_good", "sentence_bad"))
    if good == bad and not allow_equal:
        refuse(place, "sentence_good and sentence_bad are equal", "two different sentences")
    named = {key: text_of(row, key, place) for key in ("UID", "field", "linguistics_term") if row.get(key) is not None}
    return Pair(
        good=good,
        bad=bad,
        uid=named.get("UID", uid),
        field=named.get("field", ""),
        term=named.get("linguistics_term", ""),
        place=place,
        number=number,
    )
