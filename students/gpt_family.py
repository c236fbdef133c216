"""What GPT-2 and GPT-J share as the toolkit sees them: transformers' names of sizes, and how their blocks are asked.

Axes: B rows, T positions, D hidden, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from corpora.token_ids import TokenIds
from students.attention import documents_apart
from students.buildable import Buildable, ForwardFlops, default_if_none, require_known
from students.config import ModelConfig


class GptFamily(Buildable):
    """Blocks of attention and feed-forward with biases, whose positions are counted."""

    causal_head = True

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """Output of the final norm, [B, T, D]; positions restart with the document.

        Raises ValueError for a document that is longer than `max_positions`.
        """
        # without a mask scaled_dot_product_attention is causal itself
        mask_B1TT, positions_BT = documents_apart(segments_BT, causal, unmasked_is_causal=True)
        self._require_positions(positions_BT, input_ids_BT.shape[1])
        body: Any = self.network.base_model
        outputs = body(input_ids_BT, attention_mask=mask_B1TT, position_ids=positions_BT, use_cache=False)
        return outputs.last_hidden_state

    @classmethod
    def sizes(cls, config: ModelConfig, *, vocab_size: int, token_ids: TokenIds, **own: Any) -> dict[str, Any]:
        """What both configurations of transformers have, by its names, and what is the architecture's own."""
        return {
            "vocab_size": vocab_size,
            "n_positions": config.max_positions,
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": ffn_width(config),
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.attention_dropout,
            "layer_norm_epsilon": default_if_none(config.norm_eps, 1e-5),
            "tie_word_embeddings": default_if_none(config.tie_word_embeddings, True),
            "use_cache": False,  # training has no use for it; `generate` asks for the cache itself
            "pad_token_id": token_ids.pad,
            "bos_token_id": token_ids.begin,
            "eos_token_id": token_ids.end,
            **own,
        }

    @classmethod
    def sizes_of(cls, network_config: Any) -> dict[str, Any]:
        """The inverse of `sizes`, by the names of ModelConfig; raises InputRefused when ModelConfig cannot say it."""
        settings = {
            "activation_function": (network_config.activation_function, "gelu_new"),
            "embd_pdrop": (network_config.embd_pdrop, network_config.resid_pdrop),  # ModelConfig has one for both
        }
        require_known(network_config.model_type, settings)
        return {
            "architecture": network_config.model_type,
            "num_layers": network_config.n_layer,
            "hidden_size": network_config.n_embd,
            "num_heads": network_config.n_head,
            "intermediate_size": network_config.n_inner,
            "max_positions": network_config.n_positions,
            "tie_word_embeddings": network_config.tie_word_embeddings,
            "dropout": network_config.resid_pdrop,
            "attention_dropout": network_config.attn_pdrop,
            "norm_eps": network_config.layer_norm_epsilon,
        }

    @classmethod
    def forward_flops(cls, config: ModelConfig, vocab_size: int, seq_len: int) -> ForwardFlops:
        """Two operations for each weight, and for attention 2 T D twice (scores, then the sum of values)."""
        attention = config.num_layers * 4 * seq_len * config.hidden_size
        return ForwardFlops(2 * matrix_parameters(config) + attention, 2 * vocab_size * config.hidden_size)

    def _require_positions(self, positions_BT: Tensor | None, seq_len: int) -> None:
        """`positions_BT` are those inside documents, None where a row is one.

        They are read back from the device only where the row itself is longer than the table.
        """
        longest = self.config.max_positions
        if seq_len <= longest:
            return
        found = seq_len if positions_BT is None else int(positions_BT.max()) + 1
        if found > longest:
            raise ValueError(
                f"input_ids: a document of {found} tokens, the table has {longest} positions; shorten the rows"
            )


def tables(config: ModelConfig) -> int:
    """How many matrices of words there are: one where it is tied, as it is where the recipe says nothing."""
    return 1 if default_if_none(config.tie_word_embeddings, True) else 2


def matrix_parameters(config: ModelConfig) -> int:
    """L (4 D D + 2 D F): queries, keys, values and output, and the two feed-forward matrices."""
    return config.num_layers * (4 * config.hidden_size**2 + 2 * config.hidden_size * ffn_width(config))


def ffn_width(config: ModelConfig) -> int:
    """Width F; null is 4 D."""
    return default_if_none(config.intermediate_size, 4 * config.hidden_size)
