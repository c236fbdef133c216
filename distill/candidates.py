"""`cuvee score FOLDER` and `cuvee compare`: one model on every benchmark, and several against each other.

A run folder is known by its manifest. Any other folder is a stranger's: nothing of it is run, and what is read is
checked first (`benchmarks/strangers`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.agreement import Agreement, verdict_agreement
from benchmarks.choices import ChoiceTask
from benchmarks.compare import Comparison, compare
from benchmarks.compare_report import print_comparison, write_comparison
from benchmarks.config import EvaluationConfig
from benchmarks.evaluation import Evaluation, evaluate, read_benchmarks
from benchmarks.evaluation_folder import read_verdicts, write_evaluation
from benchmarks.evaluation_report import print_evaluation, write_evaluations
from benchmarks.finetune.config import PRESETS, LoraConfig
from benchmarks.finetune.results import TaskResult
from benchmarks.finetune.run import finetune
from benchmarks.finetune.subject import Subject as FinetunedSubject
from benchmarks.minimal_pairs import tasks_from_rows
from benchmarks.protocol import PROTOCOLS, Protocol
from benchmarks.score_store import ScoreStore
from benchmarks.scorer import Candidate, candidate_from_model
from benchmarks.scoring import Alone, Scorer, Team, scoring_identity
from benchmarks.scoring_tokenizer import ScoringTokenizer, read_scoring_tokenizer
from benchmarks.strangers.files import check_manifest
from benchmarks.strangers.load import load_stranger
from benchmarks.tasks.choice_files import LAYOUTS
from benchmarks.text_costs import with_costs
from corpora.batch import Objective
from corpora.errors import InputRefused, RecipeError, suggestion
from corpora.storage import digest, file_digest, read_manifest
from corpora.synthetic_pairs import minimal_pairs
from distill.acquisition_scores import acquisition_scores
from distill.baseline import score_baseline
from distill.distributed import Processes
from distill.memory import keep_freed_memory, made_for_good
from distill.own_code import Limits, score_with_code
from distill.texts import asks_no_choice, candidate_costs, own_text, require_texts
from distill.year_data import as_in_year
from students.language_model import LanguageModel
from students.pretrained import Pretrained
from students.run_folder import load_model, saved_objective, weight_files

EMBEDDED = "embedded"  # the embedded corpus's own pairs, where nothing else is named
EMBEDDED_PAIRS = 100  # of each phenomenon
DEFAULT_PROTOCOL = "cuvee"
AGREEMENT_ITEMS = 20  # of each paradigm, scored in bf16 and in fp32


@dataclass(frozen=True)
class Subject:
    """A folder that is scored; what is in it is read when it is asked for."""

    folder: Path
    name: str
    words_seen: int | None = None  # in training, of a checkpoint by words

    @cached_property
    def _loaded(self) -> tuple[LanguageModel, ScoringTokenizer]:
        if read_manifest(self.folder) is not None:
            return load_model(self.folder), read_scoring_tokenizer(self.folder)
        return load_stranger(self.folder)

    @property
    def model(self) -> LanguageModel:
        """The weights in evaluation mode, on the CPU until they are scored."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> ScoringTokenizer:
        """The tokenizer that belongs to it."""
        return self._loaded[1]

    @cached_property
    def weights(self) -> str:
        """Digest of the weights."""
        return digest("".join(map(file_digest, weight_files(self.folder))).encode())

    @cached_property
    def views(self) -> list[Objective]:
        """What it was trained to predict."""
        manifest = read_manifest(self.folder)
        if manifest is not None and "views" in manifest.facts:  # else it is no model, as loading it will say
            return list(manifest.facts["views"])
        return [saved_objective(self.model)]

    def release(self) -> None:
        """Let go of the weights: one model at a time."""
        self.__dict__.pop("_loaded", None)


def score_folder(
    folder: Path,
    config: EvaluationConfig,
    *,
    out: Path | None = None,
    checkpoints: bool = False,
    allow_code: Limits | None = None,
) -> list[Evaluation]:
    """Score a candidate in every mode that it was trained in, or in the one that is asked for; print the tables.

    With `out`, reports and verdicts are kept there, and scores one by one: a second call scores what is missing.
    `checkpoints`: first those that the run kept by words, each loaded once. Several processes share the work, and need
    `out` for it. `allow_code`: the folder's own code may run, in a sandbox with these limits. The n-grams that stand
    beside all of them are scored once. Raises InputRefused, RecipeError, Damaged, Diverged.
    """
    keep_freed_memory()
    check_manifest(folder)
    if config.year is not None:
        config = as_in_year(config)
    require_texts(config, own_code=allow_code is not None)
    acquisition = acquisition_scores(config, checkpoints=checkpoints, own_code=allow_code is not None)
    if allow_code is not None:
        return [score_with_code(folder, _tasks(config), config, _protocol(config), out=out, limits=allow_code)]
    team = scoring_team()
    if team.world_size > 1 and out is None:
        raise RecipeError("--out: not given, but several processes meet in it; name a folder")
    with made_for_good():
        tasks = {} if asks_no_choice(config) else _tasks(config)
    own, answers = own_text(folder, config), out and out / "answers"
    announce: Callable[[str], None] = print if team.rank == 0 else lambda line: None
    baseline = cache(lambda: score_baseline(folder, tasks, own, config, _protocol(config), out, team, announce))
    evaluations = []
    for subject in _subjects(folder, checkpoints):
        for backend in _backends(subject, config):
            scorer, identity = subject_scorer(subject, backend, config, answers, team)
            costs = candidate_costs(subject, scorer, identity, own, config, answers, announce)
            evaluation = with_costs(evaluate(scorer, tasks, config, backend=backend, announce=announce), costs, config)
            evaluation = baseline().beside(evaluation, scorer.tokenizer)
            if acquisition is not None and subject.words_seen is not None:
                acquisition.hear(backend, subject.name, subject.words_seen, scorer)
            elif acquisition is not None:
                evaluation = acquisition.added(evaluation, scorer, len(subject.model.head().weight_VD))
            evaluations.append(evaluation)
            if team.rank == 0:
                print_evaluation(evaluation)
                if config.precision == "bf16" and tasks:
                    announce(f"bf16 against fp32: {_agreement(subject, backend, config, tasks)}")
                if out is not None:
                    announce(f"score: written to {write_evaluation(out, evaluation, identity)}")
        subject.release()
    if out is not None and checkpoints and team.rank == 0:
        write_evaluations(out, evaluations)
    return evaluations


def _agreement(
    subject: Subject, backend: str, config: EvaluationConfig, tasks: Mapping[str, Sequence[ChoiceTask]]
) -> Agreement:
    """Of bf16's verdicts with those of fp32, on the first items of each paradigm."""
    rounded, exact = (
        subject_scorer(subject, backend, replace(config, precision=precision), None, Alone())[0]
        for precision in ("bf16", "fp32")
    )
    every = [task for found in tasks.values() for task in found]
    return verdict_agreement(rounded, exact, every, items=AGREEMENT_ITEMS)


def compare_folders(
    systems: Sequence[str], *, baseline: str | None, all_pairs: bool, alpha: float, out: Path | None, resamples: int
) -> Comparison:
    """Compare systems by their verdicts; each is NAME=FOLDER[,FOLDER ...] or FOLDER[,FOLDER ...], a folder a seed."""
    verdicts = []
    for given in systems:
        name, folders = _named_folders(given)
        verdicts.append(read_verdicts(name, folders))
    comparison = compare(
        verdicts, baseline=baseline, all_pairs=all_pairs, alpha=alpha, resamples=resamples, confidence=1 - alpha, seed=1
    )
    print_comparison(comparison)
    if out is not None:
        write_comparison(out, comparison)
    return comparison


def _named_folders(given: str) -> tuple[str, list[Path]]:
    """Name and folders of a system on the command line; raises RecipeError. Folders may have `=` in their names."""
    name, _, listed = given.partition("=")
    if "=" not in given or Path(given.partition(",")[0]).is_dir():
        name, listed = "", given
    folders = [Path(folder) for folder in listed.split(",") if folder]
    if not folders:
        raise RecipeError(f"compare: {given!r} names no folder; expected [NAME=]FOLDER[,FOLDER]; name those of `score`")
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise RecipeError(f"compare: {given!r} names a folder twice; expected another seed in each; leave one out")
    return name or folders[0].name, folders


def finetune_folder(
    folder: Path,
    data: Path,
    *,
    out: Path,
    preset: str,
    tasks: Sequence[str],
    seeds: Sequence[int],
    objective: Objective | None,
    lora: bool,
    precision: Literal["fp32", "bf16"],
    official: bool,
) -> list[TaskResult]:
    """Fine-tune a candidate on (Super)GLUE or MSGS tasks, and print each task's median over the seeds.

    Runs that are there are found again. `lora`: adapters of rank 8 instead of all weights. `official`: files with
    other numbers of rows than the challenge's are refused. Raises RecipeError, InputRefused, Damaged, Diverged.
    """
    keep_freed_memory()
    check_manifest(folder)
    if preset not in PRESETS:
        raise RecipeError(f"--preset {preset}: expected one of {', '.join(PRESETS)}{suggestion(preset, PRESETS)}")
    config = replace(PRESETS[preset], precision=precision)
    if lora and config.lora is None:
        config = replace(config, lora=LoraConfig())
    subject = Subject(folder, folder.name)
    if objective is None and len(subject.views) > 1:
        raise RecipeError(f"--objective: {folder} was trained on both; choose causal or masked")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return finetune(
        finetuned_subject(subject, objective or subject.views[0]),
        _glue_folder(data),
        config=config,
        folder=out / f"{subject.name}-{config.name}",
        tasks=tasks,
        seeds=seeds,
        device=device,
        official=official,
    )


def finetuned_subject(subject: Subject, objective: Objective) -> FinetunedSubject:
    """A folder's model as fine-tuning reads it."""
    return FinetunedSubject(
        name=subject.name,
        model=subject.model,
        objective=objective,
        tokenizer_json=subject.tokenizer.to_json(),
        begin_id=subject.tokenizer.begin_id,
    )


def _glue_folder(data: Path) -> Path:
    """The folder that holds the tasks' own, at or below the one that is named."""
    places = [data / layout for layout in LAYOUTS]
    return next((place for place in places if any(place.glob("*glue*")) or any(place.glob("*msgs*"))), data)


def _tasks(config: EvaluationConfig) -> Mapping[str, Sequence[ChoiceTask]]:
    """What is asked for; the embedded corpus's pairs where nothing is."""
    if config.data is None and config.pairs is None and config.blimp is None:
        if config.benchmarks:
            raise RecipeError(f"--tasks {','.join(config.benchmarks)}: found no data; name its folder with --data")
        return {EMBEDDED: tasks_from_rows(minimal_pairs(config.items or EMBEDDED_PAIRS, config.seed))}
    tasks = read_benchmarks(config)
    if not tasks and not config.benchmarks:
        raise InputRefused(f"{config.data}: holds no benchmark; expected the challenge's folder of data; check --data")
    return tasks


def _subjects(folder: Path, checkpoints: bool) -> Iterator[Subject]:
    if not folder.is_dir():
        raise InputRefused(f"{folder}: no such folder; expected a run folder or a Hugging Face folder; check its name")
    if checkpoints:
        kept = [path for path in (folder / "snapshots").glob("chck_*") if read_manifest(path) is not None]
        if not kept:
            raise InputRefused(
                f"{folder}: keeps no checkpoints by words; expected snapshots/chck_1M and so on; train it with "
                "train.word_snapshots"
            )
        words = {path: manifest.facts["words"] for path in kept if (manifest := read_manifest(path)) is not None}
        for path in sorted(kept, key=words.__getitem__):
            yield Subject(path, f"{folder.name}:{path.name}", words[path])
    yield Subject(folder, folder.name)


def _backends(subject: Subject, config: EvaluationConfig) -> list[str]:
    """The modes that are asked for, or those of training: of masked rows as the model was aligned."""
    if config.backend is not None:
        return [config.backend]
    return ["mntp" if view == "masked" and subject.model.masked_shift else view for view in subject.views]


def scoring_team() -> Team:
    """The processes that a launcher started, or this one."""
    return Processes() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Alone()


def subject_scorer(
    subject: Subject, backend: str, config: EvaluationConfig, answers: Path | None, team: Team
) -> tuple[Scorer, dict[str, Any]]:
    """The scorer of one mode, and what its scores depend on; `answers`: where these are kept and found again."""
    protocol, parts = _protocol(config), _parts(subject, backend, config, _device(team))
    identity = scoring_identity(  # after the weights are loaded: a stranger's files are checked before they are read
        subject.weights, subject.tokenizer, protocol, backend=backend, precision=config.precision
    )
    store = ScoreStore(answers, identity) if answers is not None else None
    return Scorer(subject.name, parts, subject.tokenizer, protocol, config.max_tokens, store, team), identity


def _device(team: Team) -> torch.device:
    """Where a process scores: on its own GPU, if there are some."""
    if isinstance(team, Processes):
        return team.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _parts(subject: Subject, backend: str, config: EvaluationConfig, device: torch.device) -> tuple[Candidate, ...]:
    model, name = subject.model.to(device), subject.name
    if isinstance(model, Pretrained) and backend not in (
        model.objective,
        "mntp" if model.objective == "masked" else "",
    ):
        raise RecipeError(
            f"--backend {backend}: {subject.folder} is a {model.objective} model; leave it out, or choose another"
        )
    modes: dict[str, list[tuple[Objective, Literal[0, 1]]]] = {
        "causal": [("causal", 0)],
        "masked": [("masked", 0)],
        "mntp": [("masked", 1)],
        "hybrid": [("causal", 0), ("masked", 1)],
    }
    return tuple(
        candidate_from_model(name, model, objective, shift=shift, precision=config.precision)
        for objective, shift in modes[backend]
    )


def _protocol(config: EvaluationConfig) -> Protocol:
    name = config.protocol or DEFAULT_PROTOCOL
    if name not in PROTOCOLS:
        raise RecipeError(f"--protocol {name}: expected one of {', '.join(PROTOCOLS)}{suggestion(name, PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    return protocol if config.pll is None else replace(protocol, pll=config.pll)
