"""LTG-BERT: a BERT with relative positions, gated feed-forward layers and norms inside (arXiv 2303.09859).

This file travels with exported models: it needs torch, transformers and the files beside it.

Axes: B rows, T positions, D hidden, P relative positions in reach.
"""

from __future__ import annotations

from torch import Tensor, nn

from .configuration_ltg_bert import LtgBertConfig
from .modeling_ltg import LtgFeedForward, LtgPreTrainedModel, PostNormAttention
from .modeling_ltg_fast import Places
from .modeling_ltg_heads import LtgForMaskedLM, LtgForSequenceClassification, LtgModel, States


class LtgBertLayer(nn.Module):
    """x <- x + Attention(x), then x <- x + FFN(x)."""

    def __init__(self, config: LtgBertConfig, layer_index: int) -> None:
        super().__init__()
        self.attention = PostNormAttention(config)
        self.mlp = LtgFeedForward(config, layer_index)

    def forward(self, hidden_BTD: Tensor, relative_PD: Tensor, where: Places, mask_B1TT: Tensor | None) -> Tensor:
        """The next state, same shape."""
        hidden_BTD = hidden_BTD + self.attention(hidden_BTD, relative_PD, where, mask_B1TT)
        return hidden_BTD + self.mlp(hidden_BTD)


class LtgBertPreTrainedModel(LtgPreTrainedModel):
    """What transformers wants to know about the architecture."""

    config_class = LtgBertConfig
    base_model_prefix = "ltg_bert"


class LtgBertModel(LtgBertPreTrainedModel, LtgModel):
    """Embedding and layers."""

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(LtgBertLayer(config, index) for index in range(config.num_hidden_layers))
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
        """Output of the last layer; no norm follows but the head's."""
        states = (embedded_BTD,)
        for layer in self.layers:
            output_BTD = layer(states[-1], relative_PD, where, mask_B1TT)
            states = (*states, output_BTD) if keep_states else (output_BTD,)
        return states[-1], states


class LtgBertForMaskedLM(LtgBertPreTrainedModel, LtgForMaskedLM):
    """LTG-BERT with its masked-language-model head; the output embedding is the input embedding."""

    body_class = LtgBertModel
    _tied_weights_keys = {"decoder.weight": "ltg_bert.embedding.word_embedding.weight"}


class LtgBertForSequenceClassification(LtgBertPreTrainedModel, LtgForSequenceClassification):
    """LTG-BERT with a classifier on the first token."""

    body_class = LtgBertModel
