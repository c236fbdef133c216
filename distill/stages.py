"""The stages of a project, in order; each finds what is already there and valid, and does the rest.

prepare -> train teachers -> cache what they say -> fit weights -> train students and controls -> score -> report
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial

from benchmarks.report import print_table, write_report
from corpora.errors import InputRefused, Preempted
from corpora.prepare import prepare_corpus
from corpora.storage import locked, new_folder, read_manifest, write_file
from distill.averaging import mean_of_runs
from distill.config import Recipe
from distill.controls import choose_single_teachers, describe_equal_flops
from distill.distributed import Processes
from distill.fitting import fit_pool
from distill.foresight import require_trainable
from distill.memory import allow_many_files, keep_freed_memory
from distill.preemption import stop_flag
from distill.project import Pool, Project
from distill.recipe import resolved_yaml
from distill.run import Run, require_kept, save_run
from distill.scores import ScoreBoard, contenders, pair_tasks, write_pairs
from distill.summary import make_report
from distill.train import train as train_run
from students.run_folder import WEIGHTS
from teachers.capture import capture

STREAMS = ("train", "tune", "test")


def run(recipe: Recipe) -> None:
    """Everything that the recipe needs, in order."""
    pair_tasks(recipe.benchmarks, recipe.seed)  # a folder that cannot be read is told before hours of training
    with _opened(recipe) as (project, processes):
        _prepare(project, processes)
        _train_teachers(project, processes)
        _cache(project, processes)
        _train_students(project, processes)
        _score(project, processes)


def prepare(recipe: Recipe) -> None:
    """Text to tokenizer and streams."""
    with _opened(recipe) as (project, processes):
        _prepare(project, processes)


def train(recipe: Recipe) -> None:
    """Train teachers, and, once their caches are needed and made, students and controls."""
    with _opened(recipe) as (project, processes):
        _prepare(project, processes)
        _train_teachers(project, processes)
        if recipe.students:
            _cache(project, processes)
            _train_students(project, processes)


def cache(recipe: Recipe) -> None:
    """Cache what the teachers say, and fit the weights of their pools."""
    with _opened(recipe) as (project, processes):
        _prepare(project, processes)
        _train_teachers(project, processes)
        _cache(project, processes)


def score(recipe: Recipe) -> None:
    """Score everybody and write the report."""
    run(recipe)


@contextlib.contextmanager
def _opened(recipe: Recipe) -> Iterator[tuple[Project, Processes]]:
    """Join the other processes; the first holds the project's lock for as long as anything may be written."""
    keep_freed_memory()
    allow_many_files()
    processes = Processes(recipe.processes, recipe.timeout)
    project = Project(recipe)
    lock = locked(project.folder) if processes.is_first else contextlib.nullcontext()
    with stop_flag(), processes.guarded(), lock:
        if processes.is_first:
            write_file(project.folder / "recipe.yaml", resolved_yaml(recipe).encode())
        processes.barrier()
        yield project, processes


def _heed(processes: Processes, done: str) -> None:
    """Raise Preempted, in all processes, when a signal has asked one of them to stop; all call it together."""
    with stop_flag() as flag:
        if processes.any(flag.raised):
            raise Preempted(f"{done}, and stopped then as asked; the same command goes on")


def _prepare(project: Project, processes: Processes) -> None:
    recipe = project.recipe
    with processes.first_alone() as first:
        if first:
            prepare_corpus(
                recipe.corpus, recipe.tokenizer, seed=recipe.seed, folder=project.folder, announce=_announcer(first)
            )
            write_pairs(project)
    _heed(processes, f"{project.folder}: the corpus is there")
    require_trainable(project, processes.world_size)


def _train_teachers(project: Project, processes: Processes) -> None:
    for name, teacher in project.recipe.teachers.items():
        if teacher.model is not None:
            _train(project.teacher_run(name), processes)
    with processes.first_alone() as first:
        if first:
            for name in project.recipe.teachers:
                _average(project, name)


def _average(project: Project, name: str) -> None:
    """Make the run folder of a teacher that is the mean of several snapshots, once."""
    origin, folders = project.recipe.teachers[name].of, project.averaged_folders(name)
    if origin is None or not folders:
        return
    snapshots = [manifest for path in folders if (manifest := read_manifest(path)) is not None]
    if missing := sorted(set(folders) - {kept.folder for kept in snapshots}):
        raise InputRefused(
            f"teachers.{name}.steps: {missing[0]} is missing, since the run of {origin} ended before it; ask for "
            "earlier steps, or give that run no patience"
        )
    folder, run = project.teacher_folder(name), replace(project.teacher_run(origin), name=name)
    fingerprint = {"mean_of": {kept.folder.name: kept.files[WEIGHTS]["digest"] for kept in snapshots}}
    found = read_manifest(folder)
    if found is not None:
        found.require("run", fingerprint)
        return
    print(f"average: {name} is the mean of {', '.join(path.name for path in folders)} of {origin}", flush=True)
    facts = {key: snapshots[-1].facts[key] for key in ("steps", "words", "precision")}
    save_run(run, folder, mean_of_runs(folders), fingerprint=fingerprint, **facts)


def _train_students(project: Project, processes: Processes) -> None:
    for name, control in project.student_runs():
        if control == "no_teacher_equal_flops":
            _announcer(processes.is_first)(describe_equal_flops(project, name))
        _train(project.student_run(name, control), processes)


def _train(run: Run, processes: Processes) -> None:
    found = read_manifest(run.folder)
    processes.barrier()  # all have looked before one writes
    if found is not None:
        found.require("run", run.fingerprint)
        facts = {key: found.facts.get(f"reached_{key}", found.facts[key]) for key in ("steps", "words")}
        require_kept(run, done=facts["steps"], words=facts["words"], finished=True)
        _announcer(processes.is_first)(f"train: {run.name} is there")
        return
    train_run(run, processes)
    _heed(processes, f"{run.folder} is trained")


def _cache(project: Project, processes: Processes) -> None:
    with stop_flag() as flag:
        for name, stream in itertools.product(project.recipe.teachers, STREAMS):
            capture(
                project.cache_key(name, stream),
                partial(project.load_teacher, name),
                project.cache_folder(name, stream),
                rank=processes.rank,
                world_size=processes.world_size,
                barrier=processes.barrier,
                device=processes.device,
                announce=_announcer(True),
                heed=flag.heed,
            )
    with processes.first_alone() as first:
        if first:
            for pool in project.pools():
                if pool.weights == "fitted":
                    _fit(project, pool)
            choose_single_teachers(project, _announcer(True))


def _fit(project: Project, pool: Pool) -> None:
    """Fit a pool's weights on the tune stream, once."""
    folder, fingerprint = project.weights_folder(pool), project.weights_fingerprint(pool)
    found = read_manifest(folder)
    if found is not None:
        found.require("weights", fingerprint)
        return
    fitted = fit_pool(project, pool)
    shown = ", ".join(f"{name} {weight:.3f}" for name, weight in fitted.weights.items())
    if fitted.temperature != 1.0:
        shown += f"; temperature {fitted.temperature:.3f}"
    print(f"weights: {pool.name}: {shown}", flush=True)
    with new_folder(folder, kind="weights", fingerprint=fingerprint) as writer:
        writer.facts |= asdict(fitted)


def _score(project: Project, processes: Processes) -> None:
    with processes.first_alone() as first:
        if first:
            board = ScoreBoard(project, processes.device, _announcer(True))
            scores = []
            with stop_flag() as flag:
                for contender in contenders(project):
                    flag.heed(f"{project.folder}: before {contender.name} was scored")
                    scores.append(board.scores(contender))
            report = make_report(project, scores, _announcer(True))
            write_report(project.folder, report)
            print_table(report)


def _announcer(speaks: bool):
    def announce(line: str) -> None:
        if speaks:
            print(line, flush=True)

    return announce
