"""What original checkpoints of LTG-BERT, ELC-BERT and GPT-BERT (github.com/ltgoslo) call the weights of ours.

Axes: N positions of a table, S position buckets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from corpora.errors import InputRefused
from students.configuration_ltg_bert import LtgBertConfig
from students.modeling_ltg import relative_places
from students.modeling_ltg_heads import LtgWithHead
from students.state_names import require_same_shapes

TIED = ("embedding.word_embedding.weight", "classifier.nonlinearity.5.weight")  # one table, stored twice
TABLE = ".position_indices"  # buffers that ours are worked out without

_SHARED = (  # ours, original
    (r"embedding\.(.+)", r"embedding.\1"),
    (r"transform\.dense\.(weight|bias)", r"classifier.nonlinearity.1.\1"),
    (r"decoder\.(weight|bias)", r"classifier.nonlinearity.5.\1"),
)
_LAYERS = (
    (r"layers\.(\d+)\.attention\.(.+)", r"transformer.layers.\1.attention.\2"),
    (r"layers\.(\d+)\.mlp\.in_proj\.weight", r"transformer.layers.\1.mlp.mlp.1.weight"),
    (r"layers\.(\d+)\.mlp\.out_proj\.weight", r"transformer.layers.\1.mlp.mlp.4.weight"),
)
_MIXES = (
    (r"layers\.(\d+)\.mix\.prev_layer_weights", r"transformer.layers.\1.prev_layer_weights"),
    (r"output_mix\.prev_layer_weights", r"transformer.prev_layer_weights"),
)
_BLOCKS = (
    (r"layers\.(\d+)\.attention\.(.+)", r"transformer.attention_layers.\1.\2"),
    (r"layers\.(\d+)\.mlp\.in_proj\.weight", r"transformer.mlp_layers.\1.mlp.1.weight"),
    (r"layers\.(\d+)\.mlp\.out_proj\.weight", r"transformer.mlp_layers.\1.mlp.4.weight"),
)
_OF_LAYERS = {"ltg_bert": _LAYERS, "elc_bert": (*_LAYERS, *_MIXES), "gpt_bert": _BLOCKS}


def original_names(network: LtgWithHead) -> dict[str, str]:
    """Name in an original checkpoint of every weight of a network of ours, by our name."""
    return {name: _original(name, network) for name in network.state_dict()}


def from_original(state: Mapping[str, Tensor], network: LtgWithHead, *, place: str) -> dict[str, Tensor]:
    """State dict for a network of the sizes of an original checkpoint whose `state` is given.

    Of the output embedding, stored a second time, one copy is enough; tables of position indices are left out. Raises
    InputRefused when tensors are missing, too many or of another shape, with all of them by the original's names; when
    the two embeddings differ; and when a table says that positions were not what the configuration means.
    """
    tables = {name: tensor for name, tensor in state.items() if name.endswith(TABLE)}
    weights = {name: tensor for name, tensor in state.items() if name not in tables}
    for name, twin in (TIED, TIED[::-1]):
        if twin in weights:
            weights.setdefault(name, weights[twin])
    originals = original_names(network)
    expected = {originals[name]: tensor.shape for name, tensor in network.state_dict().items()}
    require_same_shapes({name: tensor.shape for name, tensor in weights.items()}, expected, place=place)
    if not torch.equal(weights[TIED[0]], weights[TIED[1]]):
        raise InputRefused(
            f"{place}: {TIED[0]} and {TIED[1]} differ, expected one table stored twice; save the checkpoint again"
        )
    for name, table_NN in tables.items():
        _require_our_positions(table_NN, network.config, place=f"{place}: {name}")  # pyright: ignore[reportArgumentType]
    return {name: weights[original] for name, original in originals.items()}


def gpt_bert_form(state: Mapping[str, Tensor]) -> dict[str, bool]:
    """Which GPT-BERT an original checkpoint is, for `GptBertConfig`: its configuration does not tell."""
    return {
        "attention_gate": any(".in_proj_vg." in name for name in state),
        "layer_average": any(".dwa_modules." in name for name in state),
    }


def _original(name: str, network: LtgWithHead) -> str:
    config, short = network.config, name.removeprefix(f"{network.base_model_prefix}.")
    for ours, original in (*_SHARED, *_OF_LAYERS[config.model_type]):
        if re.fullmatch(ours, short):
            return re.sub(ours, original, short)
    average = re.fullmatch(r"(?:layers\.(\d+)\.)?(attention|mlp|output)_average\.weights", short)
    assert average, f"{name}: a weight of {config.model_type} without a name in the original"
    # the original averages after a block what ours reads before the next one; a layer has two blocks
    layer = int(average[1] or config.num_hidden_layers)
    return f"transformer.dwa_modules.alphas.{2 * layer if average[2] == 'mlp' else 2 * layer - 1}"


def _require_our_positions(table_NN: Tensor, config: LtgBertConfig, *, place: str) -> None:
    """A table of the original holds bucket(i - j) + S - 1; its rounding lifts some distances one above the end."""
    size, length = config.position_bucket_size, max(table_NN.shape, default=1) or 1
    reach, where = relative_places(length, size, config.longest_distance(length), table_NN.device)
    if not torch.equal(table_NN.long().clamp(0, 2 * size - 2), where.index_TT - reach + size - 1):
        raise InputRefused(
            f"{place}: other buckets of positions than position_bucket_size {size} and max_position_embeddings "
            f"{config.max_position_embeddings} mean; correct the sizes"
        )
