"""What a user is told when something is refused, and the exit code that goes with it.

Every message is one line: place, what was found, what was expected, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CuveeError(Exception):
    """Base of all errors that a user can mend; `exit_code` is the process's (house contract 5)."""

    exit_code = 1


class RecipeError(CuveeError, ValueError):
    """The command line or the recipe is wrong."""

    exit_code = 2


class InputRefused(CuveeError, ValueError):
    """An input is unusable: a corpus, a candidate, a stale or foreign artefact."""

    exit_code = 3


class Damaged(CuveeError):
    """A stored artefact fails its digest or cannot be parsed."""

    exit_code = 4


class NoRoom(CuveeError):
    """The disk, a file-size limit or the memory is exhausted."""

    exit_code = 5


class Diverged(CuveeError):
    """A loss, a gradient or a teacher's answer is not finite."""

    exit_code = 6


class ProcessLost(CuveeError):
    """One of several processes died or hangs; the same command goes on from the last checkpoint."""

    exit_code = 71


class Preempted(CuveeError):
    """A signal asked the run to stop; it saved and the same command resumes it."""

    exit_code = 75


def differing_fields(found: object, expected: object, path: str = "") -> list[tuple[str, object, object]]:
    """Leaves at which two JSON-like values differ, as (dotted path, found, expected); absent values are None."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(set(found) | set(expected))
        return [
            difference
            for key in keys
            for difference in differing_fields(found.get(key), expected.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if found == expected else [(path, found, expected)]


def describe_differences(found: object, expected: object, *, most: int = 10) -> str:
    """One clause that names the differing fields with both values, at most so many of them."""
    differences = differing_fields(found, expected)
    named = [f"{path} is {old!r} there and {new!r} here" for path, old, new in differences[:most]]
    more = [f"and {len(differences) - most} more"] if len(differences) > most else []
    return "; ".join(named + more)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known word is near."""
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
