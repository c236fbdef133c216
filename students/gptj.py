"""GPT-J: the second causal teacher, through transformers (the block of EleutherAI's GPT-J-6B at any size).

Axes: B rows, T positions, H heads, E features of a head, D hidden, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GPTJConfig, GPTJForCausalLM
from transformers.models.gptj.modeling_gptj import GPTJAttention

from corpora.errors import InputRefused, RecipeError
from corpora.token_ids import TokenIds
from students.attention import SDPA, attention_mask, one_segment_per_row, positions_in_segments, sdpa
from students.buildable import Buildable, ForwardFlops, all_fields_but, default_if_none
from students.config import ModelConfig
from students.gpt2 import require_positions
from students.head import Head


class SdpaAttention(GPTJAttention):
    """transformers' GPT-J attention, which is written out there alone, by torch's kernel.

    Elsewhere a saved model is a plain GPT-J with the same weights; the outputs differ by rounding.
    """

    def _attn(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """What each query reads, [B, H, T, E], and no probabilities."""
        dropout = self.attn_dropout.p if self.training else 0.0
        read_BTHE, _ = sdpa(self, query, key, value, attention_mask, dropout=dropout, scaling=1 / self.scale_attn)
        return read_BTHE.transpose(1, 2), None


class GptJ(Buildable):
    """Blocks whose attention and feed-forward run in parallel on one LayerNorm; the first dimensions are rotated."""

    network: GPTJForCausalLM
    network_class = GPTJForCausalLM
    config_class = GPTJConfig
    causal_head = True
    unused_fields = all_fields_but("dropout", "rotary_dim")  # the angles' base is always 10,000

    def __init__(self, config: ModelConfig, **known: Any) -> None:
        """Build the network of transformers, and give its attention the kernel that it comes without."""
        super().__init__(config, **known)
        for module in self.network.modules():
            if isinstance(module, GPTJAttention):
                module.__class__ = SdpaAttention  # weights, their names and the class of the whole stay
        self.network.config._attn_implementation = SDPA  # whose masks are of True and False, or none where causal

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """Output of the final norm, [B, T, D]; positions restart with the document.

        Raises ValueError for a document that is longer than `max_positions`.
        """
        one_document = one_segment_per_row(segments_BT)
        positions_BT = None if one_document else positions_in_segments(segments_BT)
        require_positions(positions_BT, input_ids_BT.shape[1], self.config.max_positions)
        assert self.network.config._attn_implementation == SDPA, "attention written out would add True as a number"
        # without a mask scaled_dot_product_attention is causal itself
        mask_B1TT = None if causal and one_document else attention_mask(segments_BT, causal)
        outputs = self.network.transformer(
            input_ids_BT, attention_mask=mask_B1TT, position_ids=positions_BT, use_cache=False
        )
        return outputs.last_hidden_state

    def head(self) -> Head:
        """Output embedding, tied or not, with a bias of its own."""
        return Head(self.network.lm_head.weight, self.network.lm_head.bias)

    @classmethod
    def network_config(cls, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> GPTJConfig:
        """The configuration of transformers that means the same."""
        return GPTJConfig(
            vocab_size=vocab_size,
            n_positions=config.max_positions,
            n_embd=config.hidden_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=_ffn_width(config),
            rotary_dim=_rotary_dim(config),
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.attention_dropout,
            layer_norm_epsilon=default_if_none(config.norm_eps, 1e-5),
            tie_word_embeddings=default_if_none(config.tie_word_embeddings, True),
            use_cache=False,  # training has no use for it; `generate` asks for the cache itself
            pad_token_id=token_ids.pad,
            bos_token_id=token_ids.begin,
            eos_token_id=token_ids.end,
            attn_implementation="eager",  # pyright: ignore[reportCallIssue]
        )

    @classmethod
    def model_config(cls, network_config: GPTJConfig) -> ModelConfig:
        """The inverse of `network_config`; raises InputRefused when ModelConfig cannot say it."""
        fixed = {
            "activation_function": (network_config.activation_function, "gelu_new"),
            "embd_pdrop": (network_config.embd_pdrop, network_config.resid_pdrop),  # ModelConfig has one for both
        }
        for name, (found, expected) in fixed.items():
            if found != expected:
                raise InputRefused(f"config.json: gptj with {name} {found!r} is not supported, only {expected!r}")
        return ModelConfig(
            architecture="gptj",
            num_layers=network_config.n_layer,
            hidden_size=network_config.n_embd,
            num_heads=network_config.n_head,
            intermediate_size=network_config.n_inner,
            max_positions=network_config.n_positions,
            tie_word_embeddings=network_config.tie_word_embeddings,
            dropout=network_config.resid_pdrop,
            attention_dropout=network_config.attn_pdrop,
            norm_eps=network_config.layer_norm_epsilon,
            rotary_dim=network_config.rotary_dim,
        )

    @classmethod
    def check_shape(cls, config: ModelConfig) -> None:
        """Rotary positions turn pairs of the first dimensions of a head."""
        head_size = config.hidden_size // config.num_heads
        rotary_dim = _rotary_dim(config)
        if rotary_dim % 2 or not 0 < rotary_dim <= head_size:
            raise RecipeError(
                f"model.rotary_dim: found {rotary_dim}, needs an even number between 2 and the head size {head_size}"
            )

    @classmethod
    def parameter_count(cls, config: ModelConfig, vocab_size: int) -> int:
        """Embeddings and head bias + layers + final norm."""
        tables = 1 if default_if_none(config.tie_word_embeddings, True) else 2
        biases_and_norms = config.num_layers * (_ffn_width(config) + 3 * config.hidden_size) + 2 * config.hidden_size
        return tables * vocab_size * config.hidden_size + vocab_size + _matrix_parameters(config) + biases_and_norms

    @classmethod
    def forward_flops(cls, config: ModelConfig, vocab_size: int, seq_len: int) -> ForwardFlops:
        """Two operations for each weight, and for attention 2 T D twice (scores, then the sum of values)."""
        attention = config.num_layers * 4 * seq_len * config.hidden_size
        return ForwardFlops(2 * _matrix_parameters(config) + attention, 2 * vocab_size * config.hidden_size)


def _matrix_parameters(config: ModelConfig) -> int:
    """L (4 D D + 2 D F): queries, keys, values and output, and the two feed-forward matrices."""
    return config.num_layers * (4 * config.hidden_size**2 + 2 * config.hidden_size * _ffn_width(config))


def _ffn_width(config: ModelConfig) -> int:
    return default_if_none(config.intermediate_size, 4 * config.hidden_size)


def _rotary_dim(config: ModelConfig) -> int:
    return default_if_none(config.rotary_dim, min(64, config.hidden_size // config.num_heads))
