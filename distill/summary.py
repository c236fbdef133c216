"""The report of a project: one table of everybody, the ensembles, the phenomena, and what they were made with."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.report_data import Phenomenon, Report, Row, phenomena_table, scoring_protocol
from benchmarks.stats import GainKept, bootstrap_macro_mean
from benchmarks.stream import stream_gain_kept
from corpora.batch import Objective
from distill.ensembles import ensemble_tables
from distill.project import Project
from distill.scores import Scores
from distill.tracking import TIMINGS, read_timings


def make_report(project: Project, scores: list[Scores], announce: Callable[[str], None]) -> Report:
    """Everything that a run shows, from the scores of all its contenders and the caches of its ensembles."""
    config = project.recipe.benchmarks
    objectives: list[Objective] = list(dict.fromkeys(result.contender.objective for result in scores))
    protocol = (
        *scoring_protocol(*objectives),
        f"Test cross-entropy: each document read alone, in windows of {project.recipe.cache.window} tokens.",
    )
    return Report(
        title=project.folder.name,
        rows=tuple(_row(project, result, scores) for result in scores),
        phenomena=_phenomena(project, scores),
        ensembles=ensemble_tables(project, announce),
        metadata=_metadata(project),
        protocol=protocol,
        confidence=config.confidence,
    )


def _row(project: Project, result: Scores, scores: list[Scores]) -> Row:
    contender, pairs = result.contender, result.pairs
    seconds, tokens = _timings(contender.run_folder)
    return Row(
        name=contender.name,
        role=contender.role,
        view=contender.objective,
        parameters=contender.parameters,
        test_cross_entropy=result.stream.cross_entropy,
        tune_cross_entropy=result.tune_cross_entropy,
        bits_per_byte=result.stream.bits_per_byte,
        accuracy=pairs.accuracy if pairs else None,
        accuracy_interval=bootstrap_macro_mean(pairs.wins, **_bootstrap(project)) if pairs else None,
        ties=pairs.ties if pairs else None,
        gain_kept=_gain_kept(project, result, scores),
        tokens_per_second=tokens / seconds if seconds else None,
        seconds=seconds or None,
    )


def _gain_kept(project: Project, student: Scores, scores: list[Scores]) -> GainKept | None:
    """Of a student against its control and the pool of its own view (house contract 6); None for all but students.

    The other controls are rows of the same scale: how much of the ensemble's advantage its best member alone would have
    given to this student, and how much of it as many operations on text alone would have bought.
    """
    contender, objective = student.contender, student.contender.objective
    name, _, control_name = contender.run.partition(".")  # no student has a dot in its name
    if contender.role not in ("student", "control") or control_name == "no_teacher_equal_steps":
        return None
    terms = [term for term in project.recipe.students[name].terms if term.members]
    own = [pool for pool in map(project.pool, terms) if pool.objective == objective]
    named = {(result.contender.run, result.contender.objective): result for result in scores}
    control = named.get((f"{name}.no_teacher_equal_steps", objective))
    if control is None:
        return GainKept(None, None, "the control no_teacher_equal_steps was not asked for")
    if not own:
        across = [pool.name for pool in map(project.pool, terms) if pool.objective is None]
        why = f"{across[0]} is pooled across views, so its cross-entropy is no {objective} one" if across else ""
        return GainKept(None, None, why or f"no term listens to {objective} teachers")
    pool = named[own[0].name, objective]
    return stream_gain_kept(control.stream, student.stream, pool.stream, **_bootstrap(project))


def _phenomena(project: Project, scores: list[Scores]) -> tuple[Phenomenon, ...]:
    results = [result.pairs for result in scores if result.pairs]
    return phenomena_table(results, **_bootstrap(project)) if results else ()


def _bootstrap(project: Project) -> dict[str, Any]:
    config = project.recipe.benchmarks
    return {"confidence": config.confidence, "resamples": config.resamples, "seed": project.recipe.seed}


def _timings(folder: Path | None) -> tuple[float, int]:
    return read_timings(folder) if folder is not None and (folder / TIMINGS).exists() else (0.0, 0)


def _metadata(project: Project) -> dict[str, Any]:
    streams = project.corpus.manifest.facts["streams"]
    return {
        "recipe": {"run_dir": str(project.folder), "seed": project.recipe.seed, "commit": _commit()},
        "corpus": {
            name: {key: facts[key] for key in ("words", "tokens", "documents")} for name, facts in streams.items()
        },
        "tokenizer": {"vocab_size": project.corpus.vocab_size, "digest": project.corpus.tokenizer.digest},
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "scipy")},
        },
    }


def _commit() -> str | None:
    """The commit of a source checkout, or None outside one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    shown = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None
