"""What several test modules share: examples that do not vary from run to run, a stream in memory, a mortal child."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import HealthCheck, settings

from corpora.stream import Stream
from corpora.token_ids import TokenIds

settings.register_profile(
    "cuvee", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("cuvee")


class MemoryStream(Stream):
    """A stream of given documents, without files; a begin token is put before each."""

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        begin = TokenIds().begin
        self.name = "train"
        self.all_tokens = np.array([token for document in documents for token in (begin, *document)], np.int64)
        self.document_offsets = np.cumsum([0, *(len(document) + 1 for document in documents)])
        self.num_tokens = len(self.all_tokens)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return self.all_tokens[start:stop]


def in_child(action: Callable[[], object]) -> int:
    """Run `action` in a forked child; 0 when it returned, 1 when it raised, minus the signal when it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(number: int) -> Callable[[str, object], None]:
    """A fault hook that kills its process, as `kill -9` does, at the `number`-th operation (counted from 1)."""
    calls = 0

    def fault(operation: str, path: object) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return fault
