"""Checkpoints of a run: weights and optimiser state, from which it goes on exactly as if it had not stopped.

A run whose model is sharded has as many files of each kind as processes: every process writes its own part and reads
it again. One manifest, written last by the first process, lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from corpora.errors import Damaged
from corpora.storage import Manifest, new_folder, read_manifest, remove_folder, write_file
from distill.distributed import Processes
from distill.sharding import is_sharded, like_shards, own_part

T = TypeVar("T")

KEPT = 2  # once two valid checkpoints exist there are never fewer
KINDS = ("model", "optimizer")
SET_ASIDE = ".damaged"


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0  # optimiser steps done
    log_length: int = 0  # bytes of the metrics log that belong to them
    words: int = 0  # words seen in them, repeats included
    extra: dict[str, Any] = field(default_factory=dict)  # JSON values of whoever else has something to remember


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, each a committed folder with the state of its model and optimiser."""

    folder: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    fingerprint: dict[str, Any]  # of the processes too: shards fit no other number of them
    processes: Processes | None = None  # that save and restore together; None: this one alone

    def save(self, progress: Progress) -> None:
        """Commit the state, then delete all but it and the newest whole checkpoint before it.

        Raises NoRoom when it does not fit; the checkpoints before it are untouched then.
        """
        newest = self.folder / f"step-{progress.step:08d}"
        if self._is_first:
            with new_folder(newest, kind="checkpoint", fingerprint=self.fingerprint) as writer:
                self._wait()  # nobody writes into a folder that still has its old manifest
                for kind in KINDS:
                    writer.write(self._file(kind), self._bytes(kind))
                for files in self._gathered(writer.files.copy())[1:]:
                    for name, listed in files.items():
                        writer.adopt(name, listed)
                writer.facts |= asdict(progress)
            self._delete_old(newest)
        elif self._is_sharded:
            self._wait()
            files: dict[str, dict[str, Any]] = {}
            for kind in KINDS:
                data = self._bytes(kind)
                files[self._file(kind)] = {"size": len(data), "digest": write_file(newest / self._file(kind), data)}
            self._gathered(files)

    def restore(self, announce: Callable[[str], None] = lambda line: None) -> Progress:
        """Go back to the newest valid checkpoint, or to the beginning when there is none.

        A damaged one is named and set aside by the first process. Raises InputRefused when the newest belongs to
        another recipe or to another number of processes.
        """
        # the first one's list: a network's file system may not show all the same at once
        for name in self._agreed([path.name for path in reversed(self._folders())])[0]:
            path = self.folder / name
            manifest, damage = self._opened(path)
            if damages := [found for found in self._agreed(damage) if found is not None]:
                announce(f"{damages[0]}; set aside as {path.name}{SET_ASIDE}, going back to the checkpoint before it")
                if self._is_first:
                    _set_aside(path)
            elif manifest is not None:  # else the run ended while this one was written
                self._restore_model(load_file(manifest.verified(self._file("model"))))
                self._restore_optimizer(load_file(manifest.verified(self._file("optimizer"))))
                return Progress(**manifest.facts)
        return Progress()

    def _opened(self, path: Path) -> tuple[Manifest | None, str | None]:
        """The manifest with this process's files verified, and what is damaged."""
        try:
            manifest = read_manifest(path)
            if manifest is not None:
                manifest.require("checkpoint", self.fingerprint)
                for kind in KINDS:
                    manifest.verified(self._file(kind))
            return manifest, None
        except Damaged as error:
            return None, str(error)

    def _bytes(self, kind: str) -> bytes:
        tensors = self.model.named_parameters() if kind == "model" else self._optimizer_tensors()
        return save({name: own_part(value.detach()).cpu().contiguous() for name, value in tensors})

    def _optimizer_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The optimiser's state as `parameter.field`: safetensors has names for tensors and nothing deeper."""
        for index, fields in self.optimizer.state_dict()["state"].items():
            for name, value in fields.items():
                yield f"{index}.{name}", value

    def _restore_model(self, weights: dict[str, Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        assert weights.keys() == parameters.keys(), "equal fingerprints mean equal models"
        with torch.no_grad():
            for name, value in weights.items():
                own_part(parameters[name]).copy_(value)

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            # moments are divided as their parameter is, a count of steps is not
            fits = like_shards(value, parameters[int(index)]) if value.ndim else value
            state.setdefault(int(index), {})[name] = fits
        # rates and decays are the recipe's
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _delete_old(self, newest: Path) -> None:
        others = [path for path in self._folders() if path != newest]
        whole = [path for path in others if _is_whole(path)]
        for path in set(others) - set(whole[-(KEPT - 1) :]):
            remove_folder(path)

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != SET_ASIDE)

    def _file(self, kind: str) -> str:
        if not self._is_sharded or self.processes is None:
            return f"{kind}.safetensors"
        return f"{kind}-{self.processes.rank + 1:05d}-of-{self.processes.world_size:05d}.safetensors"

    @property
    def _is_first(self) -> bool:
        return self.processes is None or self.processes.is_first

    @property
    def _is_sharded(self) -> bool:
        return is_sharded(self.model)

    def _wait(self) -> None:
        if self._is_sharded and self.processes is not None:
            self.processes.barrier()

    def _gathered(self, value: T) -> list[T]:
        """What each writer gives: of a model that is not sharded the first process alone."""
        return self._agreed(value) if self._is_sharded else [value]

    def _agreed(self, value: T) -> list[T]:
        return [value] if self.processes is None else self.processes.gather(value)


def _set_aside(path: Path) -> None:
    """Out of the way of the next run, and still there to be looked at."""
    aside = path.with_name(path.name + SET_ASIDE)
    remove_folder(aside)
    path.rename(aside)


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint is finished and every file has its digest (read once a process)."""
    try:
        manifest = read_manifest(path)
        return manifest is not None and all(manifest.verified(name) for name in manifest.files)
    except Damaged:
        return False
