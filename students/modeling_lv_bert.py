"""LV-BERT: a stack of single sublayers in any order, dynamic convolutions among them (arXiv 2106.11740).

BERT is the stack SFSF... of attention and feed-forward networks. In ELECTRA's pre-training (arXiv 2003.10555) a small
generator fills masked tokens in, and the discriminator tells for each token whether it was replaced; both are LV-BERTs
of their own sizes and may have their embeddings in common. A generator alone is a masked language model. This file
travels with exported models: it needs torch, transformers and the files beside it.

Axes: B rows, T positions, D hidden, E width of the embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput, TokenClassifierOutput

from .configuration_lv_bert import LvBertConfig
from .modeling_lv_blocks import SUBLAYERS, LvBertEmbeddings, LvBertPreTrainedModel, glorot, sight_of
from .modeling_two_segments import TwoSegmentForMaskedLM, TwoSegmentForSequenceClassification, TwoSegmentModel


class LvBertModel(TwoSegmentModel, LvBertPreTrainedModel):
    """Embeddings, their projection where the widths differ, and sublayers."""

    def __init__(self, config: LvBertConfig) -> None:
        super().__init__(config)
        self.embeddings = LvBertEmbeddings(config)
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = glorot(nn.Linear(config.embedding_size, config.hidden_size))
        self.layers = nn.ModuleList(SUBLAYERS[letter](config) for letter in config.layers)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """Last hidden state [B, T, D] of tokens [B, T].

        `attention_mask` [B, T], 0 where padded, means what it means in the original: attention does not see padding,
        convolutions do, so an output within reach of padding depends on it. `attention_mask` bool [B, 1, T, T], True
        where a query sees a key, at least one in each row, holds for both: a tap counts where its key is seen and is
        zero elsewhere, as beyond the ends of the row. This is how documents of one row stay apart. `token_type_ids`
        and `position_ids` [B, T] are zeros and the places in the row unless given. `output_hidden_states` adds the
        embedding's output, after its projection, and those of all sublayers. Raises ValueError for a row that is too
        long.
        """
        hidden_BTD = self.embedded(input_ids, token_type_ids, position_ids)
        if self.config.embedding_size != self.config.hidden_size:
            hidden_BTD = self.embeddings_project(hidden_BTD)
        keep_states = self.keeps_states(output_hidden_states)
        sight, states = sight_of(attention_mask), (hidden_BTD,)
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, sight)
            if keep_states:
                states += (hidden_BTD,)
        output = BaseModelOutput(last_hidden_state=hidden_BTD, hidden_states=states if keep_states else None)
        return output.to_tuple() if return_dict is False else output


class GeneratorTransform(nn.Module):
    """LN(GELU(W h + b)), from the width of the layers to that of the embeddings."""

    def __init__(self, config: LvBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.layer_norm = nn.LayerNorm(config.embedding_size, config.layer_norm_eps)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """The vectors [B, T, E] that meet the table of words."""
        return self.layer_norm(functional.gelu(self.dense(hidden_BTD)))


class DiscriminatorHead(nn.Module):
    """w GELU(W h + b) + c: how much each token looks replaced."""

    def __init__(self, config: LvBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = glorot(nn.Linear(config.hidden_size, 1))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """One logit per token, [B, T]."""
        return self.output(functional.gelu(self.dense(hidden_BTD))).squeeze(-1)


class LvBertForMaskedLM(TwoSegmentForMaskedLM, LvBertPreTrainedModel):
    """LV-BERT with a generator's head; the output embedding is the table of words, and has a bias."""

    _tied_weights_keys = {"decoder.weight": "lv_bert.embeddings.word_embeddings.weight"}

    def __init__(self, config: LvBertConfig) -> None:
        super().__init__(config)
        self.lv_bert = LvBertModel(config)
        self.transform = GeneratorTransform(config)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size)
        self.post_init()


class LvBertForPreTraining(LvBertPreTrainedModel):
    """LV-BERT with a discriminator's head; the name is what transformers calls ELECTRA's."""

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: LvBertConfig) -> None:
        super().__init__(config)
        self.lv_bert = LvBertModel(config)
        self.discriminator_predictions = DiscriminatorHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput | tuple[Tensor, ...]:
        """Logits [B, T] of each token having been replaced; the arguments are those of `LvBertModel`."""
        outputs = self.lv_bert(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states)
        logits_BT = self.discriminator_predictions(outputs.last_hidden_state)
        output = TokenClassifierOutput(logits=logits_BT, hidden_states=outputs.hidden_states)
        return output.to_tuple() if return_dict is False else output


class LvBertForSequenceClassification(TwoSegmentForSequenceClassification, LvBertPreTrainedModel):
    """ELECTRA's classifier: dropout and a linear layer on the output of the first real token."""

    def __init__(self, config: LvBertConfig) -> None:
        super().__init__(config)
        self.lv_bert = LvBertModel(config)
        self.add_classifier()
        self.post_init()

    def row_vectors(self, outputs: BaseModelOutput, attention_mask: Tensor | None) -> Tensor:
        """The output of the first real token, [B, D]."""
        hidden_BTD = outputs.last_hidden_state
        assert hidden_BTD is not None, "the body always answers"
        rows_B = torch.arange(len(hidden_BTD), device=hidden_BTD.device)
        first_B = torch.zeros_like(rows_B) if attention_mask is None else attention_mask.long().argmax(1)
        return hidden_BTD[rows_B, first_B]


def share_embeddings(generator: LvBertForMaskedLM, discriminator: LvBertForPreTraining) -> None:
    """Give the discriminator the generator's embeddings, as ELECTRA has them; projections stay each one's own.

    Both train the same tables from then on, and each is saved with all it needs. Raises ValueError when the tables
    have other sizes.
    """
    shapes = [
        [weight.shape for weight in model.lv_bert.embeddings.parameters()] for model in (generator, discriminator)
    ]
    if shapes[0] != shapes[1]:
        found = "vocab_size, embedding_size, max_position_embeddings and type_vocab_size"
        raise ValueError(f"share_embeddings: generator and discriminator differ in {found}; give both the same")
    discriminator.lv_bert.embeddings = generator.lv_bert.embeddings
