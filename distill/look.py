"""A look at the tune stream while a run trains: cross-entropy and bits per byte of its beginning.

The batches are planned once and shared by the processes; under FSDP2 all of them read equally often.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from corpora.batch import Batch, Objective
from corpora.stream import Stream
from corpora.windows import plan_windows, window_batches
from distill.config import TermConfig
from distill.distributed import Processes
from distill.fused import RowTerm
from distill.micro_batch import fewer_rows_next_time, smallest
from distill.objective import Part
from distill.precision import autocast
from distill.run import Run
from distill.shares import read_views
from teachers.cache import cached_view

ROWS = 16  # in a batch, where as many are read at a time in training
CROSS_ENTROPY = TermConfig(loss="cross_entropy")


@dataclass(frozen=True)
class Look:
    """What a look found, by objective."""

    cross_entropy: dict[str, float]  # nats per target
    bits_per_byte: float | None  # of a causal model

    @property
    def value(self) -> float:
        """What is compared: the mean over the objectives."""
        return sum(self.cross_entropy.values()) / len(self.cross_entropy)

    def record(self) -> dict[str, Any]:
        """For the log."""
        bits = {} if self.bits_per_byte is None else {"bits_per_byte": self.bits_per_byte}
        return {f"{objective}/cross_entropy": value for objective, value in self.cross_entropy.items()} | bits


@dataclass(frozen=True)
class TuneStream:
    """The documents at the beginning of the tune stream, as batches of each objective that a run trains on.

    Masked rows are asked with the first fold of the cache's masks alone.
    """

    run: Run
    processes: Processes

    def look(self, module: nn.Module, precision: str, *, micro_batch: int | None = None) -> Look:
        """Cross-entropy of the module as it is, without dropout; all processes get the same.

        `micro_batch`: rows that a process reads at a time in training (None: all of its own), and at most here. Raises
        NoRoom when memory runs out all the same, with half of the rows kept for the next start.
        """
        module.eval()
        of_a_step = -(-self.run.train.batch_size // self.processes.world_size)
        rows = smallest(ROWS, micro_batch, of_a_step)
        assert rows is not None
        found: dict[str, float] = {}
        bits_per_byte = None
        place = f"{self.run.folder}: a look at the tune stream"
        for objective, batches in self._batches(rows).items():
            with fewer_rows_next_time(self.run, self.processes.rank, place=place, rows=rows):
                nats, targets = self._nats(module, batches, precision)
            total = self.processes.sum(torch.tensor([nats, targets], dtype=torch.float64, device=self.processes.device))
            found[objective] = float(total[0] / total[1])
            if objective == "causal":
                bits_per_byte = float(total[0]) / math.log(2) / self._bytes
        module.train()
        return Look(found, bits_per_byte)

    def _nats(self, module: nn.Module, batches: Sequence[Batch], precision: str) -> tuple[float, int]:
        """Of this process's batches the sum over the targets, and their number."""
        nats, targets = 0.0, 0
        for batch in batches:
            there = batch.to(self.processes.device)
            part = Part(there, (RowTerm("look", 0, CROSS_ENTROPY, None, 0.0),))
            with torch.no_grad(), autocast(precision, self.processes.device):
                _, sums = module([part])
            nats += float(sums["look"])
            targets += int(there.has_target_BT.sum())
        return nats, targets

    @property
    def _stream(self) -> Stream:
        return self.run.corpus.streams["tune"]

    @cached_property
    def _documents(self) -> int:
        """As many as hold the tokens asked for, at least one."""
        ends = self._stream.document_offsets[1:]
        return min(int(np.searchsorted(ends, self.run.train.evaluate_tokens)) + 1, len(ends))

    @cached_property
    def _bytes(self) -> int:
        return int(self._stream.document_bytes[: self._documents].sum())

    @cached_property
    def _planned(self) -> dict[int, dict[Objective, Sequence[Batch]]]:
        """By rows in a batch: they may become fewer while a run goes on."""
        return {}

    def _batches(self, rows: int) -> dict[Objective, Sequence[Batch]]:
        if rows not in self._planned:
            self._planned[rows] = {
                objective: self._own(list(self._all(objective, rows))) for objective in read_views(self.run.train)
            }
        return self._planned[rows]

    def _all(self, objective: Objective, rows: int) -> Iterator[Batch]:
        run, end = self.run, int(self._stream.document_offsets[self._documents])
        windows = [
            window
            for window in plan_windows(self._stream, run.train.seq_len, objective=objective)
            if window.stop <= end
        ]
        return window_batches(
            self._stream,
            windows,
            cached_view(run.cache, objective, shift=run.masked_shift),
            rows=rows,
            token_ids=run.corpus.token_ids,
            vocab_size=run.corpus.vocab_size,
        )

    def _own(self, batches: list[Batch]) -> list[Batch]:
        """This process's batches; where there are fewer, the first one again without a target."""
        mine = self.processes.own_share(batches)
        rounds = -(-len(batches) // self.processes.world_size)
        return mine + [batches[0].silent()] * (rounds - len(mine))
