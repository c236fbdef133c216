"""What the original ELC-BERT checkpoints (ltgoslo/elc-bert) call the weights of ours."""

from __future__ import annotations

import re

from torch import Tensor

_NAMES = (  # original, ours
    (r"embedding\.(.+)", r"elc_bert.embedding.\1"),
    (r"transformer\.layers\.(\d+)\.attention\.(.+)", r"elc_bert.layers.\1.attention.\2"),
    (r"transformer\.layers\.(\d+)\.mlp\.mlp\.1\.weight", r"elc_bert.layers.\1.mlp.in_proj.weight"),
    (r"transformer\.layers\.(\d+)\.mlp\.mlp\.4\.weight", r"elc_bert.layers.\1.mlp.out_proj.weight"),
    (r"transformer\.layers\.(\d+)\.prev_layer_weights", r"elc_bert.layers.\1.mix.prev_layer_weights"),
    (r"transformer\.prev_layer_weights", r"elc_bert.output_mix.prev_layer_weights"),
    (r"classifier\.nonlinearity\.1\.(weight|bias)", r"transform.dense.\1"),
    (r"classifier\.nonlinearity\.5\.(weight|bias)", r"decoder.\1"),
)


def our_name(original: str) -> str:
    """Name in `ElcBertForMaskedLM` of a weight of the original; raises KeyError for one that is not known."""
    for pattern, replacement in _NAMES:
        if re.fullmatch(pattern, original):
            return re.sub(pattern, replacement, original)
    raise KeyError(original)


def from_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict for `ElcBertForMaskedLM` from that of an original checkpoint.

    The tables of position indices are left out: they are computed where they are needed.
    """
    return {our_name(name): tensor for name, tensor in state.items() if not name.endswith(".position_indices")}
