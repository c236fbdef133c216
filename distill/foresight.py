"""What would stop a run hours from now, found as soon as the corpus is there: before the first teacher is trained."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch

from corpora.errors import InputRefused, RecipeError
from corpora.token_ids import TokenIds
from distill.config import TrainConfig
from distill.optim import without_decay
from distill.phases import plan_run
from distill.project import Project
from distill.run import rows_seed
from distill.step_data import require_rows
from distill.train import require_in_run
from students.config import ModelConfig
from students.language_model import LanguageModel
from students.registry import check_model


def require_trainable(project: Project, world_size: int) -> None:
    """Raise RecipeError or InputRefused, naming the run, for what its rows, weights or processes make impossible.

    Of a control the student's own run stands for it.
    """
    for place, name, model, train, seed in _runs(project):
        try:
            _require(project, name, model, train, seed, world_size)
        except (RecipeError, InputRefused) as error:
            raise type(error)(f"{place}.{str(error).removeprefix(f'{name}: ')}") from error


def _runs(project: Project) -> Iterator[tuple[str, str, ModelConfig, TrainConfig, int]]:
    for name, teacher in project.recipe.teachers.items():
        if teacher.model is not None:
            run = project.teacher_run(name)
            yield f"teachers.{name}", name, run.model, run.train, run.seed
    for name, student in project.recipe.students.items():
        yield f"students.{name}", name, student.model, student.train, project.student_seed(name)


def _require(project: Project, name: str, model: ModelConfig, train: TrainConfig, seed: int, world_size: int) -> None:
    require_rows(train, world_size)
    if train.parallel == "fsdp" and world_size < 2:
        raise RecipeError(
            "train.parallel: fsdp divides a model among processes, found 1, needs at least 2; start them with torchrun "
            "--nproc_per_node N -m distill run RECIPE, or set it to ddp"
        )
    without_decay(_without_memory(model, project.corpus.vocab_size), train.no_decay)
    if train.minutes is None:
        stream = project.corpus.streams["train"]
        require_in_run(name, train, plan_run(train, stream, seed=rows_seed(seed)), stream)


@cache
def _without_memory(model: ModelConfig, vocab_size: int) -> LanguageModel:
    """The model on the meta device: names and shapes of its weights."""
    with torch.device("meta"):
        return check_model(model)(model, vocab_size=vocab_size, token_ids=TokenIds())
