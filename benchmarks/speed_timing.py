"""Times alternatives against each other: in turn, in one process, with as many threads as were asked for.

What the machine does beside us (a neighbour's load, a clock that steps down) then meets all sides alike, and a median
forgets the repetitions that it met alone.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from corpora.storage import make_folder

WARM_UP = 2  # untimed runs of each side: kernels are chosen, files come into memory, the allocator fills


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a suite is asked to measure."""

    threads: int = 2  # of torch's operators
    repetitions: int = 15  # timed runs of each side
    precision: str = "auto"  # arithmetic of matrix products: fp32, bf16, or auto, which the suite resolves
    run_dir: Path = Path("runs/quickstart")  # a finished run, for what needs trained models
    blimp: Path | None = None  # folder of BLiMP's .jsonl files; None: generated pairs of the same lengths
    folder: Path | None = None  # where files lie while they are measured; None: the system's temporary folder


@dataclass(frozen=True)
class Timing:
    """What the repetitions of one side took."""

    seconds: tuple[float, ...]
    peak_bytes: int | None = None  # CUDA: largest memory above what was held before; None: not measured

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


@contextlib.contextmanager
def work_folder(setting: Setting) -> Iterator[Path]:
    """A folder for what is measured, where the setting says; it goes away with all that is in it."""
    if setting.folder is not None:
        make_folder(setting.folder)
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        yield Path(folder)


def pin_threads(threads: int) -> None:
    """Let torch's operators use so many threads, whatever the environment says."""
    torch.set_num_threads(threads)


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    *,
    repetitions: int,
    device: torch.device,
    warm_up: int = WARM_UP,
) -> dict[str, Timing]:
    """Run every side once, then every side again in another order, and so on; each one's timings after the warm-up.

    Python's garbage collector rests while a side runs. On CUDA a side ends when the device has done its work.
    """
    clocks = {name: Clock(device) for name in sides}
    with collector_at_rest():
        for repetition in range(warm_up + repetitions):
            gc.collect()
            # in another order each time: what a side leaves in caches and memory meets every other
            for name in random.Random(repetition).sample(list(sides), len(sides)):
                clocks[name].start()
                sides[name]()
                clocks[name].stop()
    return {name: clock.timing(warm_up) for name, clock in clocks.items()}


class Clock:
    """Seconds of the turns of one side, and on a GPU the memory that they take."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held, self._started = 0, 0.0
        self._seconds: list[float] = []
        self._peaks: list[int] = []

    def start(self) -> None:
        """A turn begins, once the device rests."""
        self._wait()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._held = torch.cuda.memory_allocated(self._device)
        self._started = time.perf_counter()

    def stop(self) -> None:
        """It ends when the device has done its work."""
        self._wait()
        self._seconds.append(time.perf_counter() - self._started)
        if self._device.type == "cuda":
            self._peaks.append(torch.cuda.max_memory_allocated(self._device) - self._held)

    def timing(self, warm_up: int) -> Timing:
        """Of all turns but the first ones."""
        return Timing(tuple(self._seconds[warm_up:]), max(self._peaks[warm_up:], default=None))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@contextlib.contextmanager
def collector_at_rest() -> Iterator[None]:
    """Python's garbage collector works only where it is asked to."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def machine(device: torch.device) -> dict[str, str]:
    """What the figures depend on besides our code, for the header."""
    # older releases of torch cannot say
    processor = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name") or platform.processor() or "unknown"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{processor} ({torch.backends.cpu.get_cpu_capability()}), {usable} cores usable",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        facts["GPU"] = f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda})"
    return facts


def default_device() -> torch.device:
    """The first GPU where there is one, as training chooses it."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
