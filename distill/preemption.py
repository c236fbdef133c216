"""Being asked to stop: SIGTERM and SIGUSR1 raise a flag that the loop reads between steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

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


@contextlib.contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Listen for the signals inside the block; outside the main thread nothing is listened to."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.signal(number, flag.raise_it) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
