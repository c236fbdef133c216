"""What a recipe may say about a model: one dataclass for every architecture, and one for adapters to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Architecture = Literal["llama", "gptj", "elc_bert"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and variants; null means the architecture's own rule, written beside the field."""

    architecture: Architecture
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int | None = None  # llama: key-value heads; null: num_heads
    intermediate_size: int | None = (
        None  # FFN width; null: llama 8/3 D and elc_bert 8/3 D (to a multiple of 8), gptj 4 D
    )
    vocab_size: int | None = None  # types; null: the tokenizer's. A number that differs from the tokenizer's is refused
    max_positions: int = 512  # longest row in tokens
    tie_word_embeddings: bool | None = None  # null: llama false, gptj true, elc_bert true (always)
    dropout: float = 0.0  # on embeddings and residual branches (llama has none)
    attention_dropout: float = 0.0  # on attention probabilities
    norm_eps: float | None = None  # null: llama 1e-6, gptj 1e-5, elc_bert 1e-7
    rope_theta: float = 10_000.0  # llama: base of the rotary angles
    rotary_dim: int | None = None  # gptj: rotated dimensions of a head; null: min(64, head size)
    variant: Literal["base", "zero", "normalized", "weighted_output"] = "zero"  # elc_bert (arXiv 2311.02265)
    position_buckets: int = 32  # elc_bert: size of the log-bucket relative position table


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters (arXiv 2106.09685): W becomes W + alpha / rank * B A, of which A and B are trained."""

    rank: int = 8  # rows of A, columns of B
    alpha: float = 16.0  # divided by the rank it is the weight of B A
    dropout: float = 0.0  # on what A reads
    targets: list[str] = field(default_factory=list)  # linear layers, by the end of their names; empty: all in blocks
