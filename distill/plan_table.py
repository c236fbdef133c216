"""How a plan is printed: a column for each model, a row for each codec, the totals, and what was assumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from distill.plan import ITEM_BYTES, ModelPlan, Plan
from distill.plan_cache import Listener

if TYPE_CHECKING:
    from rich.table import Table


def print_plan(plan: Plan) -> None:
    """Print the models, the caches by codec, the totals, and what was assumed."""
    from rich.table import Table

    models = Table("", title="plan")
    for model in plan.models:
        models.add_column("\n".join((*model.name.split("."), model.role)), justify="right", no_wrap=True)
    for label, cell in _model_rows(plan):
        models.add_row(label, *(cell(model) for model in plan.models))
    _print_whole(models)
    if plan.codecs:
        caches = Table("codec", title="caches of all teachers, over all streams")
        for heading in _codec_headings(plan):
            caches.add_column(heading, justify="right", no_wrap=True)
        for row in _codec_rows(plan):
            caches.add_row(*row)
        _print_whole(caches)
    flops = sum(model.flops for model in plan.models)
    peak = max((model.peak_bytes for model in plan.models), default=0)  # one model trains after another
    stored = sum(model.cache_bytes for model in plan.models)
    hours = _hours(plan.hours(flops))
    print(f"altogether: {_flops(flops)}, {hours} hours, {_bytes(stored)} of caches, {_bytes(peak)} of memory")
    for note in [*plan.notes, *_codec_notes(plan)]:
        print(f"- {note}")


def _print_whole(table: Table) -> None:
    """Print a table as wide as its numbers, which are never cut; a narrow terminal wraps the lines itself."""
    from rich.console import Console

    Console(width=Console(width=10_000).measure(table).maximum).print(table)


def _model_rows(plan: Plan) -> list[tuple[str, Callable[[ModelPlan], str]]]:
    """The rows of the models' table: what they are called and how a model's cell reads."""
    return [
        ("parameters", lambda model: f"{model.parameters:,}"),
        ("  body", lambda model: f"{model.body_parameters:,}"),
        ("  head and embedding", lambda model: f"{model.head_parameters:,}"),
        ("tokens read in training", lambda model: f"{model.tokens:,}"),
        ("training", lambda model: _flops(model.training_flops)),
        ("capture", lambda model: _flops(model.capture_flops)),
        ("hours", lambda model: _hours(plan.hours(model.flops))),
        ("cache", lambda model: _bytes(model.cache_bytes)),
        ("weights", lambda model: _bytes(ITEM_BYTES * model.parameters)),
        ("gradients", lambda model: _bytes(model.gradient_bytes)),
        ("optimiser state", lambda model: _bytes(2 * model.gradient_bytes)),
        ("activations", lambda model: _bytes(model.activation_bytes)),
        ("heads of members", lambda model: _bytes(model.members_bytes)),
        ("memory", lambda model: _bytes(model.peak_bytes)),
    ]


def _codec_headings(plan: Plan) -> Iterator[str]:
    yield from ("bytes\na position", "cache", "capture", "hours")
    for student in plan.live_ratios:
        yield from (f"{student}\nstep", "\ntokens/s", "\nread", "\nbreak-even")


def _codec_rows(plan: Plan) -> Iterator[list[str]]:
    live = [cell for ratio in plan.live_ratios.values() for cell in (f"{ratio:.3g} x", "", "", "")]
    yield ["none: live teachers", "", "", "", "", *live]
    for codec in plan.codecs:
        own = " *" if codec.name == plan.codec else ""
        costs = [_bytes(codec.cache_bytes), _flops(codec.capture_flops), _hours(plan.hours(codec.capture_flops))]
        listeners = [cell for listener in codec.listeners.values() for cell in _listener_cells(listener)]
        yield [codec.name + own, f"{codec.position_bytes:,}", *costs, *listeners]


def _listener_cells(listener: Listener | None) -> list[str]:
    if listener is None:
        return ["refused", "", "", ""]
    break_even = "never" if math.isinf(listener.break_even) else f"{listener.break_even:.2f} epochs"
    return [
        f"{listener.step_ratio:.3g} x",
        f"{listener.tokens_per_second:,.0f}",
        f"{_bytes(listener.bytes_per_second)}/s",
        break_even,
    ]


def _codec_notes(plan: Plan) -> Iterator[str]:
    if not plan.codecs:
        return
    yield "codecs: * is the recipe's; those that store temperatures are given all that its terms ask for"
    if not plan.live_ratios:
        return
    yield (
        "step: matrix products of a step, in those of the same step without teachers; tokens/s and read: at the rate "
        "above, so the most that a student asks of its disk"
    )
    trained = ", ".join(f"{name} trains {epochs:.2g}" for name, epochs in plan.epochs.items())
    yield (
        "break-even: epochs of one student from which on capturing the train stream and hearing caches takes fewer "
        f"operations than live teachers ({trained}); a second student, seed or setting finds the capture paid for"
    )


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
