"""What a recipe may say about scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MinimalPairsConfig:
    """Minimal pairs of the embedded corpus: their word combinations are held out of its text."""

    source: Literal["synthetic"] = "synthetic"
    pairs: int = 100  # for each phenomenon


@dataclass(frozen=True, kw_only=True)
class BlimpConfig:
    """BLiMP or any folder of JSON Lines files in its format (arXiv 1912.00582)."""

    root: str | None = None  # folder with one .jsonl file for each paradigm
    pairs: int | None = 200  # drawn from each file by the recipe's seed; null: all


@dataclass(frozen=True, kw_only=True)
class BenchmarksConfig:
    """Which benchmarks a run is scored on, and how sure the intervals are."""

    minimal_pairs: MinimalPairsConfig | None = None
    blimp: BlimpConfig | None = None
    max_tokens: int = 4_096  # tokens in a forward pass while scoring; each takes about 12 bytes for every type
    confidence: float = 0.95  # of every interval
    resamples: int = 2000  # bootstrap draws
