"""The report of a run: JSON and Markdown for its folder, and rich tables for the terminal from the same cells.

Causal and masked models stand in blocks of their own, because their cross-entropies answer different questions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.markdown import NOTHING, Table, escaped, markdown_table
from benchmarks.report_data import Ensemble, Phenomenon, Report, Row
from benchmarks.stats import Interval
from corpora.batch import Objective
from corpora.storage import write_file

if TYPE_CHECKING:
    from rich.console import Console

_ROLE_ORDER = ("baseline", "teacher", "pool", "student", "control")
_TITLES: dict[Objective, str] = {"causal": "Causal models", "masked": "Masked models"}

# what the columns of an ensemble's tables mean
_ENSEMBLES = (
    "CE: cross-entropy, nats per target; without: of the pool of the other members, at the same temperature; oracle: "
    "of the best member at each target. ECE: expected calibration error of the likeliest token's probability, 15 bins "
    "of equally many targets. JSD: Jensen-Shannon divergence, nats. - where caches do not hold whole distributions."
)


def write_report(folder: Path, report: Report) -> None:
    """Commit `report.md` and `report.json` to a folder; raises NoRoom when they do not fit."""
    write_file(folder / "report.json", to_json(report).encode())
    write_file(folder / "report.md", to_markdown(report).encode())


def to_markdown(report: Report) -> str:
    """The report as Markdown: the blocks, notes, ensembles, phenomena, protocol and metadata, in this order."""
    lines = [f"# {escaped(report.title)}", ""]
    for view in _views(report):
        lines += [f"## {_TITLES[view]}", "", *markdown_table(block(report, view)), ""]
    lines += [f"{note}\n" for note in notes(report)]
    if report.ensembles:
        lines += ["## Ensembles", "", _ENSEMBLES, ""]
        for ensemble in report.ensembles:
            lines += [f"### {escaped(_ensemble_title(ensemble))}", ""]
            lines += [*markdown_table(_members_table(ensemble, report.confidence)), ""]
            lines += [*markdown_table(_pairs_table(ensemble)), ""]
            lines += [*(f"- {escaped(line)}" for line in _ensemble_facts(ensemble)), ""]
    if report.phenomena:
        lines += ["## Minimal pairs by phenomenon (accuracy, %)", ""]
        lines += [*markdown_table(_phenomena_table(report.phenomena)), ""]
    if report.protocol:
        lines += ["## How the scores were made", "", *(f"- {line}" for line in report.protocol), ""]
    for section, value in report.metadata.items():
        lines += [f"## {str(section).capitalize()}", "", *_markdown_value(value), ""]
    return "\n".join(lines).rstrip() + "\n"


def to_json(report: Report) -> str:
    """The report as JSON text; None becomes null, intervals become [low, high]. NaN raises ValueError."""
    value = asdict(report)
    for row in value["rows"]:
        kept = row.pop("gain_kept")
        row["gain_kept"], row["gain_kept_interval"], row["gain_kept_reason"] = kept or (None, None, "")
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"


def print_table(report: Report, console: Console | None = None) -> None:
    """Print the blocks and the notes below them on a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    if console is None:
        console = Console()
        if not console.is_terminal:  # a log has no width; rich would assume 80 columns and fold every name
            console.width = 120
    for view in _views(report):
        headers, rows = block(report, view)
        table = RichTable(title=_TITLES[view], title_justify="left", box=SIMPLE_HEAD, padding=0)
        table.add_column(headers[0], overflow="fold")  # on a narrow terminal names are folded and numbers stay whole
        for header in headers[1:]:
            table.add_column(escape(header.replace(" ", "\n").replace("/", "\n/")), justify="right", no_wrap=True)
        for cells in rows:
            table.add_row(*map(escape, cells))
        console.print(table)
    for note in notes(report):
        console.print(escape(note))


def block(report: Report, view: Objective) -> Table:
    """The rows of one view. Bits per byte are for causal models, so masked blocks have no such column."""
    headers = ["model", "role", "params", "test CE", "pairs %", f"{report.confidence:.0%}", "ties"]
    headers += ["gain kept %", f"{report.confidence:.0%}", "tokens/s", "s"]
    rows = sorted((row for row in report.rows if row.view == view), key=lambda row: _ROLE_ORDER.index(row.role))
    cells = [_row_cells(row) for row in rows]
    if view == "causal":
        headers.insert(4, "bits/byte")
        for row, row_cells in zip(rows, cells, strict=True):
            row_cells.insert(4, _number(row.bits_per_byte, 3))
    return headers, cells


def notes(report: Report) -> list[str]:
    """What the columns mean, and why a gain kept is undefined."""
    lines = ["test CE: cross-entropy on the test stream, nats per target."]
    if len(_views(report)) > 1:
        lines[0] += " Causal and masked ones answer different questions and cannot be compared."
    if any(row.accuracy is not None for row in report.rows):
        lines.append("pairs %: minimal pairs won, mean over phenomena; ties are lost; chance is 50.")
    if any(row.gain_kept is not None for row in report.rows):
        lines.append("gain kept: (CE of the control - CE of the student) / (CE of the control - CE of the pool).")
    lines += [
        f"gain kept of {row.name.removesuffix(f' ({row.view})')} ({row.view}) is undefined: {row.gain_kept.reason}."
        for row in report.rows
        if row.gain_kept is not None and row.gain_kept.value is None
    ]
    return lines


def _views(report: Report) -> list[Objective]:
    """The views that have rows, causal first."""
    return [view for view in _TITLES if any(row.view == view for row in report.rows)]


def _row_cells(row: Row) -> list[str]:
    """The cells of one row, without bits per byte."""
    return [
        row.name,
        row.role,
        _count(row.parameters),
        _number(row.test_cross_entropy, 3),
        _percent(row.accuracy),
        _range(row.accuracy_interval),
        _number(row.ties, 0),
        *_gain_kept(row),
        _number(row.tokens_per_second, 0),
        _number(row.seconds, 0),
    ]


def _gain_kept(row: Row) -> tuple[str, str]:
    """The value and its interval."""
    if row.gain_kept is None:
        return NOTHING, NOTHING
    if row.gain_kept.value is None:
        return "undefined", NOTHING
    return _percent(row.gain_kept.value), _range(row.gain_kept.interval, 0)


def _ensemble_title(ensemble: Ensemble) -> str:
    views = "across views" if ensemble.view is None else f"{ensemble.view} view"
    return f"{ensemble.name}: {ensemble.pool}, weights {ensemble.weights}, {views}"


def _members_table(ensemble: Ensemble, confidence: float) -> Table:
    """Members, then the pool and the oracle, on the same targets."""
    rows = [
        [
            member.name,
            f"{member.weight:.3f}",
            "" if member.weight_interval is None else _plain_range(member.weight_interval),
            _number(member.tune_cross_entropy, 3),
            _number(member.test_cross_entropy, 3),
            _number(member.tune_without, 3),
            _number(member.test_without, 3),
            _percent(member.calibration_error),
        ]
        for member in ensemble.members
    ]
    for name, tune, test, calibration in (
        ("pool", ensemble.tune_cross_entropy, ensemble.test_cross_entropy, _percent(ensemble.calibration_error)),
        ("oracle", ensemble.tune_oracle, ensemble.test_oracle, ""),
    ):
        rows.append([name, "", "", _number(tune, 3), _number(test, 3), "", "", calibration])
    headers = ["member", "weight", f"{confidence:.0%}", "tune CE", "test CE", "tune CE without", "test CE without"]
    return [*headers, "ECE %"], rows


def _pairs_table(ensemble: Ensemble) -> Table:
    """Every pair of members; a row of its own says when distributions could not be compared."""
    rows = [
        [f"{pair.first}, {pair.second}", _number(pair.jensen_shannon, 4), _percent(pair.agreement)]
        for pair in ensemble.pairs
    ]
    return ["pair", "JSD", "same top-1 %"], rows or [["all", NOTHING, NOTHING]]


def _ensemble_facts(ensemble: Ensemble) -> list[str]:
    """How the weights were fitted, and what was compared on how many targets."""
    facts = []
    if ensemble.fitted_targets is not None:
        facts.append(f"weights: fitted on {ensemble.fitted_targets:,} tune targets, intervals over their documents")
    if ensemble.inverse_temperature is not None:
        interval = ensemble.inverse_temperature_interval
        shown = "" if interval is None else f" {_plain_range(interval)}"
        facts.append(f"1 / temperature, fitted with the weights: {ensemble.inverse_temperature:.3f}{shown}")
    entropies = f"{_number(ensemble.mixture_entropy, 3)} - {_number(ensemble.member_entropy, 3)}"
    facts.append(
        f"entropy of the mixture - mean entropy of the members: {entropies} = "
        f"{_number(ensemble.mutual_information, 4)} nats of mutual information between token and member"
    )
    facts.append(f"ECE, pairs and entropies: over {_number(ensemble.compared_targets, 0)} test targets")
    return facts


def _phenomena_table(phenomena: Sequence[Phenomenon]) -> Table:
    names = list(dict.fromkeys(name for phenomenon in phenomena for name in phenomenon.accuracy))
    return ["phenomenon", "term", "pairs", *names], [
        [
            phenomenon.uid,
            phenomenon.term,
            str(phenomenon.pairs),
            *(_percent(phenomenon.accuracy.get(name)) for name in names),
        ]
        for phenomenon in phenomena
    ]


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{round(value, digits) + 0.0:,.{digits}f}"  # + 0.0: -0.000 is 0.000


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def _range(interval: Interval | None, digits: int = 1) -> str:
    return NOTHING if interval is None else f"[{100 * interval.low:.{digits}f}, {100 * interval.high:.{digits}f}]"


def _plain_range(interval: Interval) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]"


def _count(value: int) -> str:
    """A number of parameters in three figures."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)


def _markdown_value(value: Any) -> list[str]:
    """A metadata section: a mapping as a list of its leaves, anything else as a paragraph."""
    if not isinstance(value, Mapping):
        return [escaped(str(value))]
    return [f"- {escaped(path)}: {escaped(leaf)}" for path, leaf in _leaves(value, "")]


def _leaves(value: Any, path: str) -> list[tuple[str, str]]:
    """(dotted path, text) of every leaf."""
    if isinstance(value, Mapping) and value:
        return [leaf for key, child in value.items() for leaf in _leaves(child, f"{path}.{key}" if path else str(key))]
    return [(path, str(value))]


def _plain(value: Any) -> Any:
    """NumPy scalars as Python numbers, paths as text."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a report holds JSON values, not {type(value).__name__}")
