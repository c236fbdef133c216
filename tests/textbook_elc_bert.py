"""ELC-BERT as a textbook would write it, under the names of the original's checkpoints: what speed is measured against.

Nothing here is clever: scores of content and of relative positions are three products and two gathers, layers are mixed
one by one, dropout is torch's. Golden vectors prove it (test_textbook.py).

Axes: B rows, T positions, D hidden, H heads, E dimensions of a head, P relative positions, V vocabulary, N targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Embedding(nn.Module):
    """Word vectors, and a table of relative positions for all layers."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, eps = sizes["hidden_size"], sizes["layer_norm_eps"]
        self.word_embedding = nn.Embedding(sizes["vocab_size"], hidden)
        self.word_layer_norm = nn.LayerNorm(hidden, eps, elementwise_affine=False)
        self.dropout = nn.Dropout(sizes["hidden_dropout_prob"])
        self.relative_embedding = nn.Parameter(torch.empty(2 * sizes["position_bucket_size"] - 1, hidden))
        self.relative_layer_norm = nn.LayerNorm(hidden, eps)

    def forward(self, input_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """State 0 [B, T, D] and relative positions [P, D]."""
        words_BTD = self.dropout(self.word_layer_norm(self.word_embedding(input_ids_BT)))
        return words_BTD, self.relative_layer_norm(self.relative_embedding)


class Attention(nn.Module):
    """Attention on contents and relative positions."""

    position_indices: Tensor

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, eps = sizes["hidden_size"], sizes["layer_norm_eps"]
        self.num_heads = sizes["num_attention_heads"]
        self.scale = 1 / math.sqrt(3 * (hidden // self.num_heads))
        self.pre_layer_norm = nn.LayerNorm(hidden, eps, elementwise_affine=False)
        self.in_proj_qk = nn.Linear(hidden, 2 * hidden)
        self.in_proj_v = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, hidden)
        self.post_layer_norm = nn.LayerNorm(hidden, eps)
        self.dropout = nn.Dropout(sizes["attention_probs_dropout_prob"])
        indices_TT = position_indices(sizes["position_bucket_size"], sizes["max_position_embeddings"])
        self.register_buffer("position_indices", indices_TT)

    def forward(self, hidden_BTD: Tensor, padding_BT: Tensor, relative_PD: Tensor) -> Tensor:
        """[B, T, D]."""
        seq_len = hidden_BTD.shape[1]
        normed_BTD = self.pre_layer_norm(hidden_BTD)
        query_BHTE, key_BHTE = (self._heads(part) for part in self.in_proj_qk(normed_BTD).chunk(2, dim=-1))
        value_BHTE = self._heads(self.in_proj_v(normed_BTD))
        positions_1P2D = self.in_proj_qk(self.dropout(relative_PD))[None]
        query_1HPE, key_1HPE = (self._heads(part) for part in positions_1P2D.chunk(2, dim=-1))
        indices_TT = self.position_indices[:seq_len, :seq_len]
        indices_BHTT = indices_TT.expand(*query_BHTE.shape[:2], -1, -1)
        scores_BHTT = query_BHTE @ key_BHTE.mT * self.scale
        scores_BHTT = scores_BHTT + (query_BHTE @ key_1HPE.mT * self.scale).gather(-1, indices_BHTT)
        scores_BHTT = scores_BHTT + (key_BHTE @ query_1HPE.mT * self.scale).mT.gather(-2, indices_BHTT)
        scores_BHTT = scores_BHTT.masked_fill(padding_BT[:, None, None, :], -torch.inf)
        probs_BHTT = self.dropout(scores_BHTT.softmax(-1))
        context_BTD = (probs_BHTT @ value_BHTE).transpose(1, 2).flatten(2)
        return self.dropout(self.post_layer_norm(self.out_proj(context_BTD)))

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Gated(nn.Module):
    """GEGLU with tanh's approximation."""

    def forward(self, both: Tensor) -> Tensor:
        """Half as wide."""
        value, gate = both.chunk(2, dim=-1)
        return value * functional.gelu(gate, approximate="tanh")


class FeedForward(nn.Module):
    """Gated linear units with a norm inside."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, inner, eps = sizes["hidden_size"], sizes["intermediate_size"], sizes["layer_norm_eps"]
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden, eps, elementwise_affine=False),
            nn.Linear(hidden, 2 * inner, bias=False),
            Gated(),
            nn.LayerNorm(inner, eps, elementwise_affine=False),
            nn.Linear(inner, hidden, bias=False),
            nn.Dropout(sizes["hidden_dropout_prob"]),
        )

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D]."""
        return self.mlp(hidden_BTD)


class Layer(nn.Module):
    """x = sum_j softmax(alpha)_j h_j, then attention and feed-forward."""

    def __init__(self, sizes: Mapping[str, Any], variant: str, index: int) -> None:
        super().__init__()
        self.variant = variant
        self.attention = Attention(sizes)
        self.mlp = FeedForward(sizes)
        self.prev_layer_weights = nn.Parameter(torch.zeros(index + 1))
        self.norm = nn.LayerNorm(sizes["hidden_size"], sizes["layer_norm_eps"], elementwise_affine=False)

    def forward(self, states: list[Tensor], padding_BT: Tensor, relative_PD: Tensor) -> Tensor:
        """The next state."""
        mixed_BTD = mix(states, self.prev_layer_weights)
        attended_BTD = self.attention(mixed_BTD, padding_BT, relative_PD)
        if self.variant == "base":
            return attended_BTD + self.mlp(attended_BTD)
        hidden_BTD = attended_BTD + self.mlp(mixed_BTD + attended_BTD)
        return self.norm(hidden_BTD) if self.variant == "normalized" else hidden_BTD


class Transformer(nn.Module):
    """All layers, and what weighs their outputs."""

    def __init__(self, sizes: Mapping[str, Any], variant: str) -> None:
        super().__init__()
        number = sizes["num_hidden_layers"]
        self.layers = nn.ModuleList(Layer(sizes, variant, index) for index in range(number))
        if variant == "weighted_output":
            self.prev_layer_weights = nn.Parameter(torch.zeros(number + 1))

    def forward(self, words_BTD: Tensor, padding_BT: Tensor, relative_PD: Tensor) -> Tensor:
        """[B, T, D]."""
        states = [words_BTD]
        for layer in self.layers:
            states.append(layer(states, padding_BT, relative_PD))
        return mix(states, self.prev_layer_weights) if hasattr(self, "prev_layer_weights") else states[-1]


class Classifier(nn.Module):
    """Predicts hidden tokens with the word vectors."""

    def __init__(self, sizes: Mapping[str, Any], words: nn.Embedding) -> None:
        super().__init__()
        hidden, eps = sizes["hidden_size"], sizes["layer_norm_eps"]
        self.nonlinearity = nn.Sequential(
            nn.LayerNorm(hidden, eps, elementwise_affine=False),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.LayerNorm(hidden, eps, elementwise_affine=False),
            nn.Dropout(sizes["hidden_dropout_prob"]),
            nn.Linear(hidden, sizes["vocab_size"]),
        )
        self.nonlinearity[-1].weight = words.weight

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """[N, V]."""
        return self.nonlinearity(hidden_ND)


class TextbookElcBert(nn.Module):
    """`sizes` as in the original's JSON files."""

    def __init__(self, sizes: Mapping[str, Any], variant: str) -> None:
        super().__init__()
        self.embedding = Embedding(sizes)
        self.transformer = Transformer(sizes, variant)
        self.classifier = Classifier(sizes, self.embedding.word_embedding)
        self.apply(lambda module: draw_weights(module, sizes["hidden_size"]))
        nn.init.trunc_normal_(self.embedding.relative_embedding, std=spread(sizes["hidden_size"]))

    def features(self, input_ids_BT: Tensor, padding_BT: Tensor) -> Tensor:
        """What the classifier reads, [B, T, D]; `padding_BT` is true where a token is padding."""
        words_BTD, relative_PD = self.embedding(input_ids_BT)
        return self.transformer(words_BTD, padding_BT, relative_PD)

    def forward(self, input_ids_BT: Tensor, padding_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats of the targets that are not -100; no other position is projected."""
        has_target_BT = targets_BT != -100
        logits_NV = self.classifier(self.features(input_ids_BT, padding_BT)[has_target_BT])
        return functional.cross_entropy(logits_NV.float(), targets_BT[has_target_BT])


def mix(states: list[Tensor], weights: Tensor) -> Tensor:
    """The states, weighted by a softmax."""
    shares = weights.softmax(0)
    mixed = shares[0] * states[0]
    for share, state in zip(shares[1:], states[1:], strict=True):
        mixed = mixed + share * state
    return mixed


def position_indices(bucket_size: int, longest: int) -> Tensor:
    """Row of the relative table for each query and key, int64 [T, T]."""
    positions_T = torch.arange(longest)
    offsets_TT = positions_T[:, None] - positions_T[None, :]
    middle = bucket_size // 2
    distances_TT = offsets_TT.abs().clamp(max=longest - 1).double()
    far_TT = (distances_TT.clamp(min=middle) / middle).log() / math.log((longest - 1) / middle) * (middle - 1)
    buckets_TT = torch.where(distances_TT <= middle, distances_TT, middle + far_TT.ceil()).clamp(max=bucket_size - 1)
    return bucket_size - 1 + offsets_TT.sign() * buckets_TT.long()


def spread(hidden_size: int) -> float:
    """Standard deviation of initial weights."""
    return math.sqrt(2 / (5 * hidden_size))


def draw_weights(module: nn.Module, hidden_size: int) -> None:
    """As the original draws them, but for the scaling by depth."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=spread(hidden_size))
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
