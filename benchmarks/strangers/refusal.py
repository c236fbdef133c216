"""Refusals in one line, whatever a stranger wrote: their words never reach the terminal as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from corpora.errors import InputRefused

MOST_SHOWN = 60  # characters of a stranger's text in a message


def refuse(place: str, found: str, *, expected: str, remedy: str, cause: BaseException | None = None) -> NoReturn:
    """Raise InputRefused: `place: found; expected; remedy`."""
    raise InputRefused(f"{place}: {found}; expected {expected}; {remedy}") from cause


def shown(value: Any) -> str:
    """A value in printable ASCII, cut where it gets long: no line break, no escape sequence of a terminal."""
    text = ascii(value[: MOST_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def shown_place(folder: Path, name: str) -> str:
    """Path of a file in a folder; a name that could mislead is shown in quotes."""
    plain = name.isascii() and name.isprintable() and len(name) <= MOST_SHOWN
    return f"{folder}/{name if plain else shown(name)}"


def one_line(text: object) -> str:
    """What a library said, in printable ASCII without line breaks, at most 200 characters."""
    words = " ".join(str(text)[:4000].split())
    plain = (letter if letter.isascii() and letter.isprintable() else ascii(letter)[1:-1] for letter in words)
    return "".join(plain)[:200]
