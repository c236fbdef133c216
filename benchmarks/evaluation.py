"""One candidate on every benchmark that is asked for, with one load of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np

from benchmarks.canaries import Canary, canaries
from benchmarks.choices import Answering, ChoiceResults, ChoiceTask, score_choices
from benchmarks.config import EvaluationConfig
from benchmarks.minimal_pairs import blimp_tasks
from benchmarks.protocol import Protocol
from benchmarks.reading import ReadingResult, read_reading_items, reading_requests, reading_result
from benchmarks.stats import Interval, bootstrap_hierarchical_mean, bootstrap_macro_mean
from benchmarks.tasks.choice_files import LAYOUTS, benchmark_folder, read_choices
from benchmarks.tasks.definition import choice_benchmarks
from benchmarks.tasks.own_pairs import read_own_pairs
from benchmarks.wug import FILES as WUG_FILES
from benchmarks.wug import WugResult, read_wug_items, wug_requests, wug_result
from corpora.errors import InputRefused, RecipeError, suggestion

LATER_VARIANTS = ("ewok_2026", "entity_tracking_2026")
WUG_TITLES = {"wug_adj": "WUG, adjectives", "wug_past": "WUG, past tense"}
READING = "reading"
READING_FILE = "reading/reading_data.csv"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number of a benchmark, as a row of the table shows it."""

    benchmark: str
    title: str
    metric: str
    value: float | None  # None: undefined, and `reason` says why
    interval: Interval | None = None  # over items
    wide_interval: Interval | None = None  # over paradigms as well as items
    chance: float | None = None  # value of a guess
    paradigms: int = 1
    items: int
    ties: int = 0
    non_finite: int = 0
    ties_won: float | None = None  # accuracy where ties are wins, as the challenges' scorers count
    reason: str = ""


@dataclass(frozen=True)
class Evaluation:
    """Everything about one candidate in one mode."""

    candidate: str
    backend: str
    protocol: tuple[str, ...]  # every choice behind the scores, a line each
    choices: Mapping[str, ChoiceResults]  # by benchmark
    wugs: Mapping[str, WugResult] = field(default_factory=dict)
    reading: ReadingResult | None = None
    canaries: tuple[Canary, ...] = ()
    scores: tuple[Score, ...] = ()
    confidence: float = 0.95  # of every interval
    remarks: tuple[str, ...] = ()  # what else belongs to the scores, a line each
    baseline: Evaluation | None = None  # what every candidate has to beat, in the same benchmarks and protocol


def read_benchmarks(config: EvaluationConfig) -> dict[str, list[ChoiceTask]]:
    """The choice benchmarks that are asked for, and own pairs; read before any weights are.

    Raises InputRefused as the readers do, and RecipeError for a name that is none.
    """
    known = [*choice_benchmarks(), *WUG_FILES, READING]
    for name in config.benchmarks:
        if name not in known:
            raise RecipeError(f"--tasks: {name!r}; expected one of {', '.join(known)}{suggestion(name, known)}")
    found: dict[str, list[ChoiceTask]] = {}
    if config.pairs is not None:
        path = Path(config.pairs)
        found[path.stem] = read_own_pairs(path, good=config.good, bad=config.bad, group=config.group)
    if config.blimp is not None:
        found[Path(config.blimp).name] = blimp_tasks(Path(config.blimp), config.items, seed=config.seed)
    for name in choice_benchmarks():
        if config.data is not None and _wanted(name, config):
            folder = benchmark_folder(name, Path(config.data), fast=config.fast)
            found[name] = read_choices(name, folder, items=config.items, seed=config.seed)
    return found


def benchmark_file(name: str, data: Path, *, fast: bool = False) -> Path:
    """Where a benchmark that is no choice lies below the folder that the user names; raises InputRefused if nowhere."""
    file = {**WUG_FILES, READING: READING_FILE}[name]
    for layout in reversed(LAYOUTS) if fast else LAYOUTS:
        if (place := data / layout / file).exists():
            return place
    raise InputRefused(f"{data}: holds no {file}; expected the challenge's folder of data; check --data")


class Judged(Answering, Interface):
    """Who is scored: it answers requests, under a protocol."""

    @property
    def protocol(self) -> Protocol:
        """How texts become scores."""
        ...


def evaluate(
    scorer: Judged,
    tasks: Mapping[str, Sequence[ChoiceTask]],
    config: EvaluationConfig,
    *,
    backend: str,
    announce: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Score a candidate on the choice benchmarks that were read, and on the others that the folder of data holds.

    Raises Diverged when a score is not finite: such a candidate has no result.
    """
    choices: dict[str, ChoiceResults] = {}
    for name, of_benchmark in tasks.items():
        announce(f"score: {name}, {sum(len(task.items) for task in of_benchmark):,} items")
        choices[name] = score_choices(scorer, of_benchmark)
    how = {"confidence": config.confidence, "resamples": config.resamples, "seed": config.seed}
    wugs, reading = {}, None
    for name, path in _files(config):
        announce(f"score: {name}")
        if name == READING:
            words = read_reading_items(path)
            reading = reading_result(words, scorer.scores(reading_requests(words)), **how)
        else:
            items = read_wug_items(path)
            wugs[name] = wug_result(items, scorer.scores(wug_requests(items)), **how)
    birds = [canary for name in choices for canary in canaries(tasks[name], choices[name])] if config.canaries else []
    masked = scorer.objective == "masked"
    scores = [choice_score(name, result, how) for name, result in choices.items()]
    scores += [score for name, result in wugs.items() for score in _wug_scores(name, result)]
    scores += _reading_scores(reading) if reading is not None else []
    return Evaluation(
        scorer.name,
        backend,
        scorer.protocol.lines(masked),
        choices,
        wugs,
        reading,
        tuple(birds),
        tuple(scores),
        config.confidence,
    )


def choice_score(name: str, results: ChoiceResults, how: Mapping[str, Any]) -> Score:
    """The macro accuracy of a benchmark and how sure it is."""
    known, wins = choice_benchmarks().get(name), results.wins
    return Score(
        benchmark=name,
        title=known.title if known is not None else name,
        metric="accuracy",
        value=results.accuracy,
        interval=bootstrap_macro_mean(wins, **how),
        wide_interval=bootstrap_hierarchical_mean(wins, **how) if len(wins) > 1 else None,
        chance=float(np.mean([result.task.chance for result in results.tasks])),
        paradigms=len(results.tasks),
        items=sum(len(result.scores) for result in results.tasks),
        ties=results.ties,
        non_finite=results.non_finite,
        ties_won=float(np.mean([result.accuracy_ties_won for result in results.tasks])),
    )


def _wug_scores(name: str, result: WugResult) -> list[Score]:
    """The year's correlation, and the accuracy that it replaced."""
    items, title = len(result.probabilities), WUG_TITLES[name]
    found = [("Spearman", result.correlation, 0.0), ("accuracy", result.accuracy, 0.5)]
    return [
        Score(
            benchmark=name,
            title=title,
            metric=metric,
            value=estimate.value,
            interval=estimate.interval,
            chance=chance,
            items=items,
            ties=result.ties,
            reason=estimate.reason,
        )
        for metric, estimate, chance in found
    ]


def _reading_scores(result: ReadingResult) -> list[Score]:
    """What surprisal explains of reading times beside length and frequency, in per cent of what they leave."""
    return [
        Score(
            benchmark=READING,
            title=title,
            metric="explained %",
            value=estimate.value,
            interval=estimate.interval,
            chance=0.0,
            items=len(result.surprisals),
            reason=estimate.reason,
        )
        for title, estimate in (("Eye tracking", result.eye_tracking), ("Self-paced reading", result.self_paced))
    ]


def _wanted(name: str, config: EvaluationConfig) -> bool:
    """Whether a choice benchmark is asked for; of those that no name asks for, the ones that the folder holds."""
    if config.benchmarks:
        return name in config.benchmarks
    if name in LATER_VARIANTS:  # the same files, asked another way
        return False
    try:
        benchmark_folder(name, Path(config.data or ""), fast=config.fast)
    except InputRefused:
        return False
    return True


def _files(config: EvaluationConfig) -> Iterator[tuple[str, Path]]:
    """The files of the benchmarks that are not choices: those that are named, or that the folder of data holds."""
    if config.data is None:
        return
    for name in (*WUG_FILES, READING):
        if config.benchmarks and name not in config.benchmarks:
            continue
        try:
            yield name, benchmark_file(name, Path(config.data), fast=config.fast)
        except InputRefused:
            if config.benchmarks:
                raise
