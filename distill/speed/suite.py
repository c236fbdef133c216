"""The speed suite `distill`: what a step with cached teachers costs, beside text alone and beside live teachers.

Sizes are BabyLlama's: a student of 58M and teachers of 360M and 705M parameters, a vocabulary of 16,000, 8 rows of 128
tokens; weights and tokens are random. Where a cost depends on the pooling rule, the figure is the dearer one's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from benchmarks.speed_figures import Figure, Goal, Table
from benchmarks.speed_timing import Setting, default_device, interleaved, work_folder
from corpora.prepare import Corpus
from distill.memory import keep_freed_memory
from distill.precision import resolve_precision
from distill.speed import fidelity
from distill.speed.data import Shapes, baby_llama, random_corpus
from distill.speed.loss import LossCase, LossProblem, peak_extra_bytes
from distill.speed.steps import Step, Steps
from distill.speed.storage import Transfer, cache_reads, cache_writes

GOALS = {
    goal.name: goal
    for goal in (
        Goal(
            name="ce_step_speed",
            measure="speed of our cross-entropy step / of the same step with transformers' own model and loss",
            unit="x",
            target=1.0,
            comparison=">=",
        ),
        Goal(
            name="cached_features_step_ratio",
            measure="step with two cached feature teachers (the dearer of mixture and product) / cross-entropy step",
            unit="x",
            target=1.25,
        ),
        Goal(
            name="cached_hybrid_step_ratio",
            measure="step with two cached hybrid teachers / cross-entropy step",
            unit="x",
            target=1.10,
        ),
        Goal(
            name="live_over_cached",
            measure="step with both teachers run live, BabyLlama's way / step with two cached feature teachers",
            unit="x",
            target=5.5,
            comparison=">=",
        ),
        Goal(
            name="loss_memory_ratio",
            measure="peak extra memory of the loss engine / of naive PyTorch (4,096 rows, 16,000 x 512, two teachers)",
            unit="x",
            target=1 / 6,
        ),
        Goal(
            name="loss_time_ratio",
            measure="time of the loss engine / of naive PyTorch (4,096 rows, 16,000 x 512, two teachers)",
            unit="x",
            target=1.0,
        ),
        Goal(
            name="cache_read_gbps",
            measure="bytes of a features cache read in a second, random rows of 128 positions, warm",
            unit="GB/s",
            target=2.0,
            comparison=">=",
        ),
        Goal(
            name="cache_write_ratio",
            measure="speed of a shard's write with digest and syncs / of a plain write and fsync of the same bytes",
            unit="x",
            target=0.7,
            comparison=">=",
        ),
    )
}
POOLS = ("mixture", "product")
# sides of the step figures
OURS, TRANSFORMERS, HYBRID, LIVE, LIVE_BF16 = "cross-entropy", "transformers", "hybrid", "live", "live (bf16 weights)"
FEATURES = {pool: f"features ({pool})" for pool in POOLS}


def conditions(setting: Setting) -> dict[str, str]:
    """Arithmetic and sizes."""
    device = default_device()
    precision = resolve_precision(setting.precision, device.type)
    if setting.precision != "auto":
        why = "asked for"
    elif precision == "bf16":
        why = "computed natively"
    else:
        why = "this machine computes no bf16 products in hardware"
    shapes = baby_llama()
    return {
        "dtype": f"{precision} ({why})",
        "sizes": f"{shapes.rows} x {shapes.seq_len} tokens, vocabulary {shapes.vocab_size:,}, random weights",
        "files": str(setting.folder or tempfile.gettempdir()),
    }


def figures(setting: Setting, names: Collection[str]) -> list[Figure]:
    """The named figures at BabyLlama's sizes, in the order of their names."""
    keep_freed_memory()  # as every run of ours does: here it serves both sides
    precision = resolve_precision(setting.precision, default_device().type)
    cases = {pool: LossCase(pool=pool, precision=precision) for pool in POOLS}
    return measured(names, baby_llama(), cases, setting)


def measured(names: Collection[str], shapes: Shapes, cases: Mapping[str, LossCase], setting: Setting) -> list[Figure]:
    """The named figures at some sizes of a step, and of the loss with each pooling rule."""
    with work_folder(setting) as folder:
        bench = _Bench(shapes, folder, setting)
        found = bench.step_figures(names) | _loss_figures(names, cases, setting) | bench.storage_figures(names)
    return [found[name] for name in names]


def tables(setting: Setting, figures: Sequence[Figure], *, everything: bool) -> Iterator[Table | str]:
    """Tokens in a second and memory of each step; then, of a finished run, how true the codecs are."""
    sides = {
        side: (seconds, figure.memory.get(side))
        for figure in figures
        if figure.goal.name in _STEP_FIGURES
        for side, seconds in figure.medians.items()
    }
    if sides:
        yield _steps_table(sides, baby_llama().tokens)
        yield "peak extra: on a GPU, beyond the weights and heads that are held between steps"
    if everything:
        if (setting.run_dir / "recipe.yaml").exists():
            found = fidelity.figures(setting, [])
            yield from fidelity.tables(setting, found, everything=True)
        else:
            yield f"fidelity of codecs: {setting.run_dir} is not there; `cuvee run configs/quickstart.yaml` makes it"


class _Bench:
    """What step and storage figures share: one corpus of random tokens."""

    def __init__(self, shapes: Shapes, folder: Path, setting: Setting) -> None:
        self._shapes, self._folder, self._setting = shapes, folder, setting

    @cached_property
    def _corpus(self) -> Corpus:
        return random_corpus(self._folder, self._shapes)

    def step_figures(self, names: Collection[str]) -> dict[str, Figure]:
        """Figures of whole steps; all their sides take turns in one run."""
        if not _STEP_FIGURES & set(names):
            return {}
        precision = resolve_precision(self._setting.precision, default_device().type)
        steps = Steps(self._shapes, self._corpus, self._folder, precision)
        sides = _step_sides(steps, names)
        timings = interleaved(sides, repetitions=self._setting.repetitions, device=steps.device)
        seconds = {side: timing.median for side, timing in timings.items()}

        def figure(name: str, value: float, *of: str) -> Figure:
            memory = {side: timings[side].peak_bytes for side in of}
            return GOALS[name].reached(value, {side: seconds[side] for side in of}, "s", memory)

        found = {}
        features = tuple(FEATURES.values())
        if "ce_step_speed" in names:
            value = seconds[TRANSFORMERS] / seconds[OURS]
            found["ce_step_speed"] = figure("ce_step_speed", value, OURS, TRANSFORMERS)
        if "cached_features_step_ratio" in names:
            value = max(seconds[side] for side in features) / seconds[OURS]
            found["cached_features_step_ratio"] = figure("cached_features_step_ratio", value, *features, OURS)
        if "cached_hybrid_step_ratio" in names:
            value = seconds[HYBRID] / seconds[OURS]
            found["cached_hybrid_step_ratio"] = figure("cached_hybrid_step_ratio", value, HYBRID, OURS)
        if "live_over_cached" in names:
            # the better of the alternatives against the worse of ours
            live = tuple(side for side in (LIVE, LIVE_BF16) if side in sides)
            value = min(seconds[side] for side in live) / max(seconds[side] for side in features)
            found["live_over_cached"] = figure("live_over_cached", value, *live, *features)
        return found

    def storage_figures(self, names: Collection[str]) -> dict[str, Figure]:
        """Figures of reading and writing caches."""
        found = {}
        if "cache_read_gbps" in names:
            reads = cache_reads(self._shapes, self._corpus, self._folder)
            seconds = self._transfer(reads)
            rates = {side: reads.bytes / taken / 1e9 for side, taken in seconds.items()}
            found["cache_read_gbps"] = GOALS["cache_read_gbps"].reached(rates["ours"], rates, "GB/s")
        if "cache_write_ratio" in names:
            seconds = self._transfer(cache_writes(self._shapes, self._folder))
            value = seconds["plain"] / seconds["ours"]
            found["cache_write_ratio"] = GOALS["cache_write_ratio"].reached(value, seconds, "s")
        return found

    def _transfer(self, transfer: Transfer) -> dict[str, float]:
        sides = {"ours": transfer.ours, "plain": transfer.plain}
        timings = interleaved(sides, repetitions=self._setting.repetitions, device=default_device())
        return {side: timing.median for side, timing in timings.items()}


_STEP_FIGURES = {"ce_step_speed", "cached_features_step_ratio", "cached_hybrid_step_ratio", "live_over_cached"}


def _step_sides(steps: Steps, names: Collection[str]) -> dict[str, Step]:
    """The steps that the named figures compare."""
    sides = {OURS: steps.ours()}
    if "ce_step_speed" in names:
        ours, theirs = float(steps.ours()()), float(steps.transformers()())
        # bf16 rounds the two sums in another order
        assert abs(ours - theirs) < 0.01 * theirs, f"the steps differ: cross-entropy {ours} here, {theirs} there"
        sides[TRANSFORMERS] = steps.transformers()
    if {"cached_features_step_ratio", "live_over_cached"} & set(names):
        sides |= {FEATURES[pool]: steps.cached("features", pool) for pool in POOLS}
    if "cached_hybrid_step_ratio" in names:
        sides[HYBRID] = steps.cached("hybrid", "mixture")  # draws can be mixed, and in no other way pooled
    if "live_over_cached" in names:
        sides[LIVE] = steps.live()
        if steps.precision == "bf16":
            sides[LIVE_BF16] = steps.live(hold_bf16=True)
    return sides


def _loss_figures(names: Collection[str], cases: Mapping[str, LossCase], setting: Setting) -> dict[str, Figure]:
    """Figures of the loss alone: the worst of the pooling rules."""
    device, found = default_device(), {}
    if "loss_memory_ratio" in names:
        taken = {
            f"{side} ({pool})": peak_extra_bytes(case, side, device) / 2**20
            for pool, case in cases.items()
            for side in ("engine", "naive")
        }
        found["loss_memory_ratio"] = GOALS["loss_memory_ratio"].reached(_worst(taken, cases), taken, "MiB")
    if "loss_time_ratio" in names:
        problems = {pool: LossProblem(case, device) for pool, case in cases.items()}
        sides = {
            f"{side} ({pool})": getattr(problem, side)
            for pool, problem in problems.items()
            for side in ("engine", "naive")
        }
        timings = interleaved(sides, repetitions=setting.repetitions, device=device)
        seconds = {side: timing.median for side, timing in timings.items()}
        found["loss_time_ratio"] = GOALS["loss_time_ratio"].reached(_worst(seconds, cases), seconds, "s")
    return found


def _worst(taken: Mapping[str, float], pools: Collection[str]) -> float:
    return max(taken[f"engine ({pool})"] / taken[f"naive ({pool})"] for pool in pools)


def _steps_table(sides: Mapping[str, tuple[float, int | None]], tokens: int) -> Table:
    rows = [
        (
            side,
            f"{1000 * seconds:,.0f}",
            f"{tokens / seconds:,.0f}",
            "-" if memory is None else f"{memory / 2**20:,.0f}",
        )
        for side, (seconds, memory) in sides.items()
    ]
    return Table("steps", ("step", "ms", "tokens/s", "peak extra MiB"), rows)
