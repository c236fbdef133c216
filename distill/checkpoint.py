"""Checkpoints of a run: weights and optimiser state, from which it goes on exactly as if it had not stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
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
class Progress:
    """How far a run has come."""

    step: int = 0  # optimiser steps done
    log_length: int = 0  # bytes of the metrics log that belong to them
    words: int = 0  # words seen in them, repeats included


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, each a committed folder with the state of its model and optimiser."""

    folder: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    fingerprint: dict[str, Any]

    def save(self, progress: Progress) -> None:
        """Commit the state, then delete all but it and the newest whole checkpoint before it."""
        newest = self.folder / f"step-{progress.step:08d}"
        with new_folder(newest, kind="checkpoint", fingerprint=self.fingerprint) as writer:
            for name, tensors in zip(FILES, (self.model.named_parameters(), self._optimizer_tensors()), strict=True):
                writer.write(name, save({key: value.detach().cpu().contiguous() for key, value in tensors}))
            writer.facts |= asdict(progress)
        others = [path for path in self._folders() if path != newest]
        whole = [path for path in others if _is_whole(path)]
        for path in set(others) - set(whole[-(KEPT - 1) :]):
            remove_folder(path)

    def restore(self, announce: Callable[[str], None] = lambda line: None) -> Progress:
        """Go back to the newest valid checkpoint, or to the beginning when there is none.

        Raises InputRefused when it belongs to another recipe. Changes nothing on disk, so that every process may call
        it.
        """
        for path in reversed(self._folders()):
            try:
                manifest = read_manifest(path)
                if manifest is None:  # the run ended while this one was written
                    continue
                manifest.require("checkpoint", self.fingerprint)
                model_file, optimizer_file = (manifest.verified(name) for name in FILES)
            except Damaged as error:
                announce(f"{error}; going back to the checkpoint before it")
                continue
            _restore_model(self.model, model_file)
            _restore_optimizer(self.optimizer, optimizer_file)
            return Progress(**manifest.facts)
        return Progress()

    def _optimizer_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The optimiser's state as `parameter.field`: safetensors has names for tensors and nothing deeper."""
        for index, fields in self.optimizer.state_dict()["state"].items():
            for field, value in fields.items():
                yield f"{index}.{field}", value

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _restore_model(model: nn.Module, path: Path) -> None:
    weights, parameters = load_file(path), dict(model.named_parameters())
    assert weights.keys() == parameters.keys(), "equal fingerprints mean equal models"
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def _restore_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(path).items():
        index, field = name.split(".", 1)
        state.setdefault(int(index), {})[field] = value
    # rates and decays are the recipe's
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint is finished and every file has its digest (read once a process)."""
    try:
        manifest = read_manifest(path)
        return manifest is not None and all(manifest.verified(name) for name in FILES)
    except Damaged:
        return False
