"""What a recipe may say about a model: one dataclass for every architecture, and one for adapters to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Architecture = Literal[
    "llama", "gptj", "gpt2", "elc_bert", "ltg_bert", "gpt_bert", "lv_bert", "share_bert", "hugging_face"
]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and variants; null means the architecture's own rule, written beside the field."""

    architecture: Architecture
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int | None = None  # llama: key-value heads; null: num_heads
    # FFN width; null: llama, elc_bert and ltg_bert 8/3 D, gpt_bert 10/3 D (to a multiple of 8), gptj, gpt2 and
    # lv_bert 4 D, share_bert 2 D, hugging_face what transformers has
    intermediate_size: int | None = None
    vocab_size: int | None = None  # types; null: the tokenizer's. A number that differs from the tokenizer's is refused
    max_positions: int = 512  # longest row in tokens
    # null: llama false, gptj and gpt2 true; share_bert is never tied, the other berts always
    tie_word_embeddings: bool | None = None
    dropout: float = 0.0  # on embeddings and residual branches (llama has none)
    attention_dropout: float = 0.0  # on attention probabilities
    # null: llama 1e-6, gptj, gpt2, gpt_bert and share_bert 1e-5, elc_bert and ltg_bert 1e-7, lv_bert 1e-12
    norm_eps: float | None = None
    rope_theta: float = 10_000.0  # llama: base of the rotary angles
    rotary_dim: int | None = None  # gptj: rotated dimensions of a head; null: min(64, head size)
    variant: Literal["base", "zero", "normalized", "weighted_output"] = "zero"  # elc_bert (arXiv 2311.02265)
    # elc_bert, ltg_bert and gpt_bert: size of the log-bucket relative position table
    position_buckets: int = 32
    # elc_bert, ltg_bert and gpt_bert, rows with hidden tokens: 1: a token is predicted one position before it (masked
    # next-token prediction, arXiv 2410.24159), 0: where it stands; null: gpt_bert 1, the others 0
    masked_shift: Literal[0, 1] | None = None
    attention_gate: bool = True  # gpt_bert: GELU gates on what attention reads (arXiv 2410.24159)
    layer_average: bool = True  # gpt_bert: every block reads a learned average over depth; with neither it is plain
    # lv_bert (arXiv 2106.11740): a letter for each sublayer, two in one of num_layers: D dynamic convolution, S
    # self-attention, F feed-forward; null: the published list, whose num_layers is 12
    layers: str | None = None
    embedding_size: int | None = None  # lv_bert, hugging_face: width of tables and features; null: hidden_size
    factor_size: int | None = None  # share_bert: width of the table of words; null: 3/16 D
    encoder_ln_mode: Literal["pre-ln", "post-ln"] = "pre-ln"  # share_bert: norms before or after the sublayers
    layer_norm_type: Literal["pytorch", "rms_norm"] = "pytorch"  # share_bert: kind of all its norms
    model_type: str | None = None  # hugging_face: an architecture of transformers, such as bert or opt
    view: Literal["causal", "masked"] | None = None  # hugging_face: what its head is for
    # hugging_face: more of its configuration, by its own names
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def feature_size(self) -> int:
        """Width of the features, which meet the output embedding."""
        return self.embedding_size or self.hidden_size


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters (arXiv 2106.09685): W becomes W + alpha / rank * B A, of which A and B are trained."""

    rank: int = 8  # rows of A, columns of B
    alpha: float = 16.0  # divided by the rank it is the weight of B A
    dropout: float = 0.0  # on what A reads
    targets: list[str] = field(default_factory=list)  # linear layers, by the end of their names; empty: all in blocks
