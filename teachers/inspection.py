"""Whether a cache still says what its teacher says, and making again what is damaged.

Digests find every byte that changed; recomputing random positions finds what digests cannot, such as a library or a
machine that computes something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corpora.errors import Damaged
from corpora.masking import folds
from corpora.storage import MANIFEST, Manifest, found_instead, read_manifest, remove_manifest
from students.language_model import LanguageModel
from teachers.cache import CPU, CachedTeacher, CacheKey
from teachers.capture import Shards, capture, listen, open_teacher
from teachers.layout import HEAD


@dataclass(frozen=True)
class Inspection:
    """What was found in a cache whose files are all whole."""

    positions: int  # that have a record
    files: int
    spots: int  # positions that were recomputed
    largest: float | None  # difference of a spot, in any round; None without spots
    mean: float | None
    unit: str  # of the differences


def damaged_files(manifest: Manifest) -> list[str]:
    """A line for each listed file that is missing or not what was written; every file is read now."""
    return [line for name in manifest.files if (line := manifest.damage(name)) is not None]


def verify_cache(
    key: CacheKey,
    load_teacher: Callable[[], LanguageModel],
    folder: Path,
    spots: int,
    seed: int = 0,
    device: torch.device = CPU,
) -> Inspection:
    """Check every file of a cache, then so many random positions against the live teacher, in every round.

    Raises Damaged with a line for each damaged file, InputRefused when the cache was made from other inputs.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise Damaged(f"{folder}: not finished; run the same command again")
    manifest.require("cache", key.fingerprint())
    if lines := damaged_files(manifest):
        raise Damaged("\n".join(lines))
    cached = CachedTeacher(folder.parent.name, folder, key.fingerprint(), config=key.config)
    covered_N = cached.covered_positions().numpy()
    chosen = np.random.default_rng(seed).choice(len(covered_N), min(spots, len(covered_N)), replace=False)
    positions_N = np.sort(covered_N[chosen])
    differences = _differences(key, cached, positions_N, load_teacher, device) if spots else np.empty(0)
    return Inspection(
        positions=len(covered_N),
        files=len(manifest.files),
        spots=len(positions_N),
        largest=float(differences.max()) if differences.size else None,
        mean=float(differences.mean()) if differences.size else None,
        unit=cached.codec.difference_unit,
    )


@dataclass(frozen=True)
class Remade:
    """A file that was made again."""

    name: str
    as_before: bool | None  # whether it has the bytes that it once had; None when nothing says which these were


def repair_cache(
    key: CacheKey,
    load_teacher: Callable[[], LanguageModel],
    folder: Path,
    *,
    device: torch.device = CPU,
    announce: Callable[[str], None] = lambda line: None,
) -> list[Remade]:
    """Make again the shards with a damaged or missing file, and the head and manifest where they are; leave the rest.

    A cache that was not finished is finished. Raises InputRefused when it was made from other inputs.
    """
    shards, manifest = Shards(folder, key), _whole_manifest(folder)
    if manifest is not None:
        manifest.require("cache", key.fingerprint())
    before: dict[str, dict[str, Any]] = {} if manifest is None else dict(manifest.files)
    damaged = [
        name for name in (MANIFEST, HEAD) if manifest is None or (name in before and _is_bad(folder, name, before))
    ]
    for number in range(len(shards)):
        noted = _readable_note(shards, number)
        listed = noted if manifest is None else {name: before[name] for name in shards.files(number)}
        before |= listed
        if not listed or any(_is_bad(folder, name, listed) for name in listed):
            shards.forget(number)
            damaged += shards.files(number)
        elif noted != listed:  # the files are those of the manifest: only their note was lost
            shards.vouch(number, listed)
    if not damaged:
        return []
    remove_manifest(folder)
    capture(key, load_teacher, folder, device=device, announce=announce)
    finished = read_manifest(folder)
    assert finished is not None, "it has just been committed"
    after = finished.files
    return [
        Remade(name, after[name] == before[name] if name in before else None)
        for name in damaged
        if name in after or name == MANIFEST
    ]


def _differences(
    key: CacheKey,
    cached: CachedTeacher,
    positions_N: np.ndarray,
    load_teacher: Callable[[], LanguageModel],
    device: torch.device,
) -> np.ndarray:
    """How far each position's record is from what the teacher says now, round by round."""
    model = open_teacher(key, load_teacher, cached.manifest.folder, device)
    shards = Shards(cached.manifest.folder, key)
    found = []
    for round, view in enumerate(cached.rounds):
        folds_N = np.array([folds(position, position + 1, view)[0] for position in positions_N.tolist()])
        for fold in np.unique(folds_N).tolist():
            asked = positions_N[folds_N == fold]
            windows = shards.windows_at(asked)
            for heard in listen(key, model, windows, replace(view, fold=fold), device):
                said = heard.at(np.flatnonzero(np.isin(heard.positions_N, asked)))
                with torch.inference_mode():
                    records_N = cached.records(said.positions_N, round)
                    found.append(cached.codec.differences(records_N, said, seed=key.draw_seed(round)))
    return np.concatenate(found)


def _whole_manifest(folder: Path) -> Manifest | None:
    """The manifest, or None when it is missing or damaged: then the notes of the shards say what there was."""
    try:
        return read_manifest(folder)
    except Damaged:
        return None


def _readable_note(shards: Shards, number: int) -> dict[str, dict[str, Any]]:
    """The files that a shard's note vouches for; none when it is damaged."""
    try:
        return shards.noted(number)
    except Damaged:
        return {}


def _is_bad(folder: Path, name: str, listed: dict[str, dict[str, Any]]) -> bool:
    return found_instead(folder / name, listed[name]) is not None
