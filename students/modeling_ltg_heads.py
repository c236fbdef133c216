"""The classes of transformers for LTG-BERT, ELC-BERT and GPT-BERT: a body of layers, and what stands on top of it.

A family member subclasses each, names its configuration and its layers, and adds nothing to the forward passes here.
This file travels with exported models of all three.

Axes: B rows, T positions, D hidden, P relative positions in reach, V vocabulary, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput

from .configuration_ltg_bert import LtgBertConfig
from .modeling_ltg import LtgEmbedding, LtgPreTrainedModel, LtgTransform, additive_mask, relative_places, seen_keys
from .modeling_ltg_fast import Places

States = tuple[Tensor, ...]  # outputs of the embedding and of the blocks after it, each [B, T, D]


class LtgModel(LtgPreTrainedModel, ABC):
    """Embedding and layers."""

    _auto_class = "AutoModel"  # so that `save_pretrained` writes the modelling files too

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__(config)
        self.embedding = LtgEmbedding(config)

    @abstractmethod
    def encode(
        self,
        embedded_BTD: Tensor,
        relative_PD: Tensor,
        where: Places,
        mask_B1TT: Tensor | None,
        *,
        keep_states: bool,
    ) -> tuple[Tensor, States]:
        """Output of the layers, and all states where they are to be kept."""

    def get_input_embeddings(self) -> nn.Embedding:
        """The word vectors."""
        return self.embedding.word_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word vectors."""
        self.embedding.word_embedding = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """Last hidden state [B, T, D] of tokens [B, T].

        `attention_mask`: [B, T], 0 where padded; or bool [B, 1, T, T], True where a query sees a key, at least one in
        each row. `token_type_ids` mean nothing here; tokenizers send them. `output_hidden_states` adds all states.
        """
        seen_B1TT = seen_keys(input_ids, attention_mask, causal=False)
        mask_B1TT = None if seen_B1TT is None else additive_mask(seen_B1TT)
        length = input_ids.shape[1]
        longest = self.config.longest_distance(length)
        reach, where = relative_places(length, self.config.position_bucket_size, longest, input_ids.device)
        last_BTD, states = self.encode(
            self.embedding(input_ids),
            self.embedding.relative(reach),
            where,
            mask_B1TT,
            keep_states=bool(output_hidden_states),
        )
        output = BaseModelOutput(last_hidden_state=last_BTD, hidden_states=states if output_hidden_states else None)
        return output.to_tuple() if return_dict is False else output


class LtgWithHead(LtgPreTrainedModel):
    """A body with its language-model head; the output embedding is the input embedding."""

    body_class: type[LtgModel]

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__(config)
        self.add_module(self.base_model_prefix, self.body_class(config))
        self.transform = LtgTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The tied output embedding with its bias."""
        return self.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the output embedding."""
        self.decoder = value

    def logits_and_states(
        self, input_ids_BT: Tensor, attention_mask: Tensor | None, *, keep_states: bool | None
    ) -> tuple[Tensor, States | None]:
        """Logits [B, T, V], and the states of the body if asked for."""
        outputs = self.base_model(input_ids_BT, attention_mask, output_hidden_states=keep_states)
        return self.decoder(self.transform(outputs.last_hidden_state)), outputs.hidden_states


class LtgForMaskedLM(LtgWithHead):
    """Every token sees every other one; what an output predicts is for who made the labels to say."""

    _auto_class = "AutoModelForMaskedLM"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """Logits [B, T, V], and with `labels` (aligned, -100 where not scored) their mean cross-entropy in nats."""
        logits_BTV, states = self.logits_and_states(input_ids, attention_mask, keep_states=output_hidden_states)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), labels.flatten())
        output = MaskedLMOutput(loss=loss, logits=logits_BTV, hidden_states=states)
        return output.to_tuple() if return_dict is False else output


class LtgForSequenceClassification(LtgPreTrainedModel):
    """The challenge's classifier: LN, Linear, GELU, LN, dropout and Linear on the output of the first real token."""

    body_class: type[LtgModel]
    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__(config)
        self.add_module(self.base_model_prefix, self.body_class(config))
        # of the language model's shape, but new: its weights are learned with the classes
        classes = nn.Linear(config.hidden_size, config.num_labels)  # pyright: ignore[reportArgumentType]
        self.classifier = nn.Sequential(LtgTransform(config), classes)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Logits [B, C] of rows [B, T]; with `labels` their loss, of the kind that the configuration means.

        `attention_mask`: [B, T], 0 where padded.
        """
        outputs = self.base_model(input_ids, attention_mask, output_hidden_states=output_hidden_states)
        rows_B = torch.arange(len(input_ids), device=input_ids.device)
        first_B = torch.zeros_like(rows_B) if attention_mask is None else attention_mask.long().argmax(1)
        logits_BC = self.classifier(outputs.last_hidden_state[rows_B, first_B])
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits_BC, config=self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits_BC, hidden_states=outputs.hidden_states)
        return output.to_tuple() if return_dict is False else output
