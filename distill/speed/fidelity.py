"""The suite `fidelity`: bytes and errors of every codec, on the real small teachers of a finished run.

The student whose gradients are compared is where a distillation starts from and ends near: the run's control without
teachers. A codec that stores temperatures is given all three. `speed_codecs` says what the numbers are.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.speed_figures import Figure, Goal, Table
from benchmarks.speed_timing import Setting
from corpora.addressed import address, permutation
from corpora.batch import Objective
from corpora.errors import InputRefused
from corpora.storage import read_manifest
from corpora.windows import Window, plan_windows, window_batches
from distill.memory import keep_freed_memory
from distill.project import Project
from distill.shares import read_views
from distill.speed.codecs import Answers, Fidelity, fidelities
from students.head import Head
from students.language_model import LanguageModel
from students.run_folder import load_model
from teachers.cache import cached_view
from teachers.codecs import CODECS
from teachers.codecs.codec import Codec
from teachers.codecs.said import Said
from teachers.config import CacheConfig

GOALS: dict[str, Goal] = {}  # nothing was promised: the table informs
TEMPERATURES = (1.0, 2.0, 4.0)
POSITIONS = 2_048  # of each teacher, about
CONTROL = "no_teacher_equal_steps"
VARIANTS = {  # what is shown: the fields of CacheConfig that make it
    "features bf16": {"codec": "features", "dtype": "bf16"},
    "features int8": {"codec": "features", "dtype": "int8"},
    "hybrid": {"codec": "hybrid"},
    "topk": {"codec": "topk"},
    "sampled": {"codec": "sampled"},
    "full": {"codec": "full"},
}
MEASURES = {  # of a Fidelity: its column and its unit
    "kl": ("KL", "nats"),
    "total_variation": ("TV", "share"),
    "gradient_error": ("gradient", "share"),
}


@dataclass(frozen=True)
class Row:
    """One codec: means over the teachers."""

    variant: str
    bytes: float  # of a position, three temperatures where they are stored
    bytes_at_one: float  # of a position, one temperature
    at: dict[float, Fidelity]


def conditions(setting: Setting) -> dict[str, str]:
    """The run whose teachers are heard."""
    return {"dtype": "fp32", "run": str(setting.run_dir)}


def figures(setting: Setting, names: Collection[str]) -> list[Figure]:
    """Every number of the table, without targets: `CODEC.bytes`, and `CODEC.MEASURE.tTEMPERATURE`."""
    keep_freed_memory()
    found = []
    for row in fidelity_rows(open_run(setting.run_dir)):
        short = row.variant.replace(" ", "_")
        for name, size in (("bytes", row.bytes), ("bytes_at_one", row.bytes_at_one)):
            goal = Goal(name=f"{short}.{name}", measure=f"a position's record of {row.variant}", unit="bytes")
            found.append(goal.reached(size, {}, "bytes"))
        for temperature, fidelity in row.at.items():
            for measure, (_, unit) in MEASURES.items():
                value = getattr(fidelity, measure)
                if value is not None:
                    said = f"{measure.replace('_', ' ')} of {row.variant} at T = {temperature:g}"
                    goal = Goal(name=f"{short}.{measure}.t{temperature:g}", measure=said, unit=unit)
                    found.append(goal.reached(value, {}, unit))
    return found


def tables(setting: Setting, figures: Sequence[Figure], *, everything: bool) -> Iterator[Table | str]:
    """The figures as a table, a row for each codec."""
    values = {figure.goal.name: figure.value for figure in figures}
    columns = ["codec", "bytes", "at one T"]
    columns += [f"{column} T={t:g}" for t in TEMPERATURES for column, _ in MEASURES.values()]
    rows = []
    for variant in VARIANTS:
        short = variant.replace(" ", "_")
        cells = [values.get(f"{short}.{measure}.t{t:g}") for t in TEMPERATURES for measure in MEASURES]
        sizes = [f"{values[f'{short}.{name}']:,.0f}" for name in ("bytes", "bytes_at_one")]
        rows.append([variant, *sizes, *("-" if cell is None else f"{cell:.2g}" for cell in cells)])
    yield Table(f"fidelity of codecs on the teachers of {setting.run_dir}", columns, rows)
    yield (
        f"means over the teachers, about {POSITIONS:,} test positions each; bytes: a position's record with all three "
        "temperatures where they are stored, and with one; KL in nats; TV: total variation; gradient: error of forward "
        "KL's gradient in the logits of the control without teachers, share of its norm; of draws it is the noise of "
        "one visit, whose mean is 0"
    )


def open_run(run_dir: Path) -> Project:
    """The project of a run folder, wherever it lies now; raises InputRefused when there is none."""
    from distill.recipe import load_recipe  # knows pydantic, which nothing else here needs

    path = run_dir / "recipe.yaml"
    if not path.exists():
        raise InputRefused(f"{path}: missing; name a finished run with --run-dir, or run configs/quickstart.yaml")
    return Project(load_recipe(path.absolute(), [f"run_dir={run_dir}"]))


def fidelity_rows(project: Project, *, positions: int = POSITIONS) -> list[Row]:
    """Every codec, heard on about so many test positions of each teacher; raises InputRefused without a control."""
    heard = [
        _answers(project, name, student, positions)
        for name in project.recipe.teachers
        if (student := _student_of(project, project.teacher_objective(name))) is not None
    ]
    if not heard:
        raise InputRefused(
            f"{project.folder}: no student with the control {CONTROL} reads what a teacher reads, and its gradients "
            "are what is compared; add one to the recipe and run it"
        )
    return [_row(variant, heard, project.recipe.cache) for variant in VARIANTS]


def _row(variant: str, heard: Sequence[Answers], cache: CacheConfig) -> Row:
    codecs = [_codec(variant, cache, answers, TEMPERATURES) for answers in heard]
    each = [fidelities(codec, answers, TEMPERATURES) for codec, answers in zip(codecs, heard, strict=True)]
    return Row(
        variant,
        statistics.mean(codec.record.itemsize for codec in codecs),
        statistics.mean(_codec(variant, cache, answers, (1.0,)).record.itemsize for answers in heard),
        {t: _mean([one[t] for one in each]) for t in TEMPERATURES},
    )


def _codec(variant: str, cache: CacheConfig, answers: Answers, temperatures: tuple[float, ...]) -> Codec:
    config = replace(cache, temperatures=temperatures, **VARIANTS[variant])  # type: ignore[arg-type]
    vocab_size, hidden_size = answers.teacher.head.weight_VD.shape
    return CODECS[config.codec](config, hidden_size=hidden_size, vocab_size=vocab_size)


def _mean(each: Sequence[Fidelity]) -> Fidelity:
    divergences = [one.kl for one in each if one.kl is not None]
    return Fidelity(
        kl=statistics.mean(divergences) if divergences else None,
        total_variation=statistics.mean(one.total_variation for one in each),
        gradient_error=statistics.mean(one.gradient_error for one in each),
    )


def _student_of(project: Project, objective: Objective) -> str | None:
    """The first student that reads rows of an objective and has a control without teachers."""
    for name, student in project.recipe.students.items():
        if CONTROL in student.controls and objective in read_views(student.train):
            return name
    return None


def _answers(project: Project, name: str, student: str, positions: int) -> Answers:
    """What a teacher and the student's control say about a sample of the test stream."""
    objective, cache = project.teacher_objective(name), project.recipe.cache
    teacher = project.load_teacher(name)
    folder = project.student_run(student, CONTROL).folder
    if read_manifest(folder) is None:
        raise InputRefused(f"{folder}: the control is not trained; run the recipe of {project.folder} again")
    control = load_model(folder)
    view = cached_view(cache, objective, shift=teacher.masked_shift)
    stream = project.corpus.streams["test"]
    batches = window_batches(
        stream,
        # a masked view hides one position in so many
        _sample(plan_windows(stream, cache.window, objective=objective), positions * view.num_folds),
        view,
        rows=cache.rows,
        token_ids=project.corpus.token_ids,
        vocab_size=project.corpus.vocab_size,
    )
    features, logits, targets, found = [], [], [], []
    with torch.no_grad():
        for batch in batches:
            features.append(teacher.target_features(batch).float())
            logits.append(control.head().logits(control.target_features(batch)))
            targets.append(batch.targets_BT[batch.has_target_BT])
            found.append(batch.target_positions_N)
    said = Said(torch.cat(features), _head_of(teacher), torch.cat(targets), torch.cat(found).numpy())
    return Answers(said, torch.cat(logits))


def _head_of(model: LanguageModel) -> Head:
    """A model's head without gradients."""
    head = model.head()
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return head._replace(weight_VD=head.weight_VD.detach(), bias_V=bias_V)


def _sample(windows: Sequence[Window], wanted: int) -> list[Window]:
    """Windows in a random order, as many as keep about so many positions."""
    chosen, kept = [], 0
    for number in permutation(address(1, "fidelity"), len(windows)):
        if kept >= wanted:
            break
        chosen.append(windows[number])
        kept += windows[number].keep_stop - windows[number].keep_start
    return chosen
