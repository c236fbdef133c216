"""ELC-BERT: every layer reads its own weighted sum of all earlier layers (arXiv 2311.02265).

The blocks are LTG-BERT's (arXiv 2303.09859). This file travels with exported models: it needs torch, transformers and
the files beside it.

Axes: B rows, T positions, D hidden, P relative positions in reach. Layers count from 0; state 0 is the embedding and
state n + 1 the output of layer n.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .configuration_elc_bert import ElcBertConfig
from .modeling_ltg import LtgFeedForward, LtgPreTrainedModel, PostNormAttention, init_copied
from .modeling_ltg_fast import Places, weighted_sum
from .modeling_ltg_heads import LtgForMaskedLM, LtgForSequenceClassification, LtgModel, States


class LayerMix(nn.Module):
    """x = sum_j softmax(alpha)_j h_j over the states so far; takes the place of residual connections."""

    def __init__(self, num_states: int, *, previous_first: bool) -> None:
        super().__init__()
        self.previous_first = previous_first
        self.prev_layer_weights = nn.Parameter(torch.empty(num_states))  # alpha; kept out of weight decay by this name

    def initial_weights(self) -> Tensor:
        """All states alike, or with `previous_first` the last one e times the others."""
        weights = torch.zeros(len(self.prev_layer_weights))
        weights[-1] = float(self.previous_first)
        return weights

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """The weighted sum of tensors of one shape."""
        return weighted_sum(self.prev_layer_weights.softmax(0), states)


class ElcBertLayer(nn.Module):
    """x_n = sum_j softmax(alpha_n)_j h_j, then the variant's rule for h_(n+1)."""

    def __init__(self, config: ElcBertConfig, layer_index: int) -> None:
        super().__init__()
        self.variant = config.variant
        self.mix = LayerMix(layer_index + 1, previous_first=config.variant == "base")
        self.attention = PostNormAttention(config)
        self.mlp = LtgFeedForward(config, layer_index)
        self.output_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, elementwise_affine=False)

    def forward(self, states: States, relative_PD: Tensor, where: Places, mask_B1TT: Tensor | None) -> Tensor:
        """State n + 1 from the states 0 to n.

        They come in a tuple: where activations are worked out again, a list would have grown by then.
        """
        mixed_BTD = self.mix(states)
        attended_BTD = self.attention(mixed_BTD, relative_PD, where, mask_B1TT)
        if self.variant == "base":  # h = a + FFN(a)
            return attended_BTD + self.mlp(attended_BTD)
        hidden_BTD = attended_BTD + self.mlp(mixed_BTD + attended_BTD)  # h = a + FFN(x + a)
        if self.variant == "normalized":  # h = LN(a + FFN(x + a))
            return self.output_layer_norm(hidden_BTD)
        return hidden_BTD


class ElcBertPreTrainedModel(LtgPreTrainedModel):
    """Initial weights of the mixes, and what transformers wants to know about the architecture."""

    config_class = ElcBertConfig
    base_model_prefix = "elc_bert"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LayerMix):
            init_copied(module.prev_layer_weights, module.initial_weights())
        else:
            super()._init_weights(module)


class ElcBertModel(ElcBertPreTrainedModel, LtgModel):
    """Embedding and layers."""

    def __init__(self, config: ElcBertConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(ElcBertLayer(config, index) for index in range(config.num_hidden_layers))
        if config.variant == "weighted_output":  # output = sum_j softmax(beta)_j h_j over all states
            self.output_mix = LayerMix(config.num_hidden_layers + 1, previous_first=False)
        self.post_init()

    def encode(
        self,
        embedded_BTD: Tensor,
        relative_PD: Tensor,
        where: Places,
        mask_B1TT: Tensor | None,
        *,
        keep_states: bool,
    ) -> tuple[Tensor, States]:
        """Output of the last layer, or the mix of all states; every layer needs all of them, so they are kept."""
        states = (embedded_BTD,)
        for layer in self.layers:
            states += (layer(states, relative_PD, where, mask_B1TT),)
        return self.output_mix(states) if self.config.variant == "weighted_output" else states[-1], states


class ElcBertForMaskedLM(ElcBertPreTrainedModel, LtgForMaskedLM):
    """ELC-BERT with its masked-language-model head; the output embedding is the input embedding."""

    body_class = ElcBertModel
    _tied_weights_keys = {"decoder.weight": "elc_bert.embedding.word_embedding.weight"}


class ElcBertForSequenceClassification(ElcBertPreTrainedModel, LtgForSequenceClassification):
    """ELC-BERT with a classifier on the first token."""

    body_class = ElcBertModel
