"""What a recipe costs in parameters, bytes, operations, memory and hours, worked out before anything is built.

Every number is a closed form of the recipe's sizes; what had to be assumed is listed beside them. The one measurement
is a matrix product of a second or so, which says how fast this machine is at best. `plan_inputs` finds the sizes,
`plan_cache` counts caches, `plan_table` prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from distill.config import Recipe, StudentConfig, TrainConfig
from distill.plan_cache import (
    CodecPlan,
    Hearing,
    Member,
    Text,
    cached_flops,
    codec_plans,
    hearings,
    listening_students,
    live_ratio,
    own_codec,
    plain_flops,
)
from distill.plan_inputs import read_members, read_text
from distill.shares import mean_tokens, phases_of
from students.config import ModelConfig
from teachers.config import CacheConfig

ITEM_BYTES = 4  # of a weight, a gradient, and each of AdamW's two moments: all fp32

Role = Literal["teacher", "student", "control"]


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """The cost of one model: born, trained, and for a teacher listened to."""

    name: str
    role: Role
    parameters: int
    head_parameters: int  # of those, the ones that grow with the vocabulary: embedding, output table, output bias
    tokens: int = 0  # read in training; 0: it is not trained here
    training_flops: float = 0  # forward and backward, and the heads of the members
    capture_flops: float = 0  # a teacher's passes over the streams
    cache_bytes: int = 0
    activation_bytes: int = 0  # kept for the backward pass
    members_bytes: int = 0  # heads of the members, held while a student trains

    @property
    def body_parameters(self) -> int:
        """Parameters that do not depend on the vocabulary."""
        return self.parameters - self.head_parameters

    @property
    def gradient_bytes(self) -> int:
        """fp32 gradients; AdamW's two moments take twice as much."""
        return ITEM_BYTES * self.parameters if self.tokens else 0

    @property
    def peak_bytes(self) -> int:
        """Memory in training: fp32 weights, gradients and AdamW's moments, activations, heads of the members."""
        weights = ITEM_BYTES * self.parameters
        return weights + 3 * self.gradient_bytes + self.activation_bytes + self.members_bytes

    @property
    def flops(self) -> float:
        """Operations of training and capture."""
        return self.training_flops + self.capture_flops


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a recipe."""

    models: list[ModelPlan]
    codec: str  # the recipe's, among the codecs
    codecs: list[CodecPlan]  # caches of all teachers together, by every codec; none where nobody teaches
    live_ratios: dict[str, float]  # by listening student: operations of a step with live teachers, in those without any
    epochs: dict[str, float]  # by listening student: passes over the train stream that the recipe says
    stream_tokens: dict[str, int]
    rate: float  # operations in a second
    notes: list[str]  # what was assumed and measured

    def hours(self, flops: float) -> float:
        """Time of so many operations."""
        return flops / self.rate / 3600


def plan(recipe: Recipe, *, rate: float | None = None) -> Plan:
    """The cost of a recipe, at `rate` operations in a second or at that of a short product on this machine.

    Raises RecipeError when nothing says how much text there is.
    """
    text = read_text(recipe)
    members = read_members(recipe)
    notes = [
        text.note,
        "training: 3 forward passes over all rows; a masked row has targets at 1 of num_folds positions",
        f"memory: {4 * ITEM_BYTES} bytes a parameter, and activations in bf16, of a plain layer B T (34 D + 5 H T) "
        "bytes (arXiv 2205.05198, eq. 2), twice that in fp32; Python and torch themselves come on top",
    ]
    if rate is None:
        rate = measured_rate()
        notes.append(
            f"hours: at {rate:.3g} FLOPS, measured just now on square matrix products; small models "
            "reach a fraction of it, so this is the least they take (--rate FLOPS sets it)"
        )
    else:
        notes.append(f"hours: at {rate:.3g} FLOPS, as given")
    notes += [
        f"not planned: teacher {name}, whose sizes are not known ({teacher.path}); all sums go without it"
        for name, teacher in recipe.teachers.items()
        if name not in members
    ]
    teachers = {name: _teacher(recipe, name, member, text, rate) for name, member in members.items()}
    students = [model for name in recipe.students for model in _students(recipe, name, members, teachers, text, rate)]
    listening = listening_students(recipe, members)
    trained = {model.name: model for model in students}
    return Plan(
        models=[*teachers.values(), *students],
        codec=own_codec(recipe.cache),
        codecs=codec_plans(recipe, members, text, rate=rate) if members else [],
        live_ratios={name: live_ratio(recipe.students[name], members, recipe.cache, text) for name in listening},
        epochs={name: trained[name].tokens / text.stream_tokens["train"] for name in listening},
        stream_tokens=text.stream_tokens,
        rate=rate,
        notes=notes,
    )


def measured_rate() -> float:
    """Operations in a second of square matrix products, in the type that training would use on this machine."""
    import torch

    from distill.precision import resolve_precision
    from distill.throughput import matmul_rate

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return matmul_rate(resolve_precision("auto", device.type), device)


def _teacher(recipe: Recipe, name: str, member: Member, text: Text, rate: float) -> ModelPlan:
    """Training, unless it exists or is taken from another teacher's run, and capture."""
    train = recipe.teachers[name].train
    known = _sized(name, "teacher", member.model, text)
    return replace(
        _trained(known, member.model, train, recipe.cache.num_folds, text, rate) if train else known,
        capture_flops=text.tokens * member.capture_flops(recipe.cache, text),
        cache_bytes=member.cache_bytes(recipe.cache, text),
    )


def _students(
    recipe: Recipe,
    name: str,
    members: Mapping[str, Member],
    teachers: Mapping[str, ModelPlan],
    text: Text,
    rate: float,
) -> Iterator[ModelPlan]:
    """A student and its controls."""
    student, cache = recipe.students[name], recipe.cache
    known = _sized(name, "student", student.model, text)
    plain = _trained(known, student.model, student.train, cache.num_folds, text, rate)
    heard = hearings(student, members, cache.num_folds)
    listening = _listening(plain, heard, student, cache, text)
    yield listening
    for control in student.controls:
        if control == "best_single_teacher":
            # which one it will be is chosen when they are there; the widest is the dearest to hear
            widest = [max(group, key=lambda one: one.member.model.feature_size) for group in _by_term(heard)]
            model = _listening(plain, widest, student, cache, text)
        elif control == "no_teacher_equal_flops":
            # a teacher that is taken from another one's run costs that run
            runs = {recipe.teachers[hearing.name].of or hearing.name for hearing in heard}
            captures = {hearing.name for hearing in heard}
            flops = listening.training_flops + sum(teachers[run].training_flops for run in runs if run in teachers)
            flops += sum(teachers[capture].capture_flops for capture in captures)
            model = replace(plain, tokens=round(plain.tokens * flops / plain.training_flops), training_flops=flops)
        else:
            model = plain
        yield replace(model, name=f"{name}.{control}", role="control")


def _listening(
    plain: ModelPlan, heard: Sequence[Hearing], student: StudentConfig, cache: CacheConfig, text: Text
) -> ModelPlan:
    """A student with what it takes to hear its teachers' caches."""
    return replace(
        plain,
        training_flops=plain.training_flops + plain.tokens * cached_flops(heard, student.model, cache, text),
        members_bytes=_members_bytes(heard, student, cache, text),
    )


def _members_bytes(heard: Sequence[Hearing], student: StudentConfig, cache: CacheConfig, text: Text) -> int:
    """A member's head is held once, and once more in each product of several, where heads are joined into one."""
    headed = [one for one in heard if one.member.codec(cache, text).needs_head and not one.compares_features]
    widths = {one.name: one.member.model.feature_size for one in headed}
    joined = {
        (one.term, one.name): one.member.model.feature_size
        for one in headed
        if student.terms[one.term].pool == "product" and any(o.term == one.term and o.name != one.name for o in headed)
    }
    return ITEM_BYTES * text.vocab_size * sum([*widths.values(), *joined.values()])


def _by_term(heard: Iterable[Hearing]) -> Iterator[list[Hearing]]:
    """What is heard, by term and view."""
    for _, group in groupby(heard, key=lambda hearing: (hearing.term, hearing.view)):
        yield list(group)


def _sized(name: str, role: Role, model: ModelConfig, text: Text) -> ModelPlan:
    """A model that is there, untrained."""
    from students.registry import parameter_count

    parameters = parameter_count(model, text.vocab_size)
    # counts are linear in the vocabulary: the slope is what one type costs
    slope = parameter_count(model, text.vocab_size + 1) - parameters
    return ModelPlan(name=name, role=role, parameters=parameters, head_parameters=text.vocab_size * slope)


def _trained(
    sized: ModelPlan, model: ModelConfig, train: TrainConfig, num_folds: int, text: Text, rate: float
) -> ModelPlan:
    """The cost of training on text alone; a run of minutes costs those minutes, whatever it reads in them."""
    flops = plain_flops(model, train, num_folds, text)
    if train.minutes is not None:
        tokens = round(60 * train.minutes * rate / flops)
    elif train.steps is not None:
        tokens = round(train.steps * mean_tokens(train))
    elif train.words is not None:
        tokens = round(train.words * text.stream_tokens["train"] / max(text.words, 1))
    else:
        tokens = round((train.epochs or 0) * text.stream_tokens["train"])
    return replace(
        sized, tokens=tokens, training_flops=tokens * flops, activation_bytes=_activation_bytes(model, train)
    )


def _activation_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """What is kept for the backward pass, of the phase that keeps most.

    Where activations are worked out again, what blocks hand on to others and all of one.
    """
    from students.registry import activations_per_token

    sizes = [
        (max(phase.batch_size or train.batch_size, phase.end_batch_size or 0), phase.seq_len or train.seq_len)
        for phase in phases_of(train)
    ]
    item = 1 if train.precision in ("bf16", "fp16") else 2
    found = []
    for rows, length in sizes:
        tokens = min(train.micro_batch_size or rows, rows) * length
        blocks, states = activations_per_token(model, length)
        found.append(tokens * (states + max(blocks) if train.activation_checkpointing else sum(blocks)))
    return item * max(found)
