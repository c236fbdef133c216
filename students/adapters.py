"""Starting from weights that exist: taken over whole, or left as they are and adapted at low rank.

An adapted layer computes W x + b + alpha / rank * B A x (arXiv 2106.09685). B begins as zeros, so before training an
adapted model is its base; merged, B A is added to W and nothing tells that there were adapters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from corpora.errors import InputRefused, RecipeError, describe_differences
from corpora.token_ids import TokenIds
from students.buildable import Buildable, default_if_none
from students.config import AdapterConfig, ModelConfig
from students.hugging_face import HuggingFace
from students.language_model import LanguageModel
from students.registry import ARCHITECTURES, check_model
from students.run_folder import load_model

# how a model is trained, not what it is: a run may go on with another dropout
_NOT_COMPARED = ("dropout", "attention_dropout")
_INJECTED = "peft_config"  # attribute that peft leaves on a network with adapters


def start_from(model: Buildable, folder: Path, *, fresh_head: bool = False) -> None:
    """Fill a freshly built model with the weights of a run folder or Hugging Face folder.

    The folder's model must be of the same architecture, sizes and variant; dropouts may differ. With `fresh_head` the
    language model's head stays as it was drawn. Raises InputRefused for another model, with the fields or tensors that
    differ, and for a head that is the body's own table; and whatever `load_model` raises.
    """
    assert not has_adapters(model), "a start comes before adapters"
    found = load_model(folder)
    if isinstance(model, HuggingFace):
        _require_same_network(found, model, folder)
    else:
        _require_same_model(found, model, folder)
    state = found.network.state_dict()
    if fresh_head:
        state = _body_of(state, model, folder)
    model.network.load_state_dict(state, strict=not fresh_head)


def _require_same_network(found: LanguageModel, model: HuggingFace, folder: Path) -> None:
    """Of the same class, with tensors of the same names and shapes."""
    kinds = [type(network).__name__ for network in (found.network, model.network)]
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        for network in (found.network, model.network)
    ]
    differences = describe_differences(shapes[0], shapes[1])
    if kinds[0] == kinds[1] and not differences:
        differences = describe_differences(_meaning(found.network), _meaning(model.network))
    if kinds[0] != kinds[1] or differences:
        told = f"a {kinds[0]} instead of a {kinds[1]}" if kinds[0] != kinds[1] else differences
        raise InputRefused(
            f"{folder}: another network than the recipe's ({told}), expected the same class and sizes; change model to "
            "what the folder has, or start from another folder"
        )


def _meaning(network: PreTrainedModel) -> dict[str, Any]:
    """What a configuration says of the function that weights compute: no dropout, ids of tokens, names or types."""
    told = network.config.to_dict()
    without = (
        "drop",
        "token_id",
        "_name_or_path",
        "transformers_version",
        "architectures",
        "dtype",
        "use_cache",
        "init",
    )
    return {name: value for name, value in told.items() if not any(word in name for word in without)}


def _body_of(state: dict[str, Tensor], model: Buildable, folder: Path) -> dict[str, Tensor]:
    """The weights of the body; raises InputRefused where the head's matrix is one of them."""
    network = model.network
    if network.get_output_embeddings().weight is network.get_input_embeddings().weight:  # pyright: ignore[reportOptionalMemberAccess]
        raise InputRefused(
            f"{folder}: fresh_head, but the head of {type(network).__name__} is the table of words, which the body "
            "reads; set model.tie_word_embeddings to false, or leave fresh_head out"
        )
    return {name: tensor for name, tensor in state.items() if name.startswith(f"{network.base_model_prefix}.")}


def _require_same_model(found: LanguageModel, model: Buildable, folder: Path) -> None:
    """By their ModelConfigs."""
    if not isinstance(found, Buildable):
        raise InputRefused(
            f"{folder}: a {type(found.network).__name__}, which no ModelConfig describes, expected one of "
            f"{', '.join(ARCHITECTURES)}; start from another folder"
        )
    differences = describe_differences(_described(found), _described(model))
    if differences:
        raise InputRefused(
            f"{folder}: another model than the recipe's ({differences}), expected the same architecture and sizes; "
            "change model to what the folder has, or start from another folder"
        )


def check_adapters(config: AdapterConfig, model: ModelConfig) -> None:
    """Raise RecipeError, in one line, when a model of these sizes cannot have such adapters.

    Builds the model without memory for its weights, and needs no peft: this is for the door. Of ShareBERT that takes a
    `vocab_size`, from which its matrices are carved.
    """
    _check_numbers(config)
    with torch.device("meta"):
        vocab_size = default_if_none(model.vocab_size, len(TokenIds().special))
        built = check_model(model)(model, vocab_size=vocab_size, token_ids=TokenIds())
    _chosen_layers(built.network, config.targets)


def with_adapters(model: Buildable, config: AdapterConfig, *, seed: int) -> Buildable:
    """The same model, its weights frozen and the chosen linear layers adapted in place; only the adapters are trained.

    `seed` alone decides the adapters' weights; torch's global generator is left as it was. Features and head are what
    they were until the first step. Raises RecipeError for numbers out of bounds and for targets that are no linear
    layers, naming those that there are: embeddings and the head stay out, since a tied matrix adapted at one of its
    two places would be two.
    """
    _check_numbers(config)
    assert not has_adapters(model), "adapters are injected once"
    chosen = _chosen_layers(model.network, config.targets)

    # here, because it takes seconds, which every command would wait for
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # said to be whole, and divided as it is
        lora_dropout=config.dropout,
        target_modules=chosen,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(lora, model.network)
    assert sorted(_adapted_layers(model.network)) == sorted(chosen), "peft matches names by their ends"
    return model.train(model.training)  # a new layer is in training mode, whatever the model is in


def merged(model: Buildable) -> Buildable:
    """A plain model that computes what the adapted one does, up to the rounding of the sums; all of it is trainable.

    It is a copy, so that a run may save and go on. A model without adapters is plain already, and returned itself.
    """
    if not has_adapters(model):
        return model
    plain = deepcopy(model)
    for name, layer in _adapted_layers(plain.network).items():
        layer.merge()
        plain.network.set_submodule(name, layer.get_base_layer())
    delattr(plain.network, _INJECTED)
    return plain.requires_grad_(True)


def has_adapters(model: Buildable) -> bool:
    """Whether a model is an adapted one."""
    return hasattr(model.network, _INJECTED)


def _described(model: Buildable) -> dict[str, Any]:
    """What a model is, with every null resolved: two ways to say the same sizes are no difference."""
    fields = asdict(type(model).model_config(model.network.config)) | {"vocab_size": model.vocab_size}
    return {name: value for name, value in fields.items() if name not in _NOT_COMPARED}


def _check_numbers(config: AdapterConfig) -> None:
    if config.rank < 1:
        raise RecipeError(f"adapters.rank: found {config.rank}, needs at least 1")
    if not 0 < config.alpha < math.inf:
        raise RecipeError(f"adapters.alpha: found {config.alpha}, needs a positive number")
    if not 0 <= config.dropout < 1:
        raise RecipeError(f"adapters.dropout: found {config.dropout}, needs a probability below 1")


def _chosen_layers(network: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Full names of the linear layers that targets mean: those of all blocks, or those that end in one of them."""
    head = network.get_output_embeddings()
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear) and layer is not head]
    stacks = [name for name, part in network.named_modules() if isinstance(part, nn.ModuleList)]
    if not targets:
        of_blocks = [name for name in layers if any(name.startswith(f"{stack}.") for stack in stacks)]
        if not of_blocks:
            raise RecipeError(
                f"adapters: the blocks of {type(network).__name__} have no linear layers of torch; leave adapters out"
            )
        return of_blocks
    chosen: dict[str, None] = {}
    for target in targets:
        meant = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not meant:
            there = dict.fromkeys(_name_in_block(name, stacks) for name in layers)
            raise RecipeError(
                f"adapters.targets: found {target!r}, expected linear layers by the end of their names, of "
                f"{', '.join(there)}; choose among these, or leave targets empty for all of the blocks"
            )
        chosen |= dict.fromkeys(meant)
    return list(chosen)


def _name_in_block(name: str, stacks: Sequence[str]) -> str:
    """`attention.out_proj` of `elc_bert.layers.3.attention.out_proj`: alike in all blocks."""
    for stack in stacks:
        if name.startswith(f"{stack}."):
            return name.removeprefix(f"{stack}.").partition(".")[2]
    return name


def _adapted_layers(network: PreTrainedModel) -> dict[str, Any]:
    """The layers with adapters, by the names that they had without."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}
