"""A submission's manifest: digests of model, data and items, words, epochs, teachers, and the rules' verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.submission.layout import Task, Year
from benchmarks.submission.rules import auxiliary_verdict, limits
from benchmarks.submission.submitted_run import Answers, Checkpoint, SubmittedRun
from corpora.errors import Damaged, InputRefused
from corpora.storage import MANIFEST, Manifest, canonical_json, digest, file_digest, read_manifest

KIND = "submission"
LOCK = ".lock"  # of the writer; no part of what is handed in


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model's folder by name, verified, and their digests."""

    paths: Mapping[str, Path]
    digests: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Of all its files."""
        return _json_digest(dict(self.digests))


def model_files(folder: Path) -> ModelFiles:
    """The files of a model: those that a run folder lists, with its manifest, or all of a folder of transformers.

    Raises Damaged for a listed file that fails its digest.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        paths = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."}
        return ModelFiles(paths, {name: file_digest(path) for name, path in paths.items()})
    # the manifest comes last, as it does when a folder is written
    paths = {name: manifest.verified(name) for name in manifest.files} | {MANIFEST: folder / MANIFEST}
    digests = {name: listed["digest"] for name, listed in manifest.files.items()}
    return ModelFiles(paths, digests | {MANIFEST: file_digest(folder / MANIFEST)})


def submission_fingerprint(
    run: SubmittedRun, answers: Answers, year: Year, models: Mapping[str, ModelFiles]
) -> dict[str, Any]:
    """Every input that affects the bytes of a submission; `models` by revision."""
    return {
        "run": described_run(run),
        "year": _json_digest(asdict(year)),
        "models": {name: model.digest for name, model in models.items()},
        "predictions": {
            "full": _json_digest(answers.full),
            "fast": _json_digest(answers.fast),
            "fast_scores": _json_digest(answers.fast_scores),
        },
        "items": _item_digests(answers),
    }


def submission_facts(
    run: SubmittedRun, answers: Answers, year: Year, models: Mapping[str, ModelFiles]
) -> dict[str, Any]:
    """What a reader of the submission wants to know, with the source of every rule that was applied."""
    track = year.tracks[run.track]
    return {
        **described_run(run),
        "models": {
            name: {"words_seen": _words(run, name), "digest": model.digest, "files": dict(model.digests)}
            for name, model in models.items()
        },
        "items": _item_digests(answers) or "not given: choices were not looked up",
        "limits": {name: {"found": found, **asdict(limit)} for name, (found, limit) in limits(run, track).items()},
        "auxiliary_models": asdict(auxiliary_verdict(run, year)),
        "table": {
            "source": year.source,
            "verified": year.verified,
            "not_counted": sorted(name for name, task in year.full.items() if _uncounted(task, answers, name)),
        },
        "notes": list(year.notes),
    }


def read_submission(folder: Path) -> Manifest:
    """The manifest of a written submission, after every file was read and compared with it.

    Raises InputRefused when the folder holds no finished submission, Damaged with one line for each file that is
    missing, edited or not listed.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.kind != KIND:
        found = f"a {manifest.kind}" if manifest else "nothing finished"
        raise InputRefused(f"{folder}: {found}; expected a submission; name its folder, or write it again")
    damaged = [damage for name in manifest.files if (damage := manifest.damage(name))]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    unlisted = sorted(there - set(manifest.files) - {MANIFEST, LOCK})
    damaged += [
        f"{folder / name}: the manifest does not list it; expected no other file; remove it" for name in unlisted
    ]
    if damaged:
        raise Damaged("\n".join(damaged))
    return manifest


def described_run(run: SubmittedRun) -> dict[str, Any]:
    """The run in plain values, without the places of its folders."""
    described = asdict(run)
    del described["model"], described["checkpoints"]
    return described


def _words(run: SubmittedRun, revision: str) -> int:
    kept: Checkpoint | None = run.checkpoints.get(revision)
    return kept.words if kept else run.words_seen


def _item_digests(answers: Answers) -> dict[str, str]:
    """Of the texts that could be chosen, by task."""
    fast = {f"fast.{name}": texts for name, texts in answers.fast_items.items()}
    return {name: _json_digest(texts) for name, texts in {**answers.items, **fast}.items()}


def _uncounted(task: Task, answers: Answers, name: str) -> bool:
    """Whether nothing says how many predictions a task should have."""
    return name not in answers.items and task.counts.counts is not None and None in task.counts.counts.values()


def _json_digest(value: Any) -> str:
    return digest(canonical_json(value).encode("utf-8", "surrogatepass"))
