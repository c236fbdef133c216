"""What a value in a stranger's JSON must be: a test, and its words for messages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A condition on a value."""

    says: str  # for messages
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """A whole number between two, both included."""
    # `type`, for True is an int
    return Rule(f"a whole number from {low} to {high:,}", lambda value: type(value) is int and low <= value <= high)


def real(low: float, high: float) -> Rule:
    """A number between two, both included."""
    return Rule(
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and math.isfinite(value) and low <= value <= high,
    )


def text(shortest: int, longest: int) -> Rule:
    """A string of so many characters."""
    return Rule(
        f"a string of {shortest} to {longest} characters",
        lambda value: isinstance(value, str) and shortest <= len(value) <= longest,
    )


def letters(of: str, longest: int) -> Rule:
    """A string of nothing but these letters."""
    return Rule(
        f"a string of 1 to {longest} letters of {', '.join(of)}",
        lambda value: isinstance(value, str) and 1 <= len(value) <= longest and not set(value) - set(of),
    )


def choice(*values: Any) -> Rule:
    """One of the values, of the same type."""
    return Rule(
        " or ".join(map(repr, values)),
        lambda value: any(type(value) is type(known) and value == known for known in values),
    )


def mapping(**rules: Rule) -> Rule:
    """An object with some of these keys and no other."""
    return Rule(
        "an object of " + ", ".join(f"{key}: {rule.says}" for key, rule in rules.items()),
        lambda value: (
            isinstance(value, dict) and all(key in rules and rules[key].holds(item) for key, item in value.items())
        ),
    )


def several(*values: str) -> Rule:
    """A list of some of the values."""
    return Rule(
        f"a list of {' and '.join(values)}",
        lambda value: isinstance(value, list) and len(value) <= len(values) and all(item in values for item in value),
    )


SWITCH = choice(True, False)
OFF = choice(False)
