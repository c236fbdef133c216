"""Who of several processes still lives: each says so in the launcher's store, and how far it has come.

One that dies, leaves or hangs ends all of them within the timeout, and is named.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from corpora.errors import ProcessLost

LONGEST_WAIT = 24 * 3600.0  # seconds that others wait for one that lives and works
PATIENCE = 2.0  # seconds in which one that lives has said so, once something has gone wrong
GRACE = 4.0  # seconds in which a process that knows of a lost one leaves by itself
REMEDY = "; the same command goes on from the last checkpoint"

_watches = itertools.count()


@dataclass
class _Said:
    """What a process says of itself."""

    host: str = ""
    pid: int = 0
    born: str = ""  # tells it from a later process with its number
    beat: int = 0
    place: str = ""  # the run
    step: int = 0  # begun, counted from 1
    exchanges: int = 0  # begun
    failed: bool = False  # whether an exchange has
    left: str | None = None  # why it goes; "" when it is done
    blames: str | None = None  # who is lost, in one line


@dataclass
class _Peer:
    """Another process as this one has heard of it."""

    said: _Said
    beat_at: float = field(default_factory=time.monotonic)  # when it last said anything new
    moved_at: float = field(default_factory=time.monotonic)  # when it last began an exchange


class Watch:
    """Says of this process that it lives, hears it of the others, and ends a process that cannot end itself."""

    def __init__(self, rank: int, world_size: int, timeout: float) -> None:
        self._rank, self._world_size, self._timeout = rank, world_size, timeout
        self.own = _Said(socket.gethostname(), os.getpid(), _born(os.getpid()))
        self._lock = threading.Lock()
        self._entered, self._inside, self._meetings = time.monotonic(), False, 0
        self._answered, self._trouble = time.monotonic(), "no answer"  # when the store last did, and why not since
        self._told: float | None = None  # when this process began to leave because another is lost
        self._doomed: float | None = None  # since when one is lost
        self._keeps_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self._keys = [f"process/{number}" for number in range(world_size)]
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = timedelta(seconds=timeout)
        with translated(lambda error: f"processes: rank {rank} does not reach all ({first_line(error)}){REMEDY}"):
            store = TCPStore(*address, is_master=False, timeout=limit, wait_for_workers=False)
            # a launcher that starts all anew keeps its store
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = PrefixStore(f"cuvee/{attempt}/{next(_watches)}", store)
            self._say()
            self._store.wait(self._keys, limit)
            self._peers = {number: _Peer(said) for number, said in self._heard().items()}
        self._stopped = threading.Event()
        self._interval = min(timeout / 10, 0.5)
        # what talks to the store may wait for it without end; what judges never waits
        for task in (self._talk, self._end_if_stuck):
            threading.Thread(target=self._repeat, args=(task,), name="watch", daemon=True).start()
        atexit.register(self._finish)

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """Around what all processes do the same number of times, and none without the others."""
        self.own.exchanges += 1
        with self.waiting():
            yield

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what may wait for another process; raises ProcessLost when it fails because of one."""
        self._entered, self._inside = time.monotonic(), True
        try:
            with translated(self.explain):
                yield
        finally:
            self._inside = False

    def meet(self) -> None:
        """Wait until all have come here, as long as they live."""
        key, deadline = f"meeting/{self._meetings}", time.monotonic() + LONGEST_WAIT
        self._meetings += 1
        with self.waiting():
            if self._store.add(f"{key}/came", 1) == self._world_size:
                self._store.set(f"{key}/all", "")
            while not self._store.check([f"{key}/all"]):
                line = self._lost()
                if line is None and time.monotonic() > deadline:
                    line = f"processes: not all met within {LONGEST_WAIT / 3600:.0f} hours{REMEDY}"
                # who has come and gone between the two looks is not lost
                if line is not None and not self._store.check([f"{key}/all"]):
                    raise ProcessLost(self._blame(line))
                time.sleep(0.05)

    def explain(self, error: BaseException) -> str:
        """Who is lost, after an exchange has failed."""
        self.own.failed = True
        began, line = time.monotonic(), None
        # who is only slow has time to say that it lives
        while line is None and time.monotonic() < began + 1.5 * PATIENCE:
            line = self._gone(PATIENCE)
            time.sleep(0.05)
        line = line or self._late(PATIENCE) or self._dumb()
        return self._blame(line or f"processes: an exchange failed though all live: {first_line(error)}{REMEDY}")

    def leave(self, reason: str) -> None:
        """Tell the others why this process goes."""
        if self.own.left is None:
            self.own.left = reason
            self._say_at_once()

    def _finish(self) -> None:
        self.leave("")
        until = time.monotonic() + GRACE
        # a store of its own ends with the first process, and the others may still be asking it
        while self._keeps_store and time.monotonic() < until and self._some_are_there():
            time.sleep(0.05)
        self._stopped.set()

    def _some_are_there(self) -> bool:
        return any(peer.said.left is None for peer in self._peers.values())

    def _repeat(self, task: Callable[[], None]) -> None:
        while not self._stopped.wait(self._interval):
            task()

    def _talk(self) -> None:
        try:
            self._say()
            self._hear()
            self._answered = time.monotonic()
        except RuntimeError as error:
            self._trouble = first_line(error)

    def _say_at_once(self) -> None:
        """Not by the thread; a store that does not answer is not asked."""
        if time.monotonic() - self._answered < PATIENCE:
            with contextlib.suppress(RuntimeError):
                self._say()

    def _say(self) -> None:
        with self._lock:
            self.own.beat += 1
            self._store.set(self._keys[self._rank], json.dumps(asdict(self.own)))

    def _heard(self) -> dict[int, _Said]:
        said = (_Said(**json.loads(value)) for value in self._store.multi_get(self._keys))
        return {number: each for number, each in enumerate(said) if number != self._rank}

    def _hear(self) -> None:
        for number, said in self._heard().items():
            peer, now = self._peers[number], time.monotonic()
            if said.beat != peer.said.beat:
                peer.beat_at = now
            if said.exchanges != peer.said.exchanges:
                peer.moved_at = now
            peer.said = said

    def _lost(self) -> str | None:
        """One line about a process that is lost beyond doubt, or None."""
        return self._gone(self._timeout) or self._late(self._timeout)

    def _gone(self, patience: float) -> str | None:
        """Who has left, or has been silent for so many seconds."""
        for peer in self._peers.values():
            if peer.said.blames is not None:  # all tell the same story
                return peer.said.blames
        for rank, peer in self._peers.items():
            # what was never heard because the store is silent is nobody's silence
            silence = self._answered - peer.beat_at
            if peer.said.left is not None:
                if self._inside or peer.said.exchanges < self.own.exchanges:
                    return self._line(rank, f"has left ({peer.said.left or 'it was done'})")
            elif silence > patience:
                return self._line(rank, f"has given no sign of life for {silence:.0f} s")
        if (silence := time.monotonic() - self._answered) > patience:
            return (
                f"processes: rank 0's launcher, which keeps the store, has given no sign of life for {silence:.0f} s "
                f"({self._trouble}){REMEDY}"
            )
        return None

    def _late(self, patience: float) -> str | None:
        """Who lives but has not come to the exchange in which this process has waited for so many seconds."""
        for rank, peer in self._peers.items():
            waited = min(self._answered - peer.moved_at, time.monotonic() - self._entered)
            if peer.said.exchanges < self.own.exchanges and waited > patience:
                return self._line(rank, f"has been waited for {waited:.0f} s")
        return None

    def _dumb(self) -> str | None:
        """Who is in the same exchange and has not even seen it fail."""
        return next((self._line(rank, "does not answer") for rank, p in self._peers.items() if not p.said.failed), None)

    def _line(self, rank: int, what: str) -> str:
        said = self._peers[rank].said
        steps = [peer.said.step for number, peer in self._peers.items() if number != rank] + [self.own.step]
        of = f" of {said.place}" if said.place else ""
        met = f"step {min(steps)}" if min(steps) == max(steps) else f"steps {min(steps)} to {max(steps)}"
        return (
            f"processes: rank {rank} (process {said.pid} of {said.host}) {what}, "
            f"last heard of in step {said.step}{of}; the others are in {met}{REMEDY}"
        )

    def _blame(self, line: str) -> str:
        self.own.blames, self._told = line, time.monotonic()
        self._say_at_once()
        self._end_silent_siblings()
        return line

    def _end_silent_siblings(self) -> None:
        """A stopped process hears no request to leave, and its launcher would wait for it."""
        for peer in self._peers.values():
            silent = peer.said.left is None and self._answered - peer.beat_at > PATIENCE
            if silent and peer.said.host == self.own.host and peer.said.born and _born(peer.said.pid) == peer.said.born:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(peer.said.pid, signal.SIGKILL)

    def _end_if_stuck(self) -> None:
        """End this process, whatever it is doing, when one is lost and it has not left by itself."""
        line, now = self.own.blames or self._lost(), time.monotonic()
        self._doomed = None if line is None else self._doomed or now
        since = self._told or self._doomed
        if line is None or since is None or now - since < GRACE:
            return
        self._blame(line)
        sys.stderr.write(f"cuvee [rank {self._rank}]: {line}\n")
        sys.stderr.flush()
        os._exit(ProcessLost.exit_code)


@contextlib.contextmanager
def translated(line: Callable[[RuntimeError], str]) -> Iterator[None]:
    """Errors of exchanges become ProcessLost with the line that is made of them; others stay what they are."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ProcessLost(line(error)) from error


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def _born(pid: int) -> str:
    """When a process of this machine began, in the kernel's ticks; empty when there is none, or no /proc."""
    try:
        # the name before it may hold anything, brackets too
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
