"""Configuration of GPT-BERT for transformers. This file travels with exported models."""

from __future__ import annotations

from typing import Any

from .configuration_ltg_bert import LtgBertConfig


class GptBertConfig(LtgBertConfig):
    """Sizes and form of a GPT-BERT (arXiv 2410.24159); the defaults are its base size."""

    model_type = "gpt_bert"
    auto_classes = {
        "AutoConfig": "configuration_gpt_bert.GptBertConfig",
        "AutoModel": "modeling_gpt_bert.GptBertModel",
        "AutoModelForMaskedLM": "modeling_gpt_bert.GptBertForMaskedLM",
        "AutoModelForCausalLM": "modeling_gpt_bert.GptBertForCausalLM",
        "AutoModelForSequenceClassification": "modeling_gpt_bert.GptBertForSequenceClassification",
    }

    def __init__(
        self,
        intermediate_size: int = 2560,  # width of the gated feed-forward layer: 10/3 of hidden_size
        layer_norm_eps: float = 1e-5,
        masked_shift: int = 1,  # both modes predict the next token
        attention_gate: bool = True,  # what attention reads is gated, see `GptBertAttention`
        layer_average: bool = True,  # blocks read averages of all earlier outputs, see `GptBertLayer`
        **sizes: Any,  # LTG-BERT's
    ) -> None:
        """Raises ValueError for an untied output embedding."""
        self.attention_gate = attention_gate
        self.layer_average = layer_average
        super().__init__(
            intermediate_size=intermediate_size, layer_norm_eps=layer_norm_eps, masked_shift=masked_shift, **sizes
        )
