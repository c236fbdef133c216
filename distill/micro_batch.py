"""How many rows a process reads at a time: as many as memory holds, found by trying, the same in every process.

In the middle of a step one process alone cannot read fewer when others wait for it, nor when the recipe has given the
number. The run ends then, and half the rows are kept for the next start of the same command.

    RUN/memory/rank-0.json    at most so many rows, as the process found that had no room for more
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from corpora.errors import NoRoom
from corpora.storage import fingerprint_digest, read_json, write_json
from distill.distributed import Processes
from distill.run import Run

# what is said without a class of its own: by torch's allocator on CPUs, by the driver, and by cuBLAS of its workspace
_SAID = ("can't allocate memory", "not enough memory", "error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def in_short(error: BaseException) -> str:
    """The beginning of what an error says, as a part of one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def halved(rows: int) -> int:
    """The next smaller micro-batch: half the rows, rounded up; of one row there is none (0)."""
    return 0 if rows == 1 else -(-rows // 2)


def smallest(*rows: int | None) -> int | None:
    """The least of several limits; None is no limit."""
    return min((limit for limit in rows if limit is not None), default=None)


@contextlib.contextmanager
def memory_named(place: str, remedy: str) -> Iterator[None]:
    """Where fewer rows do not help: memory that runs out inside becomes NoRoom, one line with place and remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise NoRoom(f"{place}: {in_short(error)}; {remedy}") from error


@contextlib.contextmanager
def fewer_rows_next_time(run: Run, rank: int, *, place: str, rows: int) -> Iterator[None]:
    """Where they help, but not on the spot: memory that runs out inside becomes NoRoom, and half of `rows` are kept.

    All processes find them at the next start (`kept_limit`).
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if not (fewer := halved(rows)):
            raise one_row_is_too_much(place, in_short(error)) from error
        write_json(_folder(run) / f"rank-{rank}.json", {"run": fingerprint_digest(run.fingerprint), "rows": fewer})
        raise NoRoom(
            f"{place}: {in_short(error)}; the same command goes on from the last checkpoint with {fewer} rows at a "
            f"time instead of {rows}, rounded otherwise (delete {_folder(run)} to try {rows} again)"
        ) from error


def one_row_is_too_much(place: str, said: str) -> NoRoom:
    """The error of a run that cannot read fewer rows."""
    return NoRoom(f"{place}: one row is too much ({said}); shorten train.seq_len")


def kept_limit(run: Run, processes: Processes) -> int | None:
    """The rows that earlier starts of the run had no room for more of, the same in all processes; None: no limit."""
    # of a run with another recipe the rows may be longer, or shorter
    own = fingerprint_digest(run.fingerprint)
    kept = [read_json(path) for path in sorted(_folder(run).glob("rank-*.json"))]
    found = [each["rows"] for each in kept if each["run"] == own]
    # all of them: a network's file system may not show the same to everybody at once
    return smallest(*processes.gather(smallest(*found)))


def limit_named(run: Run, limit: int, before: int | None) -> str:
    """The line of a run that goes on with fewer rows than it had before (None: all)."""
    return (
        f"memory: {run.folder} goes on with micro-batches of {limit} rows instead of {before or 'all'}, rounded "
        f"otherwise from here on: memory ran out at an earlier start ({_folder(run)})"
    )


def _folder(run: Run) -> Path:
    return run.folder / "memory"
