"""Makes a cache: reads a teacher over a stream, shard by shard, and goes on where an earlier capture stopped.

A shard is a pure function of what its note names: the cache's fingerprint, and the windows and tokens that it reads. It
is committed alone; the manifest, written last, lists them all. So an interrupted capture resumes by whole shards, and
the cache of a stream that grew keeps all shards that read nothing new. Axes: N target rows, D features.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from corpora.batch import View
from corpora.errors import Damaged, Diverged, InputRefused
from corpora.storage import (
    FolderWriter,
    Manifest,
    canonical_json,
    digest,
    new_folder,
    read_json,
    read_manifest,
    remove_manifest,
    write_json,
)
from corpora.windows import Window, plan_windows, window_batches
from students.head import Head
from students.language_model import LanguageModel
from teachers.cache import CPU, CacheKey
from teachers.codecs.said import Said
from teachers.layout import HEAD, coverage_file, note_file, places, records_file, shard_bounds


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
    heed: Callable[[str], None] = lambda place: None,
) -> None:
    """Make the cache, or find that it is there; each process makes every `world_size`-th shard.

    A finished cache over the beginning of the stream is continued. `heed` is called before each shard, and may raise
    to stop: the shards that are there are found again. Raises InputRefused when the folder holds a cache
    made from other inputs or the teacher has another vocabulary, Diverged when the teacher is not finite.
    """
    found = read_manifest(folder)
    grows = found is not None and _is_beginning(found, key)
    barrier()  # every process has looked before the first writes
    if found is not None and not grows:
        return
    if grows:
        if rank == 0:
            announce(f"cache: {folder.parent.name} on {key.stream} follows the stream, which grew")
            remove_manifest(folder)
        barrier()  # nothing that the manifest lists is replaced while it says that the cache is whole
    model = open_teacher(key, load_teacher, folder, device)
    shards = Shards(folder, key)
    for number in range(len(shards)):
        if number % world_size == rank and not shards.noted(number):
            heed(f"{folder}: before shard {number + 1} of {len(shards)}")
            announce(f"cache: {folder.parent.name} on {key.stream}, shard {number + 1} of {len(shards)}")
            _write_shard(shards, number, model, device)
    barrier()  # every shard is there before the manifest says so
    if rank == 0:
        _commit(shards, model.head())
    barrier()


def open_teacher(
    key: CacheKey, load_teacher: Callable[[], LanguageModel], folder: Path, device: torch.device
) -> LanguageModel:
    """The teacher on a device, ready to be listened to; raises InputRefused or Diverged when its head is not fit."""
    model = load_teacher().eval().to(device)
    head = model.head()
    if len(head.weight_VD) != key.corpus.vocab_size:
        raise InputRefused(
            f"{folder}: the teacher's head has {len(head.weight_VD)} types, the corpus's tokenizer has "
            f"{key.corpus.vocab_size}; train both with the same tokenizer"
        )
    bad = sum(int((~tensor.isfinite()).sum()) for tensor in (head.weight_VD, head.bias_V) if tensor is not None)
    if bad:
        raise Diverged(
            f"{folder}: {bad} numbers of the teacher's head are not finite; train the teacher again with a lower lr"
        )
    return model


def listen(
    key: CacheKey, model: LanguageModel, windows: Iterable[Window], view: View, device: torch.device
) -> Iterator[Said]:
    """What a teacher says about the targets of some windows and one fold, a batch at a time, on the device."""
    head = model.head()
    batches = window_batches(
        key.corpus.streams[key.stream],
        list(windows),
        view,
        rows=key.config.rows,
        token_ids=key.corpus.token_ids,
        vocab_size=key.corpus.vocab_size,
    )
    bf16 = key.config.precision == "bf16"
    for batch in batches:
        there = batch.to(device)
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            features_ND = model.target_features(there).float()
        targets_N = there.targets_BT[there.has_target_BT]
        yield Said(features_ND, head, targets_N, batch.target_positions_N.numpy())


@dataclass(frozen=True)
class Shards:
    """The shards of a cache, finished or not: what each reads, and the note that vouches for its files."""

    folder: Path
    key: CacheKey

    def __len__(self) -> int:
        return len(self.bounds)

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """The positions [start, stop) of each."""
        return shard_bounds(len(self.key.corpus.streams[self.key.stream]), self.key.config.shard_positions)

    @cached_property
    def _windows(self) -> list[Window]:
        stream = self.key.corpus.streams[self.key.stream]
        return plan_windows(stream, self.key.config.window, objective=self.key.view.objective)

    def windows(self, number: int) -> list[Window]:
        """The windows that give records of a shard."""
        start, stop = self.bounds[number]
        return self._windows[self._window_of(start) : self._window_of(stop - 1) + 1]

    def windows_at(self, positions_N: np.ndarray) -> list[Window]:
        """The windows that give the records of some positions, each once, in order."""
        return [self._windows[place] for place in sorted({self._window_of(int(position)) for position in positions_N})]

    def _window_of(self, position: int) -> int:
        return bisect_right(self._windows, position, key=lambda window: window.keep_start) - 1

    def files(self, number: int) -> list[str]:
        """Names of a shard's files."""
        return [*(records_file(round, number) for round in range(len(self.key.rounds))), coverage_file(number)]

    def noted(self, number: int) -> dict[str, dict[str, Any]]:
        """The files of a finished shard, with size and digest; none when it must be made."""
        note = self.folder / note_file(number)
        value = read_json(note) if note.exists() else None
        if not isinstance(value, dict) or value.get("key") != self._key(number):
            return {}
        sizes = {name: _size(self.folder / name) for name in value["files"]}
        whole = all(sizes[name] == listed["size"] for name, listed in value["files"].items())
        return value["files"] if whole else {}

    def vouch(self, number: int, files: dict[str, dict[str, Any]]) -> None:
        """Commit the note of a shard whose files are there."""
        write_json(self.folder / note_file(number), {"key": self._key(number), "files": files})

    def forget(self, number: int) -> None:
        """Remove a shard's note: nothing vouches for its files any more."""
        (self.folder / note_file(number)).unlink(missing_ok=True)

    def _key(self, number: int) -> str:
        """Digest of all that the bytes of a shard depend on; what else there is in the stream does not matter."""
        windows = self.windows(number)
        read = [(window.start, window.stop, window.keep_start, window.keep_stop) for window in windows]
        # the last causal target may stand just after its window
        last = max(windows[-1].stop, windows[-1].keep_stop)
        tokens = self.key.corpus.streams[self.key.stream].tokens(windows[0].start, last)
        fingerprint = self.key.fingerprint()
        fingerprint["corpus"] = {name: value for name, value in fingerprint["corpus"].items() if name != "tokens"}
        inputs = digest(np.array(read, np.int64).tobytes() + tokens.tobytes())
        return digest(canonical_json({"cache": fingerprint, "inputs": inputs}).encode())


def _is_beginning(found: Manifest, key: CacheKey) -> bool:
    """Whether a finished cache is of a stream that has grown since; raises InputRefused when anything else differs."""
    expected = key.fingerprint()
    stream = key.corpus.streams[key.stream]
    if found.kind == "cache" and "positions" in found.facts and len(stream) > found.facts["positions"]:
        before = {"tokens": stream.prefix_digest(found.facts["positions"])}
        if found.fingerprint["corpus"]["tokens"] == before["tokens"]:
            found.require("cache", expected | {"corpus": expected["corpus"] | before})
            return True
    found.require("cache", expected)
    return False


def _write_shard(shards: Shards, number: int, model: LanguageModel, device: torch.device) -> None:
    """Read every window that gives a record of the shard, in every fold of every round, and commit what was said."""
    # a note that other inputs left must not vouch for the files that are now replaced
    shards.forget(number)
    key, (start, stop) = shards.key, shards.bounds[number]
    head, windows = model.head(), shards.windows(number)
    codec = key.codec(head.weight_VD.shape[1])
    writer = FolderWriter(shards.folder)
    covered = np.zeros((len(key.rounds), stop - start), bool)
    for round, view in enumerate(key.rounds):
        records = np.zeros(stop - start, codec.record)
        places_of_shard = places(start, stop, view)
        for fold in range(view.num_folds):
            for heard in listen(key, model, windows, replace(view, fold=fold), device):
                _require_finite(heard, shards.folder)
                said = heard.at(np.flatnonzero((heard.positions_N >= start) & (heard.positions_N < stop)))
                inside_N = said.positions_N - start
                with torch.inference_mode():
                    records[places_of_shard[inside_N]] = codec.encode(said, seed=key.draw_seed(round))
                covered[round, inside_N] = True
        writer.write_array(records_file(round, number), records)
    assert (covered == covered[0]).all(), "every round asks about every target once"
    writer.write_array(coverage_file(number), np.packbits(covered[0]))
    shards.vouch(number, writer.files)


def _require_finite(said: Said, folder: Path) -> None:
    bad_N = (~said.features_ND.isfinite().all(-1)).cpu().numpy()
    if bad_N.any():
        raise Diverged(
            f"{folder}: {int(bad_N.sum())} of {len(bad_N)} feature vectors of the teacher are not finite, the first "
            f"predicts position {said.positions_N[bad_N][0]}; train the teacher again with a lower lr"
        )


def _commit(shards: Shards, head: Head) -> None:
    key = shards.key
    hidden_size = head.weight_VD.shape[1]
    with new_folder(shards.folder, kind="cache", fingerprint=key.fingerprint()) as writer:
        if key.codec(hidden_size).needs_head:
            tensors = {"weight": head.weight_VD, **({} if head.bias_V is None else {"bias": head.bias_V})}
            stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            described = {
                "softcap": head.softcap,
                "scale": head.scale,
                "vocab_size": len(head.weight_VD),
                "tokenizer": key.corpus.tokenizer.digest,
            }
            # under one name: safetensors writes several in any order
            writer.write(HEAD, save(stored, metadata={"head": canonical_json(described)}))
        writer.facts |= {
            "hidden_size": hidden_size,
            "vocab_size": key.corpus.vocab_size,
            "positions": len(key.corpus.streams[key.stream]),
        }
        for number in range(len(shards)):
            files = shards.noted(number)
            if not files:
                raise Damaged(f"{shards.folder}: shard {number + 1} was not finished; run the same command again")
            for name, listed in files.items():
                writer.adopt(name, listed)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
