"""What types cannot say about a recipe: each check is a function that yields problems as (keys, message).

A message says what was found, what is expected and what to do; `distill/recipe.py` puts file, line and key before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from benchmarks.config import BenchmarksConfig, BlimpConfig, MinimalPairsConfig
from corpora.config import CorpusConfig, SplitConfig, TokenizerConfig
from corpora.errors import RecipeError
from distill.config import Recipe, StudentConfig, TeacherConfig, TermConfig, TrainConfig
from students.config import ModelConfig
from teachers.config import CacheConfig

Problem = tuple[tuple[str | int, ...], str]
Bound = tuple[str, Callable[[float], bool]]


def problems(recipe: Recipe) -> list[Problem]:
    """Everything that is wrong with a recipe whose keys and types are right, in the order of the checks."""
    return [problem for check in CHECKS for problem in check(recipe)]


def trained_views(train: TrainConfig) -> tuple[str, ...]:
    """The views that a training run reads rows in."""
    return (train.view,) if train.view else tuple(view for view, share in train.views.items() if share > 0)


def teacher_view(teacher: TeacherConfig) -> str | None:
    """The view in which a teacher is listened to; None when only its run folder knows."""
    views = trained_views(teacher.train) if teacher.train else ()
    return teacher.view or (views[0] if len(views) == 1 else None)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known word is near."""
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def at_least(low: float) -> Bound:
    return f"at least {low}", lambda value: value >= low


def above(low: float) -> Bound:
    return f"more than {low}", lambda value: value > low


share: Bound = "a share from 0 to 1", lambda value: 0 <= value <= 1
below_one: Bound = "at least 0 and less than 1", lambda value: 0 <= value < 1
inside: Bound = "more than 0 and less than 1", lambda value: 0 < value < 1

BOUNDS: dict[type, dict[str, Bound]] = {
    Recipe: {"seed": ("from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63), "processes": at_least(1)},
    CorpusConfig: {"words": at_least(1), "budget": at_least(0), "max_document_words": at_least(1)},
    SplitConfig: {"tune": inside, "test": inside},
    TokenizerConfig: {"vocab_size": at_least(260), "min_frequency": at_least(1)},  # 256 bytes and 4 special tokens
    ModelConfig: {"norm_eps": above(0), "rope_theta": above(0)},  # its architecture checks the sizes
    TrainConfig: {
        **dict.fromkeys(("steps", "batch_size", "micro_batch_size", "checkpoint_every", "log_every"), at_least(1)),
        **dict.fromkeys(("epochs", "lr", "eps", "grad_clip"), above(0)),
        **dict.fromkeys(("min_lr_share", "warmup_share"), share),
        **dict.fromkeys(("views", "weight_decay"), at_least(0)),
        "betas": below_one,
        "seq_len": at_least(2),
    },
    TermConfig: {"weight": at_least(0), "temperature": above(0), "members": at_least(0)},
    CacheConfig: {
        **dict.fromkeys(("num_folds", "mean_span", "shard_positions", "rows"), at_least(1)),
        "window": at_least(2),
        "mask_seed": ("from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63),
    },
    MinimalPairsConfig: {"pairs": at_least(1)},
    BlimpConfig: {"pairs": at_least(1)},
    BenchmarksConfig: {"max_tokens": at_least(2), "resamples": at_least(1), "confidence": inside},
}


def numbers_in_bounds(recipe: Recipe) -> Iterator[Problem]:
    """Every number lies where it means something."""
    for keys, config in _configs(recipe, ()):
        for name, (expected, fits) in BOUNDS.get(type(config), {}).items():
            for key, number in _numbers(getattr(config, name)):
                if not fits(number):
                    yield (*keys, name, *key), f"expected {expected}, found {number}"


def names_are_folder_names(recipe: Recipe) -> Iterator[Problem]:
    """Teachers and students name folders and dotted keys."""
    for keys, _, _ in _runs(recipe):
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", str(keys[-1])):
            yield keys, f"found the name {keys[-1]!r}, expected 1 to 64 letters, digits, _ and -; rename it"


def corpus_fits(recipe: Recipe) -> Iterator[Problem]:
    """Tune and test leave text to train on, and a root is read only by the source that reads folders."""
    split = recipe.corpus.split
    if split.tune + split.test >= 1:
        yield ("corpus", "split"), f"tune and test take {split.tune + split.test:g} of the words; leave some for train"
    if recipe.corpus.root is not None and recipe.corpus.source != "folder":
        found = f"a root is given, but source is {recipe.corpus.source}"
        yield ("corpus", "root"), f"{found}; set corpus.source=folder to read it, or leave root out"


def one_length_and_one_view(recipe: Recipe) -> Iterator[Problem]:
    """A training run has `steps` or `epochs`, and `view` or `views`."""
    for keys, _, train in _runs(recipe):
        if not train:
            continue
        for one, other in (("steps", "epochs"), ("view", "views")):
            given = [name for name in (one, other) if getattr(train, name) not in (None, {})]
            if len(given) != 1:
                found = "both are given" if given else "neither is given"
                yield (*keys, "train"), f"{one} or {other}: {found}, expected one; {_mend(given, one, other)}"
        if train.views and not trained_views(train):
            yield (*keys, "train", "views"), "all shares are 0; give one view a positive share"


def _mend(given: list[str], one: str, other: str) -> str:
    return f"set {other} to null to keep {one}" if given else f"give {one}"


def models_are_possible(recipe: Recipe) -> Iterator[Problem]:
    """The architecture accepts its sizes, and rows and vocabularies fit."""
    from students.registry import check_model  # brings torch and transformers, which a misspelt key need not wait for

    for keys, model, train in _runs(recipe):
        if not model:
            continue
        try:
            check_model(model)
        except RecipeError as error:
            key, _, message = str(error).removeprefix("model.").partition(": ")
            yield (*keys, "model", key), message
        if model.vocab_size not in (None, recipe.tokenizer.vocab_size):
            found = f"{model.vocab_size}, but tokenizer.vocab_size is {recipe.tokenizer.vocab_size}"
            yield (*keys, "model", "vocab_size"), f"{found}; leave it out, or make both the same"
        if train and train.seq_len > model.max_positions:
            found = f"{train.seq_len} tokens, but the model has max_positions {model.max_positions}"
            yield (*keys, "train", "seq_len"), f"{found}; shorten the row or raise max_positions"


def masks_leave_something(recipe: Recipe) -> Iterator[Problem]:
    """A masked view needs folds that leave something to read. Every architecture reads both views."""
    masked = any("masked" in trained_views(train) for _, _, train in _runs(recipe) if train)
    if masked and recipe.cache.num_folds == 1:
        found = "one fold masks every token at once"
        yield ("cache", "num_folds"), f"{found}; expected at least 2 (3 mask 33 %, 7 mask 14.3 %)"


def teachers_are_complete(recipe: Recipe) -> Iterator[Problem]:
    """A teacher is trained here, or exists; it is listened to in one view, in windows that it can read."""
    for name, teacher in recipe.teachers.items():
        keys = ("teachers", name)
        whole = teacher.model is not None and teacher.train is not None
        if teacher.path is not None and (teacher.model or teacher.train):
            yield keys, "both a path and a model to train are given; keep the path, or model and train"
        elif teacher.path is None and not whole:
            yield keys, "expected model and train, or the path of a model that exists; give what is missing"
        views = trained_views(teacher.train) if teacher.train else ()
        if teacher.train and teacher.view and teacher.view not in views:
            found = f"listened to as {teacher.view}, but trained on {' and '.join(views) or 'nothing'}"
            yield (*keys, "view"), f"{found}; leave the view out, or train on it"
        if len(views) > 1 and not teacher.view:
            yield keys, f"trained on {' and '.join(views)} rows; say with `view` how it is listened to"
        if teacher.model and recipe.cache.window > teacher.model.max_positions:
            found = f"{recipe.cache.window} tokens, but teacher {name} has max_positions {teacher.model.max_positions}"
            yield ("cache", "window"), f"{found}; shorten the window or raise max_positions"


def terms_are_possible(recipe: Recipe) -> Iterator[Problem]:
    """Each term has the members its loss needs, of one view, pooled in a way that its weights allow."""
    for keys, student, term in _terms(recipe):
        members = (*keys, "members")
        if term.loss == "cross_entropy" and term.members:
            yield members, "cross_entropy listens to no teacher; remove the members or take forward_kl"
        if term.loss == "forward_kl" and not term.members:
            yield keys, "forward_kl has no members; name one teacher or more: members: {NAME: 1}"
        if term.members and not any(term.members.values()):
            yield members, "all weights are 0; give one member a positive weight"
        for name in term.members:
            if name not in recipe.teachers:
                there = ", ".join(recipe.teachers) or "none"
                yield (*members, name), f"no such teacher, there are: {there}{suggestion(name, recipe.teachers)}"
        known = {name: teacher_view(recipe.teachers[name]) for name in term.members if name in recipe.teachers}
        if len(views := {view for view in known.values() if view}) > 1:
            listed = ", ".join(f"{name} is {view}" for name, view in known.items())
            yield members, f"teachers of {len(views)} views in one term ({listed}), expected one view; write two terms"
        if term.weights == "fitted" and (term.pool != "mixture" or len(term.members) < 2):
            found = f"fitted weights of a {term.pool} of {len(term.members)}, expected a mixture of 2 or more"
            yield (*keys, "weights"), f"{found}; write weights: given"
        if term.view and term.view not in trained_views(student.train):
            found = f"{term.view}, but the student trains on {' and '.join(trained_views(student.train)) or 'nothing'}"
            yield (*keys, "view"), f"{found}; leave the view out, or train on it"


def every_view_learns(recipe: Recipe) -> Iterator[Problem]:
    """Every view that a student trains on has a term with weight, and cached masks where a teacher speaks."""
    for name, student in recipe.students.items():
        for view in trained_views(student.train):
            terms = [term for term in student.terms if term.view in (None, view)]
            if not any(term.weight > 0 for term in terms):
                found = f"no term with a positive weight for {view} rows"
                yield ("students", name, "terms"), f"{found}; add one, such as {{loss: cross_entropy}}"
            if view == "masked" and student.train.dynamic_masks and any(term.members for term in terms):
                found = "true, but terms with members find their targets at the cache's masks"
                yield ("students", name, "train", "dynamic_masks"), f"{found}; set it to false"


CHECKS: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    numbers_in_bounds,
    names_are_folder_names,
    corpus_fits,
    one_length_and_one_view,
    models_are_possible,
    masks_leave_something,
    teachers_are_complete,
    terms_are_possible,
    every_view_learns,
)


def _configs(value: Any, keys: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every dataclass in a tree of them, with its keys."""
    if is_dataclass(value):
        yield keys, value
        children: Any = ((field.name, getattr(value, field.name)) for field in fields(value))
    else:
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _configs(child, (*keys, key))


def _numbers(value: Any) -> Iterator[tuple[tuple[str | int, ...], float]]:
    """The numbers of a field that is a number, null, a mapping of numbers or a pair of them."""
    if isinstance(value, dict):
        yield from (((key,), number) for key, number in value.items())
    elif isinstance(value, tuple):
        yield from (((index,), number) for index, number in enumerate(value))
    elif value is not None:
        yield (), value


def _runs(recipe: Recipe) -> Iterator[tuple[tuple[str, str], ModelConfig | None, TrainConfig | None]]:
    """Every teacher and student, with what is trained of it."""
    for name, run in recipe.teachers.items():
        yield ("teachers", name), run.model, run.train
    for name, run in recipe.students.items():
        yield ("students", name), run.model, run.train


def _terms(recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], StudentConfig, TermConfig]]:
    for name, student in recipe.students.items():
        for number, term in enumerate(student.terms):
            yield ("students", name, "terms", number), student, term
