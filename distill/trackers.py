"""Weights & Biases and TensorBoard: each has a thread of its own, so that neither can end a run or hold it up.

Records wait in a queue of bounded length. A tracker that fails, that does not start in time or that never comes back
is told once, and the run goes on; `metrics.jsonl` has every number either way.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.storage import fingerprint_digest
from distill.config import TrackingConfig, as_plain

if TYPE_CHECKING:
    from distill.run import Run

START_SECONDS = 20.0  # that a tracker may take to start; the run does not wait meanwhile
CLOSE_SECONDS = 10.0  # that the end of a run waits for all its trackers together
UPLOAD_SECONDS = 8.0  # of those that wandb may still be uploading
QUEUED = 1_000  # records that may wait for a tracker


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a tracker knows a run by."""

    id: str  # the same in every attempt at the run
    settings: Mapping[str, Any]  # JSON values


def identity(run: Run) -> Identity:
    """Of a run in its folder: the same run in another folder is another one, whose curves lie beside it.

    The settings are what the recipe says of the run, and nothing of the machine or its environment.
    """
    settings = {
        "model": as_plain(run.model),
        "train": as_plain(run.train),
        "terms": [as_plain(term.config) for term in run.terms],
        "start": str(run.start) if run.start is not None else None,
        "adapters": as_plain(run.adapters) if run.adapters is not None else None,
        "seed": str(run.seed),  # of 64 bits: as a number it would be rounded
    }
    return Identity(id=fingerprint_digest({"run": run.fingerprint, "folder": str(run.folder)}), settings=settings)


class Destination(ABC):
    """A place that curves are sent to; everything that it does may fail or take for ever."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step."""

    @abstractmethod
    def finish(self) -> None:
        """Everything was logged."""


class Wandb(Destination):
    """A run of Weights & Biases: offline where there is no key, or as WANDB_MODE says.

    All attempts at a run are one there. Offline each of them has a folder, whose names end in the same id, and `wandb
    sync` joins them in their order. The steps are an axis of our own: those after the last checkpoint come twice, and
    wandb's own count takes none that is not larger than the one before.
    """

    def __init__(self, folder: Path, name: str, config: TrackingConfig, identity: Identity | None) -> None:
        import wandb

        # a key is looked for, but neither asked for nor tried
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        settings = wandb.Settings(
            init_timeout=START_SECONDS,
            finish_timeout=UPLOAD_SECONDS,  # also of its hook at the process's exit, which would wait for ever
            finish_timeout_raises=True,
            console="off",  # a table that is drawn anew is no log
        )
        self._run: Any = wandb.init(
            project=config.project,
            name=name,
            dir=str(folder),
            mode=mode,  # type: ignore[arg-type]
            # one process trains many runs; one that never finished must not be handed out again
            reinit="create_new",
            settings=settings,
            **({"id": identity.id, "resume": "allow", "config": dict(identity.settings)} if identity else {}),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values."""
        self._run.log({"step": step, **values})

    def finish(self) -> None:
        """Wait for the upload."""
        self._run.finish()


class TensorBoard(Destination):
    """Event files in the folder `tensorboard` of a run."""

    def __init__(self, folder: Path, name: str, config: TrackingConfig, identity: Identity | None) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._open = SummaryWriter
        self._folder = folder / "tensorboard"
        self._writer: SummaryWriter | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values."""
        if self._writer is None:
            # a run that resumes repeats the steps after its checkpoint: what an earlier attempt wrote of them is hidden
            self._writer = self._open(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class Tracked:
    """A destination behind a queue and a thread; no method raises, and only `wait` waits."""

    def __init__(self, name: str, start: Callable[[], Destination]) -> None:
        """`start` makes the destination, in the thread."""
        self.name = name
        self.dropped = 0  # records that found the queue full
        self._queue: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(QUEUED)
        self._deadline = time.monotonic() + START_SECONDS
        self._started, self._given_up = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        # a daemon: one that hangs does not keep the process alive
        self._thread = threading.Thread(target=self._work, args=(start,), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the values of a step, or drop them when the queue is full."""
        if not self._started.is_set() and time.monotonic() > self._deadline:
            self._give_up(f"did not start within {START_SECONDS:g} s")
        if self._given_up.is_set():
            return
        try:
            self._queue.put_nowait((step, values))
        except queue.Full:
            if not self.dropped:
                self._tell(f"is {QUEUED:,} records behind; those that it cannot take are dropped")
            self.dropped += 1

    def end(self) -> None:
        """No more records will come."""
        if self._queue.full():  # the oldest makes room; nobody else adds
            with suppress(queue.Empty):
                self._queue.get_nowait()
                self.dropped += 1
        self._queue.put_nowait(None)

    def wait(self, deadline: float) -> None:
        """Wait, after `end`, until everything was taken, but not beyond `deadline` (of time.monotonic)."""
        if not self._given_up.is_set():
            self._thread.join(max(deadline - time.monotonic(), 0.0))
        missed = f"; {self.dropped:,} records were dropped" if self.dropped else ""
        if self._thread.is_alive():
            self._give_up(f"did not finish within {CLOSE_SECONDS:g} s{missed}")
        elif missed and not self._given_up.is_set():
            self._tell(f"has finished{missed}")

    def _work(self, start: Callable[[], Destination]) -> None:
        """The thread."""
        try:
            destination = start()
            self._started.set()
            while not self._given_up.is_set() and (item := self._queue.get()) is not None:
                destination.log(*item)
            destination.finish()
        except Exception as error:  # whatever it is, it is not worth a run
            what = "failed" if self._started.is_set() else "did not start"
            self._give_up(f"{what} ({type(error).__name__}: {' '.join(str(error).split())})")

    def _give_up(self, why: str) -> None:
        """Send nothing more, and say so the first time."""
        with self._lock:
            if not self._given_up.is_set():
                self._tell(f"{why}; the run goes on without it")  # before `wait` may think that all is said
                self._given_up.set()

    def _tell(self, what: str) -> None:
        print(f"tracking: {self.name} {what}", file=sys.stderr, flush=True)


TRACKERS: dict[str, Callable[[Path, str, TrackingConfig, Identity | None], Destination]] = {
    "wandb": Wandb,
    "tensorboard": TensorBoard,
}


def start_trackers(folder: Path, name: str, config: TrackingConfig, identity: Identity | None = None) -> list[Tracked]:
    """The trackers that `config` asks for, starting; `folder` is the run's. Without an identity nothing is resumed."""

    def tracked(tracker: str) -> Tracked:
        return Tracked(tracker, lambda: TRACKERS[tracker](folder, name, config, identity))

    return [tracked(tracker) for tracker in TRACKERS if getattr(config, tracker)]


def close_trackers(trackers: Sequence[Tracked]) -> None:
    """Let all finish at once, and wait for them together, at most `CLOSE_SECONDS`."""
    for tracker in trackers:
        tracker.end()
    deadline = time.monotonic() + CLOSE_SECONDS
    for tracker in trackers:
        tracker.wait(deadline)


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested dicts and lists, by names like `tune/causal/cross_entropy`; the rest is left out."""
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)
        return
    for key, inner in items:
        yield from flattened(inner, f"{name}/{key}" if name else str(key))
