"""What a recipe may say about caches of what teachers say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """One cache for each teacher, keyed by position; weights, pool and temperature are chosen later."""

    codec: Literal["features"] = "features"  # the vector that meets the output embedding, and the head once
    dtype: Literal["bf16", "fp32"] = "bf16"  # stored type of the features
    window: int = 128  # tokens of context in which a teacher reads; a longer document is read in strided windows
    num_folds: int = 3  # complementary masks of the masked view: 3 mask 33 % each, 7 mask 14.3 %
    mean_span: float = 1.0  # mean length of a masked span, in tokens
    mask_seed: int = 1  # seed of the masks (one round)
    shard_positions: int = 65_536  # positions in a shard file
    rows: int = 32  # windows read at once while capturing
