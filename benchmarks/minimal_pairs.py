"""Minimal pairs: choices between an acceptable sentence and another, from folders in BLiMP's format or from rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.choices import Choice, ChoiceTask
from benchmarks.pair_files import Pair, pair_from_row, read_pairs
from benchmarks.request import Request
from corpora.errors import InputRefused
from corpora.storage import digest


def blimp_tasks(root: Path, pairs: int | None, *, seed: int) -> list[ChoiceTask]:
    """One task for each `.jsonl` file of a folder, in the order of their names; `pairs` of each file, None: all.

    The draw is addressed: each pair has a place in an order that depends on seed, UID and line number alone, so a
    larger draw contains the smaller one and no file changes another's. A file with fewer pairs gives all it has. A pair
    of equal sentences stays in: it is a tie.
    Raises InputRefused when the folder is missing or holds no such file, when two files carry one UID, and for every
    line that is not a pair.
    """
    paths = sorted(root.glob("*.jsonl")) if root.is_dir() else []
    if not paths:
        found = "holds no .jsonl file" if root.is_dir() else "is not a folder"
        raise InputRefused(f"{root}: {found}; expected one .jsonl file for each paradigm; check benchmarks.blimp.root")
    # equal sentences: the published BLiMP holds seven such pairs (passive_1:325 and 811, principle_A_case_2:106, ...)
    whole = [_task(path.stem, read_pairs(path, allow_equal=True)) for path in paths]
    tasks = [replace(task, items=tuple(drawn(task.items, task.uid, pairs, seed))) for task in whole]
    file_of: dict[str, Path] = {}
    for path, task in zip(paths, tasks, strict=True):
        first = file_of.setdefault(task.uid, path)
        if first != path:
            raise InputRefused(f"{path}: UID {task.uid} is also in {first}; expected one file for each UID; remove one")
    return tasks


def tasks_from_rows(rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[ChoiceTask]:
    """Tasks from rows in BLiMP's format by UID, such as the embedded corpus's; raises InputRefused as files do."""
    tasks = []
    for uid, task_rows in rows.items():
        pairs = [
            pair_from_row(row, uid=uid, place=f"{uid}:{number}", number=number)
            for number, row in enumerate(task_rows, start=1)
        ]
        if not pairs:
            raise InputRefused(f"{uid}: no pair; expected at least one; remove the phenomenon")
        tasks.append(_task(uid, pairs))
    return tasks


def drawn(items: Sequence[Choice], uid: str, wanted: int | None, seed: int) -> list[Choice]:
    """The first `wanted` items of the addressed order, put back into the file's order; None: all."""
    order = sorted(items, key=lambda item: digest(f"{seed}|{uid}|{item.number}".encode()))
    return sorted(order[:wanted], key=lambda item: item.number)


def _task(name: str, pairs: Sequence[Pair]) -> ChoiceTask:
    """A task is called by the UID, field and term that its pairs share; a file of several UIDs by the file's name."""

    def shared(values: set[str], otherwise: str) -> str:
        return values.pop() if len(values) == 1 else otherwise

    return ChoiceTask(
        uid=shared({pair.uid for pair in pairs}, name),
        field=shared({pair.field for pair in pairs}, ""),
        term=shared({pair.term for pair in pairs}, ""),
        items=tuple(map(_choice, pairs)),
    )


def _choice(pair: Pair) -> Choice:
    sentences = (pair.good, pair.bad)
    options = tuple(Request("", sentence) for sentence in sentences)
    return Choice(options=options, place=pair.place, number=pair.number, said=sentences)
