"""What a recipe costs in parameters, bytes, operations, memory and hours, worked out before anything is built.

Every number is a closed form of the recipe's sizes; what had to be assumed is listed beside them. The one measurement
is a matrix product of a second or so, which says how fast this machine is at best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from corpora.errors import RecipeError
from corpora.storage import read_manifest
from distill.checks import teacher_view
from distill.config import Recipe, TrainConfig
from students.config import ModelConfig

TOKENS_PER_WORD = 1.3  # byte-level BPE of some thousand types on English
STATE_BYTES = 16  # for each parameter: fp32 weight, gradient, and AdamW's two moments
ITEM_BYTES = {"bf16": 2, "fp32": 4}
MATMUL_SIZE = 1024  # rows and columns of the measured product

Role = Literal["teacher", "student", "control"]


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """The cost of one model: born, trained, and for a teacher listened to."""

    name: str
    role: Role
    parameters: int
    head_parameters: int  # of those, the ones that grow with the vocabulary: embedding, output table, output bias
    tokens: int  # read in training
    training_flops: float  # forward and backward, and the heads of the members
    capture_flops: float = 0  # a teacher's passes over the streams
    cache_bytes: int = 0
    activation_bytes: int  # kept for the backward pass
    members_bytes: int = 0  # heads of the members, held while a student trains

    @property
    def body_parameters(self) -> int:
        """Parameters that do not depend on the vocabulary."""
        return self.parameters - self.head_parameters

    @property
    def peak_bytes(self) -> int:
        """Memory in training: fp32 weights, gradients and AdamW's moments, activations, heads of the members."""
        return STATE_BYTES * self.parameters + self.activation_bytes + self.members_bytes

    @property
    def flops(self) -> float:
        """Operations of training and capture."""
        return self.training_flops + self.capture_flops


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a recipe."""

    models: list[ModelPlan]
    stream_tokens: dict[str, int]
    rate: float  # operations in a second
    notes: list[str]  # what was assumed and measured

    def hours(self, flops: float) -> float:
        """Time of so many operations."""
        return flops / self.rate / 3600


@dataclass(frozen=True, kw_only=True)
class _Text:
    """How much there is to read, and in how many types."""

    stream_tokens: dict[str, int]
    vocab_size: int
    note: str


def plan(recipe: Recipe, *, rate: float | None = None) -> Plan:
    """The cost of a recipe, at `rate` operations in a second or at that of a short product on this machine.

    Raises RecipeError when nothing says how much text there is.
    """
    text = _text(recipe)
    notes = [
        text.note,
        "training: 3 forward passes over all rows; a masked row has targets at 1 of num_folds positions",
        "capture: a document longer than cache.window is read in overlapping windows, up to twice; not counted",
        f"memory: {STATE_BYTES} bytes a parameter, and L B T (34 D + 5 H T) bytes of activations in bf16 "
        "(arXiv 2205.05198, eq. 2), twice that in fp32; Python and torch themselves come on top",
    ]
    if rate is None:
        rate = measured_rate()
        notes.append(
            f"hours: at {rate:.3g} FLOPS, measured just now on {MATMUL_SIZE} x {MATMUL_SIZE} products; small models "
            "reach a fraction of it, so this is the least they take (--rate FLOPS sets it)"
        )
    else:
        notes.append(f"hours: at {rate:.3g} FLOPS, as given")
    notes += [f"not planned: teacher {name}, which exists ({t.path})" for name, t in recipe.teachers.items() if t.path]
    models = [*_teachers(recipe, text), *_students(recipe, text)]
    return Plan(models=models, stream_tokens=text.stream_tokens, rate=rate, notes=notes)


def measured_rate(seconds: float = 0.5) -> float:
    """Operations in a second of square matrix products, in the type that training would use on this machine."""
    import torch

    from distill.precision import resolve_precision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if resolve_precision("auto", device) == "bf16" else torch.float32
    square = torch.ones(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype, device=device)

    def multiply() -> None:
        (square @ square)[0, 0].item()  # waits for the device

    multiply()  # the first product also wakes the libraries
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        multiply()
        products += 1
    return max(products, 1) * 2 * MATMUL_SIZE**3 / (time.perf_counter() - start)


def print_plan(plan: Plan) -> None:
    """Print a column for each model, the totals, and what was assumed."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", title="plan")
    for model in plan.models:
        table.add_column("\n".join((*model.name.split("."), model.role)), justify="right", no_wrap=True)
    for label, cell in _lines(plan):
        table.add_row(label, *(cell(model) for model in plan.models))
    # as wide as its numbers, which are never cut; a narrow terminal wraps the lines itself
    Console(width=Console(width=10_000).measure(table).maximum).print(table)
    flops = sum(model.flops for model in plan.models)
    peak = max((model.peak_bytes for model in plan.models), default=0)  # one model trains after another
    caches = sum(model.cache_bytes for model in plan.models)
    hours = _hours(plan.hours(flops))
    print(f"altogether: {_flops(flops)}, {hours} hours, {_bytes(caches)} of caches, {_bytes(peak)} of memory")
    for note in plan.notes:
        print(f"- {note}")


def _lines(plan: Plan) -> list[tuple[str, Callable[[ModelPlan], str]]]:
    """The rows of the table: what they are called and how a model's cell reads."""
    return [
        ("parameters", lambda model: f"{model.parameters:,}"),
        ("  body", lambda model: f"{model.body_parameters:,}"),
        ("  head and embedding", lambda model: f"{model.head_parameters:,}"),
        ("tokens read in training", lambda model: f"{model.tokens:,}"),
        ("training", lambda model: _flops(model.training_flops)),
        ("capture", lambda model: _flops(model.capture_flops)),
        ("hours", lambda model: _hours(plan.hours(model.flops))),
        ("cache", lambda model: _bytes(model.cache_bytes)),
        ("weights", lambda model: _bytes(4 * model.parameters)),
        ("gradients", lambda model: _bytes(4 * model.parameters)),
        ("optimiser state", lambda model: _bytes(8 * model.parameters)),
        ("activations", lambda model: _bytes(model.activation_bytes)),
        ("heads of members", lambda model: _bytes(model.members_bytes)),
        ("memory", lambda model: _bytes(model.peak_bytes)),
    ]


def _flops(number: float) -> str:
    """Operations with a prefix: 1.23 PFLOP."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if number >= size:
            return f"{number / size:.3g} {prefix}FLOP" if number < 1000 * size else f"{number / size:,.0f} {prefix}FLOP"
    return f"{number / 1e6:.3g} MFLOP" if number else "0"


def _hours(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number >= 0.001 else "< 0.001"


def _bytes(number: float) -> str:
    """Bytes with a prefix: 1.23 GiB."""
    for prefix, size in (("Gi", 2**30), ("Mi", 2**20)):
        if number >= size:
            return f"{number / size:,.1f} {prefix}B"
    return f"{number / 2**10:.1f} KiB" if number else "0"


def _text(recipe: Recipe) -> _Text:
    """Tokens of each stream: counted where a corpus is prepared, else assumed from the words."""
    corpus, vocab_size = recipe.corpus, recipe.tokenizer.vocab_size
    if manifest := read_manifest(Path(recipe.run_dir) / "corpus"):
        counts = {name: int(stream["tokens"]) for name, stream in manifest.facts["streams"].items()}
        note = f"tokens: counted in the prepared corpus {manifest.folder}"
        return _Text(stream_tokens=counts, vocab_size=manifest.facts["vocab_size"], note=note)
    if corpus.words is None:
        raise RecipeError(
            "corpus.words: null, and no corpus is prepared, so the amount of text is unknown; "
            "run `cuvee prepare` first, or plan with corpus.words=NUMBER"
        )
    tokens = corpus.words * TOKENS_PER_WORD
    counts = {"tune": round(tokens * corpus.split.tune), "test": round(tokens * corpus.split.test)}
    counts = {"train": round(tokens) - sum(counts.values()), **counts}
    note = f"tokens: no corpus is prepared, so {TOKENS_PER_WORD} are assumed for each of {corpus.words:,} words"
    return _Text(stream_tokens=counts, vocab_size=vocab_size, note=note)


def _teachers(recipe: Recipe, text: _Text) -> list[ModelPlan]:
    from students.registry import forward_flops_per_token

    plans = []
    for name, teacher in recipe.teachers.items():
        if teacher.model is None or teacher.train is None:
            continue
        plain = _trained(recipe, name, "teacher", teacher.model, teacher.train, text)
        # features of every position of every stream; the head waits until a student trains
        positions = sum(text.stream_tokens.values())
        passes = recipe.cache.num_folds if teacher_view(teacher) == "masked" else 1
        forward = forward_flops_per_token(teacher.model, text.vocab_size, recipe.cache.window)
        plans.append(
            replace(
                plain,
                capture_flops=passes * positions * forward.body,
                cache_bytes=positions * teacher.model.hidden_size * ITEM_BYTES[recipe.cache.dtype],
            )
        )
    return plans


def _students(recipe: Recipe, text: _Text) -> list[ModelPlan]:
    plans = []
    for name, student in recipe.students.items():
        plain = _trained(recipe, name, "student", student.model, student.train, text)
        # a member's head runs once for each term that listens to it
        members = [recipe.teachers[member].model for term in student.terms for member in term.members]
        widths = sum(member.hidden_size for member in members if member)
        heads = 2 * text.vocab_size * widths * plain.tokens * _target_share(student.train, recipe.cache.num_folds)
        plans.append(
            replace(plain, training_flops=plain.training_flops + heads, members_bytes=4 * text.vocab_size * widths)
        )
        plans += [replace(plain, name=f"{name}.{control}", role="control") for control in student.controls]
    return plans


def _trained(recipe: Recipe, name: str, role: Role, model: ModelConfig, train: TrainConfig, text: _Text) -> ModelPlan:
    """The cost of training on text alone."""
    from students.registry import forward_flops_per_token, parameter_count

    parameters = parameter_count(model, text.vocab_size)
    forward = forward_flops_per_token(model, text.vocab_size, train.seq_len)
    epochs_tokens = (train.epochs or 0) * text.stream_tokens["train"]
    tokens = train.steps * train.batch_size * train.seq_len if train.steps else round(epochs_tokens)
    targets = tokens * _target_share(train, recipe.cache.num_folds)
    return ModelPlan(
        name=name,
        role=role,
        parameters=parameters,
        # counts are linear in the vocabulary: the slope is what one type costs
        head_parameters=text.vocab_size * (parameter_count(model, text.vocab_size + 1) - parameters),
        tokens=tokens,
        training_flops=3 * (tokens * forward.body + targets * forward.head),
        activation_bytes=_activation_bytes(model, train),
    )


def _target_share(train: TrainConfig, num_folds: int) -> float:
    """Share of the tokens that are targets: all of causal rows, one fold of masked ones."""
    shares = {train.view: 1.0} if train.view else train.views
    return sum(s * (1 if view == "causal" else 1 / num_folds) for view, s in shares.items()) / sum(shares.values())


def _activation_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """What a layer keeps for the backward pass, arXiv 2205.05198 eq. 2, without recomputation."""
    tokens = (train.micro_batch_size or train.batch_size) * train.seq_len
    layer = tokens * (34 * model.hidden_size + 5 * model.num_heads * train.seq_len)
    return model.num_layers * layer * (1 if train.precision == "bf16" else 2)
