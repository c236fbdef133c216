"""ELC-BERT as the toolkit sees it (arXiv 2311.02265): the masked student and teacher.

Axes: B rows, T positions, D hidden, F feed-forward width, S position buckets, L layers, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from corpora.errors import RecipeError
from corpora.token_ids import TokenIds
from students.attention import attention_mask, one_segment_per_row
from students.buildable import Buildable, ForwardFlops, default_if_none, gated_ffn_width
from students.config import ModelConfig
from students.configuration_elc_bert import ElcBertConfig
from students.head import Head
from students.modeling_elc_bert import ElcBertForMaskedLM


class ElcBert(Buildable):
    """Layers that read weighted sums of all earlier ones, in four variants; bidirectional or causal by the mask."""

    network: ElcBertForMaskedLM
    network_class = ElcBertForMaskedLM
    config_class = ElcBertConfig
    causal_head = False
    unused_fields = ("num_kv_heads", "rope_theta", "rotary_dim")
    source_files = ("modeling_elc_bert.py", "configuration_elc_bert.py")
    auto_map = {
        "AutoConfig": "configuration_elc_bert.ElcBertConfig",
        "AutoModel": "modeling_elc_bert.ElcBertModel",
        "AutoModelForMaskedLM": "modeling_elc_bert.ElcBertForMaskedLM",
    }

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """Output of the head's transform, [B, T, D]."""
        all_seen = not causal and one_segment_per_row(segments_BT)
        mask_B1TT = None if all_seen else attention_mask(segments_BT, causal)
        return self.network.transform(self.network.elc_bert(input_ids_BT, mask_B1TT).last_hidden_state)

    def head(self) -> Head:
        """The input embedding again, with a bias."""
        return Head(self.network.decoder.weight, self.network.decoder.bias)

    @classmethod
    def network_config(cls, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> ElcBertConfig:
        """The configuration of transformers that means the same."""
        return ElcBertConfig(
            vocab_size=vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=gated_ffn_width(config),
            max_position_embeddings=config.max_positions,
            position_bucket_size=config.position_buckets,
            variant=config.variant,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.attention_dropout,
            layer_norm_eps=default_if_none(config.norm_eps, 1e-7),
            pad_token_id=token_ids.pad,
            bos_token_id=token_ids.begin,
            eos_token_id=token_ids.end,
        )

    @classmethod
    def model_config(cls, network_config: ElcBertConfig) -> ModelConfig:
        """The inverse of `network_config`."""
        return ModelConfig(
            architecture="elc_bert",
            num_layers=network_config.num_hidden_layers,
            hidden_size=network_config.hidden_size,
            num_heads=network_config.num_attention_heads,
            intermediate_size=network_config.intermediate_size,
            max_positions=network_config.max_position_embeddings,
            dropout=network_config.hidden_dropout_prob,
            attention_dropout=network_config.attention_probs_dropout_prob,
            norm_eps=network_config.layer_norm_eps,
            variant=network_config.variant,  # pyright: ignore[reportArgumentType]
            position_buckets=network_config.position_bucket_size,
        )

    @classmethod
    def check_shape(cls, config: ModelConfig) -> None:
        """The output embedding is tied, and the buckets need distances beyond the exact ones."""
        if config.tie_word_embeddings is False:
            raise RecipeError("model.tie_word_embeddings: elc_bert is always tied; remove it, or set it to true")
        exact = config.position_buckets // 2
        if config.position_buckets % 2 or not 2 <= exact < config.max_positions - 1:
            raise RecipeError(
                f"model.position_buckets: found {config.position_buckets}, needs an even number from 4 to below "
                f"2 max_positions - 2 = {2 * config.max_positions - 2}"
            )

    @classmethod
    def parameter_count(cls, config: ModelConfig, vocab_size: int) -> int:
        """Embeddings + relative positions with their norm + layers with their mixes + head."""
        size, layers = config.hidden_size, config.num_layers
        embedding = vocab_size * size + (2 * config.position_buckets - 1) * size + 2 * size
        biases_and_norms = layers * 6 * size  # queries and keys 2 D, values D, output D, the norm after it 2 D
        mixes = layers * (layers + 1) // 2 + (layers + 1 if config.variant == "weighted_output" else 0)
        head_biases = size + vocab_size
        return embedding + _matrix_parameters(config) + biases_and_norms + mixes + head_biases

    @classmethod
    def forward_flops(cls, config: ModelConfig, vocab_size: int, seq_len: int) -> ForwardFlops:
        """Two operations for each weight, 2 T D twice for attention on contents, 2 (2 S - 1) D twice on positions."""
        positions = min(2 * config.position_buckets - 1, 2 * seq_len - 1)
        attention = config.num_layers * 4 * config.hidden_size * (seq_len + positions)
        return ForwardFlops(2 * _matrix_parameters(config) + attention, 2 * vocab_size * config.hidden_size)


def _matrix_parameters(config: ModelConfig) -> int:
    """L (4 D D + 3 D F) + D D: attention and gated feed-forward layers, and the head's transform."""
    size = config.hidden_size
    return config.num_layers * (4 * size**2 + 3 * size * gated_ffn_width(config)) + size**2
