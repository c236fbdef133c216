"""What original checkpoints of LV-BERT (github.com/yuweihao/LV-BERT, TensorFlow) call the weights of ours.

A pre-training checkpoint holds two networks: the discriminator under `electra/` with its head under
`discriminator_predictions/`, the generator under `generator/` with its head under `generator_predictions/`, and one
set of embeddings for both, under `electra/`. Axes: K taps, D hidden, H heads, C channels of a head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from students.modeling_lv_bert import LvBertForMaskedLM, LvBertForPreTraining, LvBertModel
from students.modeling_lv_blocks import LvBertPreTrainedModel
from students.state_names import require_same_shapes

Scope = Literal["electra", "generator"]  # where a network's projection and layers stand
GENERATOR_HEAD, DISCRIMINATOR_HEAD = "generator_predictions/", "discriminator_predictions/"
BOOKKEEPING = re.compile(r"global_step|.*/adam_[mv]")  # the optimiser's, which the weights are read without

_OUTPUTS = {"D": "dynamic_convolution_layer/output", "S": "attention/output", "F": "output"}
_CORES = {  # of the modules of a sublayer, by its letter
    "D": {
        "value": "dynamic_convolution_layer/convolution/glu_l",
        "gate": "dynamic_convolution_layer/convolution/glu_g",
        "kernel": "dynamic_convolution_layer/convolution/conv_attn_kernel",
    },
    "S": {name: f"attention/self/{name}" for name in ("query", "key", "value")},
    "F": {"intermediate": "intermediate/dense"},
}
_SEPARABLE = {
    "depthwise_weight": "depthwise_kernel",
    "pointwise.weight": "pointwise_kernel",
    "pointwise.bias": "bias",
}
_HEADS = {
    "transform.dense": "generator_predictions/dense",
    "transform.layer_norm": "generator_predictions/LayerNorm",
    "discriminator_predictions.dense": "discriminator_predictions/dense",
    "discriminator_predictions.output": "discriminator_predictions/dense_1",
}


def network_class(state: Mapping[str, Tensor]) -> type[LvBertPreTrainedModel]:
    """What the weights under `electra/` are: an encoder alone, or with the head that stands beside it."""
    if any(name.startswith(DISCRIMINATOR_HEAD) for name in state):
        return LvBertForPreTraining
    if any(name.startswith(GENERATOR_HEAD) for name in state):
        return LvBertForMaskedLM
    return LvBertModel


def discriminator_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a pre-training checkpoint, all that is not the generator's alone."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(("generator/", GENERATOR_HEAD))}


def generator_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a pre-training checkpoint, what makes its generator, for the scope "generator"."""
    prefixes = ("electra/embeddings/", "generator/", GENERATOR_HEAD)
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


def original_names(network: LvBertPreTrainedModel, *, scope: Scope = "electra") -> dict[str, str]:
    """Name in an original checkpoint of every weight of a network of ours, by our name; the tied table has two."""
    return {name: _original(name, network, scope) for name in network.state_dict()}


def from_original(
    state: Mapping[str, Tensor], network: LvBertPreTrainedModel, *, place: str, scope: Scope = "electra"
) -> dict[str, Tensor]:
    """State dict for a network of the sizes of an original checkpoint whose `state` is given.

    A generator of its own has the scope "generator". The optimiser's tensors are left out. Raises InputRefused when
    tensors are missing, too many or of another shape, with all of them by the original's names.
    """
    weights = {name: tensor for name, tensor in state.items() if not BOOKKEEPING.fullmatch(name)}
    originals, ours = original_names(network, scope=scope), network.state_dict()
    expected = {originals[name]: in_original_layout(originals[name], ours[name]).shape for name in ours}
    require_same_shapes({name: tensor.shape for name, tensor in weights.items()}, expected, place=place)
    return {name: in_our_layout(original, weights[original], ours[name].shape) for name, original in originals.items()}


def in_original_layout(original: str, weight: Tensor) -> Tensor:
    """A weight of ours as the original stores it; `original` is its name there.

    Kernels of dense layers are [in, out], pointwise ones [1, in, out], depthwise ones [K, D, 1] for our [K, H, C].
    """
    kind = original.rpartition("/")[2]
    if kind == "depthwise_kernel":
        return weight.flatten(1)[..., None]
    return weight.mT[None] if kind == "pointwise_kernel" else weight.mT if kind == "kernel" else weight


def in_our_layout(original: str, weight: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `in_original_layout`; `shape` is that of ours, which divides channels among heads."""
    kind = original.rpartition("/")[2]
    return (weight.mT if kind in ("pointwise_kernel", "kernel") else weight).reshape(shape)


def _original(name: str, network: LvBertPreTrainedModel, scope: Scope) -> str:
    if name == "decoder.bias":
        return "generator_predictions/output_bias"
    short = "embeddings.word_embeddings.weight" if name == "decoder.weight" else name.removeprefix("lv_bert.")
    if table := re.fullmatch(r"embeddings\.(\w+_embeddings)\.weight", short):
        return f"electra/embeddings/{table[1]}"
    module, _, weight = short.rpartition(".")
    if module == "embeddings.layer_norm":
        return _variable("electra/embeddings/LayerNorm", weight)
    if module == "embeddings_project":
        return _variable(f"{scope}/embeddings_project", weight)
    if module in _HEADS:
        return _variable(_HEADS[module], weight)
    _, index, inside = short.split(".", 2)
    return f"{scope}/encoder/{_of_sublayer(int(index), inside, network.config.layers)}"


def _of_sublayer(index: int, name: str, layers: str) -> str:
    """Name of a sublayer's weight in the encoder: sublayers stand in pairs there."""
    letter, place = layers[index], f"layer_{index // 2}/{('first', 'second')[index % 2]}_submodule"
    if letter == "D" and name in _SEPARABLE:
        return f"{place}/dynamic_convolution_layer/convolution/conv_attn_key/{_SEPARABLE[name]}"
    module, _, weight = name.rpartition(".")
    outputs = {"dense": f"{_OUTPUTS[letter]}/dense", "layer_norm": f"{_OUTPUTS[letter]}/LayerNorm"}
    return _variable(f"{place}/{(outputs | _CORES[letter])[module]}", weight)


def _variable(module: str, weight: str) -> str:
    """TensorFlow's word for the weight or the bias of a norm or a dense layer."""
    words = ("gamma", "beta") if module.endswith("LayerNorm") else ("kernel", "bias")
    return f"{module}/{words[weight == 'bias']}"
