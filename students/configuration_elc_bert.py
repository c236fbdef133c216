"""Configuration of ELC-BERT for transformers. This file travels with exported models."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

VARIANTS = ("base", "zero", "normalized", "weighted_output")


class ElcBertConfig(PretrainedConfig):
    """Sizes and variant of an ELC-BERT (arXiv 2311.02265); the defaults are its base size."""

    model_type = "elc_bert"

    def __init__(
        self,
        vocab_size: int = 16_384,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 2048,  # width of the gated feed-forward layer
        max_position_embeddings: int = 512,  # the longest row that the buckets of relative positions are laid out for
        position_bucket_size: int = 32,  # S: the table has 2 S - 1 relative positions
        variant: str = "zero",  # one of VARIANTS: how layers are weighted, see `ElcBertLayer`
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-7,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | None = 2,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        """Raises ValueError for an unknown variant or an untied output embedding."""
        if variant not in VARIANTS:
            raise ValueError(f"variant: found {variant!r}, expected one of {', '.join(VARIANTS)}")
        if not tie_word_embeddings:
            raise ValueError("tie_word_embeddings: ELC-BERT's output embedding is always its input embedding")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.position_bucket_size = position_bucket_size
        self.variant = variant
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.layer_norm_eps = layer_norm_eps
        super().__init__(
            pad_token_id=pad_token_id,  # pyright: ignore[reportCallIssue]
            bos_token_id=bos_token_id,  # pyright: ignore[reportCallIssue]
            eos_token_id=eos_token_id,  # pyright: ignore[reportCallIssue]
            tie_word_embeddings=tie_word_embeddings,  # pyright: ignore[reportCallIssue]
            **kwargs,
        )
