"""`cuvee import`: a checkpoint as its original saved it becomes a folder that transformers and this toolkit read."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from corpora.batch import Objective
from corpora.errors import Damaged, InputRefused
from corpora.storage import file_digest
from corpora.token_ids import TokenIds
from distill.exporting import is_there, tokenizer_files, verified_folder
from students.buildable import Buildable
from students.published import PUBLISHED, from_published
from students.registry import ARCHITECTURES
from students.run_folder import save_model, save_network

GOLDEN_PREFIX = "state."  # of weights that stand beside recorded answers, as in a golden file
NESTED = ("model", "state_dict", "model_state_dict")  # where a training script's checkpoint keeps the weights
PICKLES = (b"PK\x03\x04", b"\x80")  # how files of torch.save begin
# what the tokenizers of the field call their special tokens, by their role here
SPECIAL = {
    "pad": ("<pad>", "[PAD]"),
    "begin": ("<s>", "[CLS]"),
    "end": ("</s>", "[SEP]"),
    "mask": ("<mask>", "[MASK]"),
}
UNKNOWN = ("<unk>", "[UNK]")


def import_checkpoint(
    architecture: str,
    file: Path,
    out: Path,
    *,
    config: Path | None = None,
    tokenizer: Path | None = None,
    objective: Objective = "masked",
    allow_pickle: bool = False,
) -> None:
    """Write the folder `out` of a published checkpoint, and print what loads it.

    `file`: safetensors, or with `allow_pickle` what torch.save wrote, of which tensors alone are read. `config`: the
    original's sizes in JSON; left out, the file's metadata hold them under `config`. `tokenizer`: a tokenizer.json.
    Raises InputRefused for whatever does not fit, in one line; Damaged, NoRoom.
    """
    state, metadata = _read_pickle(file) if allow_pickle else _read_safetensors(file)
    sizes = _read_config(config, metadata, file)
    network = from_published(architecture, state, sizes, objective, place=str(file))
    files, token_ids = _read_tokenizer(tokenizer, network) if tokenizer else ({}, _token_ids_of(network))
    fingerprint = {
        "architecture": architecture,
        "config": sizes,
        "objective": objective,
        "weights": file_digest(file),
        "tokenizer": file_digest(tokenizer) if tokenizer else None,
    }
    if is_there(out, "import", fingerprint):
        return
    sources = PUBLISHED[architecture].architecture.source_files
    with verified_folder(
        out, network, verb="import", fingerprint=fingerprint, sources=sources, tokenizer=files
    ) as writer:
        model = _as_buildable(network, token_ids)
        if model is None:
            save_network(writer, network, sources)
        else:
            save_model(writer, model)
        writer.facts |= {
            "name": out.name,
            "views": _views(objective, architecture),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        }


def _read_safetensors(file: Path) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """The tensors of a file and its metadata."""
    with file.open("rb") as opened:
        begins = opened.read(4)
    if begins.startswith(PICKLES):
        raise InputRefused(
            f"{file}: a PyTorch pickle, expected safetensors; convert it, or add --pickle: tensors alone are read then"
        )
    try:
        with safetensors.safe_open(file, "pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}
            metadata = opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise Damaged(f"{file}: not a safetensors file ({error}); fetch or save it again") from error
    weights = {name: tensor for name, tensor in state.items() if name.startswith(GOLDEN_PREFIX)}
    return {name.removeprefix(GOLDEN_PREFIX): tensor for name, tensor in weights.items()} or state, metadata


def _read_pickle(file: Path) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """The state dict of a file of torch.save, which may stand beside an optimiser's; it has no metadata."""
    try:
        # the originals keep the arguments of their command line beside the weights: names and values, no code
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        told = " ".join(str(error).split())
        raise InputRefused(
            f"{file}: more than tensors, or no PyTorch file ({told[:300]}); expected a state dict; save one alone"
        ) from error
    except (RuntimeError, EOFError) as error:
        told = " ".join(str(error).split())
        raise Damaged(f"{file}: not a whole PyTorch file ({told[:300]}); fetch or save it again") from error
    nested = [loaded[name] for name in NESTED if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping)]
    state = nested[0] if nested else loaded
    if not isinstance(state, Mapping):
        raise InputRefused(f"{file}: holds a {type(state).__name__}, expected a state dict; save one alone")
    return state, {}


def _read_config(path: Path | None, metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    """The original's sizes, of a file or of metadata."""
    if path is None and "config" not in metadata:
        raise InputRefused(
            f"{file}: no `config` in its metadata; expected the original's sizes; add --config FILE.json"
        )
    place = path or f"{file}: config in the metadata"
    try:
        sizes = json.loads(path.read_bytes() if path else metadata["config"])
    except ValueError as error:
        raise InputRefused(f"{place}: not JSON ({error}); mend it") from error
    if not isinstance(sizes, dict):
        raise InputRefused(f"{place}: a JSON {type(sizes).__name__}, expected an object; mend it")
    return sizes


def _read_tokenizer(file: Path, network: PreTrainedModel) -> tuple[dict[str, bytes], TokenIds]:
    """The files for AutoTokenizer, and the special ids, which the network's configuration takes over."""
    data, config = file.read_bytes(), network.config
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # tokenizers raises bare Exception
        told = " ".join(str(error).split())
        raise InputRefused(f"{file}: not a tokenizer.json ({told}); save it with Hugging Face tokenizers") from error
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise InputRefused(
            f"{file}: {tokenizer.get_vocab_size()} types, the model has {config.vocab_size}; name the model's tokenizer"
        )
    named = {role: _named_token(tokenizer, names) for role, names in SPECIAL.items()}
    if missing := [f"{role} ({' or '.join(SPECIAL[role])})" for role, token in named.items() if token is None]:
        raise InputRefused(f"{file}: no special token for {', '.join(missing)}; name the model's tokenizer")
    vocabulary = tokenizer.get_vocab()
    ids = {role: vocabulary[token] for role, token in named.items() if token is not None}
    config.pad_token_id, config.bos_token_id, config.eos_token_id = ids["pad"], ids["begin"], ids["end"]
    split = json.loads(data).get("pre_tokenizer") or {}
    described = {
        # the class name that both major versions of transformers know, and what version 4 would set to false
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": split.get("add_prefix_space", False),
        "clean_up_tokenization_spaces": False,
        "pad_token": named["pad"],
        "bos_token": named["begin"],
        "eos_token": named["end"],
        "mask_token": named["mask"],
    }
    if unknown := _named_token(tokenizer, UNKNOWN):
        described["unk_token"] = unknown
    if named["begin"] == "[CLS]":  # BERT's names for the two
        described |= {"cls_token": named["begin"], "sep_token": named["end"]}
    return tokenizer_files(data, described), TokenIds(**ids)


def _named_token(tokenizer: Tokenizer, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if tokenizer.token_to_id(name) is not None), None)


def _token_ids_of(network: PreTrainedModel) -> TokenIds:
    """As the configuration says; what it leaves open is the toolkit's."""
    config, ids = network.config, asdict(TokenIds())
    found = {"pad": config.pad_token_id, "begin": config.bos_token_id, "end": config.eos_token_id}
    return TokenIds(**ids | {role: token for role, token in found.items() if token is not None})


def _as_buildable(network: PreTrainedModel, token_ids: TokenIds) -> Buildable | None:
    """The toolkit's model around a network; None where it has no language model's head."""
    if network.get_output_embeddings() is None:
        return None
    architecture, config = ARCHITECTURES[network.config.model_type], network.config
    with torch.device("meta"):
        model = architecture(architecture.model_config(config), vocab_size=config.vocab_size, token_ids=token_ids)
    model.network = network
    return model


def _views(objective: Objective, architecture: str) -> list[Objective]:
    """How it may be read, as asked for first."""
    both: list[Objective] = ["masked", "causal"] if PUBLISHED[architecture].causal_class else ["masked"]
    return sorted(both, key=lambda view: view != objective)
