"""The verified cache of one teacher over one stream, keyed by target position.

A cache is a folder of shards of fixed stride, one record for each position, with the head beside them. A shard is a
pure function of (teacher, stream, view, window), is committed alone with a note of its own, and is what a capture that
was interrupted resumes by; the manifest, written last, lists them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from corpora.batch import Batch, View, causal_view, masked_view
from corpora.errors import Damaged, Diverged, InputRefused, describe_differences
from corpora.prepare import Corpus
from corpora.storage import (
    FolderWriter,
    Manifest,
    canonical_json,
    digest,
    new_folder,
    read_json,
    read_manifest,
    write_json,
)
from corpora.windows import Window, plan_windows, window_batches
from students.head import Head
from students.language_model import LanguageModel
from teachers.codecs import CODECS
from teachers.config import CacheConfig
from teachers.signal import MemberSignal

CPU = torch.device("cpu")


def cached_view(config: CacheConfig, objective: str) -> View:
    """The view in which a teacher is read; for a masked one, fold 0 of the round that is cached."""
    if objective == "causal":
        return causal_view()
    return masked_view(mask_seed=config.mask_seed, fold=0, num_folds=config.num_folds, mean_span=config.mean_span)


@dataclass(frozen=True)
class CacheKey:
    """Everything that a cache depends on; `config.rows` and the machine decide no more than the rounding."""

    corpus: Corpus
    stream: str
    teacher: str  # digest of the teacher's weights
    view: View
    config: CacheConfig

    def fingerprint(self) -> dict[str, Any]:
        """For the manifest: a cache made from anything else is refused, and the differing field is named."""
        return {
            "stream": self.stream,
            "corpus": self.corpus.identity(self.stream),
            "teacher": self.teacher,
            "view": self.view.scheme(),
            "window": self.config.window,
            "codec": self.config.codec,
            "dtype": self.config.dtype,
            "shard_positions": self.config.shard_positions,
        }


def capture(
    key: CacheKey,
    load_teacher: Callable[[], LanguageModel],
    folder: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device = CPU,
    barrier: Callable[[], None] = lambda: None,
    announce: Callable[[str], None] = lambda line: None,
) -> None:
    """Make the cache, or find that it is there; each process makes every `world_size`-th shard.

    Raises InputRefused when the folder holds a cache made from other inputs, Diverged when the teacher is not finite.
    """
    found = read_manifest(folder)
    barrier()  # every process has looked before the first writes
    if found is not None:
        found.require("cache", key.fingerprint())
        return
    stream = key.corpus.streams[key.stream]
    shards = range(0, len(stream), key.config.shard_positions)
    model = load_teacher().eval().to(device)
    _require_finite_head(model.head(), folder)
    windows = plan_windows(stream, key.config.window, objective=key.view.objective)
    for number, start in enumerate(shards):
        if number % world_size == rank and not _shard_is_there(folder, number, key):
            announce(f"cache: {folder.parent.name} on {key.stream}, shard {number + 1} of {len(shards)}")
            _write_shard(folder, number, start, windows, model, key, device)
    barrier()  # every shard is there before the manifest says so
    if rank == 0:
        _commit(folder, len(shards), model.head(), key)
    barrier()


class CachedTeacher:
    """Reads a cache by position; answers batches of any view, since a record is found by the token it predicts."""

    def __init__(self, name: str, folder: Path, expected: dict[str, Any] | None = None) -> None:
        """Open a finished cache; raises InputRefused when it was made from other inputs than `expected`."""
        manifest = read_manifest(folder)
        if manifest is None:
            raise Damaged(f"{folder}: not finished; run the same command again")
        self.name = name
        self.manifest: Manifest = manifest.require("cache", manifest.fingerprint if expected is None else expected)
        self.stream: str = manifest.fingerprint["stream"]
        self._stride: int = manifest.fingerprint["shard_positions"]
        self._codec = CODECS[manifest.fingerprint["codec"]](manifest.fingerprint["dtype"])
        self._shards: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._heads: dict[torch.device, Head] = {}

    @cached_property
    def head(self) -> Head:
        """The head that turns this cache's features into logits, fp32."""
        tensors = load_file(self.manifest.verified("head.safetensors"))
        facts = self.manifest.facts["head"]
        return Head(tensors["weight"].float(), tensors.get("bias"), facts["softcap"], facts["scale"])

    def features(self, positions_N: Tensor) -> Tensor:
        """Records of the given target positions, [N, D] in the stored type; raises InputRefused for missing ones."""
        positions = positions_N.numpy()
        missing = ~self._covered(positions)
        if missing.any():
            raise InputRefused(
                f"{self.manifest.folder}: {int(missing.sum())} of {len(positions)} positions have no record, the first "
                f"is {positions[missing][0]}; cache the whole stream again"
            )
        out = np.empty((len(positions), self.manifest.facts["hidden_size"]), self._codec.stored)
        shards = positions // self._stride
        for shard in np.unique(shards):
            rows = np.flatnonzero(shards == shard)
            out[rows] = self._shard(int(shard))[0][positions[rows] - shard * self._stride]
        return self._codec.decode(out)

    def answer(self, batch: Batch, device: torch.device = CPU) -> MemberSignal:
        """What the teacher said about the batch's targets; raises InputRefused for another stream or other masks."""
        self._require_view(batch)
        features_ND = self.features(batch.target_positions_N)
        return MemberSignal(features_ND.to(device, non_blocking=True), self._head_on(device))

    def covered_positions(self) -> Tensor:
        """Every position with a record, in order; int64 [N]."""
        count = len(self.manifest.facts["shards"])
        return torch.from_numpy(
            np.concatenate([np.flatnonzero(self._shard(n)[1]) + n * self._stride for n in range(count)])
        )

    def _require_view(self, batch: Batch) -> None:
        if batch.stream != self.stream:
            raise InputRefused(f"{self.manifest.folder}: holds the stream '{self.stream}', not '{batch.stream}'")
        cached, asked = self.manifest.fingerprint["view"], batch.view.scheme()
        # another objective meets by position; the same one must have seen the same masks
        if cached["objective"] == asked["objective"] and cached != asked:
            raise InputRefused(
                f"{self.manifest.folder}: made in another view: {describe_differences(cached, asked)}; "
                "train with the cache's masks, or cache again in another run_dir"
            )

    def _head_on(self, device: torch.device) -> Head:
        """The head on a device, where it is kept: it travels once."""
        if device not in self._heads:
            weight_VD, bias_V, softcap, scale = self.head
            bias_V = None if bias_V is None else bias_V.to(device)
            self._heads[device] = Head(weight_VD.to(device), bias_V, softcap, scale)
        return self._heads[device]

    def _covered(self, positions: np.ndarray) -> np.ndarray:
        """Whether each position has a record; those outside the stream have none."""
        covered = (positions >= 0) & (positions < sum(self.manifest.facts["shards"]))
        shards = positions // self._stride
        for shard in np.unique(shards[covered]):
            rows = np.flatnonzero(covered & (shards == shard))
            covered[rows] = self._shard(int(shard))[1][positions[rows] - shard * self._stride]
        return covered

    def _shard(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self._shards:
            size = self.manifest.facts["shards"][number]
            bits = np.unpackbits(self.manifest.array(f"coverage-{number:05d}.npy"))[:size].astype(bool)
            self._shards[number] = self.manifest.array(f"features-{number:05d}.npy"), bits
        return self._shards[number]


def _write_shard(
    folder: Path,
    number: int,
    start: int,
    windows: list[Window],
    model: LanguageModel,
    key: CacheKey,
    device: torch.device,
) -> None:
    """Read every window that gives a record of the shard, in every fold, and commit what was said."""
    # a note that other inputs left must not vouch for the files that are now replaced
    _note(folder, number).unlink(missing_ok=True)
    stream = key.corpus.streams[key.stream]
    stop = min(start + key.config.shard_positions, len(stream))
    codec = CODECS[key.config.codec](key.config.dtype)
    features = np.zeros((stop - start, model.config.hidden_size), codec.stored)
    covered = np.zeros(stop - start, bool)
    chosen = [window for window in windows if window.keep_start < stop and window.keep_stop > start]
    for fold in range(key.view.num_folds):
        view = replace(key.view, fold=fold)
        for batch in window_batches(
            stream,
            chosen,
            view,
            rows=key.config.rows,
            token_ids=key.corpus.token_ids,
            vocab_size=key.corpus.vocab_size,
        ):
            with torch.inference_mode():
                features_ND = model.target_features(batch.to(device)).float().cpu()
            positions = batch.target_positions_N
            _require_finite(features_ND, positions, folder)
            here = (positions >= start) & (positions < stop)
            inside = (positions[here] - start).numpy()
            features[inside] = codec.encode(features_ND[here])
            covered[inside] = True
    writer = FolderWriter(folder)
    writer.write_array(f"features-{number:05d}.npy", features)
    writer.write_array(f"coverage-{number:05d}.npy", np.packbits(covered))
    write_json(_note(folder, number), {"key": _key_digest(key), "files": writer.files})


def _require_finite(features_ND: Tensor, positions_N: Tensor, folder: Path) -> None:
    bad = ~features_ND.isfinite().all(-1)
    if bad.any():
        raise Diverged(
            f"{folder}: {int(bad.sum())} of {len(bad)} feature vectors of the teacher are not finite, the first "
            f"predicts position {int(positions_N[bad][0])}; train the teacher again with a lower lr"
        )


def _require_finite_head(head: Head, folder: Path) -> None:
    bad = sum(int((~tensor.isfinite()).sum()) for tensor in (head.weight_VD, head.bias_V) if tensor is not None)
    if bad:
        raise Diverged(
            f"{folder}: {bad} numbers of the teacher's head are not finite; train the teacher again with a lower lr"
        )


def _commit(folder: Path, count: int, head: Head, key: CacheKey) -> None:
    stream = key.corpus.streams[key.stream]
    stride = key.config.shard_positions
    with new_folder(folder, kind="cache", fingerprint=key.fingerprint()) as writer:
        tensors = {"weight": head.weight_VD, **({} if head.bias_V is None else {"bias": head.bias_V})}
        stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        writer.write("head.safetensors", save(stored))
        writer.facts["head"] = {"softcap": head.softcap, "scale": head.scale}
        writer.facts["hidden_size"] = head.weight_VD.shape[1]
        writer.facts["shards"] = [min(stride, len(stream) - start) for start in range(0, len(stream), stride)]
        for number in range(count):
            for name, listed in read_json(_note(folder, number))["files"].items():
                writer.adopt(name, listed)


def _shard_is_there(folder: Path, number: int, key: CacheKey) -> bool:
    note = _note(folder, number)
    return note.exists() and read_json(note)["key"] == _key_digest(key)


def _note(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.json"


def _key_digest(key: CacheKey) -> str:
    return digest(canonical_json(key.fingerprint()).encode())
