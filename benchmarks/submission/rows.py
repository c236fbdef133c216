"""Is one prediction what the year wants? Each kind of row has its keys, its id and its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.submission.layout import Kind


def row_fault(kind: Kind, row: Any, *, uid: str, number: int) -> str | None:
    """What is wrong with a row and what is expected, or None; `number` is its place among the UID's, from 0."""
    keys, fault = ROWS[kind]
    if not isinstance(row, Mapping):
        return f"found {type(row).__name__}; expected an object with {', '.join(keys)}"
    if set(row) != set(keys):
        return f"found the keys {', '.join(map(str, row))}; expected {', '.join(keys)}"
    return fault(row, uid, number)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that JSON can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _choice(row: Mapping[str, Any], uid: str, number: int) -> str | None:
    if not isinstance(row["pred"], str):
        return f"pred is {row['pred']!r}; expected the chosen text"
    return _id_fault(row, f"{uid}_{number}")


def _probability(row: Mapping[str, Any], uid: str, number: int) -> str | None:
    if not (is_number(row["prob"]) and 0 <= row["prob"] <= 1):
        return f"prob is {row['prob']!r}; expected the probability of the first text, 0 to 1"
    return _choice(row, uid, number)


def _label(row: Mapping[str, Any], uid: str, number: int) -> str | None:
    label = row["pred"]
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        return f"pred is {label!r}; expected the number of a label"
    return _id_fault(row, f"{uid}_{number}")


def _reading(row: Mapping[str, Any], uid: str, number: int) -> str | None:
    # an integer is refused by the leaderboard, which looks at the type
    if not (isinstance(row["pred"], float) and is_number(row["pred"])):
        return f"pred is {row['pred']!r}; expected nats as a finite float"
    if row["prev_pred"] is not None and not is_number(row["prev_pred"]):
        return f"prev_pred is {row['prev_pred']!r}; expected finite nats, or None for a word without one before it"
    return _id_fault(row, number)


def _surprisal(row: Mapping[str, Any], uid: str, number: int) -> str | None:
    if row["step"] != uid:
        return f"step is {row['step']!r}; expected {uid!r}"
    if not is_number(row["surprisal"]):
        return f"surprisal is {row['surprisal']!r}; expected finite nats"
    for key, wanted in {"word_count": int, "context_id": int, "target_word": str, "context": str}.items():
        if not isinstance(row[key], wanted) or isinstance(row[key], bool):
            return f"{key} is {row[key]!r}; expected {wanted.__name__}"
    return None


def _score(row: Mapping[str, Any], uid: str, number: int) -> str | None:
    return None if is_number(row["aoa"]) and -1 <= row["aoa"] <= 1 else f"aoa is {row['aoa']!r}; expected -1 to 1"


def _id_fault(row: Mapping[str, Any], expected: str | int) -> str | None:
    if row["id"] == expected and type(row["id"]) is type(expected):
        return None
    return f"id is {row['id']!r}; expected {expected!r}, in the order of the data file"


# keys of a row, and what looks at its values
ROWS: dict[Kind, tuple[tuple[str, ...], Callable[[Mapping[str, Any], str, int], str | None]]] = {
    "choice": (("id", "pred"), _choice),
    "probability": (("id", "pred", "prob"), _probability),
    "label": (("id", "pred"), _label),
    "reading": (("id", "pred", "prev_pred"), _reading),
    "surprisal": (("step", "word_count", "target_word", "context_id", "context", "surprisal"), _surprisal),
    "score": (("aoa",), _score),
}
