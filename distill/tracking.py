"""What a run says while it trains: a log of what is reproducible, a file of times, a line for the reader.

`metrics.jsonl` holds numbers that a second run repeats to the last digit; `timings.jsonl` holds what depends on the
machine. A tracker is opt-in, and its failure never ends a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from corpora.storage import AppendLog
from distill.config import TrackingConfig

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
_LINE_EVERY = 10.0  # seconds between lines where the output is not a terminal


class Tracker:
    """Writes the logs of one run in the first process; in the others every method does nothing."""

    def __init__(
        self, folder: Path, *, name: str, steps: int, log_length: int, config: TrackingConfig, writes: bool
    ) -> None:
        """Open the logs; the metrics log is cut back to `log_length`, the bytes that the checkpoint knew."""
        self._writes = writes
        self._name, self._steps = name, steps
        self._since = self._printed = time.monotonic()
        if not writes:
            return
        self._metrics = AppendLog(folder / METRICS, length=log_length)
        self._timings = AppendLog(folder / TIMINGS, length=_whole_lines(folder / TIMINGS))
        self._wandb = _start_wandb(folder, name, config) if config.wandb else None

    def log(self, record: dict[str, Any], *, tokens: int) -> None:
        """Add a record; `tokens` were read since the one before."""
        if not self._writes:
            return
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        rate = tokens / max(seconds, 1e-9)
        self._metrics.append(record)
        self._timings.append({"step": record["step"], "seconds": seconds, "tokens": tokens})
        if now - self._printed > _LINE_EVERY or record["step"] == self._steps:
            self._printed = now
            print(_line(self._name, self._steps, record, rate), flush=True)
        if self._wandb is not None:
            self._wandb = _send(self._wandb, record | {"tokens_per_second": rate})

    def synced_length(self) -> int:
        """Bytes of the metrics log, safe on disk."""
        return self._metrics.synced_length() if self._writes else 0

    def close(self) -> None:
        """Close the logs and the tracker, also after a failure."""
        if not self._writes:
            return
        for log in (self._metrics, self._timings):
            # a full disk refuses a last flush too; what counts was synced, and the first error has said why
            with contextlib.suppress(OSError):
                log.close()
        if self._wandb is not None:
            _send(self._wandb, None)


def read_timings(folder: Path) -> tuple[float, int]:
    """Seconds spent in steps, and tokens read in them, over all attempts at a run."""
    lines = (folder / TIMINGS).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return sum(record["seconds"] for record in records), sum(record["tokens"] for record in records)


def _whole_lines(path: Path) -> int:
    """Bytes of a log up to its last whole line: a full disk may have cut the one after it."""
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0


def _line(name: str, steps: int, record: dict[str, Any], rate: float) -> str:
    losses = "  ".join(f"{key} {value:.3f}" for key, value in record.items() if "/" in key)
    return f"{name}: step {record['step']:,} of {steps:,}  {losses}  lr {record['lr']:.2e}  {rate:,.0f} tokens/s"


def _start_wandb(folder: Path, name: str, config: TrackingConfig) -> Any | None:
    """A run of Weights & Biases, offline when there is no key; None, with a line, when it cannot start."""
    try:
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        settings = wandb.Settings(init_timeout=20)  # seconds that an unreachable server may cost
        return wandb.init(project=config.project, name=name, dir=str(folder), mode=mode, settings=settings)  # type: ignore[arg-type]
    except Exception as error:  # whatever it is, it is not worth a run
        print(f"tracking: wandb did not start ({error}); the run goes on without it", file=sys.stderr)
        return None


def _send(run: Any, record: dict[str, Any] | None) -> Any | None:
    """Log a record, or finish with None; a failure is told once and ends the tracking, never the run."""
    try:
        if record is None:
            run.finish()
        else:
            run.log(record, step=record["step"])
        return run
    except Exception as error:  # whatever it is, it is not worth a run
        print(f"tracking: wandb failed ({error}); the run goes on without it", file=sys.stderr)
        return None
