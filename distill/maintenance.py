"""Checking finished folders and mending caches: what `cuvee verify` and `cuvee repair` do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from corpora.errors import CuveeError, Damaged, InputRefused
from corpora.split import STREAMS
from corpora.storage import MANIFEST, Manifest, locked, read_manifest
from distill.project import Project
from distill.recipe import load_recipe
from teachers.inspection import Inspection, damaged_files, repair_cache, verify_cache

RECIPE = "recipe.yaml"  # as `stages` writes it into a run_dir


def verify(path: Path, *, spots: int = 0) -> None:
    """Read every file of every finished folder at or below `path`, and print a line for each cache.

    With `spots`, so many positions of each cache are recomputed by its teacher. Raises Damaged with a line for each
    damaged file, InputRefused when there is nothing to check.
    """
    folders = sorted(file.parent for file in path.rglob(MANIFEST))
    if not folders:
        raise InputRefused(f"{path}: no finished folder here; name a cache, a run folder or a run_dir")
    errors: list[CuveeError] = []
    files = 0
    for folder in folders:
        try:
            files += _verify_folder(folder, spots)
        except CuveeError as error:  # the others are looked at all the same
            errors.append(error)
    if errors:
        worst = next((error for error in errors if isinstance(error, Damaged)), errors[0])
        raise type(worst)("\n".join(map(str, errors)))
    print(f"{path}: {files:,} files in {len(folders):,} folders are whole", flush=True)


def repair(path: Path) -> None:
    """Make again what is damaged in the caches at or below `path`, and print it.

    Raises InputRefused when no cache of a project lies there.
    """
    project = _project_of(path)
    caches = [
        (name, stream)
        for name, stream in _caches(project)
        if project.cache_folder(name, stream).resolve().is_relative_to(path.resolve())
    ]
    if not caches:
        raise InputRefused(
            f"{path}: no cache of {project.folder} lies here, and other folders are not repaired; delete what "
            "`cuvee verify` names and run the recipe again"
        )
    with locked(project.folder):
        for name, stream in caches:
            folder = project.cache_folder(name, stream)
            remade = repair_cache(
                project.cache_key(name, stream),
                partial(project.load_teacher, name),
                folder,
                device=_device(),
                announce=partial(print, flush=True),
            )
            for file in remade:
                words = {True: "the same bytes", False: "other bytes than before", None: "nothing to compare it with"}
                print(f"{folder / file.name}: made again, {words[file.as_before]}", flush=True)
            if not remade:
                print(f"{folder}: whole", flush=True)


def _verify_folder(folder: Path, spots: int) -> int:
    """Check one folder and print a cache's line; returns the number of its files."""
    manifest = read_manifest(folder)
    if manifest is None:  # a checkpoint that a run has replaced meanwhile
        return 0
    if manifest.kind == "cache" and spots:
        found = _spot_check(folder, spots)
        difference = f"{found.spots:,} spots, largest difference {found.largest:.2g}, mean {found.mean:.2g}"
        print(f"{folder}: {_size(manifest)}; {difference} ({found.unit})", flush=True)
        return found.files
    if lines := damaged_files(manifest):
        raise Damaged("\n".join(lines))
    if manifest.kind == "cache":
        print(f"{folder}: {_size(manifest)}", flush=True)
    return len(manifest.files)


def _size(manifest: Manifest) -> str:
    return f"{manifest.facts['positions']:,} positions, {len(manifest.files):,} files"


def _spot_check(folder: Path, spots: int) -> Inspection:
    project = _project_of(folder)
    for name, stream in _caches(project):
        if project.cache_folder(name, stream).resolve() == folder.resolve():
            load_teacher = partial(project.load_teacher, name)
            return verify_cache(project.cache_key(name, stream), load_teacher, folder, spots, device=_device())
    raise InputRefused(
        f"{folder}: no teacher of {project.folder / RECIPE} has its cache here, so nothing can be recomputed; "
        "verify it without --spot"
    )


def _project_of(path: Path) -> Project:
    """The project that `path` belongs to, wherever its run_dir lies now."""
    for folder in (path, *path.resolve().parents):
        if (folder / RECIPE).is_file():
            return Project(replace(load_recipe(folder / RECIPE), run_dir=str(folder)))
    raise InputRefused(
        f"{path}: neither here nor above is a {RECIPE} that says what it was made from; name something in a run_dir"
    )


def _caches(project: Project) -> Iterator[tuple[str, str]]:
    """Teacher and stream of every cache that was begun."""
    for name in project.recipe.teachers:
        for stream in STREAMS:
            if project.cache_folder(name, stream).exists():
                yield name, stream


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
