"""`cuvee submit`: a run of this toolkit becomes a year's submission, its checkpoints scored on what the year asks.

What can be known before hours of scoring is told before them, all of it at once: the rows that the items will give are
checked against the year's table with blank answers, and the run against the limits of its track.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import acquisition
from benchmarks.config import Backend as OurBackend
from benchmarks.config import EvaluationConfig
from benchmarks.finetune.config import PRESETS
from benchmarks.scoring import Scorer
from benchmarks.submission.checks import problems
from benchmarks.submission.layout import Year, wanted_checkpoints
from benchmarks.submission.submitted_run import Answers, Backend, Checkpoint, SubmittedRun
from benchmarks.submission.write import require_free, write_submission
from corpora.batch import Objective
from corpora.errors import InputRefused, RecipeError
from corpora.storage import Manifest, read_manifest
from distill.candidates import Subject, finetuned_subject, scoring_team, subject_scorer
from distill.lineage import TrainedRun, auxiliary_models
from distill.memory import keep_freed_memory
from distill.submitted_predictions import (
    CHILDREN,
    WORDS,
    Acquisition,
    Blank,
    Questions,
    Rows,
    acquisition_score,
    answered,
    read_acquisition,
    read_labels,
    read_questions,
)
from distill.year_data import PROTOCOL_OF, known_year
from students.buildable import Buildable
from students.config import ModelConfig
from students.registry import check_model

BACKENDS: dict[Backend, OurBackend] = {"causal": "causal", "mlm": "masked", "mntp": "mntp"}
_READS: dict[Backend, Objective] = {"causal": "causal", "mlm": "masked", "mntp": "masked"}
# how the pipeline of each year fine-tunes
PRESET = {2024: "babylm2024", 2025: "babylm2025", 2026: "babylm2025"}
AOA, AOA_SCORE = "AoA", "aoa_score"  # tasks


@dataclass(frozen=True, kw_only=True)
class SubmissionConfig:
    """What is handed in, and where to find what a run folder does not hold."""

    track: str
    year: int
    out: Path  # folder of the submission
    data: Path | None = None  # the challenge's folder of data, or one above it
    backend: Backend | None = None  # how texts are scored; None: as the run was trained
    finetuned: Path | None = None  # what `cuvee finetune` made of the run: TASK/seed_N/predictions.json
    seed: int | None = None  # of fine-tuning; None: the first of the year's preset
    aoa: Path | None = None  # folder of cdi_childes.json and cdi_human.csv
    name: str | None = None  # of the model in the submission; None: the run folder's
    licence: str = ""  # of the weights of teachers that were trained in the run's own run_dir
    answers: Path | None = None  # where single scores are kept and found again; None: `answers` beside the submission


@dataclass(frozen=True)
class _Asked:
    """Everything that a submission is asked, read before anything is scored."""

    full: Questions
    fast: Questions
    acquisition: Acquisition | None
    labels: Mapping[str, Rows]


def submit(folder: Path, config: SubmissionConfig) -> None:
    """Score a run and its checkpoints, and write the submission; prints the verdict on auxiliary models and the notes.

    The same command finds single scores again, and leaves a submission that is there as it is. Several processes share
    the scoring. Raises InputRefused with every problem that is known before it, one on each line; RecipeError,
    Diverged, Damaged and NoRoom.
    """
    keep_freed_memory()
    year = known_year(config.year)
    trained = TrainedRun(Path(os.path.abspath(folder)))
    run = _submitted_run(trained, year, config)
    subject = Subject(run.model, run.name)
    asked = _require_ready(run, subject, year, config)
    team = scoring_team()
    how, store = EvaluationConfig(protocol=PROTOCOL_OF[year.year]), config.answers or config.out.parent / "answers"

    def scorer_of(scored: Subject) -> Scorer:
        return subject_scorer(scored, BACKENDS[run.backend], how, store, team)[0]

    answers = _answers(run, subject, asked, year, scorer_of, print if team.rank == 0 else lambda line: None)
    if team.rank == 0:
        _describe(write_submission(run, answers, config.out, year=year))


def _submitted_run(trained: TrainedRun, year: Year, config: SubmissionConfig) -> SubmittedRun:
    """The run as its folder, its corpus and its recipe describe it."""
    facts = trained.manifest.facts
    if not trained.texts:
        raise InputRefused(
            f"{trained.run_dir / 'corpus'}: missing, or not the text that {trained.folder.name} was trained on; "
            "expected the run_dir of the run, whole; run `cuvee prepare` with its recipe"
        )
    kept = _kept(trained, year, config.track)
    return SubmittedRun(
        name=config.name or trained.folder.name,
        year=year.year,
        track=config.track,
        backend=_backend(trained, config),
        model=trained.folder,
        corpus=trained.texts,
        words_seen=_words_seen(facts["words"], kept),
        epochs=trained.epochs,
        checkpoints=kept,
        teachers=auxiliary_models(trained, licence=config.licence),
    )


def _kept(trained: TrainedRun, year: Year, track: str) -> dict[str, Checkpoint]:
    """The checkpoints of the track that the run kept until it came to its weights, by the challenge's names."""
    if track not in year.tracks:
        return {}
    found = {}
    for name in (f"chck_{million}M" for million in year.tracks[track].checkpoints):
        manifest = read_manifest(trained.run_folder / "snapshots" / name)
        if manifest is not None and manifest.facts["words"] <= trained.manifest.facts["words"]:
            found[name] = Checkpoint(folder=manifest.folder, words=manifest.facts["words"])
    return found


def _words_seen(words: int, kept: Mapping[str, Checkpoint]) -> int:
    """Words of a run; one that ends within a step of a checkpoint, and kept it, is said to have seen all of its words.

    A run of at most 100M words never ends on the last of them, and its chck_100M are its last weights.
    """
    named = [int(name.removeprefix("chck_").removesuffix("M")) * 1_000_000 for name in kept]
    return max([words, *named])


def _backend(trained: TrainedRun, config: SubmissionConfig) -> Backend:
    """How texts are scored: as asked for, if the run was trained so, or in the only way that it was trained."""
    views = trained.manifest.facts["views"]
    if config.backend is None:
        if len(views) > 1:
            raise RecipeError(f"--backend: {trained.folder} was trained in both views; choose {', '.join(BACKENDS)}")
        if views == ["causal"]:
            return "causal"
        model = ModelConfig(**trained.made_from["model"])
        return "mntp" if check_model(model).masked_shift_of(model) else "mlm"
    if _READS[config.backend] not in views:
        raise RecipeError(f"--backend {config.backend}: {trained.folder} was trained {views[0]}; leave it out")
    return config.backend


# before anything is scored


def _require_ready(run: SubmittedRun, subject: Subject, year: Year, config: SubmissionConfig) -> _Asked:
    """Everything that is asked; raises InputRefused with all that is known to be wrong, a line for each."""
    asked, unread = _read(run, subject, year, config)
    try:
        require_free(config.out, run)
    except InputRefused as error:
        unread.append(str(error))
    if found := [*problems(run, *_blank(run, asked, year)), *dict.fromkeys(unread)]:
        raise InputRefused("\n".join(found))
    return asked


def _read(run: SubmittedRun, subject: Subject, year: Year, config: SubmissionConfig) -> tuple[_Asked, list[str]]:
    """What is asked, and what is wrong with the rest of it."""
    asks_zero_shot = {"choice", "probability", "reading"}
    tasks = {**year.full, **year.fast}
    unread: list[str] = []
    full, fast = Questions(), Questions()
    if config.data is not None:
        full = read_questions(year.full, year, config.data, fast=False)
        fast = read_questions(year.fast, year, config.data, fast=True)
        unread += [*full.unread.values(), *fast.unread.values()]
    elif names := [name for name, task in tasks.items() if task.kind in asks_zero_shot]:
        unread.append(f"{', '.join(names)}: no data; expected the challenge's folder of data; name it with --data")
    acquisition = None
    if AOA in year.full:
        acquisition = _read_acquisition(year, config, unread)
    labels = {}
    named = [name for name, task in year.full.items() if task.kind == "label"]
    if config.finetuned is None and named:
        unread.append(
            f"{', '.join(named)}: no predictions; expected those of `cuvee finetune --preset {PRESET[year.year]}`; "
            "name its folder with --finetuned"
        )
    elif config.finetuned is not None:
        seed = config.seed if config.seed is not None else PRESETS[PRESET[year.year]].seeds[0]
        weights = finetuned_subject(subject, _READS[run.backend]).fingerprint["weights"]
        for name in named:
            try:
                labels[name] = read_labels(name, config.finetuned, seed, weights=weights)
            except InputRefused as error:
                unread.append(str(error))
    return _Asked(full, fast, acquisition, labels), unread


def _read_acquisition(year: Year, config: SubmissionConfig, unread: list[str]) -> Acquisition | None:
    scored = AOA_SCORE in year.full
    if config.aoa is None:
        files = f"{WORDS} and {CHILDREN}" if scored else WORDS
        unread.append(f"{AOA}: no words of children; expected {files}; name their folder with --aoa")
        return None
    try:
        return read_acquisition(config.aoa, scored=scored)
    except InputRefused as error:
        unread.append(str(error))
        return None


def _blank(run: SubmittedRun, asked: _Asked, year: Year) -> tuple[Answers, Year]:
    """The submission of a model that knows nothing, and the year without what could not be read.

    The tasks of checkpoints stand beside the full ones, once instead of once for each checkpoint.
    """
    full, _ = answered(Blank(), asked.full, year.full)
    fast, _ = answered(Blank(), asked.fast, year.fast)
    full |= asked.labels
    names = wanted_checkpoints(year.tracks[run.track], run.words_seen) if run.track in year.tracks else []
    if asked.acquisition is not None:
        zeros = np.zeros(len(asked.acquisition.requests))
        full[AOA] = {name: asked.acquisition.rows(name, 0, zeros) for name in names}
        if AOA_SCORE in year.full:
            full[AOA_SCORE] = {"aoa": [{"aoa": 0.0}]}
    tasks = {name: task for name, task in year.full.items() if name in full}
    tasks |= {f"fast.{name}": task for name, task in year.fast.items() if name in fast}
    answers = Answers(
        full=full | {f"fast.{name}": rows for name, rows in fast.items()},
        fast={name: {} for name in names},
        fast_scores={name: {} for name in names},
        items={**asked.full.items, **{f"fast.{name}": texts for name, texts in asked.fast.items.items()}},
    )
    return answers, replace(year, full=tasks, fast={})


# scoring


def _answers(
    run: SubmittedRun,
    subject: Subject,
    asked: _Asked,
    year: Year,
    scorer_of: Callable[[Subject], Scorer],
    announce: Callable[[str], None],
) -> Answers:
    """The predictions of the model and then of each checkpoint, each loaded once."""
    announce(f"submit: {run.name}, all tasks")
    full, _ = answered(scorer_of(subject), asked.full, year.full)
    full |= asked.labels
    assert isinstance(subject.model, Buildable)
    tokenizer, vocab_size = subject.tokenizer, subject.model.vocab_size
    subject.release()
    fast: dict[str, Any] = {}
    fast_scores: dict[str, Any] = {}
    surprisals: list[np.ndarray] = []
    if asked.acquisition is not None:
        full[AOA] = {}
    for name, kept in run.checkpoints.items():
        announce(f"submit: {name}")
        scorer = scorer_of(Subject(kept.folder, f"{run.name}:{name}"))
        fast[name], fast_scores[name] = answered(scorer, asked.fast, year.fast)
        if asked.acquisition is not None:
            surprisals.append(scorer.scores(asked.acquisition.requests))
            full[AOA][name] = asked.acquisition.rows(name, kept.words, surprisals[-1])
    if AOA_SCORE in year.full:
        full[AOA_SCORE] = {"aoa": [{"aoa": 0.0}]}  # as the year counts no curve
    if asked.acquisition is not None and AOA_SCORE in year.full and surprisals:
        seen = [acquisition.Checkpoint(step=name, words_seen=kept.words) for name, kept in run.checkpoints.items()]
        result = asked.acquisition.result(seen, surprisals, tokenizer=tokenizer, vocab_size=vocab_size)
        full[AOA_SCORE] = {"aoa": [{"aoa": acquisition_score(result)}]}
        for line in result.agreements["nats"].lines():
            announce(f"submit: age of acquisition: {line.strip()}")
    return Answers(full=full, fast=fast, fast_scores=fast_scores, items=asked.full.items, fast_items=asked.fast.items)


def _describe(written: Manifest) -> None:
    """What the rules and the year's files make of a submission, and where it lies."""
    verdict = written.facts["auxiliary_models"]
    print(f"submit: auxiliary models: {verdict['verdict']}: {verdict['reason']}")
    print(f"submit: the rule: {verdict['rule']} ({verdict['source']})")
    if verdict["remark"]:
        print(f"submit: {verdict['remark']}")
    for name, limit in written.facts["limits"].items():
        at_most = "no limit" if limit["at_most"] is None else f"at most {limit['at_most']:,}"
        how = "" if limit["verified"] else ", second-hand"
        print(f"submit: {name}: {limit['found']:,} ({at_most}{how})")
    for note in written.facts["notes"]:
        print(f"submit: note: {note}")
    print(f"submit: written to {written.folder}")
