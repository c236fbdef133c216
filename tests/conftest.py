"""What several test modules share: examples that do not vary from run to run, a stream in memory, a mortal child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, settings

from corpora.prepare import Corpus
from corpora.stream import Stream
from corpora.token_ids import TokenIds
from distill.distributed import Processes

settings.register_profile(
    "cuvee", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("cuvee")

TESTS = Path(__file__).parent
# the environment of a process of several on a CPU; its script may import what tests import
ON_CPUS = {
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS))),
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The smallest prepared corpus; nobody changes it."""
    return tiny.corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def processes() -> Processes:
    """This process, alone."""
    return Processes()


def torchrun(number: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in so many processes on the CPU, each with one thread."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
    return subprocess.run(
        [*launcher, *map(str, arguments)], env=os.environ | ON_CPUS, capture_output=True, text=True, timeout=240
    )


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
