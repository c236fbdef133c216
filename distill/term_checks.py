"""What a term of the objective may ask of its teachers, and a student of its terms: checks of the expanded recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import get_args

from corpora.errors import suggestion
from distill.bounds import Problem
from distill.config import DivergenceName, Recipe, StudentConfig, TermConfig
from distill.members import teacher_view
from distill.shares import read_views

# fields of a term that not every loss or pool reads
READ_BY: dict[str, set[str]] = {
    "temperature": set(get_args(DivergenceName)),
    "pool": set(get_args(DivergenceName)),
    "label_smoothing": {"cross_entropy"},
    "z_loss": {"cross_entropy"},
    "beta": {"jensen_shannon"},
    "skew": {"skew_forward_kl", "skew_reverse_kl"},
    "exponent": {"pool: power"},
}

READ_BY_SHAPE: dict[str, set[str]] = {
    "constant": set(),
    "linear": {"start", "end"},
    "warmup_stable_decay": {"end", "warmup_share", "decay_share"},
}


def terms_are_possible(recipe: Recipe) -> Iterator[Problem]:
    """Each term has the members its loss needs, of one view, pooled in a way that its weights allow."""
    for keys, student, term in _terms(recipe):
        members = (*keys, "members")
        if term.loss == "cross_entropy" and term.members:
            yield members, "cross_entropy listens to no teacher; remove the members or take forward_kl"
        if term.loss != "cross_entropy" and not term.members:
            yield keys, f"{term.loss} has no members; name one teacher or more: members: {{NAME: 1}}"
        if term.members and not any(term.members.values()):
            yield members, "all weights are 0; give one member a positive weight"
        for name in term.members:
            if name not in recipe.teachers:
                there = ", ".join(recipe.teachers) or "none"
                yield (*members, name), f"no such teacher, there are: {there}{suggestion(name, recipe.teachers)}"
        known = {name: teacher_view(recipe.teachers[name]) for name in term.members if name in recipe.teachers}
        if len(views := {view for view in known.values() if view}) > 1 and not term.across_views:
            listed = ", ".join(f"{name} is {view}" for name, view in known.items())
            found = f"teachers of {len(views)} views in one term ({listed}), expected one view"
            yield members, f"{found}; write two terms, or set across_views: true"
        if term.across_views and len(views) < 2 and None not in known.values():
            yield (*keys, "across_views"), "true, but the members do not read different views; leave it out"
        several = sum(weight > 0 for weight in term.members.values())
        if term.weights == "fitted" and (term.pool == "power" or several < 2):
            found = f"fitted weights of a {term.pool} of {several}, expected a mixture or product of 2 or more"
            yield (*keys, "weights"), f"{found}; write weights: given"
        if term.view and term.view not in read_views(student.train):
            found = f"{term.view}, but the student trains on {' and '.join(read_views(student.train)) or 'nothing'}"
            yield (*keys, "view"), f"{found}; leave the view out, or train on it"


def fields_mean_something(recipe: Recipe) -> Iterator[Problem]:
    """A field that its term's loss or pool does not read is a misunderstanding, not a setting."""
    defaults = {field.name: field.default for field in fields(TermConfig)}
    for keys, term in _all_terms(recipe):
        for name, readers in READ_BY.items():
            if getattr(term, name) != defaults[name] and not {term.loss, f"pool: {term.pool}"} & readers:
                found = f"{getattr(term, name)}, but only {' and '.join(sorted(readers))} reads it"
                yield (*keys, name), f"{found}; leave it out, or change the {'pool' if name == 'exponent' else 'loss'}"
        schedule = term.schedule
        for field in fields(schedule):
            if field.name != "shape" and field.name not in READ_BY_SHAPE[schedule.shape]:
                if getattr(schedule, field.name) != field.default:
                    shapes = [shape for shape, names in READ_BY_SHAPE.items() if field.name in names]
                    found = f"{getattr(schedule, field.name)}, which shape {schedule.shape} does not read"
                    yield (*keys, "schedule", field.name), f"{found}; leave it out, or take {' or '.join(shapes)}"
        if schedule.shape == "warmup_stable_decay" and schedule.warmup_share + schedule.decay_share > 1:
            found = f"warm-up and decay take {schedule.warmup_share + schedule.decay_share:g} of the steps"
            yield (*keys, "schedule"), f"{found}, expected at most 1; shorten one"


def codec_serves_terms(recipe: Recipe) -> Iterator[Problem]:
    """What a term asks of its teachers can be read from what the cache's codec keeps."""
    from distill.losses import DIVERGENCES, FEATURE_LOSSES  # these bring torch, which a misspelt key need not wait for
    from teachers.codecs import CODECS
    from teachers.pools import POOLS

    name, codec = recipe.cache.codec, CODECS[recipe.cache.codec]
    remedy = "set cache.codec=features"
    for keys, _, term in _terms(recipe):
        if term.loss in FEATURE_LOSSES and name != "features":
            yield (*keys, "loss"), f"{term.loss} compares feature vectors, which codec {name} does not keep; {remedy}"
        if term.loss not in DIVERGENCES:
            continue
        accepted = DIVERGENCES[term.loss].accepts
        if codec.kind not in accepted:
            found = f"{term.loss} of {codec.kind} signals (codec {name}) would be wrong, it is right for"
            yield (*keys, "loss"), f"{found} {' and '.join(sorted(accepted))} ones; {remedy}, or take forward_kl"
        several = sum(weight > 0 for weight in term.members.values()) > 1
        if several and (codec.kind == "truncated" or (codec.kind == "sampled" and not POOLS[term.pool].sampled)):
            found = f"a {term.pool} of several {codec.kind} signals (codec {name}) cannot be worked out"
            yield (*keys, "pool"), f"{found}; {remedy}{', or pool: mixture' if codec.kind == 'sampled' else ''}"
        if not codec.any_temperature and term.temperature not in recipe.cache.temperatures:
            stored = ", ".join(f"{temperature:g}" for temperature in recipe.cache.temperatures)
            found = f"{term.temperature:g}, but codec {name} stores only {stored}"
            yield (*keys, "temperature"), f"{found}; add it to cache.temperatures, or {remedy}"


def cache_is_possible(recipe: Recipe) -> Iterator[Problem]:
    """The settings of codecs and noise fit each other."""
    cache = recipe.cache
    if not cache.temperatures or len(set(cache.temperatures)) < len(cache.temperatures):
        found = f"{list(cache.temperatures)}, expected different temperatures, at least one"
        yield ("cache", "temperatures"), f"{found}; write [1.0]"
    if cache.codec == "hybrid" and cache.tail_pool % cache.tail_draws:
        found = f"{cache.tail_pool} draws are stored, which visits of {cache.tail_draws} do not divide"
        yield ("cache", "tail_pool"), f"{found}; make it a multiple of tail_draws"
    if cache.keep_share + cache.random_share > 1:
        found = f"keep_share and random_share take {cache.keep_share + cache.random_share:g} of the hidden tokens"
        yield ("cache", "random_share"), f"{found}, expected at most 1; lower one"


def every_view_learns(recipe: Recipe) -> Iterator[Problem]:
    """Every view that a student trains on has a term with weight, and cached masks where a teacher speaks."""
    for name, student in recipe.students.items():
        for view in read_views(student.train):
            terms = [term for term in student.terms if term.view in (None, view)]
            if not any(term.weight > 0 for term in terms):
                found = f"no term with a positive weight for {view} rows"
                yield ("students", name, "terms"), f"{found}; add one, such as {{loss: cross_entropy}}"
            members = [recipe.teachers.get(member) for term in terms for member in term.members]
            # causal teachers answer by position, whatever the masks
            masked = any(teacher is not None and teacher_view(teacher) != "causal" for teacher in members)
            if view == "masked" and student.train.dynamic_masks and masked:
                found = "true, but masked teachers have answers for the cache's masks alone"
                yield ("students", name, "train", "dynamic_masks"), f"{found}; set it to false"


def controls_mean_something(recipe: Recipe) -> Iterator[Problem]:
    """A control differs from its student, and from the others."""
    for name, student in recipe.students.items():
        keys = ("students", name, "controls")
        pools = [term.members for term in student.terms if term.members]
        several = any(sum(weight > 0 for weight in members.values()) > 1 for members in pools)
        if len(set(student.controls)) < len(student.controls):
            yield keys, f"found {', '.join(student.controls)}, expected each once; leave out what comes twice"
        if "no_teacher_equal_flops" in student.controls and not pools:
            found = f"no_teacher_equal_flops: {name} listens to no teacher"
            yield keys, f"{found}, so there is nothing to equal; leave it out"
        if "best_single_teacher" in student.controls and not several:
            found = f"best_single_teacher: no term of {name} listens to more than one teacher"
            yield keys, f"{found}, so it would be {name} again; leave it out"
        if "best_single_teacher" in student.controls and any(term.across_views for term in student.terms):
            found = "best_single_teacher: costs of teachers that read different views cannot be compared"
            yield keys, f"{found}; leave it out, or write a term for each view"


CHECKS_OF_TERMS: tuple[Callable[[Recipe], Iterator[Problem]], ...] = (
    terms_are_possible,
    fields_mean_something,
    cache_is_possible,
    codec_serves_terms,
    every_view_learns,
    controls_mean_something,
)


def _terms(recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], StudentConfig, TermConfig]]:
    for name, student in recipe.students.items():
        for number, term in enumerate(student.terms):
            yield ("students", name, "terms", number), student, term


def _all_terms(recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], TermConfig]]:
    """Those of teachers, which learn from text, before those of students."""
    for name, teacher in recipe.teachers.items():
        for number, term in enumerate(teacher.terms):
            yield ("teachers", name, "terms", number), term
    yield from ((keys, term) for keys, _, term in _terms(recipe))
