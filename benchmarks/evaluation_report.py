"""The scores of one candidate as tables: for a terminal, as Markdown and as JSON, from the same cells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.choices import ChoiceResult
from benchmarks.evaluation import Evaluation, Score
from benchmarks.markdown import NOTHING, Table, escaped, markdown_table
from benchmarks.stats import Interval
from corpora.storage import write_file

if TYPE_CHECKING:
    from rich.console import Console


def write_evaluations(folder: Path, evaluations: Sequence[Evaluation]) -> None:
    """Commit `scores.md` and `scores.json` to a folder; raises NoRoom when they do not fit."""
    write_file(folder / "scores.json", evaluations_json(evaluations).encode())
    write_file(folder / "scores.md", to_markdown(evaluations).encode())


def to_markdown(evaluations: Sequence[Evaluation]) -> str:
    """A section for each candidate and backend: scores, notes, paradigms, canaries, protocol."""
    lines: list[str] = []
    for evaluation in evaluations:
        lines += [f"# {escaped(title(evaluation))}", "", *markdown_table(score_table(evaluation), texts=(0, 1)), ""]
        lines += [f"{note}\n" for note in notes(evaluation)]
        if evaluation.choices:
            lines += ["## By paradigm", "", *markdown_table(paradigm_table(evaluation), texts=(0, 1, 2)), ""]
        if evaluation.canaries:
            lines += ["## Canaries", "", *markdown_table(canary_table(evaluation), texts=(0, 1, 2, 3)), ""]
        lines += ["## How the scores were made", "", *(f"- {line}" for line in evaluation.protocol), ""]
    return "\n".join(lines).rstrip() + "\n"


def evaluations_json(evaluations: Sequence[Evaluation]) -> str:
    """The same as a list of objects, with the paradigms' accuracies; NaN raises ValueError."""
    value = [
        {
            "candidate": evaluation.candidate,
            "backend": evaluation.backend,
            "protocol": evaluation.protocol,
            "confidence": evaluation.confidence,
            "remarks": evaluation.remarks,
            "baseline": evaluation.baseline.candidate if evaluation.baseline is not None else None,
            "scores": [asdict(score) | {"baseline": _baseline(evaluation, score)} for score in evaluation.scores],
            "paradigms": [
                {
                    "benchmark": name,
                    "uid": result.task.uid,
                    "field": result.task.field,
                    "term": result.task.term,
                    "items": len(result.scores),
                    "accuracy": result.accuracy,
                    "baseline": beaten.accuracy if beaten is not None else None,
                    "ties": result.ties,
                }
                for name, result, beaten in _paradigms(evaluation)
            ],
            "canaries": [
                {
                    "name": canary.name,
                    "found": str(canary.found),
                    "expected": str(canary.expected),
                    "lives": canary.lives,
                }
                for canary in evaluation.canaries
            ],
        }
        for evaluation in evaluations
    ]
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"


def print_evaluation(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print scores, canaries, notes and protocol on a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    if console is None:
        console = Console()
        if not console.is_terminal:  # a log has no width; rich would assume 80 columns and fold every name
            console.width = 140
    tables = {title(evaluation): score_table(evaluation)}
    if evaluation.canaries:
        tables["Canaries"] = canary_table(evaluation)
    for name, (headers, rows) in tables.items():
        shown = RichTable(title=escape(name), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, header in enumerate(headers):
            shown.add_column(escape(header), justify="right" if number > 1 else "left", no_wrap=number > 1)
        for cells in rows:
            shown.add_row(*map(escape, cells))
        console.print(shown)
    for line in (*notes(evaluation), *evaluation.protocol):
        console.print(escape(line))


def title(evaluation: Evaluation) -> str:
    """Candidate and backend."""
    return f"{evaluation.candidate}, {evaluation.backend}"


def score_table(evaluation: Evaluation) -> Table:
    """A row for each number of each benchmark."""
    sure = f"{evaluation.confidence:.0%}"
    headers = ["benchmark", "measure", "score", f"{sure} items", f"{sure} paradigms", "chance"]
    headers += [evaluation.baseline.candidate] if evaluation.baseline is not None else []
    headers += ["items", "ties", "ties won"]
    return headers, [_cells(score, evaluation) for score in evaluation.scores]


def paradigm_table(evaluation: Evaluation) -> Table:
    """A row for each paradigm of the choice benchmarks."""
    headers = ["benchmark", "paradigm", "phenomenon", "items", "accuracy %", "chance %"]
    headers += [f"{evaluation.baseline.candidate} %"] if evaluation.baseline is not None else []
    rows = [
        [
            name,
            result.task.uid,
            result.task.term or result.task.field or NOTHING,
            f"{len(result.scores):,}",
            f"{100 * result.accuracy:.1f}",
            f"{100 * result.task.chance:.0f}",
            *([f"{100 * beaten.accuracy:.1f}"] if beaten is not None else []),
            str(result.ties),
        ]
        for name, result, beaten in _paradigms(evaluation)
    ]
    return [*headers, "ties"], rows


def canary_table(evaluation: Evaluation) -> Table:
    """What each canary got on each benchmark, and what it had to get."""
    rows = [
        [canary.name, "lives" if canary.lives else "DEAD", str(canary.found), str(canary.expected)]
        for canary in evaluation.canaries
    ]
    return ["canary", "state", "got", "must get"], rows


def notes(evaluation: Evaluation) -> list[str]:
    """What the columns mean, and why a score is undefined."""
    found = list(evaluation.remarks)
    if evaluation.choices:
        found.append(
            "accuracy: share of items whose right option scores strictly highest, mean over paradigms; ties are lost. "
            "ties won: the same where the first of equal scores is taken, as the challenges' scorers do. paradigms: "
            "the interval if other paradigms might have been chosen too."
        )
    found += [
        f"{score.title}, {score.metric}: {'undefined' if score.value is None else 'no interval'}: {score.reason}."
        for score in evaluation.scores
        if score.reason
    ]
    if any(not canary.lives for canary in evaluation.canaries):
        found.append("A canary is dead: this benchmark pays a scorer that knows nothing. Do not believe the scores.")
    return found


def _paradigms(evaluation: Evaluation) -> Iterator[tuple[str, ChoiceResult, ChoiceResult | None]]:
    """Every paradigm: its benchmark, the candidate's result, and the baseline's where there is one."""
    for name, results in evaluation.choices.items():
        beaten = evaluation.baseline.choices[name].tasks if evaluation.baseline is not None else ()
        for result, other in zip_longest(results.tasks, beaten):
            yield name, result, other


def _baseline(evaluation: Evaluation, score: Score) -> float | None:
    """What the baseline got in the same row; None where there is none, or where it answers no such question."""
    if evaluation.baseline is None:
        return None
    row = (score.benchmark, score.title, score.metric)
    found = {(other.benchmark, other.title, other.metric): other.value for other in evaluation.baseline.scores}
    return found.get(row)


def _cells(score: Score, evaluation: Evaluation) -> list[str]:
    accuracy = score.metric == "accuracy"
    scale, digits = (100.0, 1) if accuracy else (1.0, 2 if score.metric == "explained %" else 3)

    def number(value: float | None) -> str:
        return NOTHING if value is None else f"{scale * value:.{digits}f}"

    def interval(ends: Interval | None) -> str:
        return NOTHING if ends is None else f"[{number(ends.low)}, {number(ends.high)}]"

    return [
        score.title,
        "accuracy %" if accuracy else score.metric,
        number(score.value),
        interval(score.interval),
        interval(score.wide_interval),
        number(score.chance),
        *([number(_baseline(evaluation, score))] if evaluation.baseline is not None else []),
        f"{score.items:,}",
        str(score.ties) if accuracy else NOTHING,
        number(score.ties_won),
    ]


def _plain(value: object) -> Any:
    """numpy's numbers as JSON's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")
