"""ELC-BERT as the toolkit sees it (arXiv 2311.02265): the masked student and teacher.

Axes: L layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from students.buildable import all_fields_but, gated_ffn_width
from students.config import ModelConfig
from students.configuration_elc_bert import ElcBertConfig
from students.ltg_bert import FAMILY_FIELDS, SHARED_FILES, LtgFamily
from students.modeling_elc_bert import ElcBertForMaskedLM, ElcBertLayer, LayerMix


class ElcBert(LtgFamily):
    """Layers that read weighted sums of all earlier ones, in four variants; bidirectional or causal by the mask."""

    network_class = ElcBertForMaskedLM
    config_class = ElcBertConfig
    own_fields = ("variant",)
    norm_eps = 1e-7
    unused_fields = all_fields_but(*FAMILY_FIELDS, *own_fields)
    source_files = ("modeling_elc_bert.py", "configuration_elc_bert.py", *SHARED_FILES)
    auto_map = ElcBertConfig.auto_classes

    @classmethod
    def value_projections(cls, config: ModelConfig) -> int:
        """The values'."""
        return 1

    @classmethod
    def ffn_width(cls, config: ModelConfig) -> int:
        """8/3 D by default."""
        return gated_ffn_width(config)

    @classmethod
    def other_parameters(cls, config: ModelConfig) -> int:
        """The norm after attention, and a weight of each layer for each state before it."""
        layers = config.num_layers
        mixes = layers * (layers + 1) // 2 + (layers + 1 if config.variant == "weighted_output" else 0)
        return layers * 2 * config.hidden_size + mixes


def layer_weights(model: nn.Module, whole: Callable[[Tensor], Tensor] = Tensor.detach) -> Tensor:
    """How much each layer of an ELC-BERT reads of every state: the paper's heat-map, fp32 [L, L + 1] on the CPU.

    A row is a layer, a column a state from the embedding on; rows add up to 1, and states that a layer cannot read have
    0. The variant `weighted_output` has one row more: the output of the whole model. `whole` makes a tensor of one that
    is divided among processes, all of which must ask then.
    """
    mixes = [module for module in model.modules() if isinstance(module, LayerMix)]
    num_layers = sum(isinstance(module, ElcBertLayer) for module in model.modules())
    assert mixes, "a model without layer weights"
    weights = torch.zeros(len(mixes), num_layers + 1)
    for row, mix in zip(weights, mixes, strict=True):
        row[: len(mix.prev_layer_weights)] = whole(mix.prev_layer_weights).detach().float().softmax(0)
    return weights
