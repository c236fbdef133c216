"""Where the record of a position lies: in shards of fixed stride, a file for each round of masks, fold by fold inside.

All of it follows from a cache's fingerprint, so nothing of it is stored.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from corpora.batch import View
from corpora.masking import folds
from teachers.config import ROUND_STEP

HEAD = "head.safetensors"


def rounds_of(view: View, rounds: int) -> tuple[View, ...]:
    """The view of each round of masks; `view` is that of the first."""
    return tuple(replace(view, mask_seed=view.mask_seed + number * ROUND_STEP) for number in range(rounds))


def shard_bounds(num_positions: int, stride: int) -> list[tuple[int, int]]:
    """The positions [start, stop) of each shard of a stream."""
    return [(start, min(start + stride, num_positions)) for start in range(0, num_positions, stride)]


def places(start: int, stop: int, view: View) -> np.ndarray:
    """Place in its file of the record of each position of the shard [start, stop); int64.

    Records stand fold by fold and in a fold by position: the positions that a fold hides in a row are one range of
    places. A causal view has one fold, so that they stand by position.
    """
    order = np.argsort(folds(start, stop, view), kind="stable")
    found = np.empty_like(order)
    found[order] = np.arange(len(order))
    return found


def records_file(round: int, number: int) -> str:
    """Records of one round of shard `number`."""
    return f"records-{round:02d}-{number:05d}.npy"


def coverage_file(number: int) -> str:
    """Which positions of shard `number` have a record, the same in every round; packed bits."""
    return f"coverage-{number:05d}.npy"


def note_file(number: int) -> str:
    """What shard `number` was made from, and its files: by it a capture that was interrupted goes on."""
    return f"shard-{number:05d}.json"
