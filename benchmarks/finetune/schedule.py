"""The learning rate of a step, in the challenge's two curves."""

from __future__ import annotations

import math

from benchmarks.finetune.config import FinetuneConfig


def steps_of_epoch(rows: int, config: FinetuneConfig) -> int:
    """Optimiser steps of one pass over so many rows, at least 1."""
    whole = rows // config.batch_size
    return max(whole, 1) if config.drop_last else -(-rows // config.batch_size)


def warmup_steps(rows: int, steps: int, config: FinetuneConfig) -> int:
    """Steps over which the rate rises; more than there are where rows are counted for steps."""
    counted = steps if config.warmup_counts == "steps" else rows * config.epochs
    return int(config.warmup_share * counted)


def learning_rate(step: int, steps: int, warmup: int, config: FinetuneConfig) -> float:
    """The rate of a step, counted from 0, of a run of `steps`.

    It rises from 0, in step 0 itself, along a line, and falls to `min_lr_share` of the peak behind the last step:
    along a line, or floor + (1 - floor) (1 + cos(pi progress)) / 2.
    """
    if step < warmup:
        return config.lr * step / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    left = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    return config.lr * (config.min_lr_share + (1 - config.min_lr_share) * left)
