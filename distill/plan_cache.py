"""What caches cost by codec, and from when on they beat live teachers: bytes, operations and bandwidth in closed form.

Operations are those of matrix products; what touches numbers one by one (softmaxes, gathers of kept tokens) is counted
on neither side. A record's size comes from the codec itself, which is the one place where it is decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from distill.config import Recipe, StudentConfig, TrainConfig
from distill.shares import phases_of, tokens_in_step, view_shares
from distill.term_checks import CHECKS_OF_TERMS, cache_is_possible
from students.config import ModelConfig
from teachers.config import CacheConfig

if TYPE_CHECKING:  # these bring torch, which a misspelt key need not wait for
    from students.buildable import ForwardFlops
    from teachers.codecs.codec import Codec


@dataclass(frozen=True, kw_only=True)
class Text:
    """How much there is to read, and in how many types."""

    stream_tokens: dict[str, int]
    vocab_size: int
    words: int  # of the train stream
    overlap: dict[str, float]  # by objective: tokens that windows read, for each token of the streams
    note: str

    @property
    def tokens(self) -> int:
        """Tokens of all streams: the positions of a cache."""
        return sum(self.stream_tokens.values())


@dataclass(frozen=True, kw_only=True)
class Member:
    """A teacher as its cache and its listeners meet it."""

    model: ModelConfig
    objective: str

    def forward(self, text: Text, seq_len: int) -> ForwardFlops:
        """Operations for each token of rows of `seq_len`."""
        from students.registry import forward_flops_per_token

        return forward_flops_per_token(self.model, text.vocab_size, seq_len)

    def head_flops(self, text: Text) -> int:
        """Operations that make one position's logits of its features."""
        return 2 * text.vocab_size * self.model.feature_size

    def rounds(self, cache: CacheConfig) -> int:
        """Records of each position."""
        return cache.rounds if self.objective == "masked" else 1

    def passes(self, cache: CacheConfig) -> int:
        """Times that a window is read in a round: a masked teacher tells one fold at a time."""
        return cache.num_folds if self.objective == "masked" else 1

    def codec(self, cache: CacheConfig, text: Text) -> Codec:
        """What its records are made by."""
        from teachers.codecs import CODECS

        return CODECS[cache.codec](cache, hidden_size=self.model.feature_size, vocab_size=text.vocab_size)

    def record_bytes(self, cache: CacheConfig, text: Text) -> int:
        """Bytes of one record."""
        return self.codec(cache, text).record.itemsize

    def cache_bytes(self, cache: CacheConfig, text: Text) -> int:
        """Bytes of the records of all streams."""
        return text.tokens * self.rounds(cache) * self.record_bytes(cache, text)

    def capture_flops(self, cache: CacheConfig, text: Text) -> float:
        """Operations of capture for each token of the streams; codecs that keep logits run the head for each record."""
        body = text.overlap[self.objective] * self.passes(cache) * self.forward(text, cache.window).body
        head = 0 if self.codec(cache, text).needs_head else self.head_flops(text)
        return self.rounds(cache) * (body + head)


@dataclass(frozen=True, kw_only=True)
class Hearing:
    """One member heard by one term on the rows of one view; shares are of the student's tokens."""

    term: int  # number in the student's list
    view: str
    name: str
    member: Member
    rows: float  # share that stands in such rows
    targets: float  # share that is a target there
    compares_features: bool  # by a learned projection instead of the member's head


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A student with caches of one codec."""

    step_ratio: float  # operations of a step, in those of the same step on text alone
    tokens_per_second: float
    bytes_per_second: float  # read from caches
    break_even: float  # epochs from which on capture and cached steps take fewer operations than live teachers


@dataclass(frozen=True, kw_only=True)
class CodecPlan:
    """Caches of all the recipe's teachers, by one codec."""

    name: str
    position_bytes: int  # of all teachers together, with all their rounds
    cache_bytes: int
    capture_flops: float
    listeners: dict[str, Listener | None]  # by student; None: the codec cannot serve its terms


def target_shares(train: TrainConfig, num_folds: int) -> dict[str, tuple[float, float]]:
    """By view: share of the tokens that stand in its rows, and share that is a target; one fold of masked rows is."""
    rows: dict[str, float] = {}
    targets: dict[str, float] = {}
    for phase in phases_of(train):
        for view, share in (view_shares(phase) or view_shares(train)).items():
            tokens = share * phase.share * tokens_in_step(train, phase)
            folds = (phase.num_folds or num_folds) if view == "masked" else 1
            rows[view] = rows.get(view, 0.0) + tokens
            targets[view] = targets.get(view, 0.0) + tokens / folds
    total = sum(rows.values())
    return {view: (rows[view] / total, targets[view] / total) for view in rows}


def hearings(student: StudentConfig, members: Mapping[str, Member], num_folds: int) -> list[Hearing]:
    """What a student hears, a term and a view at a time; teachers of unknown size are left out."""
    from distill.losses import FEATURE_LOSSES

    return [
        Hearing(
            term=number,
            view=view,
            name=name,
            member=members[name],
            rows=rows,
            targets=targets,
            compares_features=term.loss in FEATURE_LOSSES,
        )
        for number, term in enumerate(student.terms)
        for view, (rows, targets) in target_shares(student.train, num_folds).items()
        for name, weight in term.members.items()
        if weight > 0 and term.view in (None, view) and name in members
    ]


def cached_flops(heard: Iterable[Hearing], student: ModelConfig, cache: CacheConfig, text: Text) -> float:
    """Operations, for each token of a student's rows, to make of records what its terms compare."""
    return sum(
        hearing.targets * _telling_flops(hearing, student, text)
        for hearing in heard
        if hearing.compares_features or hearing.member.codec(cache, text).needs_head
    )


def live_flops(heard: Sequence[Hearing], student: StudentConfig, cache: CacheConfig, text: Text) -> float:
    """The same when the teachers run on the rows themselves: each body once for each view, and the heads of all terms.

    Of causal rows a masked teacher has to hide every fold in turn.
    """
    bodies = {(hearing.name, hearing.view): hearing for hearing in heard}.values()
    running = sum(
        hearing.rows
        * (hearing.member.passes(cache) if hearing.view == "causal" else 1)
        * hearing.member.forward(text, student.train.seq_len).body
        for hearing in bodies
    )
    return running + sum(hearing.targets * _telling_flops(hearing, student.model, text) for hearing in heard)


def _telling_flops(hearing: Hearing, student: ModelConfig, text: Text) -> int:
    if hearing.compares_features:  # forward, and the gradients of both factors
        return 3 * 2 * student.feature_size * hearing.member.model.feature_size
    return hearing.member.head_flops(text)


def read_bytes(heard: Iterable[Hearing], cache: CacheConfig, text: Text) -> float:
    """Bytes of records for each token of a student's rows."""
    return sum(hearing.targets * hearing.member.record_bytes(cache, text) for hearing in heard)


def plain_flops(model: ModelConfig, train: TrainConfig, num_folds: int, text: Text) -> float:
    """Operations of a step on text alone, for each token: forward, and backward for twice as many."""
    from students.registry import forward_flops_per_token

    forward = forward_flops_per_token(model, text.vocab_size, train.seq_len)
    targets = sum(share for _, share in target_shares(train, num_folds).values())
    return 3 * (forward.body + targets * forward.head)


def listener(
    student: StudentConfig, members: Mapping[str, Member], cache: CacheConfig, text: Text, *, rate: float
) -> Listener:
    """What a codec would mean for a student on a machine of `rate` operations in a second.

    Break-even: capture = epochs x (live - cached), all for each token of the train stream. The other streams are left
    out, for they have to be read for weights and tables either way.
    """
    heard = hearings(student, members, cache.num_folds)
    plain = plain_flops(student.model, student.train, cache.num_folds, text)
    told = cached_flops(heard, student.model, cache, text)
    saved = live_flops(heard, student, cache, text) - told
    captured = sum(
        member.capture_flops(cache, text) for member in {hearing.name: hearing.member for hearing in heard}.values()
    )
    tokens_per_second = rate / (plain + told)
    return Listener(
        step_ratio=(plain + told) / plain,
        tokens_per_second=tokens_per_second,
        bytes_per_second=tokens_per_second * read_bytes(heard, cache, text),
        break_even=captured / saved if saved > 0 else math.inf,
    )


def live_ratio(student: StudentConfig, members: Mapping[str, Member], cache: CacheConfig, text: Text) -> float:
    """Operations of a step with live teachers, in those of the same step on text alone."""
    plain = plain_flops(student.model, student.train, cache.num_folds, text)
    return 1 + live_flops(hearings(student, members, cache.num_folds), student, cache, text) / plain


def codec_plans(recipe: Recipe, members: Mapping[str, Member], text: Text, *, rate: float) -> list[CodecPlan]:
    """Every codec with the recipe's settings; those that store temperatures are given all that its terms ask for."""
    plans = []
    for name, variant in _variants(recipe).items():
        cache = variant.cache
        plans.append(
            CodecPlan(
                name=name,
                position_bytes=sum(m.rounds(cache) * m.record_bytes(cache, text) for m in members.values()),
                cache_bytes=sum(member.cache_bytes(cache, text) for member in members.values()),
                capture_flops=text.tokens * sum(member.capture_flops(cache, text) for member in members.values()),
                listeners={
                    student: listener(recipe.students[student], members, cache, text, rate=rate) if served else None
                    for student, served in _served(variant, members).items()
                },
            )
        )
    return plans


def own_codec(cache: CacheConfig) -> str:
    """The recipe's codec as tables call it."""
    return f"features {cache.dtype}" if cache.codec == "features" else cache.codec


def listening_students(recipe: Recipe, members: Mapping[str, Member]) -> list[str]:
    """The students that hear some teacher of known size."""
    return [name for name, student in recipe.students.items() if hearings(student, members, recipe.cache.num_folds)]


def _variants(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe with every codec whose settings are possible."""
    asked = {term.temperature for student in recipe.students.values() for term in student.terms if term.members}
    temperatures = tuple(sorted(asked | set(recipe.cache.temperatures)))
    cache = replace(recipe.cache, temperatures=temperatures)
    variants = {
        "features bf16": replace(cache, codec="features", dtype="bf16"),
        "features int8": replace(cache, codec="features", dtype="int8"),
        own_codec(recipe.cache): cache,  # in its place where it is one of these, features fp32 here
        "hybrid": replace(cache, codec="hybrid"),
        "topk": replace(cache, codec="topk"),
        "sampled": replace(cache, codec="sampled"),
        "full": replace(cache, codec="full"),
    }
    recipes = {name: replace(recipe, cache=variant) for name, variant in variants.items()}
    return {name: variant for name, variant in recipes.items() if not list(cache_is_possible(variant))}


def _served(recipe: Recipe, members: Mapping[str, Member]) -> dict[str, bool]:
    """Whether the recipe, with the codec that it names now, would pass the checks of each listening student."""
    problems = (keys for check in CHECKS_OF_TERMS for keys, _ in check(recipe))
    refused = {keys[1] for keys in problems if keys[0] == "students"}
    return {name: name not in refused for name in listening_students(recipe, members)}
