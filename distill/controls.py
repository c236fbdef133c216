"""Controls: what a student would have been without its ensemble, trained beside it with the same seed.

- `no_teacher_equal_steps`: the same steps on text alone.
- `no_teacher_equal_flops`: text alone, for as many more steps as its teachers' training, their capture and hearing them
  cost, the learning rate stretched over all of them.
- `best_single_teacher`: the same steps and terms, each of which hears one of its members alone: the one that costs
  least on the tune stream.

Axes: M members, N targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from corpora.errors import Damaged
from corpora.storage import fingerprint_digest, new_folder, read_manifest
from distill.config import ScheduleConfig, StudentConfig, TermConfig, TrainConfig
from distill.evaluate import member_nats
from distill.phases import plan_run
from distill.run import rows_seed
from distill.shares import read_views
from students.run_folder import weight_files
from teachers.ensemble import Ensemble
from teachers.pools import normalised

if TYPE_CHECKING:  # a project asks here what its controls are
    from distill.project import Project

CROSS_ENTROPY = TermConfig(loss="cross_entropy")


def control_terms(project: Project, name: str, control: str | None) -> tuple[TermConfig, ...]:
    """The terms of a student, or of one of its controls."""
    config = project.recipe.students[name]
    if control is None:
        return tuple(config.terms)
    if control == "best_single_teacher":
        return tuple(_alone(project, term) for term in config.terms)
    return text_terms(config)


def control_train(project: Project, name: str, control: str | None) -> TrainConfig:
    """How a student, or one of its controls, is trained."""
    train = project.recipe.students[name].train
    if control == "no_teacher_equal_flops":
        return replace(train, steps=equal_flops(project, name).steps, epochs=None, words=None)
    return train


def text_terms(config: StudentConfig) -> tuple[TermConfig, ...]:
    """The objective without teachers: cross-entropy alone, at full weight from the first step to the last.

    Rows of a view that learned from teachers alone learn from their text.
    """
    plain = [replace(term, weight=1.0, schedule=ScheduleConfig()) for term in config.terms if not term.members]
    if not plain:
        return (CROSS_ENTROPY,)
    silent = [view for view in read_views(config.train) if all(term.view not in (None, view) for term in plain)]
    return (*plain, *(replace(CROSS_ENTROPY, view=view) for view in silent))


# as many operations


@dataclass(frozen=True, kw_only=True)
class EqualFlops:
    """The steps of a student that spends on text what its ensemble would have cost."""

    own_steps: int  # of the student with teachers
    steps: int  # on text alone
    notes: list[str]  # what could not be counted


def equal_flops(project: Project, name: str) -> EqualFlops:
    """The student's own steps, times what its ensemble and it cost together over what it would cost on text alone.

    Operations are those of `cuvee plan`: the whole runs of its teachers, shared ones too, however late in them a
    snapshot was taken; their capture over all streams; and their heads while the student trains. Of a teacher that
    exists by path the capture alone is counted, which for an architecture that is not ours is 2 operations for each
    parameter and token.
    """
    config, recipe = project.recipe.students[name], project.recipe
    own = plan_run(config.train, project.corpus.streams["train"], seed=rows_seed(project.student_seed(name))).steps
    models = {model.name: model for model in project.plan.models}
    plain, control = models[name], models[f"{name}.no_teacher_equal_flops"]
    flops, notes = control.training_flops, []
    for teacher in sorted({member for term in config.terms for member, weight in term.members.items() if weight > 0}):
        if recipe.teachers[teacher].path:
            notes.append(f"the training of {teacher}, which exists, is not counted")
        if teacher not in models:
            flops += _foreign_capture_flops(project, teacher)
    # on text alone operations are proportional to tokens
    steps = math.ceil(own * (control.tokens / plain.tokens) * (flops / control.training_flops))
    return EqualFlops(own_steps=own, steps=steps, notes=notes)


def describe_equal_flops(project: Project, name: str) -> str:
    """One line for the log: how many steps, and why."""
    found = equal_flops(project, name)
    line = f"control: {name}.no_teacher_equal_flops: {found.steps:,} steps, the student has {found.own_steps:,}"
    return "; ".join((line, *found.notes))


def _foreign_capture_flops(project: Project, teacher: str) -> float:
    cache, masked = project.recipe.cache, project.teacher_objective(teacher) == "masked"
    tokens = sum(len(stream) for stream in project.corpus.streams.values())
    passes = cache.rounds * cache.num_folds if masked else 1
    parameters = sum(_stored_parameters(path) for path in weight_files(project.teacher_folder(teacher)))
    return 2.0 * parameters * passes * tokens


def _stored_parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


# one teacher


def choose_single_teachers(project: Project, announce: Callable[[str], None]) -> None:
    """Find for every term of a `best_single_teacher` control which of its members costs least on tune, once."""
    for term in _terms_with_a_choice(project):
        folder, fingerprint = _choice(project, term)
        found = read_manifest(folder)
        if found is not None:
            found.require("choice", fingerprint)
            continue
        names = project.pool(term).members
        members = Ensemble(tuple(project.cached(name, "tune") for name in names), normalised([1.0] * len(names)))
        _, nats_MN = member_nats(members, project.corpus, "tune")
        costs = dict(zip(names, map(float, nats_MN.mean(1)), strict=True))
        best = min(costs, key=costs.__getitem__)
        listed = ", ".join(f"{name} {cost:.4f}" for name, cost in costs.items())
        announce(f"control: best single teacher on tune: {best} ({listed} nats per target)")
        with new_folder(folder, kind="choice", fingerprint=fingerprint) as writer:
            writer.facts |= {"best": best, "tune_cross_entropy": costs}


def best_member(project: Project, term: TermConfig) -> str:
    """The member of a term that costs least on tune; raises Damaged when that was not found out yet."""
    members = project.pool(term).members
    if len(members) == 1:
        return members[0]
    folder, fingerprint = _choice(project, term)
    manifest = read_manifest(folder)
    if manifest is None:
        raise Damaged(f"{folder}: the best single teacher is not chosen; run the recipe with `cuvee cache`")
    return manifest.require("choice", fingerprint).facts["best"]


def _alone(project: Project, term: TermConfig) -> TermConfig:
    """A term with its best member alone; pools of one are all the same."""
    if not term.members:
        return term
    member = {best_member(project, term): 1.0}
    return replace(term, members=member, pool="mixture", exponent=TermConfig.exponent, weights="given")


def _terms_with_a_choice(project: Project) -> Iterator[TermConfig]:
    for student in project.recipe.students.values():
        if "best_single_teacher" in student.controls:
            yield from (term for term in student.terms if term.members and len(project.pool(term).members) > 1)


def _choice(project: Project, term: TermConfig) -> tuple[Path, dict[str, Any]]:
    """Where the choice of a term lies, and what it depends on: its members' caches over the tune stream."""
    fingerprint = {name: project.cache_key(name, "tune").fingerprint() for name in project.pool(term).members}
    return project.folder / "weights" / f"best-{fingerprint_digest(fingerprint)}", fingerprint
