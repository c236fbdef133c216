"""Members of the ensemble as a recipe names them, and as everything after it sees them: single teachers.

A teacher with `seeds: 3` stands for three that differ in their seed alone, and a term that names it listens to all of
them. A teacher that is taken `of` another one's run is listened to as that one was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from distill.config import Recipe, TeacherConfig
from distill.shares import read_views
from students.config import ModelConfig

MAX_SEEDS = 99


def teacher_view(teacher: TeacherConfig) -> str | None:
    """The view in which a single teacher is listened to; None when only its run folder knows."""
    views = read_views(teacher.train) if teacher.train else ()
    return teacher.view or (views[0] if len(views) == 1 else None)


def member_names(name: str, teacher: TeacherConfig) -> tuple[str, ...]:
    """The members that a teacher of the recipe stands for: itself, or one for each seed."""
    if teacher.seeds <= 1:
        return (name,)
    # a number beyond the bound is refused, not counted to
    return tuple(f"{name}-{number}" for number in range(1, min(teacher.seeds, MAX_SEEDS) + 1))


def members(recipe: Recipe) -> dict[str, TeacherConfig]:
    """Every single teacher of a recipe by name, in its order."""
    single = {
        member: replace(teacher, seeds=1)
        for name, teacher in recipe.teachers.items()
        for member in member_names(name, teacher)
    }
    return {name: _with_view(teacher, single) for name, teacher in single.items()}


def heard(named: Mapping[str, float], recipe: Recipe) -> dict[str, float]:
    """The members that a term listens to, from those that it names: the weight of several seeds is divided equally."""
    weights: dict[str, float] = {}
    for name, weight in named.items():
        # a name that stands for nobody else is a member's own, or wrong
        names = member_names(name, recipe.teachers[name]) if name in recipe.teachers else (name,)
        for member in names:
            weights[member] = weights.get(member, 0.0) + weight / len(names)
    return weights


def expanded(recipe: Recipe) -> Recipe:
    """The same recipe in which every teacher is a single one and every term names all that it listens to."""
    students = {
        name: replace(student, terms=[replace(term, members=heard(term.members, recipe)) for term in student.terms])
        for name, student in recipe.students.items()
    }
    return replace(recipe, teachers=members(recipe), students=students)


def asked_snapshots(recipe: Recipe, name: str) -> list[int]:
    """Steps after which a single teacher's weights are kept: as it says itself, and as members taken from it need."""
    train = recipe.teachers[name].train
    own = train.snapshots if train else []
    needed = [step for teacher in recipe.teachers.values() if teacher.of == name for step in teacher.steps]
    return sorted({*own, *needed})


def model_of(recipe: Recipe, name: str) -> ModelConfig | None:
    """Sizes of a single teacher; None when only its folder knows."""
    teacher = recipe.teachers[name]
    return recipe.teachers[teacher.of].model if teacher.of else teacher.model


def _with_view(teacher: TeacherConfig, single: Mapping[str, TeacherConfig]) -> TeacherConfig:
    origin = single.get(teacher.of) if teacher.of else None
    if origin is None or teacher.view:
        return teacher
    view = teacher_view(origin)
    return replace(teacher, view=view)  # type: ignore[arg-type]
