"""The blocks of ShareBERT, and the matrices that they share (github.com/jchenghu/sharebert).

E has a row for each word and few columns. One linear map of it gives the vectors of the words of a row, a second one
virtual embeddings U of the whole vocabulary, and the columns of U, read as numbers in a row, are the matrices of
attention, of the feed-forward layer and of the pooler. All layers share them; biases and norms are each layer's own.
This file travels with exported models: it needs torch, transformers and the configuration beside it.

Axes: B rows, T positions, D hidden, E factor width, H heads, C channels of a head, F feed-forward width, V vocabulary,
R and K rows and columns of U.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from .configuration_share_bert import ShareBertConfig, columns_of, matrix_shapes

try:
    from transformers import initialization as init  # leaves weights alone that a checkpoint has filled
except ImportError:  # transformers 4, which calls _init_weights only where a checkpoint has nothing
    from torch.nn import init

PADDED_SCORE = -10_000.0  # the original's, so that a row of padding alone still has a softmax


def additive_scores(attention_mask: Tensor | None) -> Tensor | None:
    """The mask as a term of the scores, fp32 [B, 1, T or 1, T]."""
    if attention_mask is None:
        return None
    if attention_mask.dim() == 2:
        return (1.0 - attention_mask[:, None, None, :].float()) * PADDED_SCORE
    return torch.zeros_like(attention_mask, dtype=torch.float32).masked_fill(~attention_mask, -torch.inf)


class SharedMatrices(NamedTuple):
    """What all layers multiply with, from the right: x W."""

    query: Tensor  # [D, D]
    key: Tensor  # [D, D]
    value: Tensor  # [D, D]
    ffn_in: Tensor  # [D, F]
    ffn_out: Tensor  # [F, D]
    output: Tensor  # [D, D]
    pooler: Tensor | None  # [D, D]; None where nothing is pooled


class VirtualEmbeddings(nn.Module):
    """U = E W^T + b, from whose right end the matrices are carved.

    U itself is never made. Forward and backward of the base size on 4 x 128 positions take 16.1 s of one core in fp32;
    17.2 s where U is made whole and each slice copied once for all layers; 26.5 s where every layer copies them, as the
    original has it. The difference is the same for any number of positions.
    """

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__()
        self.shapes = matrix_shapes(config.hidden_size, config.intermediate_size)
        # bare parameters, no linear layer: an adapter around one would be passed by
        self.weight = nn.Parameter(torch.empty(config.hidden_size, config.factor_size))
        self.bias = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, table_VE: Tensor, *, pooler: bool) -> SharedMatrices:
        """The matrices, each worked out in one product that is laid out as it is read: nothing is copied."""
        matrices: dict[str, Tensor] = {}
        end = len(self.bias)
        for name, shape in self.shapes.items():
            start = end - columns_of(shape, len(table_VE))
            if name != "pooler" or pooler:
                matrices[name] = self._carved(table_VE, slice(start, end), shape)
            end = start
        return SharedMatrices(pooler=matrices.pop("pooler", None), **matrices)

    def _carved(self, table_VE: Tensor, columns: slice, shape: tuple[int, int]) -> Tensor:
        """The first numbers of U[:, columns], row by row, as a matrix; words beyond them are not multiplied."""
        weight_KE, bias_K = self.weight[columns], self.bias[columns]
        rows = -(-prod(shape) // len(bias_K))
        virtual_RK = functional.linear(table_VE[:rows], weight_KE, bias_K)
        return virtual_RK.flatten()[: prod(shape)].view(shape)


class RootMeanSquareNorm(nn.Module):
    """g x / (rms(x) + eps): the original's, in which eps stands outside the root; no bias."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Same shape; squares are summed in fp32."""
        # not the root of a mean, whose gradient at a vector of zeros is no number
        root_mean_square = torch.linalg.vector_norm(hidden.float(), dim=-1, keepdim=True) * hidden.shape[-1] ** -0.5
        return self.weight * (hidden / (root_mean_square + self.eps)).to(hidden.dtype)


NORMS = {"pytorch": nn.LayerNorm, "rms_norm": RootMeanSquareNorm}


def new_norm(config: ShareBertConfig, size: int) -> nn.Module:
    """A norm of the configured kind over the last axis."""
    return NORMS[config.layer_norm_type](size, config.layer_norm_eps)


class ShareBertEmbeddings(nn.Module):
    """LN(W_1 LN(E word) + b_1) + position + segment."""

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, config.factor_size)
        self.factor_norm = new_norm(config, config.factor_size)
        self.factor_linear = nn.Linear(config.factor_size, size)
        self.word_norm = new_norm(config, size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids_BT: Tensor, token_types_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """[B, T, D]."""
        words_BTE = self.factor_norm(self.word_embeddings(input_ids_BT))
        words_BTD = self.word_norm(self.factor_linear(words_BTE))
        places_BTD = self.position_embeddings(positions_BT) + self.token_type_embeddings(token_types_BT)
        return self.dropout(words_BTD + places_BTD)


class ShareBertLayer(nn.Module):
    """Attention and a feed-forward network on shared matrices; biases and norms of its own."""

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.pre_norm = config.encoder_ln_mode == "pre-ln"
        self.heads = (config.num_attention_heads, size // config.num_attention_heads)
        self.attention_norm = new_norm(config, size)
        self.query_bias = nn.Parameter(torch.empty(size))
        self.key_bias = nn.Parameter(torch.empty(size))
        self.value_bias = nn.Parameter(torch.empty(size))
        self.output_bias = nn.Parameter(torch.empty(size))
        self.ffn_norm = new_norm(config, size)
        self.ffn_in_bias = nn.Parameter(torch.empty(config.intermediate_size))
        self.ffn_out_bias = nn.Parameter(torch.empty(size))
        self.probs_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_BTD: Tensor, matrices: SharedMatrices, mask: Tensor | None) -> Tensor:
        """The next state, same shape: x + f(LN(x)) of each of the two, or post-ln LN(x + f(x))."""
        if self.pre_norm:
            hidden_BTD = hidden_BTD + self._attention(self.attention_norm(hidden_BTD), matrices, mask)
            return hidden_BTD + self._feed_forward(self.ffn_norm(hidden_BTD), matrices)
        hidden_BTD = self.attention_norm(hidden_BTD + self._attention(hidden_BTD, matrices, mask))
        return self.ffn_norm(hidden_BTD + self._feed_forward(hidden_BTD, matrices))

    def _attention(self, hidden_BTD: Tensor, matrices: SharedMatrices, mask: Tensor | None) -> Tensor:
        """softmax(Q K / C^(2/3)) V W_o + b_o: the original divides by more than the square root of C."""
        projections = (
            (matrices.query, self.query_bias),
            (matrices.key, self.key_bias),
            (matrices.value, self.value_bias),
        )
        query_BHTC, key_BHTC, value_BHTC = (
            (hidden_BTD @ matrix + bias).unflatten(-1, self.heads).transpose(1, 2) for matrix, bias in projections
        )
        scores_BHTT = (query_BHTC * self.heads[1] ** (-2 / 3)) @ key_BHTC.mT
        if mask is not None:
            scores_BHTT = scores_BHTT + mask
        # fp32: what a bf16 softmax loses in the tail adds up over the row
        probs_BHTT = scores_BHTT.softmax(-1, dtype=torch.float32).to(value_BHTC.dtype)
        read_BTD = (self.probs_dropout(probs_BHTT) @ value_BHTC).transpose(1, 2).flatten(2)
        return self.dropout(read_BTD @ matrices.output + self.output_bias)

    def _feed_forward(self, hidden_BTD: Tensor, matrices: SharedMatrices) -> Tensor:
        """GELU(x W_1 + b_1) W_2 + b_2."""
        inner_BTF = functional.gelu(hidden_BTD @ matrices.ffn_in + self.ffn_in_bias)
        return self.dropout(inner_BTF @ matrices.ffn_out + self.ffn_out_bias)


class ShareBertPooler(nn.Module):
    """A linear map of the first real token, without a tanh."""

    def __init__(self, config: ShareBertConfig) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden_BTD: Tensor, matrix_DD: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[B, D]; of masks those by position of the row, [B, T], tell where it begins."""
        rows_B = torch.arange(len(hidden_BTD), device=hidden_BTD.device)
        first_B = torch.zeros_like(rows_B)
        if attention_mask is not None and attention_mask.dim() == 2:
            first_B = attention_mask.long().argmax(1)
        return hidden_BTD[rows_B, first_B] @ matrix_DD + self.bias


class ShareBertPreTrainedModel(PreTrainedModel):
    """Initial weights: normals of std 0.02, biases 0.

    The biases beside shared matrices are drawn from unit normals in the original, whose initialiser does not know bare
    parameters: fifty times as wide as what they are added to. That is mended here, and layers still begin alike.
    """

    config_class = ShareBertConfig
    base_model_prefix = "share_bert"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding, VirtualEmbeddings)):
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, (nn.LayerNorm, RootMeanSquareNorm)):
            init.ones_(module.weight)
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("bias"):
                init.zeros_(parameter)
