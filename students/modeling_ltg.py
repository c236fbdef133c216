"""The blocks of LTG-BERT (arXiv 2303.09859), of which ELC-BERT and GPT-BERT are made too.

A parameter-free LayerNorm stands before every sublayer, relative positions share the projections of queries and keys,
and the feed-forward layer is gated, with a norm inside. This file travels with exported models of all three: it needs
torch, transformers and the configuration beside it.

Axes: B rows, T positions, D hidden, H heads, E features of a head, F feed-forward width, P relative positions in reach.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from .configuration_ltg_bert import LtgBertConfig
from .modeling_ltg_fast import Dropout, Places, gated_gelu, places, relative_attention

try:
    from transformers import initialization as init  # leaves weights alone that a checkpoint has filled
except ImportError:  # transformers 4, which calls _init_weights only where a checkpoint has nothing
    from torch.nn import init


class LtgPreTrainedModel(PreTrainedModel):
    """Initial weights: normals of std sqrt(2 / 5 D) cut at two of them, feed-forward matrices narrower with depth."""

    def _init_weights(self, module: nn.Module) -> None:
        std = math.sqrt(2 / (5 * self.config.hidden_size))
        if isinstance(module, (nn.Linear, nn.Embedding)):
            _init_truncated(module.weight, std * getattr(module, "init_scale", 1.0))
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LtgEmbedding):
            _init_truncated(module.relative_embedding, std)


def _init_truncated(weight: Tensor, std: float) -> None:
    init.trunc_normal_(weight, mean=0.0, std=std, a=-2 * std, b=2 * std)


def init_copied(parameter: Tensor, value: Tensor) -> None:
    """Set a parameter that no checkpoint has filled."""
    if not getattr(parameter, "_is_hf_initialized", False):  # set on what a checkpoint has filled
        with torch.no_grad():
            parameter.copy_(value)


class LtgEmbedding(nn.Module):
    """Word vectors, and one table of relative positions for all layers."""

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__()
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.word_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, elementwise_affine=False)
        self.relative_embedding = nn.Parameter(torch.empty(2 * config.position_bucket_size - 1, config.hidden_size))
        self.relative_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """State 0, [B, T, D]."""
        embedded_BTD = self.word_layer_norm(self.word_embedding(input_ids_BT))
        if torch.is_autocast_enabled(device := embedded_BTD.device.type):
            # as all later states: sums of states would be fp32 for its sake
            embedded_BTD = embedded_BTD.to(torch.get_autocast_dtype(device))
        return self.dropout(embedded_BTD)

    def relative(self, reach: int) -> Tensor:
        """Vectors [P, D] of the relative positions from -reach to reach."""
        middle = self.relative_embedding.shape[0] // 2
        return self.relative_layer_norm(self.relative_embedding[middle - reach : middle + reach + 1])


@functools.lru_cache(maxsize=64)
def distance_buckets(num_distances: int, table_size: int, longest: int) -> tuple[int, ...]:
    """Bucket of each distance 0, 1, ...

    With m = table_size / 2: exact up to m, then logarithmic so that distance longest - 1 meets the table's end:
    m + ceil((m - 1) ln(distance / m) / ln((longest - 1) / m)).
    """
    middle = table_size // 2

    def bucket(distance: int) -> int:
        if distance <= middle:
            return distance
        share = math.log(min(distance, longest - 1) / middle) / math.log((longest - 1) / middle)
        # rounding may lift the last distance one above the table
        return min(middle + math.ceil(share * (middle - 1)), table_size - 1)

    return tuple(bucket(distance) for distance in range(num_distances))


def relative_places(seq_len: int, table_size: int, longest: int, device: torch.device) -> tuple[int, Places]:
    """Largest bucket that occurs, and which of the rows in reach stands for each query and key."""
    buckets = distance_buckets(seq_len, table_size, longest)
    reach = buckets[-1]
    rows = [reach - bucket for bucket in reversed(buckets[1:])] + [reach + bucket for bucket in buckets]
    return reach, places(torch.tensor(rows, device=device), 2 * reach + 1)


def seen_keys(input_ids_BT: Tensor, attention_mask: Tensor | None, *, causal: bool) -> Tensor | None:
    """Where a query sees a key, bool [B, 1, T, T]; None where all see all.

    `attention_mask` as `LtgModel` takes it. Padding sees itself, so no row is empty.
    """
    if attention_mask is None and not causal:
        return None
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids_BT)
    if attention_mask.dim() == 2:
        itself_TT = torch.eye(input_ids_BT.shape[1], dtype=torch.bool, device=input_ids_BT.device)
        attention_mask = attention_mask[:, None, None, :].bool() | itself_TT
    return attention_mask.tril() if causal else attention_mask


def additive_mask(seen_B1TT: Tensor) -> Tensor:
    """A term of the scores, fp32: 0 where seen and minus infinity elsewhere."""
    return torch.zeros_like(seen_B1TT, dtype=torch.float32).masked_fill(~seen_B1TT, -torch.inf)


class LtgAttention(nn.Module, ABC):
    """Attention on contents and relative positions; what is made of the values read is each architecture's own."""

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        size = config.hidden_size
        self.pre_layer_norm = nn.LayerNorm(size, config.layer_norm_eps, elementwise_affine=False)
        self.in_proj_qk = nn.Linear(size, 2 * size)
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    @abstractmethod
    def forward(self, hidden_BTD: Tensor, relative_PD: Tensor, where: Places, mask_B1TT: Tensor | None) -> Tensor:
        """[B, T, D]; `mask_B1TT` is added to the scores."""

    def read(
        self, normed_BTD: Tensor, value_BTD: Tensor, relative_PD: Tensor, where: Places, mask_B1TT: Tensor | None
    ) -> Tensor:
        """The values that each position reads, [B, T, D], heads side by side."""
        return relative_attention(
            self.in_proj_qk(normed_BTD),
            value_BTD,
            self.in_proj_qk(self.dropout(relative_PD)),
            where,
            mask_B1TT,
            num_heads=self.num_heads,
            dropout=self.dropout.p if self.training else 0.0,
        )


class PostNormAttention(LtgAttention):
    """LTG-BERT's and ELC-BERT's: LN(W_o c + b_o) of the values read, c."""

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.in_proj_v = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)
        self.post_layer_norm = nn.LayerNorm(size, config.layer_norm_eps)

    def forward(self, hidden_BTD: Tensor, relative_PD: Tensor, where: Places, mask_B1TT: Tensor | None) -> Tensor:
        """[B, T, D]; `mask_B1TT` is added to the scores."""
        normed_BTD = self.pre_layer_norm(hidden_BTD)
        context_BTD = self.read(normed_BTD, self.in_proj_v(normed_BTD), relative_PD, where, mask_B1TT)
        return self.dropout(self.post_layer_norm(self.out_proj(context_BTD)))


class LtgFeedForward(nn.Module):
    """Gated linear units with a norm inside (GEGLU, NormFormer)."""

    def __init__(self, config: LtgBertConfig, layer_index: int) -> None:
        super().__init__()
        self.pre_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, elementwise_affine=False)
        self.in_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.inner_layer_norm = nn.LayerNorm(config.intermediate_size, config.layer_norm_eps, elementwise_affine=False)
        self.out_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        for linear in (self.in_proj, self.out_proj):  # read by `_init_weights`: narrower in deeper layers
            linear.init_scale = math.sqrt(1 / (2 * (1 + layer_index)))  # pyright: ignore[reportArgumentType]
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D]."""
        gated_BTF = gated_gelu(self.in_proj(self.pre_layer_norm(hidden_BTD)))
        return self.dropout(self.out_proj(self.inner_layer_norm(gated_BTF)))


class LtgTransform(nn.Module):
    """What stands between the last hidden state and the output embedding, or the classes of a classifier."""

    def __init__(self, config: LtgBertConfig) -> None:
        super().__init__()
        self.pre_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, elementwise_affine=False)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, elementwise_affine=False)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """The vectors that meet the output embedding, same shape."""
        return self.dropout(self.post_layer_norm(functional.gelu(self.dense(self.pre_layer_norm(hidden_BTD)))))
