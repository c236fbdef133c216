"""Checkpoints of a run: weights and optimiser state, from which it goes on exactly as if it had not stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from corpora.errors import Damaged
from corpora.storage import new_folder, read_manifest, remove_folder

KEPT = 2  # once two valid checkpoints exist there are never fewer
FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint says about the run it belongs to."""

    step: int  # optimiser steps done
    log_length: int  # bytes of the metrics log that belong to them
    words: int  # words seen in them, repeats included


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    log_length: int,
    words: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fingerprint: dict[str, Any],
) -> None:
    """Commit the state after `step` steps, then delete all but it and the newest whole one before it."""
    newest = folder / f"step-{step:08d}"
    with new_folder(newest, kind="checkpoint", fingerprint=fingerprint) as writer:
        for name, tensors in zip(FILES, (model.named_parameters(), _optimizer_tensors(optimizer)), strict=True):
            writer.write(name, save({key: value.detach().cpu().contiguous() for key, value in tensors}))
        writer.facts |= {"step": step, "log_length": log_length, "words": words}
    others = [path for path in _folders(folder) if path != newest]
    whole = [path for path in others if _is_whole(path)]
    for path in set(others) - set(whole[-(KEPT - 1) :]):
        remove_folder(path)


def load_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fingerprint: dict[str, Any],
    announce: Callable[[str], None] = lambda line: None,
) -> Resumed | None:
    """Restore the newest valid checkpoint, or return None when there is none.

    Raises InputRefused when it belongs to another recipe. Changes nothing on disk, so that every process may call it.
    """
    for path in reversed(_folders(folder)):
        try:
            manifest = read_manifest(path)
            if manifest is None:  # the run ended while this one was written
                continue
            manifest.require("checkpoint", fingerprint)
            model_file, optimizer_file = (manifest.verified(name) for name in FILES)
        except Damaged as error:
            announce(f"{error}; going back to the checkpoint before it")
            continue
        _restore(model_file, optimizer_file, model, optimizer)
        return Resumed(manifest.facts["step"], manifest.facts["log_length"], manifest.facts["words"])
    return None


def _restore(model_file: Path, optimizer_file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    weights = load_file(model_file)
    parameters = dict(model.named_parameters())
    if weights.keys() != parameters.keys():
        raise Damaged(f"{model_file}: holds other parameters than the model; delete {model_file.parent.parent}")
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(optimizer_file).items():
        index, field = name.split(".", 1)
        state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for index, fields in optimizer.state_dict()["state"].items():
        for field, value in fields.items():
            yield f"{index}.{field}", value


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint is finished and every file has its digest (read once a process)."""
    try:
        manifest = read_manifest(path)
        return manifest is not None and all(manifest.verified(name) for name in FILES)
    except Damaged:
        return False


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
