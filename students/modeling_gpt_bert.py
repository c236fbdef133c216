"""GPT-BERT: LTG-BERT that predicts the next token, masked or causal, in one set of weights (arXiv 2410.24159).

The output at t predicts token t + 1 in both modes: of a row in which that token is masked and everything is seen, or of
what stands up to t. Who makes the rows aligns them; only the causal class of transformers, whose labels are the tokens
themselves, shifts. This file travels with exported models: it needs torch, transformers and the files beside it.

Axes: B rows, T positions, D hidden, P relative positions in reach, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutput

from .configuration_gpt_bert import GptBertConfig
from .modeling_ltg import LtgAttention, LtgFeedForward, LtgPreTrainedModel, init_copied, seen_keys
from .modeling_ltg_fast import Places, weighted_sum
from .modeling_ltg_heads import LtgForMaskedLM, LtgForSequenceClassification, LtgModel, LtgWithHead, States


class GptBertAttention(LtgAttention):
    """W_o LN(c) + b_o of the values read, c; gated: W_o LN(c * GELU(g)) + b_o, where g is projected as values are."""

    def __init__(self, config: GptBertConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.gated = config.attention_gate
        if self.gated:
            self.in_proj_vg = nn.Linear(size, 2 * size)
        else:
            self.in_proj_v = nn.Linear(size, size)
        self.inner_layer_norm = nn.LayerNorm(size, config.layer_norm_eps, elementwise_affine=False)
        self.out_proj = nn.Linear(size, size)

    def forward(self, hidden_BTD: Tensor, relative_PD: Tensor, where: Places, mask_B1TT: Tensor | None) -> Tensor:
        """[B, T, D]; `mask_B1TT` is added to the scores."""
        normed_BTD = self.pre_layer_norm(hidden_BTD)
        if self.gated:
            value_BTD, gate_BTD = self.in_proj_vg(normed_BTD).chunk(2, dim=-1)
            context_BTD = self.read(normed_BTD, value_BTD, relative_PD, where, mask_B1TT)
            context_BTD = context_BTD * functional.gelu(gate_BTD)
        else:
            context_BTD = self.read(normed_BTD, self.in_proj_v(normed_BTD), relative_PD, where, mask_B1TT)
        return self.dropout(self.out_proj(self.inner_layer_norm(context_BTD)))


class DepthAverage(nn.Module):
    """x = sum_j A_j y_j over the states so far, with weights of any sign and sum (DenseFormer, arXiv 2402.02622)."""

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(num_states))  # A

    def initial_weights(self) -> Tensor:
        """The last state alone."""
        weights = torch.zeros(len(self.weights))
        weights[-1] = 1.0
        return weights

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """The weighted sum of tensors of one shape."""
        return weighted_sum(self.weights, states)


class GptBertLayer(nn.Module):
    """Two blocks, attention and feed-forward: y_(b+1) = x_b + block_b(x_b), where x_b = sum_j A_j y_j, or y_b.

    y_0 is the embedding. Blocks count through the layers, so layer n has the blocks 2 n and 2 n + 1.
    """

    def __init__(self, config: GptBertConfig, layer_index: int) -> None:
        super().__init__()
        self.attention = GptBertAttention(config)
        self.mlp = LtgFeedForward(config, layer_index)
        # block 0 has nothing but the embedding to read
        self.attention_average = _average(2 * layer_index + 1, config.layer_average and layer_index > 0)
        self.mlp_average = _average(2 * layer_index + 2, config.layer_average)

    def forward(
        self, states: States, relative_PD: Tensor, where: Places, mask_B1TT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The states after both blocks from those before them."""
        hidden_BTD = self.attention_average(states)
        attended_BTD = hidden_BTD + self.attention(hidden_BTD, relative_PD, where, mask_B1TT)
        hidden_BTD = self.mlp_average((*states, attended_BTD))
        return attended_BTD, hidden_BTD + self.mlp(hidden_BTD)


def _average(num_states: int, averaged: bool) -> Callable[[States], Tensor]:
    """From states to what a block reads: their average, or the last one."""
    return DepthAverage(num_states) if averaged else _last


def _last(states: States) -> Tensor:
    return states[-1]


class GptBertPreTrainedModel(LtgPreTrainedModel):
    """Initial weights of the averages, and what transformers wants to know about the architecture."""

    config_class = GptBertConfig
    base_model_prefix = "gpt_bert"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, DepthAverage):
            init_copied(module.weights, module.initial_weights())
        else:
            super()._init_weights(module)


class GptBertModel(GptBertPreTrainedModel, LtgModel):
    """Embedding and layers; hidden states are the embedding's and those of both blocks of each layer."""

    def __init__(self, config: GptBertConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(GptBertLayer(config, index) for index in range(config.num_hidden_layers))
        self.output_average = _average(2 * config.num_hidden_layers + 1, config.layer_average)
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
        """Average of all states, or output of the last layer."""
        states = (embedded_BTD,)
        for layer in self.layers:
            new = layer(states, relative_PD, where, mask_B1TT)
            states = (*states, *new) if keep_states or self.config.layer_average else new[-1:]
        return self.output_average(states), states


class GptBertForMaskedLM(GptBertPreTrainedModel, LtgForMaskedLM):
    """GPT-BERT with its language-model head, every token seeing every other one: masked next-token prediction."""

    body_class = GptBertModel
    _tied_weights_keys = {"decoder.weight": "gpt_bert.embedding.word_embedding.weight"}


class GptBertForCausalLM(GptBertPreTrainedModel, LtgWithHead, GenerationMixin):
    """The same weights, every token seeing what stands before it."""

    body_class = GptBertModel
    _tied_weights_keys = {"decoder.weight": "gpt_bert.embedding.word_embedding.weight"}
    _auto_class = "AutoModelForCausalLM"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,  # what `generate` says about a cache, of which there is none
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Logits [B, T, V] of the token after each, and with `labels` their mean cross-entropy in nats.

        `labels` [B, T] are the tokens where they stand, as transformers means them, -100 where not scored: the logits
        at t meet the label at t + 1.
        """
        seen_B1TT = seen_keys(input_ids, attention_mask, causal=True)
        logits_BTV, states = self.logits_and_states(input_ids, seen_B1TT, keep_states=output_hidden_states)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        output = CausalLMOutput(loss=loss, logits=logits_BTV, hidden_states=states)
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """The whole text so far: its relative positions and states are worked out again for every token."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}


class GptBertForSequenceClassification(GptBertPreTrainedModel, LtgForSequenceClassification):
    """GPT-BERT with a classifier on the first token, every token seeing every other one."""

    body_class = GptBertModel
