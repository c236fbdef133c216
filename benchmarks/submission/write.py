"""The folder that is handed in: predictions in the year's own layout, checkpoints, and the manifest last.

OUT/results/NAME/REVISION/...   one file for each task, as the pipelines of 2025 and 2026 write them
OUT/results/NAME/all_full_preds_and_fast_scores_BACKEND.json   what is uploaded in these years
OUT/NAME_textonly_predictions.json.gz   what is uploaded in 2024
OUT/all_predictions.json                what is uploaded in 2023
OUT/checkpoints/main, chck_1M, ...      models, each the content of a branch on the hub
OUT/manifest.json
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.submission.checks import require_submittable
from benchmarks.submission.layout import Task, Year, read_year, results_folder, task_file, wanted_checkpoints
from benchmarks.submission.manifest import (
    KIND,
    LOCK,
    ModelFiles,
    described_run,
    model_files,
    read_submission,
    submission_facts,
    submission_fingerprint,
)
from benchmarks.submission.submitted_run import Answers, Predictions, SubmittedRun
from corpora.errors import InputRefused, describe_differences
from corpora.storage import Manifest, canonical_json, locked, new_folder, read_manifest

# what the surprisals of a pipeline that gives no context say instead of it
BEGIN_ALONE = "BOS_ONLY"

# a file's content, made when its turn comes: the predictions of all checkpoints need not be text at the same time
Contents = Callable[[], bytes | memoryview]


def write_submission(run: SubmittedRun, answers: Answers, out: Path, *, year: Year | None = None) -> Manifest:
    """Check everything, then write the submission to the folder `out`; returns its manifest.

    A folder that holds the same submission already is verified and left as it is. `year` replaces the year's file.
    Raises InputRefused with all problems, one on each line; when `out` holds another submission or other files; and
    NoRoom. Nothing of it is left behind then.
    """
    year = year or read_year(run.year)
    require_submittable(run, answers, year)
    models = _models(run, year)
    planned = {**PREDICTION_FILES[year.layout](run, answers, year), **_checkpoint_files(models)}
    fingerprint = submission_fingerprint(run, answers, year, models)
    with locked(out):
        found = read_manifest(out)
        if found is not None:
            found.require(KIND, fingerprint)
            return read_submission(out)
        _require_ours(out, planned.__contains__)
        with new_folder(out, kind=KIND, fingerprint=fingerprint) as writer:
            for name, contents in planned.items():
                writer.write(name, contents())
            writer.facts |= submission_facts(run, answers, year, models)
    return read_submission(out)


def require_free(out: Path, run: SubmittedRun) -> None:
    """Raise InputRefused for a place that will not take the submission of a run, as far as its scores do not matter."""
    if out.exists() and not out.is_dir():
        raise InputRefused(f"{out}: a file stands where a folder is needed; expected none; move it away")
    manifest = read_manifest(out)
    if manifest is None:
        _require_ours(out, lambda name: name.removeprefix(".").startswith(_beginnings(run)))
        return
    if manifest.kind != KIND:
        raise InputRefused(f"{out}: holds a {manifest.kind}; expected an empty folder; name another one with --out")
    there, here = manifest.fingerprint["run"], json.loads(canonical_json(described_run(run)))
    if there != here:
        raise InputRefused(
            f"{out}: holds another submission: {describe_differences(there, here)}; expected this one, or an empty "
            "folder; name another one with --out"
        )


def collated(run: SubmittedRun, answers: Answers, year: Year) -> dict[str, Any]:
    """The one value that the years from 2024 on take: the content of all files of the main revision by task."""
    value: dict[str, Any] = {}
    for name, task in year.full.items():
        content = _task_content(task, answers.full[name], run)
        # several tasks share a key: those of GLUE
        value[task.key] = {**value.get(task.key, {}), **content}
    return value


def collated_fast_scores(run: SubmittedRun, answers: Answers, year: Year) -> dict[str, Any]:
    """The scores of the checkpoints by task: a list with one object for each, in the order of the words seen."""
    names = wanted_checkpoints(year.tracks[run.track], run.words_seen)
    return {task.key: [dict(answers.fast_scores[name][task.key]) for name in names] for task in year.fast.values()}


def _folders(run: SubmittedRun, answers: Answers, year: Year) -> dict[str, Contents]:
    """2025 and 2026: a tree of one file for each task and revision, and the collated file."""
    files = dict(_task_files(run, answers.full, year.full, "main"))
    for name in wanted_checkpoints(year.tracks[run.track], run.words_seen):
        files |= _task_files(run, answers.fast[name], year.fast, name)
    results = results_folder(run)
    fast_scores = {"fast_eval_results": collated_fast_scores(run, answers, year)}
    name = f"{results}/all_full_preds_and_fast_scores_{run.backend}.json"
    files[name] = lambda: _json(collated(run, answers, year) | fast_scores)
    if year.scorer_file is not None:
        name = f"{results}/{year.scorer_file.format(backend=run.backend)}"
        files[name] = lambda: _json(collated(run, answers, year))
    return files


def _task_files(
    run: SubmittedRun, predictions: Predictions, tasks: Mapping[str, Task], revision: str
) -> Iterator[tuple[str, Contents]]:
    for name, task in tasks.items():
        yield task_file(task, run, revision), partial(_task_json, task, predictions[name], run)


def _gzip(run: SubmittedRun, answers: Answers, year: Year) -> dict[str, Contents]:
    """2024: the collated file alone, compressed; without a time in it, equal predictions give equal bytes."""
    return {
        f"{run.name}_textonly_predictions.json.gz": lambda: gzip.compress(_json(collated(run, answers, year)), mtime=0)
    }


def _lines(run: SubmittedRun, answers: Answers, year: Year) -> dict[str, Contents]:
    """2023: one object on each line for each UID, every prediction as text."""

    def lines() -> Iterator[bytes]:
        for name, task in year.full.items():
            for uid, rows in answers.full[name].items():
                texts = [{"id": row["id"], "pred": str(row["pred"])} for row in rows]
                yield _json({"task": task.key, "sub_task": uid, "predictions": texts}) + b"\n"

    return {"all_predictions.json": lambda: b"".join(lines())}


PREDICTION_FILES: dict[str, Callable[[SubmittedRun, Answers, Year], dict[str, Contents]]] = {
    "folders": _folders,
    "gzip": _gzip,
    "lines": _lines,
}


def _task_json(task: Task, by_uid: Mapping[str, Any], run: SubmittedRun) -> bytes:
    return _json(_task_content(task, by_uid, run))


def _task_content(task: Task, by_uid: Mapping[str, Any], run: SubmittedRun) -> dict[str, Any]:
    """What a task's file holds."""
    if task.kind == "score":
        [[row]] = by_uid.values()
        return dict(row)
    if task.kind == "surprisal":
        in_order = sorted(by_uid, key=lambda name: run.checkpoints[name].words)
        rows = [dict(row) for name in in_order for row in by_uid[name]]
        metadata = {
            "model_name": run.name,
            "use_bos_only": all(row["context"] == BEGIN_ALONE for row in rows),
            "total_steps": len(by_uid),
            "completed_steps": len(by_uid),
        }
        return {"metadata": metadata, "results": rows}
    return {uid: {"predictions": [dict(row) for row in rows]} for uid, rows in by_uid.items()}


def _json(value: Any) -> bytes:
    """JSON as the pipelines write it: ASCII, so that a reader in any locale reads the same. None becomes null.

    The years' scorers turn null into a missing number, as they do with the NaN that a pipeline writes in its place.
    """
    return json.dumps(value, allow_nan=False).encode("ascii")


def _models(run: SubmittedRun, year: Year) -> dict[str, ModelFiles]:
    """The model and the checkpoints of the track, by revision."""
    names = wanted_checkpoints(year.tracks[run.track], run.words_seen)
    folders = {"main": run.model} | {name: run.checkpoints[name].folder for name in names}
    return {name: model_files(folder) for name, folder in folders.items()}


def _checkpoint_files(models: Mapping[str, ModelFiles]) -> dict[str, Contents]:
    return {
        f"checkpoints/{revision}/{name}": partial(_file_bytes, path)
        for revision, model in models.items()
        for name, path in model.paths.items()
    }


def _file_bytes(path: Path) -> bytes | memoryview:
    """A file's bytes without reading it into memory; an empty one cannot be mapped."""
    return np.memmap(path, np.uint8, mode="r").data if path.stat().st_size else b""


def _beginnings(run: SubmittedRun) -> tuple[str, ...]:
    """How the names of all files of a submission begin, in any year."""
    return f"{results_folder(run)}/", "checkpoints/", f"{run.name}_textonly_", "all_predictions.json"


def _require_ours(out: Path, is_ours: Callable[[str], bool]) -> None:
    """A folder without a manifest may hold what an interrupted writing left, and nothing else."""
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    if foreign := sorted(name for name in there - {LOCK} if not is_ours(name)):
        raise InputRefused(
            f"{out}: holds {foreign[0]}, which is no part of a submission ({len(foreign)} such files); "
            "expected an empty folder; name another one"
        )
