"""What LV-BERT and ShareBERT have in common: BERT's rows of two segments at learned positions, and two kinds of heads.

A body names its embeddings; a class on top of it says what it reads of the body. This file travels with exported
models: it needs torch and transformers alone.

Axes: B rows, T positions, D hidden, V vocabulary, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput


class TwoSegmentModel(nn.Module):
    """A body with a table of words in `embeddings`."""

    _auto_class = "AutoModel"  # so that `save_pretrained` writes the modelling files too
    config: Any
    embeddings: Any

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of words."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the table of words."""
        self.embeddings.word_embeddings = value

    def embedded(self, input_ids_BT: Tensor, segments_BT: Tensor | None, positions_BT: Tensor | None) -> Tensor:
        """The embeddings' output; segments and positions are zeros and the places in the row unless given.

        Raises ValueError for a row that is longer than the table of positions.
        """
        length, longest = input_ids_BT.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"input_ids: rows of {length} tokens, the table has {longest} positions; shorten them")
        if positions_BT is None:
            positions_BT = torch.arange(length, device=input_ids_BT.device)[None]
        if segments_BT is None:
            segments_BT = torch.zeros_like(input_ids_BT)
        return self.embeddings(input_ids_BT, segments_BT, positions_BT)

    def keeps_states(self, output_hidden_states: bool | None) -> bool:
        """Whether all states are wanted: as is said, or as the configuration says."""
        return self.config.output_hidden_states if output_hidden_states is None else output_hidden_states


class TwoSegmentForMaskedLM(nn.Module):
    """A body, a `transform` of its output and a `decoder`, the output embedding."""

    _auto_class = "AutoModelForMaskedLM"
    base_model: Any
    transform: nn.Module
    decoder: nn.Linear

    def get_output_embeddings(self) -> nn.Linear:
        """The output embedding."""
        return self.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the output embedding."""
        self.decoder = value

    def read(self, *asked: Any) -> Any:
        """The body's answer; a body that does more than the head needs is asked for less."""
        return self.base_model(*asked)

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

        The other arguments are those of the body.
        """
        outputs = self.read(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states)
        logits_BTV = self.decoder(self.transform(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), labels.flatten())
        output = MaskedLMOutput(loss=loss, logits=logits_BTV, hidden_states=outputs.hidden_states)
        return output.to_tuple() if return_dict is False else output


class TwoSegmentForSequenceClassification(nn.Module, ABC):
    """A body, and dropout and a linear layer on one vector for each row."""

    _auto_class = "AutoModelForSequenceClassification"
    base_model: Any
    config: Any
    loss_function: Any
    dropout: nn.Dropout
    classifier: nn.Linear

    @abstractmethod
    def row_vectors(self, outputs: Any, attention_mask: Tensor | None) -> Tensor:
        """What is classified, [B, D], of the body's answer."""

    def add_classifier(self) -> None:
        """Dropout and a linear layer of the configuration's sizes."""
        self.dropout = nn.Dropout(self.config.hidden_dropout_prob)
        self.classifier = nn.Linear(self.config.hidden_size, self.config.num_labels)

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
        """Logits [B, C] of rows [B, T]; with `labels` their loss, of the kind that the configuration means.

        `attention_mask`: [B, T], 0 where padded. The other arguments are those of the body.
        """
        outputs = self.base_model(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states)
        logits_BC = self.classifier(self.dropout(self.row_vectors(outputs, attention_mask)))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits_BC, config=self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits_BC, hidden_states=outputs.hidden_states)
        return output.to_tuple() if return_dict is False else output
