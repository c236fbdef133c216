"""GPT-2: the causal teacher that BabyLlama (arXiv 2308.02019) calls GPT-705M, through transformers.

Axes: B rows, T positions, D hidden, F feed-forward width, P positions of the table, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from corpora.errors import InputRefused
from corpora.token_ids import TokenIds
from students.attention import SDPA, attention_mask, one_segment_per_row, positions_in_segments
from students.buildable import Buildable, ForwardFlops, all_fields_but, default_if_none
from students.config import ModelConfig
from students.head import Head


class Gpt2(Buildable):
    """Pre-norm blocks of attention and feed-forward, with biases and a learned table of positions."""

    network: GPT2LMHeadModel
    network_class = GPT2LMHeadModel
    config_class = GPT2Config
    causal_head = True
    unused_fields = all_fields_but("dropout")

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """Output of the final norm, [B, T, D]; positions restart with the document.

        Raises ValueError for a document that is longer than the table of positions.
        """
        one_document = one_segment_per_row(segments_BT)
        positions_BT = None if one_document else positions_in_segments(segments_BT)
        require_positions(positions_BT, input_ids_BT.shape[1], self.config.max_positions)
        # without a mask scaled_dot_product_attention is causal itself
        mask_B1TT = None if causal and one_document else attention_mask(segments_BT, causal)
        outputs = self.network.transformer(
            input_ids_BT, attention_mask=mask_B1TT, position_ids=positions_BT, use_cache=False
        )
        return outputs.last_hidden_state

    def head(self) -> Head:
        """Output embedding, tied or not, without a bias."""
        return Head(self.network.lm_head.weight)

    @classmethod
    def network_config(cls, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds) -> GPT2Config:
        """The configuration of transformers that means the same."""
        return GPT2Config(
            vocab_size=vocab_size,
            n_positions=config.max_positions,
            n_embd=config.hidden_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=_ffn_width(config),
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.attention_dropout,
            layer_norm_epsilon=default_if_none(config.norm_eps, 1e-5),
            tie_word_embeddings=default_if_none(config.tie_word_embeddings, True),
            use_cache=False,  # training has no use for it; `generate` asks for the cache itself
            pad_token_id=token_ids.pad,
            bos_token_id=token_ids.begin,
            eos_token_id=token_ids.end,
            attn_implementation=SDPA,  # pyright: ignore[reportCallIssue]
        )

    @classmethod
    def model_config(cls, network_config: GPT2Config) -> ModelConfig:
        """The inverse of `network_config`; raises InputRefused when ModelConfig cannot say it."""
        fixed = {
            "activation_function": (network_config.activation_function, "gelu_new"),
            "scale_attn_weights": (network_config.scale_attn_weights, True),
            "scale_attn_by_inverse_layer_idx": (network_config.scale_attn_by_inverse_layer_idx, False),
            "add_cross_attention": (network_config.add_cross_attention, False),
            "embd_pdrop": (network_config.embd_pdrop, network_config.resid_pdrop),  # ModelConfig has one for both
        }
        for name, (found, expected) in fixed.items():
            if found != expected:
                raise InputRefused(f"config.json: gpt2 with {name} {found!r} is not supported, only {expected!r}")
        return ModelConfig(
            architecture="gpt2",
            num_layers=network_config.n_layer,
            hidden_size=network_config.n_embd,
            num_heads=network_config.n_head,
            intermediate_size=network_config.n_inner,
            max_positions=network_config.n_positions,
            tie_word_embeddings=network_config.tie_word_embeddings,
            dropout=network_config.resid_pdrop,
            attention_dropout=network_config.attn_pdrop,
            norm_eps=network_config.layer_norm_epsilon,
        )

    @classmethod
    def check_shape(cls, config: ModelConfig) -> None:
        """Any sizes make a GPT-2 whose heads divide its width, which `check` has seen."""

    @classmethod
    def parameter_count(cls, config: ModelConfig, vocab_size: int) -> int:
        """Tables of words and positions + layers + final norm."""
        size, tables = config.hidden_size, 1 if default_if_none(config.tie_word_embeddings, True) else 2
        biases_and_norms = config.num_layers * (_ffn_width(config) + 9 * size) + 2 * size
        return (tables * vocab_size + config.max_positions) * size + _matrix_parameters(config) + biases_and_norms

    @classmethod
    def forward_flops(cls, config: ModelConfig, vocab_size: int, seq_len: int) -> ForwardFlops:
        """Two operations for each weight, and for attention 2 T D twice (scores, then the sum of values)."""
        attention = config.num_layers * 4 * seq_len * config.hidden_size
        return ForwardFlops(2 * _matrix_parameters(config) + attention, 2 * vocab_size * config.hidden_size)


def require_positions(positions_BT: Tensor | None, seq_len: int, max_positions: int) -> None:
    """Raise ValueError, in one line, when a document of the row is longer than a table of positions.

    `positions_BT` are those inside documents, None where a row is one; they are read back from the device only where
    the row itself is longer than the table.
    """
    if seq_len <= max_positions:
        return
    longest = seq_len if positions_BT is None else int(positions_BT.max()) + 1
    if longest > max_positions:
        raise ValueError(
            f"input_ids: a document of {longest} tokens, the table has {max_positions} positions; shorten the rows"
        )


def _matrix_parameters(config: ModelConfig) -> int:
    """L (4 D D + 2 D F): queries, keys, values and output, and the two feed-forward matrices."""
    return config.num_layers * (4 * config.hidden_size**2 + 2 * config.hidden_size * _ffn_width(config))


def _ffn_width(config: ModelConfig) -> int:
    return default_if_none(config.intermediate_size, 4 * config.hidden_size)
