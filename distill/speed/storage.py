"""How fast caches are read and written, against plain copies and plain files of the same bytes."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from corpora.batch import causal_view
from corpora.prepare import Corpus
from corpora.rows import make_batch
from corpora.storage import FolderWriter
from distill.speed.data import Shapes, cached_stand_in
from teachers.codecs import CODECS
from teachers.config import CacheConfig

BATCHES = 64  # read in one timed run
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Transfer:
    """Two ways to move the same bytes: ours, and the plainest one."""

    bytes: int
    ours: Callable[[], object]
    plain: Callable[[], object]


def cache_reads(shapes: Shapes, corpus: Corpus, folder: Path) -> Transfer:
    """Random rows of the first teacher's `features`, read by position as steps read them; a copy of them in memory."""
    name, config = next(iter(shapes.teachers.items()))
    # several shards, as real caches have: the rows of a step are not neighbours
    cache = CacheConfig(window=shapes.seq_len, shard_positions=max(shapes.read_positions // 4, 1))
    teacher = cached_stand_in(name, config, corpus, "test", cache, folder / "caches" / "read" / name, CPU)
    size = _record(shapes, cache).itemsize
    starts = np.random.default_rng(1).integers(0, shapes.read_positions - shapes.seq_len, (BATCHES, shapes.rows))
    # the first position of the stream begins its document and is no target
    spans = [[(int(start), int(start) + shapes.seq_len) for start in row] for row in starts]
    batches = [
        make_batch(
            corpus.streams["test"], rows, causal_view(), token_ids=corpus.token_ids, vocab_size=corpus.vocab_size
        )
        for rows in spans
    ]
    table = np.zeros((shapes.read_positions, size), np.uint8)
    table += 1  # zeros that nobody wrote are all one page

    def ours() -> None:
        for batch in batches:
            teacher.answer(batch, CPU, draw=0, dtype=torch.bfloat16)

    def plain() -> None:
        for rows in spans:
            out = np.empty((shapes.rows, shapes.seq_len, size), np.uint8)
            for place, (start, stop) in enumerate(rows):
                out[place] = table[start:stop]

    return Transfer(sum(len(batch.target_positions_N) for batch in batches) * size, ours, plain)


def cache_writes(shapes: Shapes, folder: Path) -> Transfer:
    """A shard of `features` written as a cache's, with digest, rename and both syncs; the bytes written and synced."""
    record = _record(shapes, CacheConfig())
    data = np.random.default_rng(1).bytes(shapes.read_positions * record.itemsize)
    shard = np.frombuffer(data, record)
    numbers = itertools.count()
    folder = folder / "written"
    folder.mkdir(parents=True)

    def ours() -> None:
        # as a capture does: a new writer and a new name for each shard, here one of two so that the disk does not fill
        FolderWriter(folder).write_array(f"records-{next(numbers) % 2}.npy", shard)

    def plain() -> None:
        with tempfile.NamedTemporaryFile(dir=folder) as file:  # nothing that should last: it is only timed
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    return Transfer(len(data), ours, plain)


def _record(shapes: Shapes, cache: CacheConfig) -> np.dtype:
    config = next(iter(shapes.teachers.values()))
    return CODECS["features"](cache, hidden_size=config.feature_size, vocab_size=shapes.vocab_size).record
