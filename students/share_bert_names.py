"""What original checkpoints of ShareBERT (github.com/jchenghu/sharebert) call the weights and the sizes of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from corpora.errors import InputRefused
from students.configuration_share_bert import ShareBertConfig
from students.modeling_share_bert import (
    ShareBertForMaskedLM,
    ShareBertForSequenceClassification,
    ShareBertModel,
)
from students.modeling_share_blocks import ShareBertPreTrainedModel
from students.state_names import require_same_shapes

OUTPUT_BIAS = "cls.predictions.bias"  # stored, and never added where only masked tokens are projected, as published
FINAL_NORM = "bert.encoder.FinalLayerNorm"  # stored in post-ln models too, which have no use for it
NORM_EPS = 1e-5  # of every norm, whatever `layer_norm_eps` of a stored configuration says
FIXED = {  # what a stored configuration may say in one way only: other models than published
    "hidden_act": "gelu",
    "layernorm_embedding": False,
    "sparse_mask_prediction": True,
    "useLN": True,
}

_NAMES = (  # ours, original
    (r"embeddings\.(word|position|token_type)_embeddings\.weight", r"bert.embeddings.\1_embeddings.weight"),
    (r"embeddings\.factor_norm\.(.+)", r"bert.embeddings.pre_factor_norm.\1"),
    (r"embeddings\.factor_linear\.(.+)", r"bert.embeddings.factor_linear.\1"),
    (r"embeddings\.word_norm\.(.+)", r"bert.embeddings.pos_factor_norm.\1"),
    (r"virtual_embeddings\.(.+)", r"bert.embeddings.factor_linear_all.\1"),
    (r"layers\.(\d+)\.attention_norm\.(.+)", r"bert.encoder.layer.\1.PreAttentionLayerNorm.\2"),
    (r"layers\.(\d+)\.ffn_norm\.(.+)", r"bert.encoder.layer.\1.PostAttentionLayerNorm.\2"),
    (r"layers\.(\d+)\.(query|key|value)_bias", r"bert.encoder.layer.\1.block.self.\2_bias"),
    (r"layers\.(\d+)\.output_bias", r"bert.encoder.layer.\1.block.output.bias"),
    (r"layers\.(\d+)\.ffn_in_bias", r"bert.encoder.layer.\1.intermediate.bias"),
    (r"layers\.(\d+)\.ffn_out_bias", r"bert.encoder.layer.\1.output.bias"),
    (r"final_norm\.(.+)", rf"{FINAL_NORM}.\1"),
    (r"pooler\.bias", r"bert.pooler.bias"),
    (r"transform\.dense\.(.+)", r"cls.predictions.transform.dense_act.dense.\1"),
    (r"transform\.layer_norm\.(.+)", r"cls.predictions.transform.LayerNorm.\1"),
    (r"decoder\.weight", r"cls.predictions.decoder.weight"),
    (r"classifier\.(.+)", r"classifier.\1"),
)


def original_config(sizes: Mapping[str, Any], *, place: str) -> ShareBertConfig:
    """The configuration that an original one means.

    apex's norm is PyTorch's with another kernel. Raises InputRefused, in one line, for what only unpublished models
    have, and for sizes that do not fit one another.
    """
    for name, expected in FIXED.items():
        if sizes.get(name, expected) != expected:
            raise InputRefused(
                f"{place}: {name} is {sizes[name]!r}, expected {expected!r} as in the published models; only these are "
                "read"
            )
    known = {name: value for name, value in sizes.items() if name not in FIXED}
    known["layer_norm_eps"] = NORM_EPS
    if known.get("layer_norm_type") == "apex":
        known["layer_norm_type"] = "pytorch"
    for name in ("tie_word_embeddings", "model_type", "architectures", "auto_map"):  # BERT's, which it began as
        known.pop(name, None)
    try:
        return ShareBertConfig(**known)
    except ValueError as error:
        raise InputRefused(f"{place}: {error}") from error


def network_class(state: Mapping[str, Tensor]) -> type[ShareBertPreTrainedModel]:
    """What an original checkpoint is: a pre-trained model, a classifier, or a body alone."""
    if any(name.startswith("cls.") for name in state):
        return ShareBertForMaskedLM
    if any(name.startswith("classifier.") for name in state):
        return ShareBertForSequenceClassification
    return ShareBertModel


def original_names(network: ShareBertPreTrainedModel) -> dict[str, str]:
    """Name in an original checkpoint of every weight of a network of ours, by our name."""
    rms_norm = network.config.layer_norm_type == "rms_norm"
    return {name: _original(name, rms_norm) for name in network.state_dict()}


def from_original(state: Mapping[str, Tensor], network: ShareBertPreTrainedModel, *, place: str) -> dict[str, Tensor]:
    """State dict for a network of the sizes of an original checkpoint whose `state` is given.

    The bias of the output embedding and the last norm of post-ln models, which the original keeps without using them,
    are left out. Raises InputRefused when tensors are missing, too many or of another shape, with all of them by the
    original's names.
    """
    originals, ours = original_names(network), network.state_dict()
    expected = {originals[name]: tensor.shape for name, tensor in ours.items()} | _unused_shapes(network)
    require_same_shapes({name: tensor.shape for name, tensor in state.items()}, expected, place=place)
    return {name: state[original] for name, original in originals.items()}


def _original(name: str, rms_norm: bool) -> str:
    short = name.removeprefix("share_bert.")
    for ours, original in _NAMES:
        if re.fullmatch(ours, short):
            found = re.sub(ours, original, short)
            is_norm = re.search(r"norm\.weight$", name) is not None
            return f"{found.removesuffix('weight')}scale" if rms_norm and is_norm else found
    raise AssertionError(f"{name}: a weight of share_bert without a name in the original")


def _unused_shapes(network: ShareBertPreTrainedModel) -> dict[str, torch.Size]:
    """Shapes of what an original checkpoint holds and its forward pass does not read."""
    config, found = network.config, {}
    if isinstance(network, ShareBertForMaskedLM):
        found[OUTPUT_BIAS] = torch.Size([config.vocab_size])
    if config.encoder_ln_mode == "post-ln":
        vectors = ("scale",) if config.layer_norm_type == "rms_norm" else ("weight", "bias")
        found |= {f"{FINAL_NORM}.{vector}": torch.Size([config.hidden_size]) for vector in vectors}
    return found
