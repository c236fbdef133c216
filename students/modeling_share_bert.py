"""ShareBERT: a BERT whose hidden matrices are carved from its factorised embedding (virtual embeddings, VEPS).

The classes of transformers; `modeling_share_blocks` has what they are made of. This file travels with exported models:
it needs torch, transformers and the files beside it.

Axes: B rows, T positions, D hidden, V vocabulary, L classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput

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


class ShareBertModel(ShareBertPreTrainedModel):
    """Embeddings, layers on the matrices carved from them, and a pooler."""

    _auto_class = "AutoModel"  # so that `save_pretrained` writes the modelling files too

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__(config)
        self.embeddings = ShareBertEmbeddings(config)
        self.virtual_embeddings = VirtualEmbeddings(config)
        self.layers = nn.ModuleList(ShareBertLayer(config) for _ in range(config.num_hidden_layers))
        if config.encoder_ln_mode == "pre-ln":
            self.final_norm = new_norm(config, config.hidden_size)
        self.pooler = ShareBertPooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of words, of width E."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the table of words, and with it all matrices."""
        self.embeddings.word_embeddings = value

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
        length, longest = input_ids.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"input_ids: rows of {length} tokens, the table has {longest} positions; shorten them")
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device)[None]
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        keep_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_BTD = self.embeddings(input_ids, token_type_ids, position_ids)
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


class ShareBertForMaskedLM(ShareBertPreTrainedModel):
    """ShareBERT with its masked-language-model head, whose output embedding has a matrix of its own and no bias.

    The original stores a bias for it, which its forward pass never adds.
    """

    _auto_class = "AutoModelForMaskedLM"

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__(config)
        self.share_bert = ShareBertModel(config)
        self.transform = ShareBertTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The output embedding."""
        return self.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the output embedding."""
        self.decoder = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """Logits [B, T, V], and with `labels` (aligned, -100 where not scored) their mean cross-entropy in nats.

        The other arguments are those of `ShareBertModel`.
        """
        outputs = self.share_bert(
            input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states, pooling=False
        )
        logits_BTV = self.decoder(self.transform(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), labels.flatten())
        output = MaskedLMOutput(loss=loss, logits=logits_BTV, hidden_states=outputs.hidden_states)
        return output.to_tuple() if return_dict is False else output


class ShareBertForSequenceClassification(ShareBertPreTrainedModel):
    """Dropout and a linear layer on the pooled output."""

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__(config)
        self.share_bert = ShareBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # pyright: ignore[reportArgumentType]
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Logits [B, L] of rows [B, T]; with `labels` their loss, of the kind that the configuration means.

        The other arguments are those of `ShareBertModel`.
        """
        outputs = self.share_bert(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states)
        logits_BL = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits_BL, config=self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits_BL, hidden_states=outputs.hidden_states)
        return output.to_tuple() if return_dict is False else output
