"""GPT-2: the causal teacher that BabyLlama (arXiv 2308.02019) calls GPT-705M, through transformers.

Axes: D hidden, F feed-forward width, P positions of the table, V vocabulary.
"""

from __future__ import annotations

from transformers import GPT2Config, GPT2LMHeadModel

from corpora.token_ids import TokenIds
from students.attention import SDPA
from students.buildable import all_fields_but, require_known
from students.config import ModelConfig
from students.gpt_family import GptFamily, ffn_width, matrix_parameters, tables
from students.head import Head


class Gpt2(GptFamily):
    """Pre-norm blocks of attention and feed-forward, with biases and a learned table of positions."""

    network: GPT2LMHeadModel
    network_class = GPT2LMHeadModel
    config_class = GPT2Config
    unused_fields = all_fields_but("dropout")

    def head(self) -> Head:
        """Output embedding, tied or not, without a bias."""
        return Head(self.network.lm_head.weight)

    @classmethod
    def network_config(cls, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> GPT2Config:
        """The configuration of transformers that means the same."""
        return GPT2Config(**cls.sizes(config, vocab_size=vocab_size, token_ids=token_ids, attn_implementation=SDPA))

    @classmethod
    def model_config(cls, network_config: GPT2Config) -> ModelConfig:
        """The inverse of `network_config`; raises InputRefused when ModelConfig cannot say it."""
        settings = {
            "scale_attn_weights": (network_config.scale_attn_weights, True),
            "scale_attn_by_inverse_layer_idx": (network_config.scale_attn_by_inverse_layer_idx, False),
            "add_cross_attention": (network_config.add_cross_attention, False),
        }
        require_known("gpt2", settings)
        return ModelConfig(**cls.sizes_of(network_config))

    @classmethod
    def check_shape(cls, config: ModelConfig) -> None:
        """Any sizes make a GPT-2 whose heads divide its width, which `check` has seen."""

    @classmethod
    def parameter_count(cls, config: ModelConfig, vocab_size: int) -> int:
        """Tables of words and positions + layers + final norm."""
        size = config.hidden_size
        biases_and_norms = config.num_layers * (ffn_width(config) + 9 * size) + 2 * size
        words_and_positions = (tables(config) * vocab_size + config.max_positions) * size
        return words_and_positions + matrix_parameters(config) + biases_and_norms
