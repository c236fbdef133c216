"""Being asked to stop: SIGTERM and SIGUSR1 raise a flag that is looked at wherever it is safe to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from corpora.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """Whether a signal has asked this process to stop."""

    def __init__(self) -> None:
        self.raised = False

    def raise_it(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: a second signal stops at once."""
        if self.raised:
            raise KeyboardInterrupt
        self.raised = True

    def heed(self, place: str) -> None:
        """Raise Preempted when the flag is up: all that was done until here is on the disk."""
        if self.raised:
            raise Preempted(f"{place}: stopped; the same command goes on")


_listening: list[StopFlag] = []  # the flag of the outermost block


@contextlib.contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Listen for the signals inside the block; a block inside another one has its flag.

    Outside the main thread nothing is listened to.
    """
    if _listening or threading.current_thread() is not threading.main_thread():
        yield _listening[0] if _listening else StopFlag()
        return
    flag = StopFlag()
    _listening.append(flag)
    before = {number: signal.signal(number, flag.raise_it) for number in SIGNALS}
    try:
        yield flag
    finally:
        _listening.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
