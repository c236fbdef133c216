"""Configuration of LV-BERT for transformers. This file travels with exported models."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

LETTERS = {"D": "dynamic convolution", "S": "self-attention", "F": "feed-forward"}
PUBLISHED_LAYERS = "DDSFFSDFFSDDSFDFSDFDSSFS"


class LvBertConfig(PretrainedConfig):
    """Sizes and layers of an LV-BERT (arXiv 2106.11740); the defaults are its small size."""

    model_type = "lv_bert"
    _auto_class = "AutoConfig"  # so that `save_pretrained` writes this file too
    auto_classes = {
        "AutoConfig": "configuration_lv_bert.LvBertConfig",
        "AutoModel": "modeling_lv_bert.LvBertModel",
        "AutoModelForMaskedLM": "modeling_lv_bert.LvBertForMaskedLM",
        "AutoModelForPreTraining": "modeling_lv_bert.LvBertForPreTraining",
        "AutoModelForSequenceClassification": "modeling_lv_bert.LvBertForSequenceClassification",
    }

    def __init__(
        self,
        vocab_size: int = 30_522,
        hidden_size: int = 256,
        num_hidden_layers: int | None = None,  # pairs of sublayers; None: as `layers` has them
        num_attention_heads: int = 4,  # of attention and of convolutions
        intermediate_size: int = 1024,  # width of feed-forward sublayers
        embedding_size: int = 128,  # width of the three tables; where it is not hidden_size a projection follows
        layers: str = PUBLISHED_LAYERS,  # one of LETTERS for each sublayer
        max_position_embeddings: int = 512,  # rows of the table of positions: the longest row
        type_vocab_size: int = 2,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | None = 2,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        """Raises ValueError for letters that are no layers, a wrong number of them, or an untied output embedding."""
        if not tie_word_embeddings:
            raise ValueError("tie_word_embeddings: lv_bert's output embedding is always its input embedding")
        require_layers(layers, num_hidden_layers)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = number_of_pairs(layers)
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.embedding_size = embedding_size
        self.layers = layers
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.layer_norm_eps = layer_norm_eps
        kwargs.setdefault("auto_map", dict(self.auto_classes))
        super().__init__(
            pad_token_id=pad_token_id,  # pyright: ignore[reportCallIssue]
            bos_token_id=bos_token_id,  # pyright: ignore[reportCallIssue]
            eos_token_id=eos_token_id,  # pyright: ignore[reportCallIssue]
            tie_word_embeddings=tie_word_embeddings,  # pyright: ignore[reportCallIssue]
            **kwargs,
        )


def number_of_pairs(layers: str) -> int:
    """Layers as the original counts them, two sublayers in each; the last may have one."""
    return (len(layers) + 1) // 2


def require_layers(layers: str, num_pairs: int | None) -> None:
    """Raise ValueError, in one line, unless `layers` is a string of LETTERS for that many pairs (None: any number)."""
    if not layers or set(layers) - LETTERS.keys():
        known = ", ".join(f"{letter} ({name})" for letter, name in LETTERS.items())
        raise ValueError(f"layers: found {layers!r}, expected a string over {known}")
    if num_pairs not in (None, number_of_pairs(layers)):
        raise ValueError(
            f"layers: {layers!r} has {len(layers)} letters, which is {number_of_pairs(layers)} layers of two, but the "
            f"number of layers is {num_pairs}; write {2 * num_pairs} letters, or correct the number"
        )
