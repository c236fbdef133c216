"""BERT's names of sizes, in which the configurations of our own architectures have what a ModelConfig says."""

from __future__ import annotations

from typing import Any

from corpora.token_ids import TokenIds
from students.buildable import default_if_none
from students.config import ModelConfig


def bert_sizes(
    config: ModelConfig, *, vocab_size: int, token_ids: TokenIds, intermediate_size: int, norm_eps: float
) -> dict[str, Any]:
    """The sizes that all of them have; `norm_eps` is the architecture's own, where the recipe says null."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": config.max_positions,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": default_if_none(config.norm_eps, norm_eps),
        "pad_token_id": token_ids.pad,
        "bos_token_id": token_ids.begin,
        "eos_token_id": token_ids.end,
    }


def sizes_of_bert(network_config: Any) -> dict[str, Any]:
    """The inverse of `bert_sizes`, by the names of ModelConfig."""
    return {
        "architecture": network_config.model_type,
        "num_layers": network_config.num_hidden_layers,
        "hidden_size": network_config.hidden_size,
        "num_heads": network_config.num_attention_heads,
        "intermediate_size": network_config.intermediate_size,
        "max_positions": network_config.max_position_embeddings,
        "dropout": network_config.hidden_dropout_prob,
        "attention_dropout": network_config.attention_probs_dropout_prob,
        "norm_eps": network_config.layer_norm_eps,
    }
