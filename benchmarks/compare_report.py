"""The tables of a comparison: rich for the terminal, Markdown and JSON from the same cells, and what they say in words.

In tables differences and accuracies are in points of a hundred, in JSON from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compare import LEVELS, Comparison, Level, Pair, Row, Test
from benchmarks.markdown import NOTHING, Table, escaped, markdown_table
from benchmarks.paired import POWER
from benchmarks.stats import Interval
from corpora.storage import write_file, write_json

if TYPE_CHECKING:
    from rich.console import Console

_PLURALS: dict[Level, str] = {"phenomenon": "phenomena", "paradigm": "paradigms"}
MOST_FEW = 3  # seeds of a system that leave its variance so uncertain that many of the other one do not help
_IN_MARKDOWN_ALONE = {"odds ratio", "g"}  # a terminal has no room for them
_TESTS: dict[Test, str] = {
    "mcnemar": "of one paradigm, exact McNemar test of the items that one of the two wins alone",
    "permutation": "of a mean over paradigms, paired permutation test, A and B changing places item by item",
    "min_f": "min F' with seeds and items as sources of variation (Clark 1973), the seeds' part by Welch",
}


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Commit `compare.json` and `compare.md` to a folder; raises NoRoom when they do not fit."""
    write_json(folder / "compare.json", as_json(comparison))
    write_file(folder / "compare.md", to_markdown(comparison).encode())


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON values; what is undefined or infinite is null, intervals are [low, high]."""
    value = _finite(asdict(comparison))
    for pair, shown in zip(comparison.pairs, value["pairs"], strict=True):
        shown["summary"] = summary(pair, comparison.confidence)
    return value | {"power": POWER, "notes": notes(comparison)}


def to_markdown(comparison: Comparison) -> str:
    """For each pair the summary, the tables level by level and what they leave open; then what the columns mean."""
    lines = ["# Comparison", ""]
    for pair in comparison.pairs:
        lines += [f"## {escaped(_title(pair))}", "", escaped(summary(pair, comparison.confidence)), ""]
        for level in _levels(pair):
            lines += [*markdown_table(block(pair, level, comparison.confidence), texts=(0, -1)), ""]
        lines += [*(f"- {escaped(remark)}" for remark in remarks(pair, comparison.alpha)), ""]
    lines += ["## What the columns mean", "", *(f"- {escaped(note)}" for note in notes(comparison))]
    return "\n".join(lines) + "\n"


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the tables, without those columns that only Markdown has room for, and the words below them."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    if console is None:
        console = Console()
        if not console.is_terminal:  # a log has no width; rich would assume 80 columns and fold every name
            console.width = 120
    for pair in comparison.pairs:
        for level in _levels(pair):
            headers, rows = block(pair, level, comparison.confidence)
            shown = [number for number, header in enumerate(headers) if header not in _IN_MARKDOWN_ALONE]
            title = _title(pair) if level == LEVELS[0] else None
            table = RichTable(title=title and escape(title), title_justify="left", box=SIMPLE_HEAD, padding=0)
            for number in shown:
                if number in (0, len(headers) - 1):  # words are folded where it is narrow, numbers stay whole
                    table.add_column(escape(headers[number]), overflow="fold")
                else:
                    table.add_column(escape(headers[number].replace(" ", "\n")), justify="right", no_wrap=True)
            for cells in rows:
                table.add_row(*(escape(cells[number]) for number in shown))
            console.print(table)
        for line in (summary(pair, comparison.confidence), *remarks(pair, comparison.alpha)):
            console.print(escape(line))
    for note in notes(comparison):
        console.print(escape(note))


def block(pair: Pair, level: Level, confidence: float) -> Table:
    """The rows of one level."""
    headers = [level, "items", "A %", "B %", "A-B", f"{confidence:.0%}", "A only", "B only", "odds ratio", "g"]
    headers += ["p", "Holm p", "least shown", "verdict"]
    digits = 0 if pair.seeds_a == pair.seeds_b == 1 else 1  # of discordant items: with several seeds a mean
    return headers, [_cells(row, digits) for row in pair.rows if row.level == level]


def summary(pair: Pair, confidence: float) -> str:
    """One sentence: who is better overall and by how much, and on how many phenomena and paradigms."""
    overall = next(row for row in pair.rows if row.level == "overall")
    names = {"A": f"A ({pair.a})", "B": f"B ({pair.b})"}
    interval = f", {confidence:.0%} interval {_range(overall.interval)}" if overall.interval else ""
    difference = f"A-B is {_points(overall.difference)} points{interval}"
    if overall.verdict == "cannot be told apart":
        said = f"{names['A']} and {names['B']} cannot be told apart overall: {difference}"
    else:
        better, worse = ("A", "B") if overall.verdict == "A better" else ("B", "A")
        said = f"{names[better]} is better than {names[worse]} overall: {difference}"
    for level, plural in _PLURALS.items():
        verdicts = [row.verdict for row in pair.rows if row.level == level]
        if verdicts:
            counts = [verdicts.count(verdict) for verdict in ("A better", "B better", "cannot be told apart")]
            said += "; of {} {} A is better on {}, B on {}, and {} cannot be told apart".format(
                len(verdicts), plural if len(verdicts) > 1 else level, *counts
            )
    return f"{said}."


def remarks(pair: Pair, alpha: float) -> list[str]:
    """What this pair leaves open: how small a difference could have been shown, seeds, and ties."""
    return [*_detectable(pair), *_seeds(pair, alpha), *_ties(pair)]


def notes(comparison: Comparison) -> list[str]:
    """What the columns mean, and by which tests verdicts were found."""
    tests = {row.test for pair in comparison.pairs for row in pair.rows}
    return [
        "A %, B %: items won, mean over paradigms and seeds; A-B: their difference in points, with an interval for "
        "this row alone (Bonett and Price 2012; over seeds by min F').",
        "A only, B only: items that one wins and the other loses, over several seeds the mean of all pairs of seeds; "
        "odds ratio: A only / B only, one seed each with its exact interval; g: A's share of them - 0.5 (Cohen 1988: "
        "0.05 small, 0.15 medium, 0.25 large). Both pool the items of a row's paradigms.",
        *(f"p: {said}." for test, said in _TESTS.items() if test in tests),
        "Holm p: adjusted over all rows of one level and all pairs of systems; a verdict is given where it is at most "
        f"{comparison.alpha:g}, so the chance of any wrong verdict in a level is at most that.",
    ]


def _detectable(pair: Pair) -> Iterator[str]:
    """The smallest differences that undecided rows could have shown: one line, from smallest to largest by level."""
    said = []
    for level in LEVELS:
        open_rows = [row for row in pair.rows if row.level == level and row.test and not _decided(row)]
        known = sorted((row.detectable, row.name) for row in open_rows if row.detectable is not None)
        if known:
            (least, least_name), (most, most_name) = known[0], known[-1]
            span = f"{100 * least:.1f} points ({least_name})"
            said.append(span if len(known) == 1 else f"{span} to {100 * most:.1f} ({most_name})")
        if len(known) < len(open_rows):
            where = level if level == "overall" else f"{len(open_rows) - len(known)} {_PLURALS[level]}"
            said.append(f"none whatever its size ({where})")
    if said:
        yield (
            f"Smallest true difference that would have been shown with a power of {POWER:.0%}, where A and B cannot be "
            f"told apart: {'; '.join(said)}."
        )


def _seeds(pair: Pair, alpha: float) -> Iterator[str]:
    """What is known of other seeds."""
    seeds_a, seeds_b = pair.seeds_a, pair.seeds_b
    if seeds_a == seeds_b == 1:
        yield "One seed each: this compares two runs, and says nothing of other seeds of their recipes."
    elif min(seeds_a, seeds_b) == 1:
        alone = "A" if seeds_a == 1 else "B"
        yield (
            f"Too few seeds to tell: A has {seeds_a} and B {seeds_b}, so nothing is known of how {alone} varies over "
            "seeds, and nothing is tested; give at least two of each, or one of each to compare two runs."
        )
    else:
        share = pair.rows[0].seed_share
        assert share is not None, "seeds were tested"
        yield (
            f"A has {seeds_a} seeds and B {seeds_b}; {share:.0%} of the variance of the overall difference comes from "
            "seeds, which only more seeds make smaller, and the rest from items."
        )
        if min(seeds_a, seeds_b) <= MOST_FEW and max(seeds_a, seeds_b) > 2 * min(seeds_a, seeds_b):
            yield (
                "Unequal numbers of seeds: Welch's test then finds differences more often than it says. At a level of "
                "0.05, equal recipes of 2 and 8 seeds are told apart in 9 of 100 comparisons, of 2 and 20 in 12, of 3 "
                "and 10 in 6; give both as many."
            )
        labellings = math.comb(seeds_a + seeds_b, seeds_a)
        if 2 / labellings > alpha:
            yield (
                f"Few seeds to tell by: the labels of {seeds_a} and {seeds_b} seeds can be exchanged in {labellings} "
                f"ways, of which none is rarer than {alpha:g}, so verdicts rest on seeds being spread normally."
            )


def _ties(pair: Pair) -> Iterator[str]:
    overall = pair.rows[0]
    counts = {"A": overall.ties_a, "B": overall.ties_b}
    known = [f"{name} {count:,}" for name, count in counts.items() if count is not None]
    if known:
        yield f"Ties, which count as lost (over all seeds): {', '.join(known)}."


def _levels(pair: Pair) -> list[Level]:
    return [level for level in LEVELS if any(row.level == level for row in pair.rows)]


def _title(pair: Pair) -> str:
    return f"A = {pair.a}, B = {pair.b}"


def _cells(row: Row, digits: int) -> list[str]:
    least = NOTHING if row.detectable is None else f"{100 * row.detectable:.1f}"
    if row.test and row.detectable is None and not _decided(row):
        least = "none"
    return [
        row.name,
        f"{row.items:,}",
        f"{100 * row.accuracy_a:.1f}",
        f"{100 * row.accuracy_b:.1f}",
        _points(row.difference),
        _range(row.interval),
        f"{row.a_only:,.{digits}f}",
        f"{row.b_only:,.{digits}f}",
        _odds(row.odds_ratio, row.odds_ratio_interval),
        NOTHING if row.cohens_g is None else _signed(row.cohens_g, 2),
        _p(row.p_value),
        _p(row.adjusted_p_value),
        least,
        row.verdict,
    ]


def _decided(row: Row) -> bool:
    return row.verdict != "cannot be told apart"


def _points(difference: float) -> str:
    return _signed(100 * difference, 1)


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # + 0.0: -0.0 is 0.0


def _range(interval: Interval | None) -> str:
    return NOTHING if interval is None else f"[{_points(interval.low)}, {_points(interval.high)}]"


def _odds(ratio: float | None, interval: Interval | None) -> str:
    if ratio is None:
        return NOTHING
    return f"{ratio:.2f}" if interval is None else f"{ratio:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _finite(value: Any) -> Any:
    """JSON values; infinite numbers, which JSON cannot write, as None."""
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and math.isinf(value) else value
