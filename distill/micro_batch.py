"""How many rows a process reads at a time: as many as memory holds, found by trying, the same in every process."""

from __future__ import annotations

import torch

# what torch's allocators say, on a GPU by a class of its own and on a CPU in words alone
_SAID_BY_CPUS = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID_BY_CPUS)


def halved(rows: int) -> int:
    """The next smaller micro-batch: half the rows, rounded up; of one row there is none (0)."""
    return 0 if rows == 1 else -(-rows // 2)
