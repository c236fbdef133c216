"""LTG-BERT as the toolkit sees it (arXiv 2303.09859), and what ELC-BERT and GPT-BERT share with it.

Axes: B rows, T positions, D hidden, F feed-forward width, S position buckets, L layers, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from corpora.errors import RecipeError
from corpora.token_ids import TokenIds
from students.attention import attention_mask, one_segment_per_row
from students.bert_sizes import bert_sizes, sizes_of_bert
from students.buildable import (
    Activations,
    Buildable,
    ForwardFlops,
    all_fields_but,
    attention_activations,
    gated_ffn_width,
)
from students.config import ModelConfig
from students.configuration_ltg_bert import LtgBertConfig
from students.head import Head
from students.modeling_ltg_bert import LtgBertForMaskedLM
from students.modeling_ltg_heads import LtgForMaskedLM

FAMILY_FIELDS = ("dropout", "position_buckets", "masked_shift")  # of ModelConfig
SHARED_FILES = ("modeling_ltg.py", "modeling_ltg_fast.py", "modeling_ltg_heads.py", "configuration_ltg_bert.py")


class LtgFamily(Buildable):
    """What LTG-BERT, ELC-BERT and GPT-BERT share: everything but how layers read one another and a few sizes."""

    network: LtgForMaskedLM
    network_class: ClassVar[type[LtgForMaskedLM]]
    config_class: ClassVar[type[LtgBertConfig]]
    causal_head = False  # the class that is saved; GPT-BERT's folder has a causal one too
    own_fields: ClassVar[tuple[str, ...]]  # of ModelConfig and of the configuration, by the same names
    norm_eps: ClassVar[float]  # where the recipe says null

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """Output of the head's transform, [B, T, D]."""
        all_seen = not causal and one_segment_per_row(segments_BT)
        mask_B1TT = None if all_seen else attention_mask(segments_BT, causal)
        return self.network.transform(self.network.base_model(input_ids_BT, mask_B1TT).last_hidden_state)

    def head(self) -> Head:
        """The input embedding again, with a bias."""
        return Head(self.network.decoder.weight, self.network.decoder.bias)

    @classmethod
    @abstractmethod
    def value_projections(cls, config: ModelConfig) -> int:
        """How many D x D projections make what attention reads, its gate counted."""

    @classmethod
    @abstractmethod
    def ffn_width(cls, config: ModelConfig) -> int:
        """Width F of the gated feed-forward layers."""

    @classmethod
    @abstractmethod
    def other_parameters(cls, config: ModelConfig) -> int:
        """Trainable parameters of the layers beside projections and feed-forward matrices."""

    @classmethod
    def network_config(cls, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> LtgBertConfig:
        """The configuration of transformers that means the same."""
        sizes = bert_sizes(
            config,
            vocab_size=vocab_size,
            token_ids=token_ids,
            intermediate_size=cls.ffn_width(config),
            norm_eps=cls.norm_eps,
        )
        own = {name: getattr(config, name) for name in cls.own_fields}
        shift = cls.masked_shift_of(config)
        return cls.config_class(**sizes, position_bucket_size=config.position_buckets, masked_shift=shift, **own)

    @classmethod
    def model_config(cls, network_config: LtgBertConfig) -> ModelConfig:
        """The inverse of `network_config`."""
        own = {name: getattr(network_config, name) for name in cls.own_fields}
        sizes = sizes_of_bert(network_config)
        shift = network_config.masked_shift
        own["masked_shift"] = None if shift == cls.default_masked_shift else shift
        return ModelConfig(**sizes, position_buckets=network_config.position_bucket_size, **own)

    @classmethod
    def check_shape(cls, config: ModelConfig) -> None:
        """The output embedding is tied, and the buckets need distances beyond the exact ones."""
        if config.tie_word_embeddings is False:
            raise RecipeError(
                f"model.tie_word_embeddings: {config.architecture} is always tied; remove it, or set it to true"
            )
        exact = config.position_buckets // 2
        if config.position_buckets % 2 or not 2 <= exact < config.max_positions - 1:
            raise RecipeError(
                f"model.position_buckets: found {config.position_buckets}, needs an even number from 4 to below "
                f"2 max_positions - 2 = {2 * config.max_positions - 2}"
            )

    @classmethod
    def parameter_count(cls, config: ModelConfig, vocab_size: int) -> int:
        """Embeddings + relative positions with their norm + layers + head."""
        size = config.hidden_size
        embedding = vocab_size * size + (2 * config.position_buckets - 1) * size + 2 * size
        projection_biases = config.num_layers * (3 + cls.value_projections(config)) * size
        head_biases = size + vocab_size
        layers = cls._matrix_parameters(config) + projection_biases + cls.other_parameters(config)
        return embedding + layers + head_biases

    @classmethod
    def forward_flops(cls, config: ModelConfig, vocab_size: int, seq_len: int) -> ForwardFlops:
        """Two operations for each weight, 2 T D twice for attention on contents, 2 (2 S - 1) D twice on positions."""
        positions = min(2 * config.position_buckets - 1, 2 * seq_len - 1)
        attention = config.num_layers * 4 * config.hidden_size * (seq_len + positions)
        return ForwardFlops(2 * cls._matrix_parameters(config) + attention, 2 * vocab_size * config.hidden_size)

    @classmethod
    def activations(cls, config: ModelConfig, seq_len: int) -> Activations:
        """Attention, 6 D for its gate, and a gated feed-forward network with a norm inside: 5 D + 10 F."""
        size, gates = config.hidden_size, cls.value_projections(config) - 1
        layer = attention_activations(config, seq_len) + 6 * size * gates + 5 * size + 10 * cls.ffn_width(config)
        return Activations(config.num_layers * [layer], config.num_layers * 2 * size)

    @classmethod
    def _matrix_parameters(cls, config: ModelConfig) -> int:
        """L (3 D D + values and gate + 3 D F) + D D: attention, feed-forward layers, and the head's transform."""
        size = config.hidden_size
        attention = (3 + cls.value_projections(config)) * size**2  # queries, keys, output; values
        return config.num_layers * (attention + 3 * size * cls.ffn_width(config)) + size**2


class LtgBert(LtgFamily):
    """Residual connections around attention and gated feed-forward layers; bidirectional or causal by the mask."""

    network_class = LtgBertForMaskedLM
    config_class = LtgBertConfig
    own_fields = ()
    norm_eps = 1e-7
    unused_fields = all_fields_but(*FAMILY_FIELDS)
    source_files = ("modeling_ltg_bert.py", *SHARED_FILES)
    auto_map = LtgBertConfig.auto_classes

    @classmethod
    def value_projections(cls, config: ModelConfig) -> int:
        """The values'."""
        return 1

    @classmethod
    def ffn_width(cls, config: ModelConfig) -> int:
        """8/3 D by default."""
        return gated_ffn_width(config)

    @classmethod
    def other_parameters(cls, config: ModelConfig) -> int:
        """The norm after attention."""
        return config.num_layers * 2 * config.hidden_size
