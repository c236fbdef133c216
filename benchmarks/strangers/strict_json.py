"""JSON of strangers, read strictly: what two readers could understand differently is refused.

Equal keys, NaN, infinities, lone surrogates and deep nesting are legal for Python's reader; each of them has made two
programs see two files in one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.strangers.refusal import one_line, refuse, shown

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json_object(
    path: Path, place: str, *, max_bytes: int, max_depth: int, remedy: str, max_values: int | None = None
) -> dict[str, Any]:
    """The object in a file of at most `max_bytes`, with about `max_values` values and keys; raises InputRefused.

    A value takes up to thirty times as much memory as its text: megabytes of `{},` are gigabytes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        refuse(place, str(error.strerror), expected="a readable file", remedy=remedy, cause=error)
    if len(data) > max_bytes:
        refuse(place, f"more than {max_bytes:,} bytes", expected="a file as transformers writes it", remedy=remedy)
    if max_values is not None and (values := sum(map(data.count, (b",", b":", b"[", b"{")))) > max_values:
        refuse(place, f"{values:,} values", expected=f"at most {max_values:,}", remedy=remedy)
    return parse_json_object(data, place, max_depth=max_depth, remedy=remedy)


def parse_json_object(data: bytes, place: str, *, max_depth: int, remedy: str) -> dict[str, Any]:
    """The object that `data` says; raises InputRefused that begins with `place`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError as error:  # thousands of brackets
        refuse(place, "nested too deeply", expected=f"at most {max_depth} levels", remedy=remedy, cause=error)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError too
        refuse(place, f"not JSON ({one_line(error)})", expected="one JSON object", remedy=remedy, cause=error)
    if not isinstance(value, dict):
        refuse(place, f"a JSON {type(value).__name__}", expected="an object", remedy=remedy)
    for depth, leaf in _walked(value):
        if depth > max_depth:
            refuse(place, "nested too deeply", expected=f"at most {max_depth} levels", remedy=remedy)
        if isinstance(leaf, float) and not math.isfinite(leaf):  # 1e999
            refuse(place, "a number beyond the largest", expected="finite numbers", remedy=remedy)
        if isinstance(leaf, str) and _SURROGATE.search(leaf):
            refuse(place, f"a lone surrogate in {shown(leaf)}", expected="Unicode text", remedy=remedy)
    return value


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ: of two equal ones, readers disagree which counts."""
    value = dict(items)
    if len(value) < len(items):
        seen: set[str] = set()
        twice = next(key for key, _ in items if key in seen or seen.add(key))
        raise ValueError(f"key {shown(twice)} occurs twice")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _walked(value: Any) -> Iterator[tuple[int, Any]]:
    """Every value and key with its depth, level by level: recursion is what is being guarded against."""
    depth, level = 0, [value]
    while level:
        children: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                children += item.keys()
                children += item.values()
            elif isinstance(item, list):
                children += item
            yield depth + isinstance(item, dict | list), item
        depth, level = depth + 1, children
