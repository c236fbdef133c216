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


Backend = Literal["causal", "masked", "mntp", "hybrid"]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How one candidate is scored outside a recipe."""

    benchmarks: tuple[str, ...] = ()  # names of tasks/, wug_adj, wug_past, reading; empty: all that the folder holds
    data: str | None = None  # folder of the challenge's data, or one above it
    fast: bool = False  # the challenge's smaller sets, for checkpoints
    year: int | None = None  # of the challenge: its benchmarks, complete by its table, and its protocol
    blimp: str | None = None  # folder of .jsonl files in BLiMP's format, each a paradigm
    pairs: str | None = None  # own minimal pairs: a .jsonl or .csv file
    good: str = "sentence_good"  # its columns
    bad: str = "sentence_bad"
    group: str | None = None  # column whose values are paradigms; null: the file is one
    text: str | None = None  # a text file, or a folder of them: what it costs the candidate is told in bits per byte
    stream: Literal["tune", "test"] | None = None  # the same of the text that was held out from a run's training
    # run_dir of the project in whose train stream the baseline's n-grams are counted; null: the run's own; none: no
    # baseline
    ngrams: str | None = None
    items: int | None = None  # drawn of each paradigm; null: all
    seed: int = 1  # of draws and resamples
    protocol: str | None = None  # of PROTOCOLS; null: the year's, or cuvee
    pll: Literal["original", "within_word_l2r"] | None = None  # instead of the protocol's
    # what predicts a token: the text before it; all other tokens; the same, from the output before (masked next-token
    # prediction); or the first and the third added. Null: as the model was trained
    backend: Backend | None = None
    precision: Literal["fp32", "bf16"] = "fp32"  # of the network; log-probabilities are fp32
    aoa: str | None = None  # folder of cdi_childes.json and cdi_human.csv, asked of every checkpoint
    max_tokens: int = 4_096  # in a forward pass
    confidence: float = 0.95  # of every interval
    resamples: int = 2_000  # bootstrap draws
    canaries: bool = False  # also score what knows nothing


@dataclass(frozen=True, kw_only=True)
class BenchmarksConfig:
    """Which benchmarks a run is scored on, and how sure the intervals are."""

    minimal_pairs: MinimalPairsConfig | None = None
    blimp: BlimpConfig | None = None
    ngram_order: int | None = 5  # tokens of the longest n-gram of the baseline, counted in the train stream; null: none
    max_tokens: int = 4_096  # tokens in a forward pass while scoring; each takes about 12 bytes for every type
    confidence: float = 0.95  # of every interval
    resamples: int = 2000  # bootstrap draws
