"""Models on disk: a folder that this toolkit and transformers' Auto classes both read.

    model.safetensors       the network's weights, tied ones once
    config.json             what transformers needs; with the modelling files beside it where the code is ours
    cuvee.json              what this toolkit needs: ModelConfig, vocabulary size, special token ids
    generation_config.json  causal models only

The caller adds the tokenizer's files, so that AutoTokenizer works on the same folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor
from transformers import PreTrainedModel

from corpora.batch import Objective
from corpora.errors import Damaged, InputRefused, RecipeError
from corpora.storage import FolderWriter, Manifest, read_json, read_manifest
from corpora.token_ids import TokenIds
from students.buildable import Buildable, default_if_none
from students.config import ModelConfig
from students.language_model import LanguageModel
from students.listening import Listening
from students.pretrained import load_pretrained
from students.registry import ARCHITECTURES, build_model, check_model

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"  # where Hugging Face models are cut into several files
NETWORK_CONFIG = "config.json"
MODEL_CONFIG = "cuvee.json"
GENERATION_CONFIG = "generation_config.json"


def save_model(writer: FolderWriter, model: Buildable) -> None:
    """Write the files of `model`; equal models give equal bytes. Raises NoRoom when they do not fit."""
    save_network(writer, model.network, model.source_files)
    writer.write_json(MODEL_CONFIG, model_config_json(model))


def save_network(writer: FolderWriter, network: PreTrainedModel, source_files: Sequence[str]) -> None:
    """Write the files that transformers needs; `source_files` are the modelling files that travel with the network."""
    weights = safetensors.torch.save(stored_weights(network), metadata={"format": "pt"})
    writer.write(WEIGHTS, weights)
    writer.write_json(NETWORK_CONFIG, network_config_json(network))
    for name in source_files:
        writer.write(name, Path(__file__).with_name(name).read_bytes())
    if network.can_generate():
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        writer.write_json(GENERATION_CONFIG, {name: getattr(network.config, name) for name in names})


def load_model(folder: Path) -> LanguageModel:
    """The model of a run folder (a Buildable), or of a Hugging Face folder, on the CPU in evaluation mode.

    A Hugging Face folder of an architecture of ours is a Buildable too, any other one a Pretrained. Raises Damaged when
    a listed file fails its digest, InputRefused for a folder that is neither, was not finished or cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        model = _build_from_run(manifest)
        _load_weights(model, manifest.verified(WEIGHTS))
        return model.eval()
    if (folder / MODEL_CONFIG).exists():
        raise InputRefused(f"{folder}: has {MODEL_CONFIG} but no manifest, so its run never finished; run it again")
    return _load_from_hugging_face(folder)


def stored_weights(network: PreTrainedModel) -> dict[str, Tensor]:
    """A network's state by name, without the second names of tied weights, contiguous and on the CPU."""
    tied = network.all_tied_weights_keys  # second name: the name it is stored under
    state = network.state_dict()
    return {name: state[name].detach().cpu().contiguous() for name in sorted(state) if name not in tied}


def network_config_json(network: PreTrainedModel) -> dict[str, Any]:
    """The configuration as transformers stores it, in words that its versions 4 and 5 both read right."""
    config = network.config.to_dict()
    dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
    config |= {"architectures": [type(network).__name__], "dtype": dtype, "torch_dtype": dtype}
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:  # version 4 looks beside it, and silently takes 10,000 when it is missing
        config["rope_theta"] = rope["rope_theta"]
    if auto_classes := getattr(network.config, "auto_classes", None):  # of configurations of ours
        config["auto_map"] = auto_classes
    return config


def model_config_json(model: Buildable) -> dict[str, Any]:
    """What `load_model` needs to build the model again."""
    return {"model": asdict(model.config), "vocab_size": model.vocab_size, "token_ids": asdict(model.token_ids)}


def _build_from_run(manifest: Manifest) -> Buildable:
    path = manifest.folder / MODEL_CONFIG
    if missing := {MODEL_CONFIG, WEIGHTS} - set(manifest.files):
        raise InputRefused(f"{manifest.folder}: a {manifest.kind} without {', '.join(sorted(missing))}; name a model's")
    described = read_json(manifest.verified(MODEL_CONFIG))
    try:
        config, token_ids = ModelConfig(**described["model"]), TokenIds(**described["token_ids"])
        return build_model(config, vocab_size=described["vocab_size"], token_ids=token_ids, seed=0)
    except (KeyError, TypeError, RecipeError) as error:
        raise InputRefused(f"{path}: written by another version of this toolkit ({error}); train it again") from error


def _load_from_hugging_face(folder: Path) -> LanguageModel:
    path = folder / NETWORK_CONFIG
    if not path.exists():
        raise InputRefused(f"{folder}: neither a finished run nor a Hugging Face folder ({NETWORK_CONFIG} is missing)")
    described = _read_foreign_json(path)
    files = weight_files(folder)
    model = _build_from_hugging_face(described, path)
    if model is None:
        return load_pretrained(folder, described)
    _load_weights(model, *files)
    return model.eval()


def saved_objective(model: LanguageModel) -> Objective:
    """What the class of transformers that a model is saved as was made for."""
    if isinstance(model, Listening):
        return model.objective
    return "causal" if isinstance(model, Buildable) and model.causal_head else "masked"


def stored_masked_shift(folder: Path) -> int:
    """`LanguageModel.masked_shift` of the model in a folder, of which nothing but a description is read."""
    if (folder / MODEL_CONFIG).exists():
        config = ModelConfig(**read_json(folder / MODEL_CONFIG)["model"])
        return check_model(config).masked_shift_of(config)
    described = _read_foreign_json(folder / NETWORK_CONFIG)
    architecture = ARCHITECTURES.get(described.get("model_type", ""))
    config_class = architecture.config_class if architecture is not None else None
    return getattr(config_class.from_dict(described), "masked_shift", 0) if config_class is not None else 0


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder: one, or the parts that an index lists.

    Raises InputRefused when there are none, or a part is missing.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        raise InputRefused(f"{folder}: neither {WEIGHTS} nor {WEIGHTS_INDEX}; save the model as safetensors")
    listed = _read_foreign_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise InputRefused(f"{index}: weight_map does not say which file has which weight; save the model again")
    files = [folder / name for name in sorted(set(listed.values()))]
    if missing := [file.name for file in files if not file.exists()]:
        raise InputRefused(
            f"{folder}: {', '.join(missing)} missing, of the {len(files)} files that {WEIGHTS_INDEX} lists; fetch the "
            "model again"
        )
    return files


def _build_from_hugging_face(described: dict[str, Any], path: Path) -> Buildable | None:
    """The model that a configuration of transformers describes; None when no ModelConfig can say it."""
    architecture = ARCHITECTURES.get(described.get("model_type", ""))
    if architecture is None:
        return None
    try:
        network_config = architecture.config_class.from_dict(described)
        try:
            config = architecture.model_config(network_config)
        except InputRefused:  # a variant that is not ours: transformers reads it
            return None
        ids = TokenIds()
        token_ids = TokenIds(
            pad=default_if_none(network_config.pad_token_id, ids.pad),
            begin=default_if_none(network_config.bos_token_id, ids.begin),
            end=default_if_none(network_config.eos_token_id, ids.end),
        )
        if max(token_ids.special) >= network_config.vocab_size:  # GPT-2's own ids beside a smaller vocabulary
            return None
        return build_model(config, vocab_size=network_config.vocab_size, token_ids=token_ids, seed=0)
    except (TypeError, ValueError) as error:  # RecipeError and InputRefused are ValueErrors too
        raise InputRefused(f"{path}: {error}") from error


def _read_foreign_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputRefused(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputRefused(f"{path}: a JSON {type(value).__name__}, expected an object")
    return value


def _load_weights(model: Buildable, *files: Path) -> None:
    """Fill every weight of `model`; names and shapes must be the same on both sides."""
    state, path = {}, files[0]
    for path in files:
        try:
            state |= safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            told = f"{path}: not a safetensors file ({error}); delete {path.parent} and make it again"
            raise Damaged(told) from error
    tied = model.network.all_tied_weights_keys
    state |= {name: state[stored] for name, stored in tied.items() if stored in state}
    expected = model.network.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        found_shape = tuple(state[name].shape) if name in state else None
        expected_shape = tuple(expected[name].shape) if name in expected else None
        if found_shape != expected_shape:
            place = path if len(files) == 1 else path.parent
            raise InputRefused(f"{place}: {name} has shape {found_shape}, {NETWORK_CONFIG} means {expected_shape}")
    model.network.load_state_dict(state)
