"""Configuration of ShareBERT for transformers, and what its sizes ask of the vocabulary. Travels with exported models.

Axes: D hidden, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from math import prod
from typing import Any

from transformers import PretrainedConfig

NORM_PLACES = ("pre-ln", "post-ln")
NORM_TYPES = ("pytorch", "rms_norm")


class ShareBertConfig(PretrainedConfig):
    """Sizes and norms of a ShareBERT (github.com/jchenghu/sharebert); the defaults are its base size."""

    model_type = "share_bert"
    _auto_class = "AutoConfig"  # so that `save_pretrained` writes this file too
    auto_classes = {
        "AutoConfig": "configuration_share_bert.ShareBertConfig",
        "AutoModel": "modeling_share_bert.ShareBertModel",
        "AutoModelForMaskedLM": "modeling_share_bert.ShareBertForMaskedLM",
        "AutoModelForSequenceClassification": "modeling_share_bert.ShareBertForSequenceClassification",
    }

    def __init__(
        self,
        vocab_size: int = 30_528,
        hidden_size: int = 2048,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 16,
        intermediate_size: int = 4096,  # width of the feed-forward layers
        factor_size: int = 384,  # width of the table of words
        max_position_embeddings: int = 128,  # rows of the table of positions: the longest row
        type_vocab_size: int = 2,
        encoder_ln_mode: str = "pre-ln",  # one of NORM_PLACES: norms before or after the sublayers
        layer_norm_type: str = "pytorch",  # one of NORM_TYPES
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-5,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | None = 2,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        """Raises ValueError for unknown norms, a tied output embedding, or a vocabulary that is too small."""
        if tie_word_embeddings:
            raise ValueError("tie_word_embeddings: share_bert's output embedding is wider than its input embedding")
        for name, found, known in (
            ("encoder_ln_mode", encoder_ln_mode, NORM_PLACES),
            ("layer_norm_type", layer_norm_type, NORM_TYPES),
        ):
            if found not in known:
                raise ValueError(f"{name}: found {found!r}, expected one of {', '.join(known)}")
        require_room(vocab_size, hidden_size, intermediate_size, num_attention_heads)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.factor_size = factor_size
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.encoder_ln_mode = encoder_ln_mode
        self.layer_norm_type = layer_norm_type
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.layer_norm_eps = layer_norm_eps
        kwargs.setdefault("auto_map", dict(self.auto_classes))
        super().__init__(
            pad_token_id=pad_token_id,  # pyright: ignore[reportCallIssue]
            bos_token_id=bos_token_id,  # pyright: ignore[reportCallIssue]
            eos_token_id=eos_token_id,  # pyright: ignore[reportCallIssue]
            tie_word_embeddings=tie_word_embeddings,  # pyright: ignore[reportCallIssue]
            **kwargs,
        )


def matrix_shapes(hidden_size: int, intermediate_size: int) -> dict[str, tuple[int, int]]:
    """The matrices that all layers share, in the order in which they are carved from the right end of the columns."""
    square = (hidden_size, hidden_size)
    return {
        "query": square,
        "key": square,
        "value": square,
        "ffn_in": (hidden_size, intermediate_size),
        "ffn_out": (intermediate_size, hidden_size),
        "output": square,
        "pooler": square,
    }


def columns_of(shape: tuple[int, int], vocab_size: int) -> int:
    """How many columns of V numbers hold a matrix: the elements over V, rounded up."""
    return -(-prod(shape) // vocab_size)


def columns_needed(vocab_size: int, hidden_size: int, intermediate_size: int) -> int:
    """Columns of all matrices together: 5 ceil(D D / V) + 2 ceil(D F / V), of the D that there are."""
    return sum(columns_of(shape, vocab_size) for shape in matrix_shapes(hidden_size, intermediate_size).values())


def smallest_vocabulary(hidden_size: int, intermediate_size: int) -> int:
    """The fewest rows from which the matrices can be carved, about 5 D + 2 F; the number of layers does not matter.

    With a column for each matrix as many rows as the largest has elements are enough, and D = 7 is the least.
    """
    assert hidden_size >= len(matrix_shapes(hidden_size, intermediate_size)), "a column each is too many"
    enough = hidden_size * max(hidden_size, intermediate_size)
    return 1 + bisect_left(
        range(1, enough), True, key=lambda rows: columns_needed(rows, hidden_size, intermediate_size) <= hidden_size
    )


def largest_sizes(
    vocab_size: int, hidden_size: int, intermediate_size: int, num_attention_heads: int
) -> tuple[int, int] | None:
    """D and F, smaller than the given ones in their proportion, that fit the vocabulary; None when none do."""
    for size in range(hidden_size - num_attention_heads, 0, -num_attention_heads):
        width = max(1, intermediate_size * size // hidden_size)
        if columns_needed(vocab_size, size, width) <= size:
            return size, width
    return None


def require_room(vocab_size: int, hidden_size: int, intermediate_size: int, num_attention_heads: int) -> None:
    """Raise ValueError, in one line with the sizes that would fit, unless the matrices fit the vocabulary."""
    number = len(matrix_shapes(hidden_size, intermediate_size))
    if hidden_size < number:
        raise ValueError(f"hidden_size: found {hidden_size}, needs at least {number}, a column for each shared matrix")
    needed = columns_needed(vocab_size, hidden_size, intermediate_size)
    if needed <= hidden_size:
        return
    fitting = largest_sizes(vocab_size, hidden_size, intermediate_size, num_attention_heads)
    smaller = "" if fitting is None else f", or hidden_size {fitting[0]} with intermediate_size {fitting[1]} at most"
    raise ValueError(
        f"vocab_size: from {vocab_size} rows the shared matrices of hidden_size {hidden_size} and intermediate_size "
        f"{intermediate_size} take {needed} columns, expected at most {hidden_size}; take a vocabulary of at least "
        f"{smallest_vocabulary(hidden_size, intermediate_size)}{smaller} (all layers share the matrices: fewer layers "
        "need no less)"
    )
