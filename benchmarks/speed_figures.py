"""What a speed suite hands back: figures that were promised, and tables that only inform."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure before it is measured."""

    name: str
    measure: str  # what is divided by what, in a sentence
    unit: str
    target: float | None = None  # None: nothing was promised
    comparison: Literal[">=", "<="] = "<="

    def reached(
        self,
        value: float,
        medians: Mapping[str, float],
        medians_unit: str,
        memory: Mapping[str, int | None] | None = None,
    ) -> Figure:
        """The figure, with the medians of all sides that it was made from."""
        measured = {side: peak for side, peak in (memory or {}).items() if peak is not None}
        return Figure(self, value, dict(medians), medians_unit, measured)


@dataclass(frozen=True)
class Figure:
    """A measured value of a goal."""

    goal: Goal
    value: float
    medians: Mapping[str, float]  # of each side
    medians_unit: str
    memory: Mapping[str, int] = field(default_factory=dict)  # CUDA: bytes of each side above what was held before

    @property
    def holds(self) -> bool | None:
        """Whether the value is as good as promised; None where nothing was promised. NaN never holds."""
        if self.goal.target is None:
            return None
        return self.value >= self.goal.target if self.goal.comparison == ">=" else self.value <= self.goal.target

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` lists."""
        return {
            "name": self.goal.name,
            "value": self.value,
            "unit": self.goal.unit,
            "target": self.goal.target,
            "comparison": self.goal.comparison,
            "holds": self.holds,
            "measure": self.goal.measure,
            "medians": dict(self.medians),
            "medians_unit": self.medians_unit,
            "memory_bytes": dict(self.memory),
        }


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; numbers stand on the right of their columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def figures_json(figures: Iterable[Figure]) -> str:
    """A JSON list of objects; NaN and infinity raise ValueError."""
    return json.dumps([figure.as_json() for figure in figures], indent=1, ensure_ascii=False, allow_nan=False)


def figures_table(figures: Iterable[Figure]) -> Table:
    """The figures that were promised, a row for each."""
    rows = [
        (
            figure.goal.name,
            f"{figure.value:.4g} {figure.goal.unit}",
            f"{figure.goal.comparison} {figure.goal.target:.3g}",
            "yes" if figure.holds else "NO",
            ", ".join(f"{side} {value:.4g}" for side, value in figure.medians.items()) + f" {figure.medians_unit}",
        )
        for figure in figures
        if figure.goal.target is not None
    ]
    return Table("figures", ("name", "value", "target", "holds", "medians"), rows)


def print_header(facts: Mapping[str, str], console: Console) -> None:
    """A line for each fact."""
    for name, value in facts.items():
        console.print(f"{name:<12} {value}", markup=False, highlight=False, soft_wrap=True)


def print_table(table: Table, console: Console) -> None:
    """Print a table on a terminal, or into a log."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(title=table.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(table.columns):
        numeric = 0 < number and all(row[number][:1].isdigit() or row[number] == "-" for row in table.rows)
        shown.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    console.print(shown)
