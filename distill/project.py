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
from corpora.storage import file_digest, fingerprint_digest, read_manifest
from corpora.tokenizer import read_tokenizer
from distill.config import Recipe, StudentConfig, TermConfig, TrainConfig, as_plain
from distill.step_data import Term, view_shares
from distill.train import Run
from students.language_model import LanguageModel
from students.run_folder import load_model
from teachers.cache import CachedTeacher, CacheKey, cached_view
from teachers.ensemble import Ensemble

CROSS_ENTROPY = TermConfig(loss="cross_entropy")
# how often a run saves changes nothing that it computes
_NO_EFFECT = ("checkpoint_every",)


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

    # teachers

    def teacher_folder(self, name: str) -> Path:
        """Run folder of a teacher: its own, or the one that the recipe points to."""
        path = self.recipe.teachers[name].path
        return Path(path) if path else self.folder / "teachers" / name

    def teacher_objective(self, name: str) -> Objective:
        """How a teacher is listened to."""
        config = self.recipe.teachers[name]
        if config.view is not None:
            return config.view
        if config.train is not None:
            return next(iter(view_shares(config.train)))
        return _trained_view(self.teacher_folder(name), f"teachers.{name}")

    def teacher_run(self, name: str) -> Run:
        """What training a teacher depends on: text alone."""
        config = self.recipe.teachers[name]
        assert config.model is not None and config.train is not None, "the recipe was checked"
        seed = address(self.recipe.seed, "teacher", name)
        return Run(
            name=name,
            folder=self.teacher_folder(name),
            model=config.model,
            train=config.train,
            terms=(Term(CROSS_ENTROPY, None),),
            corpus=self.corpus,
            cache=self.recipe.cache,
            seed=seed,
            fingerprint=self._run_fingerprint(config.model, config.train, (), seed),
            tracking=self.recipe.tracking,
        )

    def teacher_weights(self, name: str) -> str:
        """Digest of a teacher's weights; its tokenizer must be the project's (else InputRefused)."""
        folder = self.teacher_folder(name)
        weights, tokenizer = _weights_and_tokenizer(folder, self.recipe.teachers[name].path is not None)
        if tokenizer != self.corpus.tokenizer.digest:
            raise InputRefused(
                f"teachers.{name} ({folder}): its tokenizer is {tokenizer[:8]}, the project's is "
                f"{self.corpus.tokenizer.digest[:8]}; train both with the same tokenizer (distilling across tokenizers "
                "is not offered yet)"
            )
        return weights

    def load_teacher(self, name: str) -> LanguageModel:
        """The trained model."""
        return load_model(self.teacher_folder(name))

    # caches

    def cache_folder(self, name: str, stream: str) -> Path:
        """Where a teacher's cache over a stream lies."""
        return self.folder / "caches" / name / stream

    def cache_key(self, name: str, stream: str) -> CacheKey:
        """What a teacher's cache over a stream depends on."""
        view = cached_view(self.recipe.cache, self.teacher_objective(name))
        return CacheKey(self.corpus, stream, self.teacher_weights(name), view, self.recipe.cache)

    def cached(self, name: str, stream: str) -> CachedTeacher:
        """A teacher's finished cache; raises InputRefused when it was made from anything else than the recipe says."""
        key = (name, stream)
        if key not in self._open_caches:
            self._open_caches[key] = CachedTeacher(
                name, self.cache_folder(name, stream), self.cache_key(name, stream).fingerprint()
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
        """The members of a term, without their weights resolved."""
        names = tuple(name for name, weight in term.members.items() if weight > 0)
        objective = self.teacher_objective(names[0])
        return Pool(names, tuple(term.members[name] for name in names), term.pool, term.weights, objective)

    def weights_folder(self, pool: Pool) -> Path:
        """Where the fitted weights of a pool lie."""
        return (
            self.folder / "weights" / f"{'+'.join(pool.members)}-{fingerprint_digest(self.weights_fingerprint(pool))}"
        )

    def weights_fingerprint(self, pool: Pool) -> dict[str, Any]:
        """What fitted weights depend on: the members' caches over the tune stream."""
        return {name: self.cache_key(name, "tune").fingerprint() for name in pool.members}

    def resolved_weights(self, pool: Pool) -> dict[str, float]:
        """Weights of a pool's members: as given, or as fitted on the tune stream."""
        if pool.weights == "given":
            return dict(zip(pool.members, pool.given, strict=True))
        manifest = read_manifest(self.weights_folder(pool))
        if manifest is None:
            raise Damaged(f"{self.weights_folder(pool)}: weights are not fitted; run the recipe with `cuvee cache`")
        return manifest.require("weights", self.weights_fingerprint(pool)).facts["weights"]

    def ensemble(self, pool: Pool, stream: str) -> Ensemble:
        """A pool over the caches of one stream."""
        members = {name: self.cached(name, stream) for name in pool.members}
        return Ensemble.of(members, self.resolved_weights(pool), pool.rule)

    def student_run(self, name: str, control: str | None = None) -> Run:
        """What training a student, or its control, depends on; the two differ in their terms alone."""
        config = self.recipe.students[name]
        seed = address(self.recipe.seed, "student", name)
        terms = _control_terms(config) if control else tuple(config.terms)
        fingerprint = self._run_fingerprint(config.model, config.train, terms, seed)
        full_name = f"{name}.{control}" if control else name
        return Run(
            name=full_name,
            folder=self.folder / "students" / f"{full_name}-{fingerprint_digest(fingerprint)}",
            model=config.model,
            train=config.train,
            terms=tuple(self._term(term) for term in terms),
            corpus=self.corpus,
            cache=self.recipe.cache,
            seed=seed,
            fingerprint=fingerprint,
            tracking=self.recipe.tracking,
        )

    def student_runs(self) -> Iterator[tuple[str, str | None]]:
        """Every student and control, as (student, control or None)."""
        for name, config in self.recipe.students.items():
            yield name, None
            yield from ((name, control) for control in config.controls)

    def _term(self, term: TermConfig) -> Term:
        return Term(term, self.ensemble(self.pool(term), "train") if term.members else None)

    def _run_fingerprint(
        self, model: Any, train: TrainConfig, terms: tuple[TermConfig, ...], seed: int
    ) -> dict[str, Any]:
        masked = "masked" in view_shares(train)
        return {
            "corpus": self.corpus.identity("train"),
            "model": as_plain(model),
            "train": {key: value for key, value in as_plain(train).items() if key not in _NO_EFFECT},
            "masks": cached_view(self.recipe.cache, "masked").scheme() if masked else None,
            "terms": [self._term_fingerprint(term) for term in terms],
            "seed": str(seed),
        }

    def _term_fingerprint(self, term: TermConfig) -> dict[str, Any]:
        if not term.members:
            return as_plain(term)
        pool = self.pool(term)
        caches = {name: self.cache_key(name, "train").fingerprint() for name in pool.members}
        return as_plain(term) | {"resolved_weights": self.resolved_weights(pool), "caches": caches}


@dataclass(frozen=True)
class Pool:
    """Teachers that one term listens to together; all read the same objective."""

    members: tuple[str, ...]
    given: tuple[float, ...]  # the recipe's weights, one for each member
    rule: str  # mixture or product
    weights: str  # given or fitted
    objective: Objective

    @property
    def name(self) -> str:
        """For tables; a pool of one member is called by the teacher's name."""
        if len(self.members) == 1:
            return self.members[0]
        if self.weights == "fitted":
            return f"{'+'.join(self.members)} ({self.rule}, fitted)"
        if len(set(self.given)) == 1:
            return f"{'+'.join(self.members)} ({self.rule})"
        given = "+".join(f"{weight:g} {name}" for name, weight in zip(self.members, self.given, strict=True))
        return f"{given} ({self.rule})"


def _control_terms(config: StudentConfig) -> tuple[TermConfig, ...]:
    """The objective without teachers: cross-entropy alone, at full weight."""
    plain = [term for term in config.terms if not term.members]
    return tuple(replace(term, weight=1.0) for term in plain) or (CROSS_ENTROPY,)


def _trained_view(folder: Path, place: str) -> Objective:
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputRefused(
            f"{place}.path: {folder} is not a run folder, so {place}.view must say how it is listened to"
        )
    return manifest.facts["views"][0]


def _weights_and_tokenizer(folder: Path, foreign: bool) -> tuple[str, str]:
    """Digests of a teacher's weights and tokenizer: of a run folder, or of a Hugging Face folder without a manifest."""
    manifest = read_manifest(folder)
    if manifest is not None and manifest.kind == "run":
        return manifest.files["model.safetensors"]["digest"], manifest.facts["tokenizer"]
    if not foreign:
        raise Damaged(f"{folder}: the teacher is not trained; run `cuvee train` with the same recipe")
    missing = [name for name in ("model.safetensors", "tokenizer.json") if not (folder / name).exists()]
    if missing:
        raise InputRefused(f"{folder}: {' and '.join(missing)} missing; a teacher's folder needs weights and tokenizer")
    return file_digest(folder / "model.safetensors"), read_tokenizer(folder).digest
