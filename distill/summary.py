"""The report of a project: one table of everybody, the ensembles, the phenomena, and what they were made with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.report_data import Ensemble, Member, Phenomenon, Report, Row, phenomena_table, scoring_protocol
from benchmarks.stats import GainKept, bootstrap_macro_mean
from benchmarks.stream import stream_gain_kept
from distill.evaluate import pool_nats
from distill.project import Pool, Project
from distill.scores import Scores
from distill.tracking import TIMINGS, read_timings
from teachers import ensemble as pools


def make_report(project: Project, scores: list[Scores]) -> Report:
    """Everything that a run shows, from the scores of all its contenders."""
    config = project.recipe.benchmarks
    objectives = list(dict.fromkeys(result.contender.objective for result in scores))
    protocol = (
        *scoring_protocol(*objectives),
        f"Test cross-entropy: each document read alone, in windows of {project.recipe.cache.window} tokens.",
    )
    return Report(
        title=project.folder.name,
        rows=tuple(_row(project, result, scores) for result in scores),
        phenomena=_phenomena(project, scores),
        ensembles=tuple(_ensemble(project, pool) for pool in project.pools() if len(pool.members) > 1),
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
        bits_per_byte=result.stream.bits_per_byte,
        accuracy=pairs.accuracy if pairs else None,
        accuracy_interval=bootstrap_macro_mean(pairs.wins, **_bootstrap(project)) if pairs else None,
        ties=pairs.ties if pairs else None,
        gain_kept=_gain_kept(project, result, scores) if contender.role == "student" else None,
        tokens_per_second=tokens / seconds if seconds else None,
        seconds=seconds or None,
    )


def _gain_kept(project: Project, student: Scores, scores: list[Scores]) -> GainKept:
    """Of a student against its control and the pool of its own view (house contract 6)."""
    name, objective = student.contender.run, student.contender.objective
    terms = [term for term in project.recipe.students[name].terms if term.members]
    own = [pool for pool in map(project.pool, terms) if pool.objective == objective]
    named = {(result.contender.run, result.contender.objective): result for result in scores}
    control = named.get((f"{name}.no_teacher_equal_steps", objective))
    if control is None:
        return GainKept(None, None, "the control no_teacher_equal_steps was not asked for")
    if not own:
        return GainKept(None, None, f"no term listens to {objective} teachers")
    pool = named[own[0].name, objective]
    return stream_gain_kept(control.stream, student.stream, pool.stream, **_bootstrap(project))


def _phenomena(project: Project, scores: list[Scores]) -> tuple[Phenomenon, ...]:
    results = [result.pairs for result in scores if result.pairs]
    return phenomena_table(results, **_bootstrap(project)) if results else ()


def _ensemble(project: Project, pool: Pool) -> Ensemble:
    """A pool and its members on the targets of the tune and test streams, from the caches."""
    weights = project.resolved_weights(pool)

    def cross_entropy(names: list[str], stream: str) -> float:
        members = {name: project.cached(name, stream) for name in names}
        blend = pools.Ensemble.of(members, {name: weights[name] for name in names}, pool.rule)
        return float(pool_nats(blend, project.corpus, stream)[1].mean(dtype="float64"))

    names = [name for name, weight in weights.items() if weight > 0]
    return Ensemble(
        name=pool.name,
        view=pool.objective,
        pool=pool.rule,
        weights=pool.weights,
        members=tuple(
            Member(
                name=name,
                weight=weights[name] / sum(weights.values()),
                tune_cross_entropy=cross_entropy([name], "tune"),
                test_cross_entropy=cross_entropy([name], "test"),
            )
            for name in names
        ),
        tune_cross_entropy=cross_entropy(names, "tune"),
        test_cross_entropy=cross_entropy(names, "test"),
    )


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
