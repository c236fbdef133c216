"""Configuration of ELC-BERT for transformers. This file travels with exported models."""

from __future__ import annotations

from typing import Any

from .configuration_ltg_bert import LtgBertConfig

VARIANTS = ("base", "zero", "normalized", "weighted_output")


class ElcBertConfig(LtgBertConfig):
    """Sizes and variant of an ELC-BERT (arXiv 2311.02265); the defaults are its base size."""

    model_type = "elc_bert"
    auto_classes = {
        "AutoConfig": "configuration_elc_bert.ElcBertConfig",
        "AutoModel": "modeling_elc_bert.ElcBertModel",
        "AutoModelForMaskedLM": "modeling_elc_bert.ElcBertForMaskedLM",
        "AutoModelForSequenceClassification": "modeling_elc_bert.ElcBertForSequenceClassification",
    }

    def __init__(
        self,
        variant: str = "zero",  # one of VARIANTS: how layers are weighted, see `ElcBertLayer`
        **sizes: Any,  # LTG-BERT's
    ) -> None:
        """Raises ValueError for an unknown variant or an untied output embedding."""
        if variant not in VARIANTS:
            raise ValueError(f"variant: found {variant!r}, expected one of {', '.join(VARIANTS)}")
        self.variant = variant
        super().__init__(**sizes)

    def longest_distance(self, seq_len: int) -> int:
        """LTG-BERT's, but in two variants the original builds its table anew for the row that is too long."""
        if self.variant in ("base", "normalized"):
            return max(seq_len, self.max_position_embeddings)
        return super().longest_distance(seq_len)
