"""Sides that take turns, in seconds of the processor: no neighbour lengthens them, and a child can say its own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping


def in_turns(sides: Mapping[str, Callable[[], float]], *, repetitions: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds that every side says it took, round after round in another order, without the first rounds."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(warm_up + repetitions):
        for side in random.Random(number).sample(list(sides), len(sides)):
            seconds[side].append(sides[side]())
    return {side: taken[warm_up:] for side, taken in seconds.items()}


def processor_seconds(action: Callable[[], object]) -> float:
    """What an action takes in this process, all threads together."""
    started = time.process_time()
    action()
    return time.process_time() - started
