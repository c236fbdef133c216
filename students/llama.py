"""Llama: the causal teacher and student of BabyLlama (arXiv 2308.02019), through transformers.

Axes: B rows, T positions, D hidden, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from corpora.errors import RecipeError
from corpora.token_ids import TokenIds
from students.attention import SDPA, documents_apart
from students.buildable import Buildable, ForwardFlops, all_fields_but, default_if_none, gated_ffn_width, require_known
from students.config import ModelConfig
from students.head import Head


class Llama(Buildable):
    """Pre-norm blocks with RMSNorm, rotary positions and SwiGLU; no bias and no dropout on residual branches."""

    network: LlamaForCausalLM
    network_class = LlamaForCausalLM
    config_class = LlamaConfig
    causal_head = True
    unused_fields = all_fields_but("num_kv_heads", "rope_theta")

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """Output of the final norm, [B, T, D]."""
        # without a mask scaled_dot_product_attention is causal itself
        mask_B1TT, positions_BT = documents_apart(segments_BT, causal, unmasked_is_causal=True)
        outputs = self.network.model(input_ids_BT, attention_mask=mask_B1TT, position_ids=positions_BT, use_cache=False)
        return outputs.last_hidden_state

    def head(self) -> Head:
        """Output embedding, without a bias."""
        return Head(self.network.lm_head.weight)

    @classmethod
    def network_config(cls, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> LlamaConfig:
        """The configuration of transformers that means the same."""
        network_config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=gated_ffn_width(config),
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=default_if_none(config.num_kv_heads, config.num_heads),
            max_position_embeddings=config.max_positions,
            rms_norm_eps=default_if_none(config.norm_eps, 1e-6),
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            attention_dropout=config.attention_dropout,
            tie_word_embeddings=default_if_none(config.tie_word_embeddings, False),
            use_cache=False,  # training has no use for it; `generate` asks for the cache itself
            pad_token_id=token_ids.pad,
            bos_token_id=token_ids.begin,
            eos_token_id=token_ids.end,
            attn_implementation=SDPA,  # pyright: ignore[reportCallIssue]
        )
        # transformers 4 looks here, and silently takes 10,000 when it is missing; version 5 drops it as an argument
        network_config.rope_theta = config.rope_theta  # pyright: ignore[reportAttributeAccessIssue]
        return network_config

    @classmethod
    def model_config(cls, network_config: LlamaConfig) -> ModelConfig:
        """The inverse of `network_config`; raises InputRefused when ModelConfig cannot say it."""
        rope: dict[str, Any] = dict(network_config.rope_parameters or {})
        settings = {
            "hidden_act": (network_config.hidden_act, "silu"),
            "attention_bias": (network_config.attention_bias, False),
            "mlp_bias": (network_config.mlp_bias, False),
            "rope_type": (rope.get("rope_type", "default"), "default"),
            "head_dim": (network_config.head_dim, network_config.hidden_size // network_config.num_attention_heads),
        }
        require_known("llama", settings)
        return ModelConfig(
            architecture="llama",
            num_layers=network_config.num_hidden_layers,
            hidden_size=network_config.hidden_size,
            num_heads=network_config.num_attention_heads,
            num_kv_heads=network_config.num_key_value_heads,
            intermediate_size=network_config.intermediate_size,
            max_positions=network_config.max_position_embeddings,
            tie_word_embeddings=network_config.tie_word_embeddings,
            attention_dropout=float(network_config.attention_dropout or 0.0),
            norm_eps=network_config.rms_norm_eps,
            rope_theta=rope["rope_theta"],
        )

    @classmethod
    def check_shape(cls, config: ModelConfig) -> None:
        """Rotary positions turn pairs of dimensions; heads share keys and values in equal groups."""
        if (config.hidden_size // config.num_heads) % 2:
            raise RecipeError(
                f"model.num_heads: heads of {config.hidden_size // config.num_heads} dimensions (hidden_size "
                f"{config.hidden_size} / num_heads {config.num_heads}) cannot be rotated in pairs; make them even"
            )
        kv_heads = default_if_none(config.num_kv_heads, config.num_heads)
        if kv_heads < 1 or config.num_heads % kv_heads:
            raise RecipeError(f"model.num_kv_heads: {kv_heads} does not divide num_heads {config.num_heads}")

    @classmethod
    def parameter_count(cls, config: ModelConfig, vocab_size: int) -> int:
        """Embeddings + layers + final norm."""
        tables = 1 if default_if_none(config.tie_word_embeddings, False) else 2
        norms = (2 * config.num_layers + 1) * config.hidden_size
        return tables * vocab_size * config.hidden_size + _matrix_parameters(config) + norms

    @classmethod
    def forward_flops(cls, config: ModelConfig, vocab_size: int, seq_len: int) -> ForwardFlops:
        """Two operations for each weight, and for attention 2 T D twice (scores, then the sum of values)."""
        attention = config.num_layers * 4 * seq_len * config.hidden_size
        return ForwardFlops(2 * _matrix_parameters(config) + attention, 2 * vocab_size * config.hidden_size)


def _matrix_parameters(config: ModelConfig) -> int:
    """L (2 D D + 2 D D_kv + 3 D F): queries and output, keys and values, gated feed-forward."""
    kv_size = config.hidden_size // config.num_heads * default_if_none(config.num_kv_heads, config.num_heads)
    attention = 2 * config.hidden_size * (config.hidden_size + kv_size)
    return config.num_layers * (attention + 3 * config.hidden_size * gated_ffn_width(config))
