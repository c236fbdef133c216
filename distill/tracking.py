"""What a run says while it trains: a log of what is reproducible, a file of times, and something to watch.

`metrics.jsonl` holds numbers that a second run repeats to the last digit; `timings.jsonl` holds what depends on the
machine. Trackers are opt-in (`trackers`), and `console` draws.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from corpora.storage import AppendLog
from distill.config import TrackingConfig
from distill.console import Moment, open_display
from distill.sharding import whole
from distill.throughput import Meter, comparable_rate, cuda_peak_bytes, forget_cuda_peak, resident_bytes
from distill.trackers import Identity, close_trackers, flattened, start_trackers
from students import elc_bert

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"


class Tracker:
    """Writes the logs of one run in the first process; in the others every method does nothing."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        steps: int,
        log_length: int,
        config: TrackingConfig,
        writes: bool,
        flops_per_token: float | None = None,
        precision: str = "fp32",
        device: torch.device | None = None,
        devices: int = 1,
        identity: Identity | None = None,
    ) -> None:
        """Open the logs; the metrics log is cut back to `log_length`, the bytes that the checkpoint knew.

        `flops_per_token`: operations of a training step for each token, forward and backward; with it the share of the
        rate of `devices` devices like `device` in `precision` is shown, where there is one. `device`: None is the CPU.
        `identity`: what trackers know the run by in all attempts at it.
        """
        self._writes = writes
        self._name, self._steps = name, steps
        if writes:
            self._metrics = AppendLog(folder / METRICS, length=log_length)
            self._timings = AppendLog(folder / TIMINGS, length=_whole_lines(folder / TIMINGS))
            self._device = device or torch.device("cpu")
            rate = comparable_rate(precision, self._device) if flops_per_token is not None else None
            forget_cuda_peak(self._device)
            self._meter = Meter(flops_per_token=flops_per_token, rate=None if rate is None else devices * rate)
            self._trackers = start_trackers(folder, name, config, identity)
            self._display = open_display(config.line_every)
            self._first: tuple[int, float] | None = None  # step of the first record, and when it came
        self._since = time.monotonic()

    def log(self, record: dict[str, Any], *, tokens: int) -> None:
        """Add a record of `step`, `lr` and numbers that a second run repeats; `tokens` were read since the last one.

        A number that is not finite (the gradient's norm in a step that fp16 leaves out) is null in the log.
        """
        if not self._writes:
            return
        record = {name: value if math.isfinite(value) else None for name, value in record.items()}
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self._metrics.append(record)
        self._timings.append({"step": record["step"], "seconds": seconds, "tokens": tokens})
        self._meter.add(tokens, seconds)
        moment = Moment(
            name=self._name,
            steps=self._steps,
            record=record,
            tokens_per_second=self._meter.tokens_per_second,
            matmul_share=self._meter.share,
            resident_bytes=resident_bytes(),
            cuda_peak_bytes=cuda_peak_bytes(self._device),
            seconds_left=self._seconds_left(record["step"], now),
        )
        self._display.show(moment)
        self._send(
            record["step"],
            record
            | {
                "tokens_per_second": moment.tokens_per_second,
                "matmul_share": moment.matmul_share,
                "resident_bytes": moment.resident_bytes,
                "cuda_peak_bytes": moment.cuda_peak_bytes,
            },
        )

    def look(self, record: dict[str, Any]) -> None:
        """Add what a look at the tune stream found: `step`, and numbers, which may be nested in dicts."""
        if self._writes:
            step, numbers = self._own_record("tune", record)
            self._display.look(self._name, step, dict(flattened(numbers)))

    def facts(self, record: dict[str, Any]) -> None:
        """Add what changes slowly: `step`, and weights of layers or of an ensemble, in dicts and lists."""
        if self._writes:
            self._own_record("facts", record)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """What is done inside takes no time of the steps: looks at the tune stream."""
        entered = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - entered

    def synced_length(self) -> int:
        """Bytes of the metrics log, safe on disk."""
        return self._metrics.synced_length() if self._writes else 0

    def close(self) -> None:
        """Close the display, the logs and the trackers, also after a failure."""
        if not self._writes:
            return
        try:
            self._display.close()
        finally:
            for log in (self._metrics, self._timings):
                # a full disk refuses a last flush too; what counts was synced, and the first error has said why
                with contextlib.suppress(OSError):
                    log.close()
            close_trackers(self._trackers)

    def _seconds_left(self, step: int, now: float) -> float | None:
        """By the pace since the first record: what comes before it, kernels being compiled, is not paid again."""
        if self._first is None:
            self._first = (step, now)
        first, began = self._first
        left = self._steps - step
        return 0.0 if left <= 0 else left * (now - began) / (step - first) if step > first else None

    def _own_record(self, kind: str, record: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Log numbers apart from those of training; returns the step and the numbers."""
        step, numbers = record["step"], {key: value for key, value in record.items() if key != "step"}
        self._metrics.append({"step": step, kind: numbers})
        self._send(step, {kind: numbers})
        return step, numbers

    def _send(self, step: int, values: dict[str, Any]) -> None:
        if self._trackers:
            flat = {name: value for name, value in flattened(values) if name != "step"}
            for tracker in self._trackers:
                tracker.send(step, flat)


def layer_weights(model: nn.Module) -> dict[str, list[float]] | None:
    """How much each layer of an ELC-BERT reads of every state before it: softmax of its weights, adding up to 1.

    By number of the layer, from "0"; the variant `weighted_output` adds "output". None for other architectures. Where
    the weights are sharded all processes must ask, for they are gathered.
    """
    if not isinstance(model, elc_bert.ElcBert):
        return None
    names = [*map(str, range(model.config.num_layers)), "output"]  # the last one is there in one variant only
    rows = enumerate(elc_bert.layer_weights(model, whole).tolist())
    return {names[number]: row[: number + 1] for number, row in rows}  # as many states as it can read


def read_timings(folder: Path) -> tuple[float, int]:
    """Seconds spent in steps, and tokens read in them, over all attempts at a run."""
    lines = (folder / TIMINGS).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return sum(record["seconds"] for record in records), sum(record["tokens"] for record in records)


def _whole_lines(path: Path) -> int:
    """Bytes of a log up to its last whole line: a full disk may have cut the one after it."""
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
