"""`cuvee score --year`: what a year's pipeline asks of a model without training it, on data as its table counts them.

An average over fewer items, or over other ones, is another number under the same name.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from benchmarks.config import EvaluationConfig
from benchmarks.submission.checks import task_problems
from benchmarks.submission.layout import Task, Year, benchmark_of, read_year
from corpora.errors import InputRefused, RecipeError, suggestion
from distill.submitted_predictions import Blank, answered, read_questions

PROTOCOL_OF = {2024: "babylm2024", 2025: "babylm2025", 2026: "babylm2025"}
ZERO_SHOT = ("choice", "probability", "reading")  # kinds of tasks


def known_year(number: int) -> Year:
    """A year whose files are read; raises InputRefused for another one."""
    year = read_year(number)
    if number not in PROTOCOL_OF:
        known = ", ".join(map(str, PROTOCOL_OF))
        raise InputRefused(f"year: the files of {number} are laid out in a way that is not read; expected {known}")
    return year


def as_in_year(config: EvaluationConfig) -> EvaluationConfig:
    """The year's benchmarks, all or those that are named, and its protocol, unless one is named.

    Raises InputRefused with a line for each of them that is missing or has other names or numbers of items than the
    year's table; RecipeError where the year has no such benchmark, and for options that change the data.
    """
    assert config.year is not None, "asked for a year"
    year = known_year(config.year)
    for option, value in {"--blimp": config.blimp, "--pairs": config.pairs, "--items": config.items}.items():
        if value is not None:
            raise RecipeError(f"{option}: other items than those of {year.year}; leave it out, or --year")
    if config.data is None:
        raise RecipeError(f"--year {year.year}: found no data; expected the challenge's folder; name it with --data")
    tasks = _tasks(year, config.benchmarks, fast=config.fast)
    questions = read_questions(tasks, year, Path(config.data), fast=config.fast)
    read = {name: task for name, task in tasks.items() if name not in questions.unread}
    rows, _ = answered(Blank(), questions, read)
    wrong = [*questions.unread.values(), *task_problems(rows, read, questions.items, [], place=f"{year.year}: ")]
    if wrong:
        raise InputRefused("\n".join(wrong))
    names = tuple(benchmark_of(name, year) for name in tasks)
    return replace(config, benchmarks=names, protocol=config.protocol or PROTOCOL_OF[year.year])


def _tasks(year: Year, wanted: Collection[str], *, fast: bool) -> dict[str, Task]:
    """The year's tasks that are asked without training, those of the wanted benchmarks; none named: all."""
    tasks = {name: task for name, task in (year.fast if fast else year.full).items() if task.kind in ZERO_SHOT}
    known = {benchmark_of(name, year): name for name in tasks}
    for name in wanted:
        if name not in known:
            raise RecipeError(
                f"--tasks: {name!r} is not asked in {year.year}{suggestion(name, known)}; "
                f"expected {', '.join(known)}; name one of them, or leave out --year"
            )
    return {name: tasks[name] for benchmark, name in known.items() if not wanted or benchmark in wanted}
