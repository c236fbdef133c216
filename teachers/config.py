"""What a recipe may say about caches of what teachers say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """One cache for each teacher, keyed by position; weights, pool and temperature are chosen later."""

    codec: Literal["features", "hybrid", "topk", "sampled", "full"] = "features"  # what is stored; see teachers/codecs
    dtype: Literal["bf16", "int8", "fp32"] = "bf16"  # `features`: stored type; int8 has a scale for each position
    top_k: int = 32  # `hybrid`, `topk`: tokens kept exactly
    tail_pool: int = 64  # `hybrid`: tail tokens drawn and stored for each temperature
    tail_draws: int = 16  # `hybrid`: of those, how many a student hears at a visit; other ones the next time
    draws: int = 50  # `sampled`: tokens drawn and stored for each temperature
    temperatures: tuple[float, ...] = (1.0,)  # `hybrid`, `topk`, `sampled`: those that students may ask for
    precision: Literal["fp32", "bf16"] = "fp32"  # arithmetic in which the teacher is read
    window: int = 128  # tokens of context in which a teacher reads; a longer document is read in strided windows
    num_folds: int = 3  # complementary masks of the masked view: 3 mask 33 % each, 7 mask 14.3 %
    mean_span: float = 1.0  # mean length of a masked span, in tokens
    mask_seed: int = 1  # seed of the first round's masks
    rounds: int = 1  # masked views: rounds of folds that are cached, each with masks and records of its own
    keep_share: float = 0.0  # masked views: share of the hidden spans that are left as they are
    random_share: float = 0.0  # masked views: share of the hidden spans that become random tokens
    shard_positions: int = 65_536  # positions in a shard file
    rows: int = 32  # windows read at once while capturing

    @property
    def mask_seeds(self) -> tuple[int, ...]:
        """Seed of each round's masks; a large odd step keeps rounds apart from neighbouring seeds."""
        return tuple(self.mask_seed + number * ROUND_STEP for number in range(self.rounds))


ROUND_STEP = 1_000_003
