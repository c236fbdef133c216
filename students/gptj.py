"""GPT-J: the second causal teacher, through transformers (the block of EleutherAI's GPT-J-6B at any size).

Axes: B rows, T positions, H heads, E features of a head, D hidden, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GPTJConfig, GPTJForCausalLM
from transformers.models.gptj.modeling_gptj import GPTJAttention

from corpora.errors import RecipeError
from corpora.token_ids import TokenIds
from students.attention import SDPA, sdpa
from students.buildable import all_fields_but, default_if_none
from students.config import ModelConfig
from students.gpt_family import GptFamily, ffn_width, matrix_parameters, tables
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


class GptJ(GptFamily):
    """Blocks whose attention and feed-forward run in parallel on one LayerNorm; the first dimensions are rotated."""

    network: GPTJForCausalLM
    network_class = GPTJForCausalLM
    config_class = GPTJConfig
    unused_fields = all_fields_but("dropout", "rotary_dim")  # the angles' base is always 10,000

    def __init__(self, config: ModelConfig, **known: Any) -> None:
        """Build the network of transformers, and give its attention the kernel that it comes without."""
        super().__init__(config, **known)
        for module in self.network.modules():
            if isinstance(module, GPTJAttention):
                module.__class__ = SdpaAttention  # weights, their names and the class of the whole stay
        self.network.config._attn_implementation = SDPA  # whose masks are of True and False, or none where causal

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """As its family has it."""
        assert self.network.config._attn_implementation == SDPA, "attention written out would add True as a number"
        return super().features(input_ids_BT, segments_BT, causal)

    def head(self) -> Head:
        """Output embedding, tied or not, with a bias of its own."""
        return Head(self.network.lm_head.weight, self.network.lm_head.bias)

    @classmethod
    def network_config(cls, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> GPTJConfig:
        """The configuration of transformers that means the same."""
        own = {"rotary_dim": _rotary_dim(config), "attn_implementation": "eager"}
        return GPTJConfig(**cls.sizes(config, vocab_size=vocab_size, token_ids=token_ids, **own))

    @classmethod
    def model_config(cls, network_config: GPTJConfig) -> ModelConfig:
        """The inverse of `network_config`; raises InputRefused when ModelConfig cannot say it."""
        return ModelConfig(**cls.sizes_of(network_config), rotary_dim=network_config.rotary_dim)

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
        size = config.hidden_size
        biases_and_norms = config.num_layers * (ffn_width(config) + 3 * size) + 2 * size
        return tables(config) * vocab_size * size + vocab_size + matrix_parameters(config) + biases_and_norms


def _rotary_dim(config: ModelConfig) -> int:
    return default_if_none(config.rotary_dim, min(64, config.hidden_size // config.num_heads))
