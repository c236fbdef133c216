"""A stranger's folder to a model that can be scored: the network is ours, and only numbers are taken from the folder.

The configuration is rebuilt, the network built from it, and its weights are copied one by one from a file whose header
has been proved to hold just these. Nothing of the folder is handed to `from_pretrained`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from benchmarks.scoring_tokenizer import ScoringTokenizer
from benchmarks.strangers.config_check import NetworkDescription, read_description
from benchmarks.strangers.files import CONFIG, WEIGHTS, check_files
from benchmarks.strangers.refusal import one_line, refuse
from benchmarks.strangers.safetensors_check import check_header
from benchmarks.strangers.tokenizer_check import checked_tokenizer
from corpora.errors import InputRefused, RecipeError
from corpora.token_ids import TokenIds
from students.config import ModelConfig
from students.language_model import LanguageModel
from students.pretrained import Pretrained
from students.registry import ARCHITECTURES, build_model

MAX_BYTES = 8 << 30  # of weights in fp32 and buffers; the challenge's models stay below 1 B parameters


def load_stranger(folder: Path) -> tuple[LanguageModel, ScoringTokenizer]:
    """Model (fp32, on the CPU, in evaluation mode) and tokenizer of a folder that is not trusted.

    Runs no code of the folder and fetches nothing. An architecture of ours becomes a Buildable, any other on the list a
    Pretrained. Raises InputRefused for whatever is not understood wholly, Damaged for a run that was changed.
    """
    check_files(folder)
    description = read_description(folder)
    tokenizer = checked_tokenizer(folder, description.vocab_size)
    config, model_config = _configs(description, folder)
    sketch = _sketched(description, config, folder)
    stored_as = description.family.stored_as
    shapes = {stored_as.get(name, name): tuple(tensor.shape) for name, tensor in sketch.state_dict().items()}
    second_names = {stored_as.get(name, name) for name in sketch.all_tied_weights_keys}
    stored = check_header(
        folder / WEIGHTS,
        expected={name: shape for name, shape in shapes.items() if name not in second_names},
        second_names={name: shape for name, shape in shapes.items() if name in second_names},
    )
    if model_config is not None:
        model = build_model(model_config, vocab_size=description.vocab_size, token_ids=_token_ids(description), seed=0)
        _fill(model.network, description, stored, folder / WEIGHTS)
        return model.eval(), tokenizer
    with torch.random.fork_rng(devices=[]):  # the weights that it draws are all replaced
        network = _network_class(description)(config)
    _fill(network, description, stored, folder / WEIGHTS)
    return Pretrained(network.eval(), description.family.objective, str(folder)).eval(), tokenizer


def _network_class(description: NetworkDescription) -> type[PreTrainedModel]:
    architecture = ARCHITECTURES.get(description.model_type)
    return architecture.network_class if architecture else getattr(transformers, description.family.network)


def _configs(description: NetworkDescription, folder: Path) -> tuple[PreTrainedConfig, ModelConfig | None]:
    """The configuration of transformers, and ours where one can say the same."""
    try:
        config = _network_class(description).config_class(**description.values)  # pyright: ignore[reportOptionalCall]
    except Exception as error:  # each family checks its sizes in its own way
        _refuse_sizes(folder, error)
    architecture = ARCHITECTURES.get(description.model_type)
    if architecture is None:
        return config, None
    try:
        model_config = architecture.model_config(config)
    except InputRefused:  # a variant that is not ours: transformers knows it
        return config, None
    try:
        architecture.check(model_config)
    except RecipeError as error:
        _refuse_sizes(folder, error)
    token_ids = _token_ids(description)
    return architecture.network_config(
        model_config, vocab_size=description.vocab_size, token_ids=token_ids
    ), model_config


def _token_ids(description: NetworkDescription) -> TokenIds:
    """Those that are said, and ours for the others: the defaults of transformers lie beyond small vocabularies."""
    names = {"pad": "pad_token_id", "begin": "bos_token_id", "end": "eos_token_id"}
    return TokenIds(**{ours: description.values[name] for ours, name in names.items() if name in description.values})


def _sketched(description: NetworkDescription, config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """The network without memory for its weights; raises InputRefused when with memory it would be too large."""
    try:
        with torch.device("meta"):
            sketch = _network_class(description)(config)
    except Exception as error:  # sizes that do not fit one another, in each family's words
        _refuse_sizes(folder, error)
    needed = 4 * sum(tensor.numel() for tensor in (*sketch.parameters(), *sketch.buffers()))
    if needed > MAX_BYTES:
        refuse(
            str(folder / CONFIG),
            f"a network of {needed:,} bytes",
            expected=f"at most {MAX_BYTES:,}",
            remedy="choose a smaller model",
        )
    return sketch


def _fill(network: PreTrainedModel, description: NetworkDescription, stored: set[str], path: Path) -> None:
    """Copy the stored weights, which are all that the network has; each must be finite."""
    state, first_names = network.state_dict(), network.all_tied_weights_keys  # second name: first name
    names = {
        name: stored_name for name in state if (stored_name := description.family.stored_as.get(name, name)) in stored
    }
    try:
        with safe_open(path, framework="pt", device="cpu") as file, torch.no_grad():
            for name in sorted(names, key=lambda name: (name in first_names, name)):
                tensor = file.get_tensor(names[name])
                if not torch.isfinite(tensor).all():
                    _refuse_weights(path, f"{name} has numbers that are not finite", "finite weights")
                if name not in first_names:
                    state[name].copy_(tensor)
                elif not torch.equal(state[name], tensor.to(state[name].dtype)):
                    _refuse_weights(path, f"{name} differs from {first_names[name]}", "one tensor with two names")
    except SafetensorError as error:
        _refuse_weights(path, one_line(error), "a safetensors file")


def _refuse_weights(path: Path, found: str, expected: str) -> NoReturn:
    refuse(str(path), found, expected=expected, remedy="save the model again with save_pretrained")


def _refuse_sizes(folder: Path, error: Exception) -> NoReturn:
    refuse(
        str(folder / CONFIG),
        f"no network can be built ({one_line(error)})",
        expected="sizes that fit one another",
        remedy="mend them",
        cause=error,
    )
