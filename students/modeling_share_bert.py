"""ShareBERT: a BERT whose hidden matrices are carved from its factorised embedding (virtual embeddings, VEPS).

The classes of transformers; `modeling_share_blocks` has what they are made of. This file travels with exported models:
it needs torch, transformers and the files beside it.

Axes: B rows, T positions, D hidden.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_share_bert import ShareBertConfig
from .modeling_share_blocks import (
    ShareBertEmbeddings,
    ShareBertLayer,
    ShareBertPooler,
    ShareBertPreTrainedModel,
    VirtualEmbeddings,
    additive_scores,
    new_norm,
)
from .modeling_two_segments import TwoSegmentForMaskedLM, TwoSegmentForSequenceClassification, TwoSegmentModel


class ShareBertModel(TwoSegmentModel, ShareBertPreTrainedModel):
    """Embeddings, layers on the matrices carved from them, and a pooler."""

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__(config)
        self.embeddings = ShareBertEmbeddings(config)
        self.virtual_embeddings = VirtualEmbeddings(config)
        self.layers = nn.ModuleList(ShareBertLayer(config) for _ in range(config.num_hidden_layers))
        if config.encoder_ln_mode == "pre-ln":
            self.final_norm = new_norm(config, config.hidden_size)
        self.pooler = ShareBertPooler(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pooling: bool = True,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
        """Last hidden state [B, T, D] of tokens [B, T], and with `pooling` the pooled output [B, D].

        `attention_mask`: [B, T], 0 where padded; or bool [B, 1, T, T], True where a query sees a key, at least one in
        each row. `token_type_ids` and `position_ids` [B, T] are zeros and the places in the row unless given.
        `output_hidden_states` adds the embedding's output and those of all layers, before the final norm. Raises
        ValueError for a row that is too long.
        """
        keep_states = self.keeps_states(output_hidden_states)
        hidden_BTD = self.embedded(input_ids, token_type_ids, position_ids)
        matrices = self.virtual_embeddings(self.embeddings.word_embeddings.weight, pooler=pooling)
        mask, states = additive_scores(attention_mask), (hidden_BTD,)
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, matrices, mask)
            if keep_states:
                states += (hidden_BTD,)
        if self.config.encoder_ln_mode == "pre-ln":
            hidden_BTD = self.final_norm(hidden_BTD)
        output = BaseModelOutputWithPooling(
            last_hidden_state=hidden_BTD,
            pooler_output=self.pooler(hidden_BTD, matrices.pooler, attention_mask) if pooling else None,
            hidden_states=states if keep_states else None,
        )
        return output.to_tuple() if return_dict is False else output


class ShareBertTransform(nn.Module):
    """LN(GELU(W h + b)): what stands between the last hidden state and the output embedding."""

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = new_norm(config, config.hidden_size)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """The vectors that meet the output embedding, same shape."""
        return self.layer_norm(functional.gelu(self.dense(hidden_BTD)))


class ShareBertForMaskedLM(TwoSegmentForMaskedLM, ShareBertPreTrainedModel):
    """ShareBERT with its masked-language-model head, whose output embedding has a matrix of its own and no bias.

    The original stores a bias for it, which its forward pass never adds.
    """

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__(config)
        self.share_bert = ShareBertModel(config)
        self.transform = ShareBertTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def read(self, *asked: Any) -> BaseModelOutputWithPooling:
        """The body's answer without the pooled output, whose matrix is not carved then."""
        return self.share_bert(*asked, pooling=False)


class ShareBertForSequenceClassification(TwoSegmentForSequenceClassification, ShareBertPreTrainedModel):
    """Dropout and a linear layer on the pooled output."""

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__(config)
        self.share_bert = ShareBertModel(config)
        self.add_classifier()
        self.post_init()

    def row_vectors(self, outputs: BaseModelOutputWithPooling, attention_mask: Tensor | None) -> Tensor:
        """The pooled output, [B, D]."""
        assert outputs.pooler_output is not None, "it was asked for"
        return outputs.pooler_output
