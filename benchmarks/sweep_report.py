"""The summary of a sweep: means and spreads over seeds, a line for each setting, and each student's best one.

Runs that differ in their seed alone are replicates of one setting. A setting is chosen on the tune stream alone; test
figures stand beside it and decide nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.markdown import NOTHING, Table, escaped, markdown_table
from corpora.storage import write_file, write_json

if TYPE_CHECKING:
    from rich.console import Console

SEED = "seed"  # the key whose values make replicates
CHOICE = "tune_cross_entropy"  # what a setting is chosen on: the lowest mean
# measures of a report's rows: header, unit of the shown figure, digits
MEASURES: dict[str, tuple[str, float, int]] = {
    "tune_cross_entropy": ("tune CE", 1, 3),
    "test_cross_entropy": ("test CE", 1, 3),
    "accuracy": ("pairs %", 100, 1),
    "gain_kept": ("gain kept %", 100, 1),
}
_ROLE_ORDER = ("baseline", "teacher", "pool", "student", "control")
_VIEWS = {"causal": "Causal models", "masked": "Masked models"}


@dataclass(frozen=True, kw_only=True)
class SweptRun:
    """One run of a sweep: what was set in it, and the rows of its report, or why there are none."""

    name: str  # of its folder
    values: Mapping[str, str]  # of every key that varies, as they were written
    rows: Sequence[Mapping[str, Any]] = ()  # as `report.json` has them
    failure: str = ""  # its line; empty: it has a report
    yardstick: str = ""  # what its cross-entropies are measured on; those of another yardstick cannot be compared

    @property
    def setting(self) -> dict[str, str]:
        """What tells it apart from the runs that are not its replicates."""
        return {key: value for key, value in self.values.items() if key != SEED}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One measure over the runs of a setting, in the unit of the report."""

    values: tuple[float, ...]  # in the order of the runs
    undefined: int = 0  # runs whose report says why it has no value; they are left out

    @property
    def mean(self) -> float | None:
        """None without a value."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation (n - 1); None of fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One model in one view and one setting."""

    model: str
    role: str
    view: str
    setting: Mapping[str, str]
    runs: int  # whose report has the model
    failed: int  # runs of this setting that have none
    spreads: Mapping[str, Spread]
    best: bool = False  # of the settings of a student, on the tune stream


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a sweep shows."""

    title: str
    runs: tuple[SweptRun, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def summarise(title: str, runs: Sequence[SweptRun]) -> Summary:
    """Group the rows of all runs by model, view and setting, and mark each student's best setting."""
    lines = list(_lines(runs))
    settings = {tuple(run.setting.items()) for run in runs}
    yardsticks = {run.yardstick for run in runs if not run.failure}
    chosen = lines
    if len(settings) > 1 and len(yardsticks) == 1:
        chosen = [replace(line, best=_is_best(line, lines)) for line in lines]
    notes = _notes(runs, chosen, one_setting=len(settings) == 1, one_yardstick=len(yardsticks) < 2)
    return Summary(title=title, runs=tuple(runs), lines=tuple(chosen), notes=tuple(notes))


def short_keys(keys: Sequence[str]) -> list[str]:
    """The last parts of dotted keys, as many as tell each apart from the others: `lr`, or `llama.train.lr`."""
    return [_shortest(key, [other for other in keys if other != key]) for key in keys]


def write_summary(folder: Path, summary: Summary) -> None:
    """Commit `summary.json` and `summary.md` to a folder; raises NoRoom when they do not fit."""
    write_json(folder / "summary.json", as_json(summary))
    write_file(folder / "summary.md", to_markdown(summary).encode())


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain JSON values; what is not there is null."""
    runs = [{"name": run.name, "values": dict(run.values), "failure": run.failure or None} for run in summary.runs]
    lines = [
        {key: value for key, value in asdict(line).items() if key != "spreads"}
        | {measure: _spread_json(spread) for measure, spread in line.spreads.items()}
        for line in summary.lines
    ]
    return {"title": summary.title, "chosen_on": CHOICE, "runs": runs, "lines": lines, "notes": list(summary.notes)}


def to_markdown(summary: Summary) -> str:
    """The summary as Markdown: a table for each view, then the notes."""
    text = [f"# {escaped(summary.title)}", ""]
    for view, title in _shown_views(summary):
        text += [f"## {title}", "", *markdown_table(block(summary, view), texts=(0, 1)), ""]
    return "\n".join([*text, *(f"- {escaped(note)}" for note in summary.notes)]) + "\n"


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Print the tables and the notes below them on a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    if console is None:
        console = Console()
        if not console.is_terminal:  # a log has no width; rich would assume 80 columns and fold every name
            console.width = 120
    for view, title in _shown_views(summary):
        headers, rows = block(summary, view)
        table = RichTable(title=f"{title}, over seeds", title_justify="left", box=SIMPLE_HEAD, padding=0)
        for number, header in enumerate(headers):
            if number < 2:  # names are folded where it is narrow, numbers stay whole
                table.add_column(header, overflow="fold")
            else:
                table.add_column(header, justify="right", no_wrap=True)
        for cells in rows:
            table.add_row(*map(escape, cells))
        console.print(table)
    for note in summary.notes:
        console.print(escape(note))


def block(summary: Summary, view: str) -> Table:
    """The lines of one view; a model's settings stand below each other."""
    rows = []
    for line in (line for line in summary.lines if line.view == view):
        setting = " ".join(map("=".join, zip(short_keys(list(line.setting)), line.setting.values(), strict=True)))
        figures = [_cell(line.spreads[name], unit, digits) for name, (_, unit, digits) in MEASURES.items()]
        rows.append([line.model, setting or NOTHING, str(line.runs), *figures, "best" if line.best else ""])
    return ["model", "setting", "runs", *(header for header, _, _ in MEASURES.values()), "chosen"], rows


def _lines(runs: Sequence[SweptRun]) -> Iterator[Line]:
    """A line for each model, view and setting, in the order of the tables."""
    models: dict[tuple[str, str, str], None] = {}  # in the order in which reports name them
    for run in runs:
        models |= {(row["name"], row["role"], row["view"]): None for row in run.rows}
    settings = {tuple(run.setting.items()): None for run in runs}
    for name, role, view in sorted(models, key=lambda model: _ROLE_ORDER.index(model[1])):
        for setting in settings:
            replicates = [run for run in runs if tuple(run.setting.items()) == setting]
            rows = [row for run in replicates for row in run.rows if (row["name"], row["view"]) == (name, view)]
            if rows:
                yield Line(
                    model=name,
                    role=role,
                    view=view,
                    setting=dict(setting),
                    runs=len(rows),
                    failed=sum(bool(run.failure) for run in replicates),
                    spreads={measure: _spread(rows, measure) for measure in MEASURES},
                )


def _spread(rows: Sequence[Mapping[str, Any]], measure: str) -> Spread:
    values = tuple(float(row[measure]) for row in rows if row.get(measure) is not None)
    # a value that does not apply has no reason, one that is undefined has
    undefined = sum(row.get(measure) is None and bool(row.get(f"{measure}_reason")) for row in rows)
    return Spread(values=values, undefined=undefined)


def _spread_json(spread: Spread) -> dict[str, Any]:
    values = list(spread.values)
    return {
        "runs": len(values),
        "mean": spread.mean,
        "deviation": spread.deviation,
        "undefined": spread.undefined,
        "values": values,
    }


def _is_best(line: Line, lines: Sequence[Line]) -> bool:
    """Whether a student's setting has the lowest mean on tune; what ties is best together."""
    rivals = [other for other in lines if (other.model, other.view) == (line.model, line.view) and _may_be_best(other)]
    return line in rivals and line.spreads[CHOICE].mean == min(_known_mean(rival) for rival in rivals)


def _may_be_best(line: Line) -> bool:
    """Whether every run of the setting is counted: seeds that did not diverge would flatter it."""
    return line.role == "student" and not line.failed and len(line.spreads[CHOICE].values) == line.runs


def _known_mean(line: Line) -> float:
    mean = line.spreads[CHOICE].mean
    assert mean is not None, "a line that may be best has values"
    return mean


def _notes(runs: Sequence[SweptRun], lines: Sequence[Line], *, one_setting: bool, one_yardstick: bool) -> Iterator[str]:
    """What the columns mean, what was left out, and why nothing is best."""
    yield (
        "Mean ± standard deviation (n - 1) over runs that differ in their seed alone; of one run its value. CE: "
        "cross-entropy, nats per target; causal and masked ones cannot be compared."
    )
    if any(line.best for line in lines):
        yield (
            "best: the setting of a student whose mean cross-entropy on the tune stream is lowest, several where they "
            "tie; test decides nothing, and a setting with a failed run is never best."
        )
    elif not one_setting and any(line.role == "student" for line in lines):
        if not one_yardstick:
            why = "corpus, tokenizer, window or masks vary, so their cross-entropies are not of the same targets"
        elif not any(line.spreads[CHOICE].values for line in lines if line.role == "student"):
            why = "the reports have no cross-entropy of students on the tune stream, and test must not decide"
        else:
            why = "each has a failed run or a missing figure"
        yield f"No setting is marked best: {why}."
    for line in lines:
        for measure, spread in line.spreads.items():
            if spread.undefined:
                where = ", ".join((line.view, *map("=".join, line.setting.items())))
                yield (
                    f"{MEASURES[measure][0].removesuffix(' %')} of {line.model} ({where}) is undefined in "
                    f"{spread.undefined} of {line.runs} runs, which are left out of its mean."
                )
    for run in runs:
        if run.failure:
            yield f"{run.name} failed: {run.failure}"


def _shortest(key: str, others: Sequence[str]) -> str:
    parts = key.split(".")
    for count in range(1, len(parts)):
        if not any(other.split(".")[-count:] == parts[-count:] for other in others):
            return ".".join(parts[-count:])
    return key


def _shown_views(summary: Summary) -> list[tuple[str, str]]:
    return [(view, title) for view, title in _VIEWS.items() if any(line.view == view for line in summary.lines)]


def _cell(spread: Spread, unit: float, digits: int) -> str:
    if spread.mean is None:
        return "undefined" if spread.undefined else NOTHING
    shown = _number(spread.mean * unit, digits)
    if spread.deviation is not None:
        shown += f" ± {_number(spread.deviation * unit, digits)}"
    return f"{shown} ({spread.undefined} undefined)" if spread.undefined else shown


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:,.{digits}f}"  # + 0.0: -0.000 is 0.000
