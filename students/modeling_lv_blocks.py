"""The sublayers of LV-BERT: dynamic convolutions, attention and feed-forward networks (arXiv 2106.11740).

Each has a residual connection and a norm of its own, so that they stack in any order. Embeddings are ELECTRA's
(arXiv 2003.10555). This file travels with exported models: it needs torch, transformers and the configuration beside
it.

Axes: B rows, T positions, D hidden, E width of the embeddings, H heads, C channels of a head, F feed-forward width,
K taps of a convolution.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from .configuration_lv_bert import LvBertConfig

try:
    from transformers import initialization as init  # leaves weights alone that a checkpoint has filled
except ImportError:  # transformers 4, which calls _init_weights only where a checkpoint has nothing
    from torch.nn import init

TAPS = 9  # of both convolutions in a D: four positions on either side of the token
PADDED_SCORE = -10_000.0  # the original's, so that a row of padding alone still has a softmax


class Sight(NamedTuple):
    """Who sees whom, made once for all sublayers."""

    scores: Tensor | None  # a term of attention's scores, fp32 [B, 1, T or 1, T]; None: all see all
    taps: Tensor | None  # whether each tap of a convolution counts, bool [B, T, 1, K]; None: all in the row do


def sight_of(attention_mask: Tensor | None) -> Sight:
    """What a mask, as `LvBertModel` takes it, lets attention and convolutions see."""
    if attention_mask is None:
        return Sight(None, None)
    if attention_mask.dim() == 2:
        return Sight((1.0 - attention_mask[:, None, None, :].float()) * PADDED_SCORE, None)
    hidden_B1TT = torch.zeros_like(attention_mask, dtype=torch.float32).masked_fill(~attention_mask, -torch.inf)
    reach = TAPS // 2
    widened = functional.pad(attention_mask[:, 0], (reach, reach))  # [B, T, T + 2 reach], False beyond the row
    taps_BTK = torch.stack([widened.diagonal(tap, 1, 2) for tap in range(TAPS)], dim=-1)
    return Sight(hidden_B1TT, taps_BTK[:, :, None])


def weighted_taps(weights: Sequence[Tensor], values_BTHC: Tensor, counted_BT1K: Tensor | None = None) -> Tensor:
    """y_t = sum_i w_i v_(t + i - 4) over the taps i of a window around each position, [B, T, H, C].

    Each of the K weights broadcasts to the values; what is beyond the row, or not `counted_BT1K`, is zero.

    Nine shifted products, forward and backward on one core (16 x 128 positions, 4 heads of 64), take 9 ms in fp32 and
    bf16, of the 50 to 70 of a whole D. Windows unfolded and multiplied with their weights, as the original has it, take
    18 to 30 ms, and a banded T x T matrix for each head 8 and 5, but four times as long as this at 4 x 512. Only blocks
    of 32 rows of that matrix are fast at both lengths, by 4 to 8 % of a D, and cannot serve weights that differ within
    a head, for which torch's grouped convolution (4 to 8 ms) would do if it knew where documents end.
    """
    reach, length = len(weights) // 2, values_BTHC.shape[1]
    padded = functional.pad(values_BTHC, (0, 0, 0, 0, reach, reach))
    total_BTHC = torch.zeros_like(values_BTHC)
    for tap, weight in enumerate(weights):
        term_BTHC = weight * padded[:, tap : tap + length]
        if counted_BT1K is not None:  # masked now, not before: masked values would be kept for each tap
            term_BTHC = term_BTHC * counted_BT1K[..., tap : tap + 1]
        total_BTHC = total_BTHC + term_BTHC
    return total_BTHC


class LvBertSublayer(nn.Module, ABC):
    """y = LN(x + Dropout(W_o core(x) + b_o)); what the core is makes the kind of sublayer."""

    def __init__(self, config: LvBertConfig, core_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(core_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    @abstractmethod
    def core(self, hidden_BTD: Tensor, sight: Sight) -> Tensor:
        """What the output projection reads, [B, T, core_size]."""

    def forward(self, hidden_BTD: Tensor, sight: Sight) -> Tensor:
        """The next state, same shape."""
        return self.layer_norm(hidden_BTD + self.dropout(self.dense(self.core(hidden_BTD, sight))))


class DynamicConvolution(LvBertSublayer):
    """Each position and head weighs its neighbours by a softmax that a fixed convolution around it has made.

    v = (W_l x + b_l) * sigmoid(W_g x + b_g), s = W_p (w * v) + b_p where w has a weight for each tap and channel,
    kappa = softmax over taps of W_k s + b_k, and core(x)_t = sum_i kappa_ti v_(t + i - 4), alike for all of a head.
    """

    def __init__(self, config: LvBertConfig) -> None:
        size, heads = config.hidden_size, config.num_attention_heads
        super().__init__(config, size)
        self.heads = (heads, size // heads)
        self.value = nn.Linear(size, size)
        self.gate = nn.Linear(size, size)
        self.depthwise_weight = nn.Parameter(torch.empty(TAPS, *self.heads))
        self.pointwise = nn.Linear(size, size)
        self.kernel = glorot(nn.Linear(size, heads * TAPS))

    def core(self, hidden_BTD: Tensor, sight: Sight) -> Tensor:
        """The weighted neighbours, heads side by side."""
        value_BTD = self.value(hidden_BTD) * self.gate(hidden_BTD).sigmoid()
        value_BTHC = value_BTD.unflatten(-1, self.heads)
        local_BTHC = weighted_taps(self.depthwise_weight.unbind(), value_BTHC, sight.taps)
        scores_BTHK = self.kernel(self.pointwise(local_BTHC.flatten(2))).unflatten(-1, (-1, TAPS))
        kernel_BTHK = scores_BTHK.softmax(-1, dtype=torch.float32)  # fp32, as attention's
        if sight.taps is not None:  # after the softmax: those beyond the row have their share of it too
            kernel_BTHK = kernel_BTHK * sight.taps
        return weighted_taps(kernel_BTHK.split(1, dim=-1), value_BTHC).flatten(2)


class SelfAttention(LvBertSublayer):
    """core(x) = softmax(Q K / sqrt(C)) V for each head, written out.

    In bf16 on a CPU this takes 0.4 to 0.65 of the time of torch's kernel, in fp32 1.05 to 1.3 of it.
    """

    def __init__(self, config: LvBertConfig) -> None:
        size = config.hidden_size
        super().__init__(config, size)
        self.heads = (config.num_attention_heads, size // config.num_attention_heads)
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.probs_dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def core(self, hidden_BTD: Tensor, sight: Sight) -> Tensor:
        """The values that each position reads, heads side by side."""
        query_BHTC, key_BHTC, value_BHTC = (
            projection(hidden_BTD).unflatten(-1, self.heads).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        scores_BHTT = (query_BHTC * self.heads[1] ** -0.5) @ key_BHTC.mT
        if sight.scores is not None:
            scores_BHTT = scores_BHTT + sight.scores
        # fp32: what a bf16 softmax loses in the tail adds up over the row
        probs_BHTT = scores_BHTT.softmax(-1, dtype=torch.float32).to(value_BHTC.dtype)
        return (self.probs_dropout(probs_BHTT) @ value_BHTC).transpose(1, 2).flatten(2)


class FeedForward(LvBertSublayer):
    """core(x) = GELU(W_1 x + b_1)."""

    def __init__(self, config: LvBertConfig) -> None:
        super().__init__(config, config.intermediate_size)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)

    def core(self, hidden_BTD: Tensor, sight: Sight) -> Tensor:
        """The hidden layer of width F."""
        return functional.gelu(self.intermediate(hidden_BTD))


SUBLAYERS: dict[str, Callable[[LvBertConfig], LvBertSublayer]] = {
    "D": DynamicConvolution,
    "S": SelfAttention,
    "F": FeedForward,
}


class LvBertEmbeddings(nn.Module):
    """LN(token + position + segment), all of width E; a generator and its discriminator may share one."""

    def __init__(self, config: LvBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.embedding_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.embedding_size)
        self.layer_norm = nn.LayerNorm(config.embedding_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids_BT: Tensor, token_types_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """[B, T, E]."""
        words_BTE = self.word_embeddings(input_ids_BT)
        places_BTE = self.position_embeddings(positions_BT) + self.token_type_embeddings(token_types_BT)
        return self.dropout(self.layer_norm(words_BTE + places_BTE))


def glorot(linear: nn.Linear) -> nn.Linear:
    """The same layer, marked for what TensorFlow draws where no initialiser is named."""
    linear.glorot = True  # pyright: ignore[reportArgumentType]
    return linear


class LvBertPreTrainedModel(PreTrainedModel):
    """Initial weights: normals of std 0.02, of 1/9 for what has nine taps, cut at two of them; a few are Glorot's."""

    config_class = LvBertConfig
    base_model_prefix = "lv_bert"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            if hasattr(module, "glorot"):
                init.xavier_uniform_(module.weight)
            else:
                init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, DynamicConvolution):
            init.trunc_normal_(module.depthwise_weight, std=1 / TAPS, a=-2 / TAPS, b=2 / TAPS)
