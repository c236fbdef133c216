"""Our own speed against the alternatives: `python -m benchmarks.speed SUITE [--json]`.

A suite measures a room, so it lives there, and this harness must not import it: the rooms' imports run downward, and
`tests/test_rooms.py` reads every import statement of every file. A suite is therefore a name in `SUITES`, and its
module is loaded when somebody asks for it, as a plug-in would be; whoever imports `benchmarks` gets nothing that
stands above it. A suite's module holds

    GOALS                           every figure that was promised, by name
    conditions(setting)             more facts for the header
    figures(setting, names)         the named figures, measured, in that order
    tables(setting, figures, ...)   tables and lines beside them, for readers; `everything`: no figure was left out
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed_figures import Figure, Table, figures_json, figures_table, print_header, print_table
from benchmarks.speed_timing import Setting, default_device, machine, pin_threads
from corpora.errors import CuveeError, RecipeError

SUITES = {
    "distill": "distill.speed.suite",
    "train": "distill.speed.training",
    "models": "distill.speed.models",
    "fidelity": "distill.speed.fidelity",
    "score": "benchmarks.speed_score",
}
FALLS_SHORT = 1  # exit code when a figure misses its target


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the suites that the command line asks for; returns the exit code."""
    given = _parser().parse_args(arguments)
    setting = Setting(
        threads=given.threads,
        repetitions=given.repetitions,
        precision=given.precision,
        run_dir=given.run_dir,
        folder=given.folder,
        blimp=given.blimp,
    )
    names = list(SUITES) if given.suite == "all" else [given.suite]
    try:
        suites = {name: importlib.import_module(SUITES[name]) for name in names}
        wanted = _wanted(suites, given.only)
        figures = measure(suites, wanted, setting, as_json=given.json)
    except CuveeError as error:
        sys.stderr.write(f"speed: {error}\n")
        return error.exit_code
    return FALLS_SHORT if any(figure.holds is False for figure in figures) else 0


def measure(
    suites: dict[str, Any], wanted: dict[str, list[str] | None], setting: Setting, *, as_json: bool
) -> list[Figure]:
    """The figures of some suites, printed: as one JSON list, the header going to stderr, or as tables.

    `wanted` names figures of a suite; None stands for all of them, and for the tables beside them.
    """
    from rich.console import Console

    pin_threads(setting.threads)
    console = Console(stderr=as_json)
    if not console.is_terminal:  # a log has no width; rich would assume 80 columns and fold every row
        console.width = 160
    found: list[Figure] = []
    for name, suite in suites.items():
        chosen = wanted[name]
        if chosen == []:
            continue
        device = default_device()
        header = machine(device) | {"repetitions": str(setting.repetitions)} | suite.conditions(setting)
        print_header({"suite": name, **header}, console)
        figures = suite.figures(setting, list(suite.GOALS) if chosen is None else chosen)
        found += figures
        if not as_json:
            if (table := figures_table(figures)).rows:
                print_table(table, console)
            for part in suite.tables(setting, figures, everything=chosen is None):
                print_table(part, console) if isinstance(part, Table) else console.print(part, markup=False)
    if as_json:
        sys.stdout.write(figures_json(found) + "\n")
    return found


def _wanted(suites: dict[str, Any], only: Sequence[str] | None) -> dict[str, list[str] | None]:
    """The figures to measure of each suite, in the suite's order; None: all of them."""
    if not only:
        return dict.fromkeys(suites)
    known = [name for suite in suites.values() for name in suite.GOALS]
    if unknown := [name for name in only if name not in known]:
        raise RecipeError(
            f"--only {unknown[0]}: no figure of {', '.join(suites)}; expected one of {', '.join(known) or 'none'}"
        )
    return {name: [goal for goal in suite.GOALS if goal in only] for name, suite in suites.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Measure our speed against the alternatives. Exit code 1 when a figure misses its target.",
    )
    parser.add_argument("suite", choices=[*SUITES, "all"])
    parser.add_argument("--json", action="store_true", help="print a JSON list of figures, and nothing else, on stdout")
    parser.add_argument("--only", action="append", metavar="NAME", help="this figure alone; may be given again")
    parser.add_argument("--threads", type=_positive, default=Setting.threads, help="of torch's operators (%(default)s)")
    parser.add_argument(
        "--repetitions", type=_positive, default=Setting.repetitions, help="timed runs of each side (%(default)s)"
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default=Setting.precision,
        help="of matrix products; auto: bf16 where the machine computes it natively",
    )
    parser.add_argument(
        "--run-dir", type=Path, default=Setting.run_dir, help="a finished run, for the fidelity table (%(default)s)"
    )
    parser.add_argument("--blimp", type=Path, help="BLiMP's .jsonl files, for scoring (pairs are generated)")
    parser.add_argument("--folder", type=Path, help="where files lie while they are measured (the temporary folder)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {number}, needs at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
