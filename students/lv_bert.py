"""LV-BERT as the toolkit sees it (arXiv 2106.11740): a masked student and teacher, and the generator of ELECTRA's.

Axes: B rows, T positions, D hidden, E width of the embeddings, H heads, F feed-forward width, P positions of the table,
K taps, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from corpora.errors import RecipeError
from corpora.token_ids import TokenIds
from students.attention import documents_apart
from students.bert_sizes import bert_sizes, sizes_of_bert
from students.buildable import (
    Activations,
    Buildable,
    ForwardFlops,
    all_fields_but,
    attention_activations,
    default_if_none,
    require_known,
)
from students.config import ModelConfig
from students.configuration_lv_bert import PUBLISHED_LAYERS, LvBertConfig, number_of_pairs, require_layers
from students.head import Head
from students.modeling_lv_bert import LvBertForMaskedLM
from students.modeling_lv_blocks import TAPS

SEGMENT_TYPES = 2  # of ELECTRA's two-sentence rows; the toolkit's rows are all of the first


class LvBert(Buildable):
    """A string of convolutions, attention and feed-forward sublayers; bidirectional or causal by the mask."""

    network: LvBertForMaskedLM
    network_class = LvBertForMaskedLM
    config_class = LvBertConfig
    causal_head = False
    unused_fields = all_fields_but("dropout", "layers", "embedding_size")
    source_files = (
        "modeling_lv_bert.py",
        "modeling_lv_blocks.py",
        "modeling_two_segments.py",
        "configuration_lv_bert.py",
    )
    auto_map = LvBertConfig.auto_classes

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """Output of the head's transform, [B, T, E].

        Convolutions stay inside the document as attention does, and positions restart with it, so that its features
        do not depend on where in a row it stands; the original, made for rows of one example, has no such rows.
        """
        mask_B1TT, positions_BT = documents_apart(segments_BT, causal, unmasked_is_causal=False)
        outputs = self.network.lv_bert(input_ids_BT, mask_B1TT, position_ids=positions_BT)
        return self.network.transform(outputs.last_hidden_state)

    def head(self) -> Head:
        """The table of words, of width E, with a bias."""
        return Head(self.network.decoder.weight, self.network.decoder.bias)

    @classmethod
    def network_config(cls, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> LvBertConfig:
        """The configuration of transformers that means the same."""
        width = _ffn_width(config)
        return LvBertConfig(
            **bert_sizes(config, vocab_size=vocab_size, token_ids=token_ids, intermediate_size=width, norm_eps=1e-12),
            embedding_size=_embedding_size(config),
            layers=_letters(config),
            type_vocab_size=SEGMENT_TYPES,
        )

    @classmethod
    def model_config(cls, network_config: LvBertConfig) -> ModelConfig:
        """The inverse of `network_config`; raises InputRefused for another number of segment types."""
        require_known("lv_bert", {"type_vocab_size": (network_config.type_vocab_size, SEGMENT_TYPES)})
        own = {name: getattr(network_config, name) for name in ("layers", "embedding_size")}
        return ModelConfig(**sizes_of_bert(network_config), **own)

    @classmethod
    def check_shape(cls, config: ModelConfig) -> None:
        """Letters are those of sublayers, two for each layer; the output embedding is tied."""
        if config.tie_word_embeddings is False:
            raise RecipeError("model.tie_word_embeddings: lv_bert is always tied; remove it, or set it to true")
        if config.embedding_size is not None and config.embedding_size < 1:
            raise RecipeError(f"model.embedding_size: found {config.embedding_size}, needs at least 1")
        published = number_of_pairs(PUBLISHED_LAYERS)
        if config.layers is None and config.num_layers != published:
            raise RecipeError(
                f"model.layers: null is the published list of {published} layers, but num_layers is "
                f"{config.num_layers}; write {2 * config.num_layers} letters, or set num_layers to {published}"
            )
        try:
            require_layers(_letters(config), config.num_layers)
        except ValueError as error:
            raise RecipeError(f"model.{error}") from error

    @classmethod
    def parameter_count(cls, config: ModelConfig, vocab_size: int) -> int:
        """Tables + matrices + what is no matrix: norms (2 D, in embeddings and head 2 E), biases, depthwise kernels."""
        size, width = config.hidden_size, _embedding_size(config)
        tables = (vocab_size + config.max_positions + SEGMENT_TYPES) * width
        vectors = {
            "D": 2 * size + 4 * size + TAPS * config.num_heads + TAPS * size,
            "S": 2 * size + 4 * size,
            "F": 2 * size + size + _ffn_width(config),
        }
        layers = sum(vectors[letter] for letter in _letters(config))
        embeddings = 2 * width + (size if width != size else 0)
        head = 2 * width + width + vocab_size
        return tables + _matrix_parameters(config) + layers + embeddings + head

    @classmethod
    def forward_flops(cls, config: ModelConfig, vocab_size: int, seq_len: int) -> ForwardFlops:
        """Two operations for each weight of a matrix, and 2 T D twice for each attention.

        The 4 K D operations of a dynamic convolution's taps are no matrix products: 2 % of its own at D = 256.
        """
        attention = _letters(config).count("S") * 4 * seq_len * config.hidden_size
        return ForwardFlops(2 * _matrix_parameters(config) + attention, 2 * vocab_size * _embedding_size(config))

    @classmethod
    def activations(cls, config: ModelConfig, seq_len: int) -> Activations:
        """A block for each letter: D 21 D, S as attention anywhere, F 5 D + 4 F."""
        size = config.hidden_size
        blocks = {"D": 21 * size, "S": attention_activations(config, seq_len), "F": 5 * size + 4 * _ffn_width(config)}
        letters = _letters(config)
        return Activations([blocks[letter] for letter in letters], len(letters) * 2 * size)


def generator_config(discriminator: ModelConfig, width: float) -> ModelConfig:
    """The generator that ELECTRA's pre-training puts beside a discriminator: the same layers, but narrow.

    Its hidden size is `width` of the discriminator's; published are 0.25 (small: 64 of 256), 1/3 (medium: 128 of 384)
    and 0.33333 (base: 256 of 768). Heads have 64 dimensions, feed-forward layers 4 D, and the embeddings are as wide as
    the discriminator's, for both to share.
    """
    hidden_size = round(width * discriminator.hidden_size)
    return replace(
        discriminator,
        hidden_size=hidden_size,
        num_heads=max(1, hidden_size // 64),
        intermediate_size=4 * hidden_size,
        embedding_size=_embedding_size(discriminator),
    )


def _letters(config: ModelConfig) -> str:
    """The kind of each sublayer; null is the published list."""
    return default_if_none(config.layers, PUBLISHED_LAYERS)


def _ffn_width(config: ModelConfig) -> int:
    """Width F; null is 4 D."""
    return default_if_none(config.intermediate_size, 4 * config.hidden_size)


def _embedding_size(config: ModelConfig) -> int:
    """Width E of the tables and of the features; null is D."""
    return default_if_none(config.embedding_size, config.hidden_size)


def _matrix_parameters(config: ModelConfig) -> int:
    """Sublayers of 4 D D + K H D, 4 D D and 2 D F, a projection D E if the widths differ, and the transform's D E."""
    size, width = config.hidden_size, _embedding_size(config)
    matrices = {
        "D": 4 * size**2 + TAPS * config.num_heads * size,
        "S": 4 * size**2,
        "F": 2 * size * _ffn_width(config),
    }
    projections = size * width * (2 if width != size else 1)
    return sum(matrices[letter] for letter in _letters(config)) + projections
