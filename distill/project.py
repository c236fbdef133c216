"""A recipe and the folders it fills: where each thing lies, what it was made from, and how to open it.

Corpus, tokenizer, teachers and caches are shared by everything below `run_dir`. A student's folder carries the short
name of its fingerprint, so that other weights, pools or temperatures stand beside the old ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from corpora.addressed import address
from corpora.batch import Objective
from corpora.errors import Damaged, InputRefused
from corpora.prepare import Corpus, open_corpus
from corpora.storage import digest, file_digest, fingerprint_digest, read_manifest
from corpora.tokenizer import read_tokenizer
from distill.config import Recipe, StudentConfig, TeacherConfig, TermConfig, TrainConfig, as_plain
from distill.controls import CROSS_ENTROPY, control_terms, control_train
from distill.members import asked_snapshots
from distill.plan import Plan, plan
from distill.run import Run, average_folder, snapshot_folder
from distill.shares import read_views
from distill.step_data import Term
from students.language_model import LanguageModel
from students.narrowed import Narrowed
from students.registry import check_model
from students.run_folder import NETWORK_CONFIG, WEIGHTS, load_model, stored_masked_shift, weight_files
from teachers.cache import CachedTeacher, CacheKey, cached_view
from teachers.ensemble import Ensemble
from teachers.pools import normalised
from teachers.weights import FittedWeights

MOST_NAME = 80  # characters of a readable name; file systems take 255 bytes
# how often a run saves, and what it keeps, changes nothing that it computes
_NO_EFFECT = ("checkpoint_every", "snapshots", "word_snapshots", "average")


@dataclass(frozen=True)
class Project:
    """What stages share. Nothing here trains or writes."""

    recipe: Recipe

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return Path(self.recipe.run_dir)

    @cached_property
    def corpus(self) -> Corpus:
        """The prepared corpus; raises Damaged when it is not there."""
        return open_corpus(self.folder)

    @cached_property
    def plan(self) -> Plan:
        """What everything costs, in operations; its hours mean nothing."""
        return plan(self.recipe, rate=1.0)

    # teachers

    def teacher_folder(self, name: str) -> Path:
        """Run folder of a teacher: its own, the one that the recipe points to, or what another teacher's run keeps."""
        config = self.recipe.teachers[name]
        if config.path:
            return Path(config.path)
        if config.of and config.average:
            return average_folder(self.teacher_folder(config.of))
        if config.of and len(config.steps) == 1:
            return snapshot_folder(self.teacher_folder(config.of), config.steps[0])
        return self.folder / "teachers" / name

    def averaged_folders(self, name: str) -> list[Path]:
        """The snapshots whose mean a teacher is; none for other teachers."""
        config = self.recipe.teachers[name]
        if config.of is None or len(config.steps) < 2:
            return []
        return [snapshot_folder(self.teacher_folder(config.of), step) for step in sorted(config.steps)]

    def teacher_objective(self, name: str) -> Objective:
        """How a teacher is listened to."""
        config = self.recipe.teachers[name]
        if config.view is not None:
            return config.view
        if config.train is not None:
            return read_views(config.train)[0]
        return _trained_view(self.teacher_folder(name), f"teachers.{name}")

    def _teacher_shift(self, name: str) -> int:
        """Where a teacher's output for a hidden token stands."""
        config = self.recipe.teachers[name]
        model = self.recipe.teachers[config.of].model if config.of is not None else config.model
        if model is None:
            return stored_masked_shift(self.teacher_folder(name))
        return check_model(model).masked_shift_of(model)

    def teacher_run(self, name: str) -> Run:
        """What training a teacher depends on: text alone."""
        config = self.recipe.teachers[name]
        assert config.model is not None and config.train is not None, "the recipe was checked"
        train = replace(config.train, snapshots=asked_snapshots(self.recipe, name))
        seed = address(self.recipe.seed, "teacher", name)
        return Run(
            name=name,
            folder=self.teacher_folder(name),
            model=config.model,
            train=train,
            terms=tuple(Term(term, None, number) for number, term in enumerate(config.terms or [CROSS_ENTROPY])),
            corpus=self.corpus,
            cache=self.recipe.cache,
            seed=seed,
            fingerprint=self._run_fingerprint(config, train, tuple(config.terms), seed),
            tracking=self.recipe.tracking,
            benchmarks=self.recipe.benchmarks,
            start=Path(config.start) if config.start else None,
            fresh_head=config.fresh_head,
            adapters=config.adapters,
        )

    def teacher_weights(self, name: str) -> str:
        """Digest of a teacher's weights; its tokenizer must be the project's (else InputRefused)."""
        foreign = self.recipe.teachers[name].path is not None
        return self._weights_of(self.teacher_folder(name), f"teachers.{name}", foreign=foreign)

    def _weights_of(self, folder: Path, place: str, *, foreign: bool) -> str:
        if folder not in self._digests:  # gigabytes are read once
            self._digests[folder] = weights_and_tokenizer(folder, foreign)
        weights, tokenizer = self._digests[folder]
        if tokenizer != self.corpus.tokenizer.digest:
            raise InputRefused(
                f"{place} ({folder}): its tokenizer is {tokenizer[:8]}, the project's is "
                f"{self.corpus.tokenizer.digest[:8]}; train both with the same tokenizer (distilling across tokenizers "
                "is not offered yet)"
            )
        return weights

    @cached_property
    def _digests(self) -> dict[Path, tuple[str, str]]:
        return {}

    def load_teacher(self, name: str) -> LanguageModel:
        """The trained model."""
        return self.load(self.teacher_folder(name))

    def load(self, folder: Path) -> LanguageModel:
        """The model of a folder; of a wider output embedding, what the project's tokenizer has tokens for."""
        model = load_model(folder)
        vocab_size = self.corpus.vocab_size
        return Narrowed(model, vocab_size) if len(model.head().weight_VD) > vocab_size else model

    # caches

    def cache_folder(self, name: str, stream: str) -> Path:
        """Where a teacher's cache over a stream lies."""
        return self.folder / "caches" / name / stream

    def cache_key(self, name: str, stream: str) -> CacheKey:
        """What a teacher's cache over a stream depends on."""
        view = cached_view(self.recipe.cache, self.teacher_objective(name), shift=self._teacher_shift(name))
        return CacheKey(self.corpus, stream, self.teacher_weights(name), view, self.recipe.cache)

    def cached(self, name: str, stream: str) -> CachedTeacher:
        """A teacher's finished cache; raises InputRefused when it was made from anything else than the recipe says."""
        key = (name, stream)
        if key not in self._open_caches:
            self._open_caches[key] = CachedTeacher(
                name,
                self.cache_folder(name, stream),
                self.cache_key(name, stream).fingerprint(),
                config=self.recipe.cache,
            )
        return self._open_caches[key]

    @cached_property
    def _open_caches(self) -> dict[tuple[str, str], CachedTeacher]:
        return {}

    # pools and students

    def pools(self) -> Iterator[Pool]:
        """Every pool that some term listens to, each once, pools of one member included."""
        seen = set()
        for student in self.recipe.students.values():
            for term in student.terms:
                if term.members and (pool := self.pool(term)).name not in seen:
                    seen.add(pool.name)
                    yield pool

    def pool(self, term: TermConfig) -> Pool:
        """The members of a term, without their weights resolved; raises InputRefused when their views are not one.

        `across_views` pools members of both views all the same.
        """
        names = tuple(name for name, weight in term.members.items() if weight > 0)
        views: dict[str, Objective] = {name: self.teacher_objective(name) for name in names}
        if len(set(views.values())) > 1 and not term.across_views:
            listed = ", ".join(f"{name} is {view}" for name, view in views.items())
            raise InputRefused(
                f"teachers of two views in one term ({listed}), expected one view; write two terms, or set "
                "across_views: true"
            )
        return Pool(
            members=names,
            given=tuple(term.members[name] for name in names),
            rule=term.pool,
            exponent=term.exponent,
            weights=term.weights,
            objective=views[names[0]] if len(set(views.values())) == 1 else None,
        )

    def weights_folder(self, pool: Pool) -> Path:
        """Where the fitted weights of a pool lie."""
        return self.folder / "weights" / pool.folder_name(self.weights_fingerprint(pool))

    def weights_fingerprint(self, pool: Pool) -> dict[str, Any]:
        """What fitted weights and their intervals depend on: the rule, and the members' caches over the tune stream."""
        return {
            "members": {name: self.cache_key(name, "tune").fingerprint() for name in pool.members},
            "pool": pool.rule,
            "confidence": self.recipe.benchmarks.confidence,
            "seed": self.recipe.seed,
        }

    def fitted_weights(self, pool: Pool) -> FittedWeights | None:
        """What the fit of a pool on the tune stream found; None where weights are given."""
        if pool.weights == "given":
            return None
        manifest = read_manifest(self.weights_folder(pool))
        if manifest is None:
            raise Damaged(f"{self.weights_folder(pool)}: weights are not fitted; run the recipe with `cuvee cache`")
        return FittedWeights(**manifest.require("weights", self.weights_fingerprint(pool)).facts)

    def resolved_weights(self, pool: Pool) -> dict[str, float]:
        """Weights of a pool's members: as given, or as fitted on the tune stream."""
        fitted = self.fitted_weights(pool)
        return dict(zip(pool.members, pool.given, strict=True)) if fitted is None else fitted.weights

    def resolved_temperature(self, pool: Pool) -> float:
        """The temperature that a product is fitted with; 1 for all other pools."""
        fitted = self.fitted_weights(pool)
        return 1.0 if fitted is None else fitted.temperature

    def ensemble(self, pool: Pool, stream: str) -> Ensemble:
        """A pool over the caches of one stream."""
        members = {name: self.cached(name, stream) for name in pool.members}
        temperature = self.resolved_temperature(pool)
        return Ensemble.of(members, self.resolved_weights(pool), pool.rule, pool.exponent, temperature)

    def student_run(self, name: str, control: str | None = None) -> Run:
        """What training a student, or its control, depends on; the two differ in their terms, or their steps."""
        config = self.recipe.students[name]
        seed = self.student_seed(name)
        terms, train = control_terms(self, name, control), control_train(self, name, control)
        fingerprint = self._run_fingerprint(config, train, terms, seed)
        full_name = f"{name}.{control}" if control else name
        return Run(
            name=full_name,
            folder=self.folder / "students" / f"{full_name}-{fingerprint_digest(fingerprint)}",
            model=config.model,
            train=train,
            terms=tuple(self._term(term, number) for number, term in enumerate(terms)),
            corpus=self.corpus,
            cache=self.recipe.cache,
            seed=seed,
            fingerprint=fingerprint,
            tracking=self.recipe.tracking,
            benchmarks=self.recipe.benchmarks,
            start=Path(config.start) if config.start else None,
            fresh_head=config.fresh_head,
            adapters=config.adapters,
        )

    def student_seed(self, name: str) -> int:
        """Of a student and its controls alike."""
        return address(self.recipe.seed, "student", name)

    def student_runs(self) -> Iterator[tuple[str, str | None]]:
        """Every student and control, as (student, control or None)."""
        for name, config in self.recipe.students.items():
            yield name, None
            yield from ((name, control) for control in config.controls)

    def _term(self, term: TermConfig, number: int) -> Term:
        return Term(term, self.ensemble(self.pool(term), "train") if term.members else None, number)

    def _run_fingerprint(
        self, config: TeacherConfig | StudentConfig, train: TrainConfig, terms: tuple[TermConfig, ...], seed: int
    ) -> dict[str, Any]:
        masked = "masked" in read_views(train)
        return {
            "corpus": self.corpus.identity("train"),
            "model": as_plain(config.model),
            "start": self._start_of(config) if config.start else None,
            "adapters": as_plain(config.adapters) if config.adapters else None,
            "train": {key: value for key, value in as_plain(train).items() if key not in _NO_EFFECT},
            "masks": self._masks(config) if masked else None,
            "terms": [self._term_fingerprint(term) for term in terms],
            "seed": str(seed),
        }

    def _start_of(self, config: TeacherConfig | StudentConfig) -> str:
        """The weights that training begins with, and whether it is with all of them."""
        assert config.start is not None, "asked for where there is one"
        weights = self._weights_of(Path(config.start), "start", foreign=True)
        return f"body of {weights}" if config.fresh_head else weights

    def _masks(self, config: TeacherConfig | StudentConfig) -> dict[str, Any]:
        """The masks that masked rows have, and where they are predicted."""
        assert config.model is not None, "a run trains one"
        shift = check_model(config.model).masked_shift_of(config.model)
        view = cached_view(self.recipe.cache, "masked", shift=shift)
        return view.scheme() | {"rounds": self.recipe.cache.rounds}

    def _term_fingerprint(self, term: TermConfig) -> dict[str, Any]:
        if not term.members:
            return as_plain(term)
        pool = self.pool(term)
        caches = {name: self.cache_key(name, "train").fingerprint() for name in pool.members}
        weights = self.resolved_weights(pool)
        resolved: dict[str, Any] = {
            "weights": dict(zip(weights, normalised(list(weights.values())), strict=True)),
            "temperature": self.resolved_temperature(pool),
        }
        if self.recipe.cache.codec == "hybrid":  # it is no matter of the cache how much of its pool is heard at a visit
            resolved["tail_draws"] = self.recipe.cache.tail_draws
        # 1 and 1 is 2 and 2: what counts is what the members' weights come to
        written = {key: value for key, value in as_plain(term).items() if key not in ("members", "weights")}
        return written | {"resolved": resolved, "caches": caches}


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Teachers that one term listens to together."""

    members: tuple[str, ...]
    given: tuple[float, ...]  # the recipe's weights, one for each member
    rule: str  # mixture, product or power
    exponent: float  # of the power mean
    weights: str  # given or fitted
    objective: Objective | None  # what all members read; None across views, where no single input could ask the pool

    def folder_name(self, fingerprint: dict[str, Any]) -> str:
        """Of a folder that belongs to the pool: its members, as far as a name may be long, and what tells it apart."""
        return f"{'+'.join(self.members)[:MOST_NAME]}-{fingerprint_digest(fingerprint)}"

    @property
    def described_rule(self) -> str:
        """For tables: the rule, and what it depends on."""
        return f"power {self.exponent:g}" if self.rule == "power" else self.rule

    @property
    def name(self) -> str:
        """For tables; a pool of one member is called by the teacher's name."""
        if len(self.members) == 1:
            return self.members[0]
        if self.weights == "fitted":
            return f"{'+'.join(self.members)} ({self.described_rule}, fitted)"
        if len(set(self.given)) == 1:
            return f"{'+'.join(self.members)} ({self.described_rule})"
        given = "+".join(f"{weight:g} {name}" for name, weight in zip(self.members, self.given, strict=True))
        return f"{given} ({self.described_rule})"


def _trained_view(folder: Path, place: str) -> Objective:
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputRefused(
            f"{place}.path: {folder} is not a run folder, so {place}.view must say how it is listened to"
        )
    return manifest.facts["views"][0]


def weights_and_tokenizer(folder: Path, foreign: bool) -> tuple[str, str]:
    """Digests of a teacher's weights and tokenizer: of a run folder, or of a Hugging Face folder without a manifest."""
    manifest = read_manifest(folder)
    if manifest is not None and manifest.kind == "run":
        return manifest.files[WEIGHTS]["digest"], manifest.facts["tokenizer"]
    if not foreign:
        raise Damaged(f"{folder}: the teacher is not trained; run `cuvee train` with the same recipe")
    missing = [name for name in (NETWORK_CONFIG, "tokenizer.json") if not (folder / name).exists()]
    if missing:
        raise InputRefused(
            f"{folder}: {' and '.join(missing)} missing; a teacher's folder needs weights, their configuration and the "
            "tokenizer"
        )
    # the same weights mean another model with another configuration
    described = [file_digest(path) for path in (*weight_files(folder), folder / NETWORK_CONFIG)]
    return digest("".join(described).encode()), read_tokenizer(folder).digest
