"""ShareBERT as the toolkit sees it (github.com/jchenghu/sharebert): a masked student and teacher of few parameters.

Axes: B rows, T positions, D hidden, E factor width, F feed-forward width, P positions of the table, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from corpora.errors import RecipeError
from corpora.token_ids import TokenIds
from students.attention import documents_apart
from students.bert_sizes import bert_sizes, sizes_of_bert
from students.buildable import Buildable, ForwardFlops, all_fields_but, default_if_none, require_known
from students.config import ModelConfig
from students.configuration_share_bert import ShareBertConfig, require_room
from students.head import Head
from students.modeling_share_bert import ShareBertForMaskedLM

SEGMENT_TYPES = 2  # of BERT's two-sentence rows; the toolkit's rows are all of the first


class ShareBert(Buildable):
    """Layers that share matrices carved from the table of words; bidirectional or causal by the mask."""

    network: ShareBertForMaskedLM
    network_class = ShareBertForMaskedLM
    config_class = ShareBertConfig
    causal_head = False
    unused_fields = all_fields_but("dropout", "factor_size", "encoder_ln_mode", "layer_norm_type")
    source_files = (
        "modeling_share_bert.py",
        "modeling_share_blocks.py",
        "modeling_two_segments.py",
        "configuration_share_bert.py",
    )
    auto_map = ShareBertConfig.auto_classes

    def __init__(self, config: ModelConfig, **known: Any) -> None:
        """Build the network; raises RecipeError when its matrices do not fit the vocabulary."""
        super().__init__(config, **known)
        # no language model's loss reaches it, and DDP waits for every weight that wants a gradient; the original leaves
        # it out of the optimiser
        self.network.share_bert.pooler.requires_grad_(False)

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """Output of the head's transform, [B, T, D].

        Positions restart with the document, so that its features do not depend on where in a row it stands; the
        original, made for rows of one example, has no such rows.
        """
        mask_B1TT, positions_BT = documents_apart(segments_BT, causal, unmasked_is_causal=False)
        outputs = self.network.share_bert(input_ids_BT, mask_B1TT, position_ids=positions_BT, pooling=False)
        return self.network.transform(outputs.last_hidden_state)

    def head(self) -> Head:
        """An output embedding of its own, without a bias."""
        return Head(self.network.decoder.weight)

    @classmethod
    def network_config(cls, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> ShareBertConfig:
        """The configuration of transformers that means the same; raises RecipeError for too small a vocabulary."""
        _require_room(config, vocab_size)
        width = _ffn_width(config)
        return ShareBertConfig(
            **bert_sizes(config, vocab_size=vocab_size, token_ids=token_ids, intermediate_size=width, norm_eps=1e-5),
            factor_size=_factor_size(config),
            type_vocab_size=SEGMENT_TYPES,
            encoder_ln_mode=config.encoder_ln_mode,
            layer_norm_type=config.layer_norm_type,
        )

    @classmethod
    def model_config(cls, network_config: ShareBertConfig) -> ModelConfig:
        """The inverse of `network_config`; raises InputRefused for another number of segment types."""
        require_known("share_bert", {"type_vocab_size": (network_config.type_vocab_size, SEGMENT_TYPES)})
        own = {name: getattr(network_config, name) for name in ("factor_size", "encoder_ln_mode", "layer_norm_type")}
        return ModelConfig(**sizes_of_bert(network_config), **own)

    @classmethod
    def check_shape(cls, config: ModelConfig) -> None:
        """The output embedding cannot be tied, and a vocabulary that is known already has room for the matrices."""
        if config.tie_word_embeddings:
            raise RecipeError(
                "model.tie_word_embeddings: share_bert's output embedding is wider than its input embedding and never "
                "tied; remove it, or set it to false"
            )
        if config.factor_size is not None and config.factor_size < 1:
            raise RecipeError(f"model.factor_size: found {config.factor_size}, needs at least 1")
        if config.vocab_size is not None:
            _require_room(config, config.vocab_size)

    @classmethod
    def parameter_count(cls, config: ModelConfig, vocab_size: int) -> int:
        """Tables, two maps from E to D, and the vectors of layers: the body; then the head's transform and embedding.

        The pooler's bias is counted, though only a classifier trains it.
        """
        size, width, factor = config.hidden_size, _ffn_width(config), _factor_size(config)
        norm = 2 if config.layer_norm_type == "pytorch" else 1  # vectors of a norm
        tables = vocab_size * factor + (config.max_positions + SEGMENT_TYPES) * size
        maps = 2 * (factor * size + size)
        layers = config.num_layers * (5 * size + width + 2 * norm * size)
        norms = norm * (factor + size + (size if config.encoder_ln_mode == "pre-ln" else 0))
        body = tables + maps + layers + norms + size  # the pooler's bias
        return body + size**2 + size + norm * size + vocab_size * size

    @classmethod
    def forward_flops(cls, config: ModelConfig, vocab_size: int, seq_len: int) -> ForwardFlops:
        """Two operations for each element of a matrix, in every layer, and 2 T D twice for attention.

        Carving is left out, which costs the same whatever is read: 2 V E for each column, at the base size as much as
        36 tokens do.
        """
        size = config.hidden_size
        layer = 4 * size**2 + 2 * size * _ffn_width(config)
        others = _factor_size(config) * size + size**2  # the map of the words, and the head's transform
        attention = config.num_layers * 4 * seq_len * size
        return ForwardFlops(2 * (config.num_layers * layer + others) + attention, 2 * vocab_size * size)


def _require_room(config: ModelConfig, vocab_size: int) -> None:
    try:
        require_room(vocab_size, config.hidden_size, _ffn_width(config), config.num_heads)
    except ValueError as error:
        raise RecipeError(f"model.{error}") from error


def _ffn_width(config: ModelConfig) -> int:
    """Width F; null is 2 D, as published."""
    return default_if_none(config.intermediate_size, 2 * config.hidden_size)


def _factor_size(config: ModelConfig) -> int:
    """Width E of the table of words; null is 3/16 D, the base size's 384 of 2048."""
    return default_if_none(config.factor_size, max(1, 3 * config.hidden_size // 16))
