"""ELC-BERT: every layer reads its own weighted sum of all earlier layers (arXiv 2311.02265).

The blocks are LTG-BERT's (arXiv 2303.09859): parameter-free LayerNorm before every sublayer, relative positions that
share the projections of queries and keys, and a gated feed-forward layer with a norm inside. This file travels with
exported models: it needs torch, transformers and the configuration beside it.

Axes: B rows, T positions, D hidden, H heads, E features of a head, F feed-forward width, P relative positions in reach,
V vocabulary. Layers count from 0; state 0 is the embedding and state n + 1 the output of layer n.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from .configuration_elc_bert import ElcBertConfig

try:
    from transformers import initialization as init  # leaves weights alone that a checkpoint has filled
except ImportError:  # transformers 4, which calls _init_weights only where a checkpoint has nothing
    from torch.nn import init


class ElcBertPreTrainedModel(PreTrainedModel):
    """Initial weights, and what transformers wants to know about the family."""

    config_class = ElcBertConfig
    base_model_prefix = "elc_bert"

    def _init_weights(self, module: nn.Module) -> None:
        std = math.sqrt(2 / (5 * self.config.hidden_size))
        if isinstance(module, (nn.Linear, nn.Embedding)):
            _init_truncated(module.weight, std * getattr(module, "init_scale", 1.0))
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ElcBertEmbedding):
            _init_truncated(module.relative_embedding, std)
        elif isinstance(module, LayerMix):
            _init_copied(module.prev_layer_weights, module.initial_weights())


def _init_truncated(weight: Tensor, std: float) -> None:
    init.trunc_normal_(weight, mean=0.0, std=std, a=-2 * std, b=2 * std)


def _init_copied(parameter: Tensor, value: Tensor) -> None:
    if not getattr(parameter, "_is_hf_initialized", False):  # set on what a checkpoint has filled
        with torch.no_grad():
            parameter.copy_(value)


class LayerMix(nn.Module):
    """x = sum_j softmax(alpha)_j h_j over the states so far; takes the place of residual connections."""

    def __init__(self, num_states: int, *, previous_first: bool) -> None:
        super().__init__()
        self.previous_first = previous_first
        self.prev_layer_weights = nn.Parameter(torch.empty(num_states))  # alpha; kept out of weight decay by this name

    def initial_weights(self) -> Tensor:
        """All states alike, or with `previous_first` the last one e times the others."""
        weights = torch.zeros(len(self.prev_layer_weights))
        weights[-1] = float(self.previous_first)
        return weights

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """The weighted sum of tensors of one shape."""
        weights = self.prev_layer_weights.softmax(0).unbind()
        return sum(weight * state for weight, state in zip(weights, states, strict=True))  # pyright: ignore[reportReturnType]


class ElcBertEmbedding(nn.Module):
    """Word vectors, and one table of relative positions for all layers."""

    def __init__(self, config: ElcBertConfig) -> None:
        super().__init__()
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.word_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, elementwise_affine=False)
        self.relative_embedding = nn.Parameter(torch.empty(2 * config.position_bucket_size - 1, config.hidden_size))
        self.relative_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """State 0, [B, T, D]."""
        return self.dropout(self.word_layer_norm(self.word_embedding(input_ids_BT)))

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


def longest_distance(config: ElcBertConfig, seq_len: int) -> int:
    """Row length that the buckets are laid out for.

    A longer row made the original build its table anew: for that row in two variants, for 512 in the others.
    """
    if seq_len <= config.max_position_embeddings:
        return config.max_position_embeddings
    return seq_len if config.variant in ("base", "normalized") else 512


class ElcBertAttention(nn.Module):
    """Attention on contents and relative positions, without a term for two positions."""

    def __init__(self, config: ElcBertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        size = config.hidden_size
        self.scale = 1 / math.sqrt(3 * (size // self.num_heads))  # three terms in a score
        self.pre_layer_norm = nn.LayerNorm(size, config.layer_norm_eps, elementwise_affine=False)
        self.in_proj_qk = nn.Linear(size, 2 * size)
        self.in_proj_v = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)
        self.post_layer_norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden_BTD: Tensor, relative_PD: Tensor, index_TT: Tensor, mask_B1TT: Tensor | None) -> Tensor:
        """[B, T, D]; `mask_B1TT` is added to the scores."""
        normed_BTD = self.pre_layer_norm(hidden_BTD)
        query_BHTE, key_BHTE = self._heads(self.in_proj_qk(normed_BTD), 2)
        (value_BHTE,) = self._heads(self.in_proj_v(normed_BTD), 1)
        relative_query_1HPE, relative_key_1HPE = self._heads(self.in_proj_qk(self.dropout(relative_PD))[None], 2)

        # score_ij = (q_i k_j + q_i kr_r + qr_r k_j) / sqrt(3 E), where r = index_ij stands for the offset i - j
        query_BHTE = query_BHTE * self.scale
        by_key_BHTP = query_BHTE @ relative_key_1HPE.mT
        by_query_BHPT = (relative_query_1HPE * self.scale) @ key_BHTE.mT
        index_BHTT = index_TT.expand(*by_key_BHTP.shape[:3], -1)
        scores_BHTT = query_BHTE @ key_BHTE.mT
        scores_BHTT = scores_BHTT + by_key_BHTP.gather(-1, index_BHTT) + by_query_BHPT.gather(-2, index_BHTT)
        if mask_B1TT is not None:
            scores_BHTT = scores_BHTT + mask_B1TT
        # fp32: what a bf16 softmax loses in the tail adds up over the row
        probs_BHTT = scores_BHTT.softmax(-1, dtype=torch.float32).to(value_BHTE.dtype)
        context_BTD = (self.dropout(probs_BHTT) @ value_BHTE).transpose(1, 2).flatten(2)
        return self.dropout(self.post_layer_norm(self.out_proj(context_BTD)))

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Split the last axis into `parts`, and each into heads: [rows, H, positions, E]."""
        return tuple(
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in projected.chunk(parts, dim=-1)
        )


class ElcBertFeedForward(nn.Module):
    """Gated linear units with a norm inside (GEGLU, NormFormer)."""

    def __init__(self, config: ElcBertConfig, layer_index: int) -> None:
        super().__init__()
        self.pre_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, elementwise_affine=False)
        self.in_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.inner_layer_norm = nn.LayerNorm(config.intermediate_size, config.layer_norm_eps, elementwise_affine=False)
        self.out_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        for linear in (self.in_proj, self.out_proj):  # read by `_init_weights`: narrower in deeper layers
            linear.init_scale = math.sqrt(1 / (2 * (1 + layer_index)))  # pyright: ignore[reportArgumentType]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D]."""
        value_BTF, gate_BTF = self.in_proj(self.pre_layer_norm(hidden_BTD)).chunk(2, dim=-1)
        gated_BTF = value_BTF * functional.gelu(gate_BTF, approximate="tanh")
        return self.dropout(self.out_proj(self.inner_layer_norm(gated_BTF)))


class ElcBertLayer(nn.Module):
    """x_n = sum_j softmax(alpha_n)_j h_j, then the variant's rule for h_(n+1)."""

    def __init__(self, config: ElcBertConfig, layer_index: int) -> None:
        super().__init__()
        self.variant = config.variant
        self.mix = LayerMix(layer_index + 1, previous_first=config.variant == "base")
        self.attention = ElcBertAttention(config)
        self.mlp = ElcBertFeedForward(config, layer_index)
        self.output_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, elementwise_affine=False)

    def forward(
        self, states: Sequence[Tensor], relative_PD: Tensor, index_TT: Tensor, mask_B1TT: Tensor | None
    ) -> Tensor:
        """State n + 1 from the states 0 to n."""
        mixed_BTD = self.mix(states)
        attended_BTD = self.attention(mixed_BTD, relative_PD, index_TT, mask_B1TT)
        if self.variant == "base":  # h = a + FFN(a)
            return attended_BTD + self.mlp(attended_BTD)
        hidden_BTD = attended_BTD + self.mlp(mixed_BTD + attended_BTD)  # h = a + FFN(x + a)
        if self.variant == "normalized":  # h = LN(a + FFN(x + a))
            return self.output_layer_norm(hidden_BTD)
        return hidden_BTD


class ElcBertModel(ElcBertPreTrainedModel):
    """Embedding and layers."""

    def __init__(self, config: ElcBertConfig) -> None:
        super().__init__(config)
        self.embedding = ElcBertEmbedding(config)
        self.layers = nn.ModuleList(ElcBertLayer(config, index) for index in range(config.num_hidden_layers))
        if config.variant == "weighted_output":  # output = sum_j softmax(beta)_j h_j over all states
            self.output_mix = LayerMix(config.num_hidden_layers + 1, previous_first=False)
        self.post_init()

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
        mask_B1TT = None if attention_mask is None else _additive_mask(attention_mask)
        reach, index_TT = self._relative_index(input_ids.shape[1], input_ids.device)
        relative_PD = self.embedding.relative(reach)
        states = (self.embedding(input_ids),)
        for layer in self.layers:
            states += (layer(states, relative_PD, index_TT, mask_B1TT),)
        last_BTD = self.output_mix(states) if self.config.variant == "weighted_output" else states[-1]
        output = BaseModelOutput(last_hidden_state=last_BTD, hidden_states=states if output_hidden_states else None)
        return output.to_tuple() if return_dict is False else output

    def _relative_index(self, seq_len: int, device: torch.device) -> tuple[int, Tensor]:
        """Largest bucket that occurs, and for query i and key j the row of the offset i - j among those in reach."""
        longest = longest_distance(self.config, seq_len)  # pyright: ignore[reportArgumentType]
        buckets = distance_buckets(seq_len, self.config.position_bucket_size, longest)
        reach = buckets[-1]
        positions_T = torch.arange(seq_len, device=device)
        offsets_TT = positions_T[:, None] - positions_T[None, :]
        return reach, reach + offsets_TT.sign() * torch.tensor(buckets, device=device)[offsets_TT.abs()]


def _additive_mask(attention_mask: Tensor) -> Tensor:
    """[B or 1, 1, T, T], 0 where seen and minus infinity elsewhere; padding sees itself, so no row is empty."""
    if attention_mask.dim() == 2:
        itself_TT = torch.eye(attention_mask.shape[1], dtype=torch.bool, device=attention_mask.device)
        attention_mask = attention_mask[:, None, None, :].bool() | itself_TT
    return torch.zeros_like(attention_mask, dtype=torch.float32).masked_fill(~attention_mask, -torch.inf)


class ElcBertTransform(nn.Module):
    """What stands between the last hidden state and the output embedding."""

    def __init__(self, config: ElcBertConfig) -> None:
        super().__init__()
        self.pre_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, elementwise_affine=False)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, elementwise_affine=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """The vectors that meet the output embedding, same shape."""
        return self.dropout(self.post_layer_norm(functional.gelu(self.dense(self.pre_layer_norm(hidden_BTD)))))


class ElcBertForMaskedLM(ElcBertPreTrainedModel):
    """ELC-BERT with its masked-language-model head; the output embedding is the input embedding."""

    _tied_weights_keys = {"decoder.weight": "elc_bert.embedding.word_embedding.weight"}

    def __init__(self, config: ElcBertConfig) -> None:
        super().__init__(config)
        self.elc_bert = ElcBertModel(config)
        self.transform = ElcBertTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The tied output embedding with its bias."""
        return self.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the output embedding."""
        self.decoder = value

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
        outputs = self.elc_bert(input_ids, attention_mask, output_hidden_states=output_hidden_states)
        logits_BTV = self.decoder(self.transform(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), labels.flatten())
        output = MaskedLMOutput(loss=loss, logits=logits_BTV, hidden_states=outputs.hidden_states)
        return output.to_tuple() if return_dict is False else output
