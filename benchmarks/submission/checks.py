"""Everything that would make the challenge refuse or misread a submission, found before a file is written.

A pipeline that stops at the first wrong size, or scores a missing task with nothing, costs a deadline; here every
problem is told at once, one on each line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.submission.layout import Task, Year, wanted_checkpoints
from benchmarks.submission.rows import is_number, row_fault
from benchmarks.submission.rules import auxiliary_verdict, limits
from benchmarks.submission.submitted_run import Answers, Predictions, SubmittedRun
from corpora.errors import InputRefused, suggestion
from corpora.storage import MANIFEST

MOST_NAMES = 20  # that a message lists
MOST_LETTERS = 96  # of a model's name, as on the hub
Texts = Sequence[Sequence[str]]  # for each item those that may be chosen


def require_submittable(run: SubmittedRun, answers: Answers, year: Year) -> None:
    """Raise InputRefused with all problems of a submission, one on each line: `place: found; expected; remedy`."""
    if found := list(problems(run, answers, year)):
        raise InputRefused("\n".join(found))


def problems(run: SubmittedRun, answers: Answers, year: Year) -> Iterator[str]:
    """One line for each problem; where the track is not known, nothing else is looked at."""
    assert run.year == year.year, (run.year, year.year)
    if run.track not in year.tracks:
        yield _unknown("track: ", run.track, f"a track of {year.year}", year.tracks)
        return
    checkpoints = wanted_checkpoints(year.tracks[run.track], run.words_seen)
    yield from _run_problems(run, year)
    yield from _checkpoint_problems(run, checkpoints)
    yield from task_problems(answers.full, year.full, answers.items, checkpoints, place="")
    yield from _fast_problems(answers, year, checkpoints)


def task_problems(
    predictions: Predictions,
    tasks: Mapping[str, Task],
    items: Mapping[str, Mapping[str, Texts]],
    checkpoints: list[str],
    *,
    place: str,
) -> Iterator[str]:
    """One line for each task, UID or row that is not as the year's table has it; `place` goes before the names.

    `items`: the texts that may be chosen, by task and UID. `checkpoints`: names, of tasks that have a UID for each.
    """
    for name in predictions:
        if name not in tasks:
            yield _unknown(place, name, "a task of the year", tasks)
    for name, task in tasks.items():
        if name not in predictions:
            yield f"{place}{name}: missing; expected its predictions; score the task"
        else:
            yield from _uid_problems(f"{place}{name}", predictions[name], task, items.get(name), checkpoints)


def _run_problems(run: SubmittedRun, year: Year) -> Iterator[str]:
    """The name, the limits of the track, and what is said about data and teachers."""
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MOST_LETTERS - 1}}}", run.name):
        expected = f"up to {MOST_LETTERS} letters, digits, '-' and '_'"
        yield f"name: {run.name!r} is no file name; expected {expected}; rename the submission"
    elif year.layout == "folders" and Path(run.name).stem != run.name:
        cut = Path(run.name).stem
        yield f"name: {run.name!r} holds a dot: pipelines look for {cut!r}; expected none; rename the submission"
    for name, (found, limit) in limits(run, year.tracks[run.track]).items():
        if found is None:
            yield f"{name}: not known; expected a number of words and a digest for each text of the corpus; say them"
        elif limit.at_most is not None and found > limit.at_most:
            how = "" if limit.verified else " (second-hand)"
            yield (
                f"{name}: {found:,}; expected at most {limit.at_most:,} in {run.track} of {year.year}{how}; "
                "hand in an earlier checkpoint, or choose another track"
            )
    for teacher in run.teachers:
        if not teacher.licence.strip():
            yield f"teachers.{teacher.name}: no licence; expected the licence of its weights; say it"
    verdict = auxiliary_verdict(run, year)
    if verdict.verdict == "broken" and verdict.verified:
        yield f"teachers: {verdict.reason}; expected: {verdict.rule} ({verdict.source}); train with other teachers"


def _checkpoint_problems(run: SubmittedRun, wanted: list[str]) -> Iterator[str]:
    """Every checkpoint of the track up to the words that the run has seen, in ascending order, with its files."""
    for name in wanted:
        if name not in run.checkpoints:
            yield f"checkpoints.{name}: missing; expected the weights after so many words; train with word_snapshots"
    for name in run.checkpoints:
        if name not in wanted:
            yield _unknown("checkpoints.", name, "a checkpoint that the track wants of so many words", wanted)
    before = 0
    for name in (name for name in wanted if name in run.checkpoints):
        words = run.checkpoints[name].words
        if not before < words <= run.words_seen:
            yield (
                f"checkpoints.{name}: after {words:,} words; expected more than the {before:,} of the one before and "
                f"at most the {run.words_seen:,} of the run; check which folder it is"
            )
        before = words
    folders = {"model": run.model} | {f"checkpoints.{name}": kept.folder for name, kept in run.checkpoints.items()}
    for place, folder in folders.items():
        if not any((folder / name).is_file() for name in (MANIFEST, "config.json")):
            yield f"{place}: {folder} is no model; expected a finished run or a folder of transformers; check the path"


def _fast_problems(answers: Answers, year: Year, checkpoints: list[str]) -> Iterator[str]:
    """Predictions and scores of every checkpoint, and of no other."""
    for name in {**answers.fast, **answers.fast_scores}:
        if name not in checkpoints:
            yield _unknown("fast.", name, "a checkpoint that the track wants of so many words", checkpoints)
    for name in checkpoints:
        predictions, scores = answers.fast.get(name), answers.fast_scores.get(name)
        if predictions is None:
            yield f"{name}: no prediction; expected those of {', '.join(year.fast)}; score the checkpoint"
        else:
            place = f"{name}."
            yield from task_problems(predictions, year.fast, answers.fast_items, checkpoints, place=place)
        if scores is None:
            yield f"{name}: no score; expected those of {', '.join(_score_names(year))}; score the checkpoint"
        else:
            yield from _score_problems(name, scores, year)


def _uid_problems(
    place: str,
    by_uid: Mapping[str, Sequence[Any]],
    task: Task,
    items: Mapping[str, Texts] | None,
    checkpoints: list[str],
) -> Iterator[str]:
    """The UIDs of a task, how many predictions each has, and the predictions."""
    expected = task.counts.by_uid(checkpoints)
    if expected is None:
        if len(by_uid) != task.counts.uids:
            yield f"{place}: {len(by_uid)} UIDs; expected {task.counts.uids}; score the task with the year's data"
        expected = dict.fromkeys(items or by_uid, task.counts.each)
    for uid in by_uid:
        if uid not in expected:
            yield _unknown(f"{place}.", uid, "a UID of the task", expected)
    for uid, number in expected.items():
        texts = None if items is None else items.get(uid, ())
        if number is None and texts is not None:
            number = len(texts)
        at = f"{place}.{_printable(uid)}"
        if uid not in by_uid:
            yield f"{at}: missing; expected {number or 'its'} predictions; score the task with the year's data"
            continue
        found = len(by_uid[uid])
        if found == 0 or (number is not None and found != number):
            yield f"{at}: {found} predictions; expected {number or 'at least one'}; score the task with the year's data"
        elif texts is not None and len(texts) != found:
            yield f"{at}: {found} predictions of {len(texts)} items; expected one each; give the same data"
        yield from _row_problems(at, by_uid[uid], task, uid, texts)


def _row_problems(place: str, rows: Sequence[Any], task: Task, uid: str, texts: Texts | None) -> Iterator[str]:
    """The first wrong row, and how many there are; the choices are looked up in `texts`, if these are given."""
    faults = []
    if task.kind not in ("choice", "probability") or (texts is not None and len(texts) != len(rows)):
        texts = None
    for number, row in enumerate(rows):
        fault = row_fault(task.kind, row, uid=uid, number=number)
        if fault is None and texts is not None and row["pred"] not in texts[number]:
            choices = ", ".join(map(repr, texts[number]))
            fault = f"pred is {row['pred']!r}; expected one of the item's {task.chosen}s {choices}"
        if fault is not None:
            faults.append((number, fault))
    if faults:
        number, fault = faults[0]
        many = f" (the first of {len(faults)})" if len(faults) > 1 else ""
        yield f"{place}: row {number}: {fault}{many}; score the task again"


def _score_problems(place: str, scores: Mapping[str, Mapping[str, float | None]], year: Year) -> Iterator[str]:
    """The scores of a checkpoint are numbers from -1 to 1, or None where the metric is undefined."""
    expected = _score_names(year)
    for key in scores:
        if key not in expected:
            yield _unknown(f"{place}.", key, "scored in the year", expected)
    for key, names in expected.items():
        if key not in scores:
            yield f"{place}.{key}: no score; expected {', '.join(names)}; score the checkpoint"
        elif set(scores[key]) != set(names):
            differing = ", ".join(sorted(set(scores[key]) ^ set(names)))
            yield f"{place}.{key}: scores differ in {differing}; expected {', '.join(names)}; score the checkpoint"
        elif wrong := [f"{name} {score!r}" for name, score in scores[key].items() if not _is_score(score)]:
            yield f"{place}.{key}: {', '.join(wrong)}; expected -1 to 1, or None where undefined; score the checkpoint"


def _unknown(place: str, name: str, what: str, known: Collection[str]) -> str:
    expected = ", ".join(known) if len(known) <= MOST_NAMES else f"one of {len(known)} names"
    near = suggestion(name, known)
    return f"{place}{_printable(name)}: not {what}{near}; expected {expected or 'none'}; rename or remove it"


def _printable(name: str) -> str:
    """A name of somebody's data in one line of a message."""
    return name if name.isprintable() else ascii(name)


def _score_names(year: Year) -> dict[str, tuple[str, ...]]:
    """What the scores of a checkpoint are called, by key of the collated file."""
    return {task.key: task.scores or tuple(task.counts.counts or ()) for task in year.fast.values()}


def _is_score(score: Any) -> bool:
    return score is None or (is_number(score) and -1 <= score <= 1)
