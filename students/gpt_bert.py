"""GPT-BERT as the toolkit sees it (arXiv 2410.24159): one student or teacher for causal and masked views.

The originals predict the next token in both, so its masked rows have a shift of 1 where the recipe does not say 0.
Axes: D hidden, F feed-forward width, L layers.
"""

from __future__ import annotations

from students.buildable import Activations, all_fields_but, default_if_none
from students.config import ModelConfig
from students.configuration_gpt_bert import GptBertConfig
from students.ltg_bert import FAMILY_FIELDS, SHARED_FILES, LtgFamily
from students.modeling_gpt_bert import GptBertForMaskedLM


class GptBert(LtgFamily):
    """LTG-BERT with a gate on attention and averages over depth, or without (the plain form)."""

    network_class = GptBertForMaskedLM
    config_class = GptBertConfig
    own_fields = ("attention_gate", "layer_average")
    norm_eps = 1e-5
    default_masked_shift = 1
    unused_fields = all_fields_but(*FAMILY_FIELDS, *own_fields)
    source_files = ("modeling_gpt_bert.py", "configuration_gpt_bert.py", *SHARED_FILES)
    auto_map = GptBertConfig.auto_classes

    @classmethod
    def value_projections(cls, config: ModelConfig) -> int:
        """The values', and the gate's."""
        return 2 if config.attention_gate else 1

    @classmethod
    def ffn_width(cls, config: ModelConfig) -> int:
        """10/3 D by default, up to a multiple of 8: 2560 and 1280 in the published sizes."""
        return default_if_none(config.intermediate_size, -(-10 * config.hidden_size // 24) * 8)

    @classmethod
    def other_parameters(cls, config: ModelConfig) -> int:
        """A weight of each of the 2 L blocks for each state up to its own: the sum of b + 2."""
        return 2 * config.num_layers**2 + 3 * config.num_layers if config.layer_average else 0

    @classmethod
    def activations(cls, config: ModelConfig, seq_len: int) -> Activations:
        """As its family has it, but where blocks read averages both of a layer hand on a state."""
        found = super().activations(config, seq_len)
        return found._replace(states=2 * found.states) if config.layer_average else found
