"""Scores of everybody: nats on the test stream and minimal pairs, each candidate in a committed folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.choices import ChoiceResult, ChoiceResults, ChoiceTask, score_choices
from benchmarks.config import BenchmarksConfig
from benchmarks.minimal_pairs import blimp_tasks, tasks_from_rows
from benchmarks.ngram_baseline import ngram_candidate, ngram_identity, ngram_stream_result, stored_ngrams
from benchmarks.protocol import PROTOCOLS
from benchmarks.scorer import Candidate, candidate_from_model
from benchmarks.scoring import Scorer
from benchmarks.scoring_tokenizer import own_tokenizer
from benchmarks.stream import StreamResult, stream_result
from corpora.addressed import address
from corpora.batch import Objective
from corpora.config import CorpusConfig
from corpora.errors import InputRefused
from corpora.sources import source_identity
from corpora.storage import Manifest, canonical_json, digest, fingerprint_digest, new_folder, read_manifest
from corpora.synthetic_pairs import minimal_pairs
from corpora.tokenizer import TextTokenizer
from distill.evaluate import model_nats, pool_nats
from distill.project import MOST_NAME, Pool, Project
from students.run_folder import WEIGHTS, load_model
from teachers.cache import cached_view
from teachers.ensemble import pooled_log_probs

Role = Literal["baseline", "teacher", "pool", "student", "control"]
Nats = Callable[[str], tuple[np.ndarray, np.ndarray]]  # of a stream


@dataclass(frozen=True)
class Contender:
    """A candidate of this project in one view, and how to score it when its scores are not there yet."""

    name: str  # in tables: of a model that reads both views, with the view
    run: str  # of the run, or of the pool
    role: Role
    objective: Objective
    fingerprint: dict[str, Any]  # of the weights behind it
    parameters: int
    run_folder: Path | None  # None for a pool and for n-grams
    # loads the weights to a device: the candidate, and the positions and nats of the targets of a stream
    measure: Callable[[torch.device], tuple[Candidate, Nats]]


@dataclass(frozen=True)
class Scores:
    """A contender's results, read from its folder."""

    contender: Contender
    stream: StreamResult  # test
    tune_cross_entropy: float  # nats per target
    pairs: ChoiceResults | None


class ScoreBoard:
    """Scores contenders once and reads the results back."""

    def __init__(self, project: Project, device: torch.device, announce: Callable[[str], None]) -> None:
        self._project, self._device = project, device
        self._announce = announce
        self.tasks = pair_tasks(project.recipe.benchmarks, project.recipe.seed)

    def scores(self, contender: Contender) -> Scores:
        """Results of a contender, computed when they are not there."""
        fingerprint = {
            **contender.fingerprint,
            "objective": contender.objective,
            "corpus": self._project.corpus.identity("test"),
            "tune": self._project.corpus.identity("tune")["tokens"],
            "window": self._project.recipe.cache.window,
            "masks": self._masks(contender.objective),
            "pairs": self._tasks_digest,
        }
        folder = self._project.folder / "scores" / f"{_file_name(contender)}-{fingerprint_digest(fingerprint)}"
        manifest = read_manifest(folder)
        if manifest is None:
            self._announce(f"score: {contender.name}")
            self._write(folder, contender, fingerprint)
            manifest = read_manifest(folder)
        assert manifest is not None
        return self._read(manifest.require("scores", fingerprint), contender)

    def _masks(self, objective: Objective) -> dict[str, Any] | None:
        config = self._project.recipe.cache
        if objective == "causal":
            return None
        return cached_view(config, objective).scheme()

    @cached_property
    def _tasks_digest(self) -> str:
        rows = [[task.uid, *item.said] for task in self.tasks for item in task.items]
        return digest(canonical_json(rows).encode())

    def _write(self, folder: Path, contender: Contender, fingerprint: dict[str, Any]) -> None:
        candidate, nats = contender.measure(self._device)
        positions_N, nats_N = nats("test")
        tune = self._stream_result("tune", contender, *nats("tune"))
        results = score_tasks(candidate, self.tasks, self._project.corpus.tokenizer, self._project.recipe.benchmarks)
        with new_folder(folder, kind="scores", fingerprint=fingerprint) as writer:
            writer.write_array("positions.npy", positions_N)
            writer.write_array("nats.npy", nats_N)
            writer.facts["tune_cross_entropy"] = tune.cross_entropy
            for number, task in enumerate(results.tasks if results else ()):
                writer.write_array(f"pairs-{number:03d}.npy", np.ascontiguousarray(task.scores.T))

    def _read(self, manifest: Manifest, contender: Contender) -> Scores:
        positions_N, nats_N = (np.array(manifest.array(name)) for name in ("positions.npy", "nats.npy"))
        result = self._stream_result("test", contender, positions_N, nats_N)
        tasks = []
        for number, task in enumerate(self.tasks):
            tasks.append(ChoiceResult(task, np.array(manifest.array(f"pairs-{number:03d}.npy")).T))
        pairs = ChoiceResults(contender.name, contender.objective, tuple(tasks)) if tasks else None
        return Scores(contender, result, manifest.facts["tune_cross_entropy"], pairs)

    def _stream_result(
        self, name: str, contender: Contender, positions_N: np.ndarray, nats_N: np.ndarray
    ) -> StreamResult:
        stream = self._project.corpus.streams[name]
        return stream_result(
            contender.objective,
            positions_N,
            nats_N,
            offsets_D1=stream.document_offsets,
            bytes_D=stream.document_bytes,
        )


def pair_tasks(config: BenchmarksConfig, seed: int) -> list[ChoiceTask]:
    """The minimal pairs that a recipe asks for; raises InputRefused when a folder is not named or cannot be read."""
    tasks: list[ChoiceTask] = []
    if config.minimal_pairs is not None:
        tasks += tasks_from_rows(minimal_pairs(config.minimal_pairs.pairs, seed))
    if config.blimp is not None:
        if not config.blimp.root:
            raise InputRefused(
                "benchmarks.blimp.root: not set; give benchmarks.blimp.root=DIR, a folder of .jsonl files"
            )
        tasks += blimp_tasks(Path(config.blimp.root), config.blimp.pairs, seed=address(seed, "pairs") >> 1)
    return tasks


def write_pairs(project: Project) -> None:
    """The embedded corpus's pairs as files in BLiMP's format, `pairs-N/UID.jsonl`, for other models and other tools."""
    config, seed = project.recipe.benchmarks.minimal_pairs, project.recipe.seed
    if config is None:
        return
    folder = project.folder / f"pairs-{config.pairs}"
    fingerprint = {"grammar": source_identity(CorpusConfig()), "pairs": config.pairs, "seed": seed}
    found = read_manifest(folder)
    if found is not None:
        found.require("pairs", fingerprint)
        return
    with new_folder(folder, kind="pairs", fingerprint=fingerprint) as writer:
        for uid, rows in minimal_pairs(config.pairs, seed).items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            writer.write(f"{uid}.jsonl", "".join(lines).encode())


def score_tasks(
    candidate: Candidate, tasks: Sequence[ChoiceTask], tokenizer: TextTokenizer, config: BenchmarksConfig
) -> ChoiceResults | None:
    """A candidate on minimal pairs; None when there are none."""
    if not tasks:
        return None
    scorer = Scorer(
        candidate.name, (candidate,), own_tokenizer(tokenizer.to_json()), PROTOCOLS["cuvee"], config.max_tokens
    )
    return score_choices(scorer, tasks)


def contenders(project: Project) -> list[Contender]:
    """Everybody: n-grams, teachers, pools of several, students and controls, in the order of the table.

    A pool across views is not among them: there is no single input that a sentence could be given to it as.
    """
    order = project.recipe.benchmarks.ngram_order
    found = [_ngrams(project, order)] if order is not None else []
    found += [_teacher(project, name) for name in project.recipe.teachers]
    pools = [pool for pool in project.pools() if len(pool.members) > 1]
    found += [_pool(project, pool, pool.objective) for pool in pools if pool.objective is not None]
    for name, control in project.student_runs():
        found += _student(project, name, control)
    return found


def _ngrams(project: Project, order: int) -> Contender:
    """Our own token counts, the baseline that every causal model has to beat."""
    folder = project.folder / "ngrams" / f"{order}-grams"
    model = stored_ngrams(project.corpus, folder, order=order)
    name = f"{order}-gram"

    def nats(stream: str) -> tuple[np.ndarray, np.ndarray]:
        result = ngram_stream_result(model, project.corpus.streams[stream])
        return result.positions_N, result.nats_N

    return Contender(
        name,
        name,
        "baseline",
        "causal",
        {"ngrams": ngram_identity(project.corpus.identity("train"), order)},
        sum(map(len, model.counts)),
        None,
        lambda device: (ngram_candidate(model, name), nats),
    )


def _teacher(project: Project, name: str) -> Contender:
    folder = project.teacher_folder(name)
    return _model(project, name, "teacher", project.teacher_objective(name), folder, project.teacher_weights(name))


def _student(project: Project, name: str, control: str | None) -> list[Contender]:
    run = project.student_run(name, control)
    manifest = read_manifest(run.folder)
    assert manifest is not None, f"{run.folder} is trained before it is scored"
    views: list[Objective] = manifest.facts["views"]
    weights = manifest.files[WEIGHTS]["digest"]
    role: Role = "control" if control else "student"
    found = [_model(project, run.name, role, view, run.folder, weights) for view in views]
    if len(views) == 1:
        return found
    return [replace(contender, name=f"{run.name} ({contender.objective})") for contender in found]


def _model(project: Project, name: str, role: Role, objective: Objective, folder: Path, weights: str) -> Contender:
    manifest = read_manifest(folder)

    def measure(device: torch.device) -> tuple[Candidate, Nats]:
        model = project.load(folder).to(device)
        nats = partial(model_nats, model, project.corpus, objective=objective, config=project.recipe.cache)
        return candidate_from_model(name, model, objective, shift=model.masked_shift), nats

    parameters = manifest.facts["parameters"] if manifest else _count_parameters(folder)
    return Contender(name, name, role, objective, {"weights": weights}, parameters, folder, measure)


def _pool(project: Project, pool: Pool, objective: Objective) -> Contender:
    ensemble = project.ensemble(pool, "test")
    names = [member.name for member in ensemble.members]

    def measure(device: torch.device) -> tuple[Candidate, Nats]:
        models = [project.load_teacher(name).to(device) for name in names]
        log_probs = partial(pooled_log_probs, models, ensemble, causal=objective == "causal")
        longest = min(model.config.max_positions for model in models)
        candidate = Candidate(pool.name, objective, log_probs, longest)
        return candidate, lambda stream: pool_nats(project.ensemble(pool, stream), project.corpus, stream)

    fingerprint = {
        "members": {name: project.cache_key(name, "test").fingerprint() for name in names},
        "pool": pool.described_rule,
        "weights": dict(zip(names, ensemble.weights, strict=True)),
        "temperature": ensemble.temperature,
    }
    parameters = sum(_teacher(project, name).parameters for name in names)
    return Contender(pool.name, pool.name, "pool", objective, fingerprint, parameters, None, measure)


def _count_parameters(folder: Path) -> int:
    return sum(parameter.numel() for parameter in load_model(folder).parameters())


def _file_name(contender: Contender) -> str:
    name = "".join(character if character.isalnum() or character in "._+-" else "_" for character in contender.name)
    return f"{name[:MOST_NAME]}-{contender.objective}"
