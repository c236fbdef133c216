"""Configuration of LTG-BERT for transformers, and what ELC-BERT and GPT-BERT take over from it.

This file travels with exported models.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

REBUILT_FOR = 512  # row length that the original's tables of buckets are built anew for


class LtgBertConfig(PretrainedConfig):
    """Sizes of an LTG-BERT (arXiv 2303.09859); the defaults are its base size."""

    model_type = "ltg_bert"
    _auto_class = "AutoConfig"  # so that `save_pretrained` writes this file too
    auto_classes = {
        "AutoConfig": "configuration_ltg_bert.LtgBertConfig",
        "AutoModel": "modeling_ltg_bert.LtgBertModel",
        "AutoModelForMaskedLM": "modeling_ltg_bert.LtgBertForMaskedLM",
        "AutoModelForSequenceClassification": "modeling_ltg_bert.LtgBertForSequenceClassification",
    }

    def __init__(
        self,
        vocab_size: int = 16_384,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 2048,  # width of the gated feed-forward layer
        max_position_embeddings: int = 512,  # the longest row that the buckets of relative positions are laid out for
        position_bucket_size: int = 32,  # S: the table has 2 S - 1 relative positions
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-7,
        masked_shift: int = 0,  # 1: masked next-token prediction, a token is predicted by the output before it
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | None = 2,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        """Raises ValueError for an untied output embedding, and for another shift than 0 and 1."""
        if masked_shift not in (0, 1):
            raise ValueError(f"masked_shift: found {masked_shift!r}, expected 0 or 1")
        if not tie_word_embeddings:
            raise ValueError(f"tie_word_embeddings: {self.model_type}'s output embedding is always its input embedding")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.position_bucket_size = position_bucket_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.layer_norm_eps = layer_norm_eps
        self.masked_shift = masked_shift
        kwargs.setdefault("auto_map", dict(self.auto_classes))
        super().__init__(
            pad_token_id=pad_token_id,  # pyright: ignore[reportCallIssue]
            bos_token_id=bos_token_id,  # pyright: ignore[reportCallIssue]
            eos_token_id=eos_token_id,  # pyright: ignore[reportCallIssue]
            tie_word_embeddings=tie_word_embeddings,  # pyright: ignore[reportCallIssue]
            **kwargs,
        )

    def longest_distance(self, seq_len: int) -> int:
        """Row length that the buckets of relative positions are laid out for, when rows have `seq_len` tokens.

        A row longer than `max_position_embeddings` makes the original build its table anew, for 512.
        """
        return self.max_position_embeddings if seq_len <= self.max_position_embeddings else REBUILT_FOR
