"""What types cannot say about a recipe: each check is a function that yields problems as (keys, message).

A message says what was found, what is expected and what to do; `distill/recipe.py` puts file, line and key before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from corpora.errors import RecipeError, suggestion
from distill.bounds import Problem, numbers_in_bounds
from distill.config import Recipe, TrainConfig
from distill.members import expanded, member_names
from distill.shares import read_views, view_shares
from distill.term_checks import CHECKS_OF_TERMS
from students.config import ModelConfig


def problems(recipe: Recipe) -> list[Problem]:
    """Everything that is wrong with a recipe whose keys and types are right, in the order of the checks."""
    single = expanded(recipe)
    found = [problem for check in CHECKS for problem in check(recipe)]
    return found + [problem for check in CHECKS_OF_TERMS for problem in check(single)]


def names_are_folder_names(recipe: Recipe) -> Iterator[Problem]:
    """Teachers and students name folders and dotted keys, each member of the ensemble one of its own."""
    for keys, _, _ in _runs(recipe):
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", str(keys[-1])):
            yield keys, f"found the name {keys[-1]!r}, expected 1 to 64 letters, digits, _ and -; rename it"
    for name, teacher in recipe.teachers.items():
        for taken in set(member_names(name, teacher)) & (set(recipe.teachers) - {name}):
            found = f"{teacher.seeds} seeds make members {name}-1 to {name}-{teacher.seeds}"
            yield ("teachers", taken), f"{found}, so this name is taken; rename it"


def corpus_fits(recipe: Recipe) -> Iterator[Problem]:
    """Tune and test leave text to train on, and a root is read only by the source that reads folders."""
    split = recipe.corpus.split
    if split.tune + split.test >= 1:
        yield ("corpus", "split"), f"tune and test take {split.tune + split.test:g} of the words; leave some for train"
    if recipe.corpus.root is not None and recipe.corpus.source != "folder":
        found = f"a root is given, but source is {recipe.corpus.source}"
        yield ("corpus", "root"), f"{found}; set corpus.source=folder to read it, or leave root out"


def one_length_and_one_view(recipe: Recipe) -> Iterator[Problem]:
    """A training run has one of `steps`, `epochs`, `words` and `minutes`, and `view` or `views`."""
    for keys, _, train in _runs(recipe):
        if not train:
            continue
        for names in (("steps", "epochs", "words", "minutes"), ("view", "views")):
            given = [name for name in names if getattr(train, name) not in (None, {})]
            if len(given) != 1:
                found = f"{' and '.join(given)} are given" if given else "none is given"
                mend = f"set all but one to null, such as {given[0]}" if given else f"give {names[0]}"
                yield (*keys, "train"), f"{', '.join(names[:-1])} or {names[-1]}: {found}, expected one; {mend}"
        if train.views and not any(train.views.values()):
            yield (*keys, "train", "views"), "all shares are 0; give one view a positive share"


def training_makes_sense(recipe: Recipe) -> Iterator[Problem]:
    """A schedule trains, and what a run is asked for goes together."""
    from distill.learning_rate import never_trains

    for keys, _, train in _runs(recipe):
        if not train:
            continue
        place = (*keys, "train")
        if train.steps is not None and (why := never_trains(train.steps, train)):
            yield (*place, "lr_schedule"), why
        for number, phase in enumerate(train.phases):
            if phase.views and not any(phase.views.values()):
                yield (*place, "phases", number, "views"), "all shares are 0; give one view a positive share"
        looks = [name for name in ("patience", "probe_pairs") if getattr(train, name)]
        looks += ["keep"] if train.keep == "best" else []
        if looks and train.evaluate_every is None:
            found = f"{' and '.join(looks)} need looks at the tune stream, and there are none"
            yield (*place, "evaluate_every"), f"{found}; give the steps between two looks"
        if train.probe_pairs and not (recipe.benchmarks.minimal_pairs or recipe.benchmarks.blimp):
            found = f"{train.probe_pairs} pairs of each phenomenon, but the recipe has no minimal pairs"
            yield (*place, "probe_pairs"), f"{found}; give it benchmarks.minimal_pairs or benchmarks.blimp"
        if train.probe_pairs and train.parallel == "fsdp":
            found = "pairs are scored by one process, and fsdp shards the model over all"
            yield (*place, "probe_pairs"), f"{found}; leave them out, or take parallel: ddp"
    for name, student in recipe.students.items():
        if student.train.minutes is not None and student.controls:
            found = f"{student.train.minutes:g} minutes, but the controls have the student's number of steps"
            yield ("students", name, "train", "minutes"), f"{found}; give steps, or no controls"


def models_are_possible(recipe: Recipe) -> Iterator[Problem]:
    """The architecture accepts its sizes, and rows and vocabularies fit."""
    from students.registry import check_model  # brings torch and transformers, which a misspelt key need not wait for

    for keys, model, train in _runs(recipe):
        if not model:
            continue
        try:
            check_model(_with_vocabulary(model, recipe))
        except RecipeError as error:
            key, _, message = str(error).removeprefix("model.").partition(": ")
            yield (*keys, "model", key), message
        other = [view for view in (read_views(train) if train else ()) if model.view not in (None, view)]
        if other:
            found = f"{other[0]} rows, but the model's view is {model.view}, the only one that its head is for"
            yield (*keys, "train", "view"), f"{found}; make both the same"
        if model.vocab_size not in (None, recipe.tokenizer.vocab_size):
            found = f"{model.vocab_size}, but tokenizer.vocab_size is {recipe.tokenizer.vocab_size}"
            yield (*keys, "model", "vocab_size"), f"{found}; leave it out, or make both the same"
        lengths = {("seq_len",): train.seq_len} if train else {}
        for number, phase in enumerate(train.phases if train else ()):
            lengths["phases", number, "seq_len"] = phase.seq_len or train.seq_len  # type: ignore[index, union-attr]
        for place, length in lengths.items():
            if length > model.max_positions:
                found = f"{length} tokens, but the model has max_positions {model.max_positions}"
                yield (*keys, "train", *place), f"{found}; shorten the row or raise max_positions"


def starts_are_possible(recipe: Recipe) -> Iterator[Problem]:
    """Training begins with weights that fit, and adapters adapt something; a teacher's terms are text alone."""
    from students.adapters import check_adapters  # brings torch

    for kind, runs in (("teachers", recipe.teachers), ("students", recipe.students)):
        for name, run in runs.items():
            keys = (kind, name)
            if run.adapters and not run.start:
                found = "adapters to weights that are drawn anew learn little"
                yield (*keys, "adapters"), f"{found}; name a trained model's folder with `start`, or leave them out"
            if run.fresh_head and not run.start:
                found = "without a start all weights are drawn anew"
                yield (*keys, "fresh_head"), f"{found}; name a folder with `start`, or leave it out"
            if (run.start or run.adapters) and not run.model:
                yield (*keys, "start"), "says how training begins, and nothing is trained; give model and train too"
            elif run.adapters and run.model:
                try:
                    check_adapters(run.adapters, _with_vocabulary(run.model, recipe))
                except RecipeError as error:
                    key, _, message = str(error).removeprefix("adapters.").partition(": ")
                    yield (*keys, "adapters", key), message
    for name, teacher in recipe.teachers.items():
        for number, term in enumerate(teacher.terms):
            if term.loss != "cross_entropy" or term.members:
                found = f"{term.loss}, but a teacher learns from text alone"
                yield ("teachers", name, "terms", number), f"{found}; write cross_entropy, or make it a student"
        if teacher.terms and not any(term.weight > 0 for term in teacher.terms):
            yield ("teachers", name, "terms"), "no term has a positive weight; give one, or leave them out"


def masks_leave_something(recipe: Recipe) -> Iterator[Problem]:
    """A masked view needs folds that leave something to read. Every architecture reads both views."""
    masked = any("masked" in read_views(train) for _, _, train in _runs(recipe) if train)
    if masked and recipe.cache.num_folds == 1:
        found = "one fold masks every token at once"
        yield ("cache", "num_folds"), f"{found}; expected at least 2 (3 mask 33 %, 7 mask 14.3 %)"
    for keys, _, train in _runs(recipe):
        for number, phase in enumerate(train.phases if train else ()):
            if phase.num_folds is None or train is None:
                continue
            place = (*keys, "train", "phases", number, "num_folds")
            if "masked" not in (view_shares(phase) or view_shares(train)):
                yield place, "no row of this phase is masked; leave it out"
            elif not train.dynamic_masks:
                found = f"{phase.num_folds}, but these are the cache's masks, of {recipe.cache.num_folds} folds"
                yield place, f"{found}; set dynamic_masks to true, or leave it out"


def snapshots_are_in_the_run(recipe: Recipe) -> Iterator[Problem]:
    """Weights are kept after a step that the run has."""
    for keys, _, train in _runs(recipe):
        for step in train.snapshots if train else ():
            if train and train.steps is not None and step > train.steps:
                found = f"step {step}, but the run ends after {train.steps}"
                yield (*keys, "train", "snapshots"), f"{found}; ask for an earlier one"


def teachers_are_complete(recipe: Recipe) -> Iterator[Problem]:
    """A teacher is trained here, exists, or is taken from another's run; it is listened to in one view."""
    for name, teacher in recipe.teachers.items():
        keys = ("teachers", name)
        whole = teacher.model is not None and teacher.train is not None
        sources = {
            "a path": teacher.path,
            "another teacher's run": teacher.of,
            "a model to train": teacher.model or teacher.train,
        }
        given = [source for source, value in sources.items() if value is not None]
        if len(given) > 1:
            yield keys, f"both {' and '.join(given)} are given; keep the path, of, or model and train"
        elif not given or (given == ["a model to train"] and not whole):
            yield keys, "expected model and train, or the path of a model that exists, or of; give what is missing"
        if teacher.seeds > 1 and not whole:
            yield (*keys, "seeds"), f"{teacher.seeds} seeds of a teacher that is not trained here; leave the key out"
        views = read_views(teacher.train) if teacher.train else ()
        if teacher.train and teacher.view and teacher.view not in views:
            found = f"listened to as {teacher.view}, but trained on {' and '.join(views) or 'nothing'}"
            yield (*keys, "view"), f"{found}; leave the view out, or train on it"
        if len(views) > 1 and not teacher.view:
            yield keys, f"trained on {' and '.join(views)} rows; say with `view` how it is listened to"
        if teacher.model and recipe.cache.window > teacher.model.max_positions:
            found = f"{recipe.cache.window} tokens, but teacher {name} has max_positions {teacher.model.max_positions}"
            yield ("cache", "window"), f"{found}; shorten the window or raise max_positions"


def teachers_are_taken_from_runs(recipe: Recipe) -> Iterator[Problem]:
    """A teacher `of` another one names a run of this recipe and weights that it keeps."""
    runs = {
        member: teacher.train
        for name, teacher in recipe.teachers.items()
        if teacher.train
        for member in member_names(name, teacher)
    }
    for name, teacher in recipe.teachers.items():
        keys = ("teachers", name)
        if teacher.of is None:
            for key in ("steps", "average"):
                if getattr(teacher, key):
                    yield (*keys, key), "says what is taken from another teacher's run; name it with `of`"
            continue
        if bool(teacher.steps) == teacher.average:
            found = "both are given" if teacher.steps else "neither is given"
            yield keys, f"steps or average of {teacher.of}: {found}, expected one; write steps: [STEP] or average: true"
        if len(set(teacher.steps)) < len(teacher.steps):
            yield (*keys, "steps"), f"found {teacher.steps}, expected different steps; leave out what comes twice"
        if teacher.of not in runs:
            there = f"expected one that is trained here: {', '.join(runs) or 'there is none'}"
            yield (*keys, "of"), f"found {teacher.of!r}, {there}{suggestion(teacher.of, runs)}"
            continue
        train = runs[teacher.of]
        if train.steps is not None and any(step > train.steps for step in teacher.steps):
            found = f"found {max(teacher.steps)}, but the run of {teacher.of} ends after step {train.steps}"
            yield (*keys, "steps"), f"{found}; ask for an earlier one"
        if teacher.average and train.average is None:
            found = f"the run of {teacher.of} keeps none"
            yield (*keys, "average"), f"{found}; give its train.average a decay, such as 0.99"
        views = read_views(train)
        if len(views) > 1 and not teacher.view:
            yield keys, f"{teacher.of} is trained on {' and '.join(views)} rows; say with `view` how it is listened to"
        if teacher.view and teacher.view not in views:
            found = f"listened to as {teacher.view}, but {teacher.of} is trained on {' and '.join(views) or 'nothing'}"
            yield (*keys, "view"), f"{found}; leave the view out, or train on it"


CHECKS: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    numbers_in_bounds,
    names_are_folder_names,
    corpus_fits,
    one_length_and_one_view,
    training_makes_sense,
    snapshots_are_in_the_run,
    models_are_possible,
    starts_are_possible,
    masks_leave_something,
    teachers_are_complete,
    teachers_are_taken_from_runs,
)
# these are told of a recipe in which every teacher is a single one


def _runs(recipe: Recipe) -> Iterator[tuple[tuple[str, str], ModelConfig | None, TrainConfig | None]]:
    """Every teacher and student, with what is trained of it."""
    for name, run in recipe.teachers.items():
        yield ("teachers", name), run.model, run.train
    for name, run in recipe.students.items():
        yield ("students", name), run.model, run.train


def _with_vocabulary(model: ModelConfig, recipe: Recipe) -> ModelConfig:
    """The model with the tokenizer's vocabulary, with which ShareBERT's matrices must fit."""
    return replace(model, vocab_size=recipe.tokenizer.vocab_size) if model.vocab_size is None else model
