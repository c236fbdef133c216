"""The speed suite `train`: what a whole training step of ours costs, and what stands beside it in a run.

Sizes are BabyLlama's student: 58M parameters, a vocabulary of 16,000, 8 rows of 128 tokens at a time; weights and
tokens are random.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import accelerate
import torch
import transformers
from torch import nn

from benchmarks.speed_figures import Figure, Goal, Table
from benchmarks.speed_timing import WARM_UP, Setting, default_device, interleaved, work_folder
from corpora.batch import Objective
from distill.checkpoint import Checkpoints, Progress
from distill.config import TrainConfig
from distill.distributed import Processes
from distill.memory import keep_freed_memory
from distill.phases import plan_run
from distill.precision import resolve_precision
from distill.speed import suite
from distill.speed.data import SEED, Shapes, baby_llama, random_corpus
from distill.speed.published import models_table, published
from distill.speed.steps import CROSS_ENTROPY
from distill.speed.trainer import OURS, TRAINER, take_turns
from distill.speed.two_processes import ONE, TWO, step_rows, step_seconds
from distill.speed.whole_step import CACHE, OurTraining, comparable, flops_per_token
from distill.step_data import step_data
from distill.throughput import comparable_rate

GOALS = {
    goal.name: goal
    for goal in (
        Goal(
            name="llama_vs_trainer",
            measure="tokens per second of our whole training step / of transformers' Trainer doing the same",
            unit="x",
            target=1.10,
            comparison=">=",
        ),
        Goal(
            name="two_process_efficiency",
            measure="tokens per second of two processes on two cores / of one process with two threads",
            unit="x",
            target=0.85,
            comparison=">=",
        ),
        Goal(
            name="checkpoint_cost",
            measure="seconds that the loop stands still for a checkpoint with AdamW's state / 300 s",
            unit="x",
            target=0.01,
        ),
        Goal(
            name="loader_headroom",
            measure="tokens per second of rows and masks alone (the dearer of causal and masked) / of the whole step",
            unit="x",
            target=20.0,
            comparison=">=",
        ),
    )
}
INTERVAL = 300.0  # seconds between two checkpoints
LOADED = 16  # steps' rows in one timed run
VIEWS: tuple[Objective, ...] = ("causal", "masked")
ROWS = {view: f"rows ({view})" for view in VIEWS}


def conditions(setting: Setting) -> dict[str, str]:
    """Arithmetic, sizes, and the releases of the alternative."""
    versions = f"transformers {transformers.__version__}, accelerate {accelerate.__version__}"
    return suite.conditions(setting) | {"Trainer": versions}


def figures(setting: Setting, names: Collection[str]) -> list[Figure]:
    """The named figures at BabyLlama's sizes, in the order of their names."""
    keep_freed_memory()  # as every run of ours does: here it serves both sides
    return measured(names, baby_llama(), setting)


def measured(names: Collection[str], shapes: Shapes, setting: Setting) -> list[Figure]:
    """The named figures at some sizes of a step."""
    with work_folder(setting) as folder:
        bench = _Bench(shapes, folder, setting)
        ways = (bench.llama_vs_trainer, bench.two_process_efficiency, bench.checkpoint_cost, bench.loader_headroom)
        measure = dict(zip(GOALS, ways, strict=True))
        return [measure[name]() for name in names]


def tables(setting: Setting, figures: Sequence[Figure], *, everything: bool) -> Iterator[Table | str]:
    """The steps that were measured; then, on a GPU, how fast the published models are trained."""
    if (table := steps_table(figures, baby_llama(), setting)).rows:
        yield table
        yield "of matmul rate: operations of the model in a second / those of square matrix products on the same device"
    if everything and default_device().type == "cuda":
        yield models_table(published(), setting)
    elif everything:
        yield "the published models: measured on a GPU, of which there is none here"


def steps_table(figures: Sequence[Figure], shapes: Shapes, setting: Setting) -> Table:
    """Time, speed and memory of each step that the figures compare."""
    here, cpu = default_device(), torch.device("cpu")
    measured_on = {OURS: (shapes.rows, here), TRAINER: (shapes.rows, here)}
    measured_on |= {side: (step_rows(shapes), cpu) for side in (ONE, TWO)}
    config = comparable(shapes.rows, shapes.seq_len, steps=1, precision=setting.precision)
    flops = flops_per_token(shapes.student, config, vocab_size=shapes.vocab_size)
    rows = []
    for figure in figures:
        for side, speed in figure.medians.items() if figure.goal.name in _STEP_FIGURES else ():
            step, device = measured_on[side]
            rate = comparable_rate(resolve_precision(setting.precision, device.type), device)
            peak = figure.memory.get(side)
            rows.append(
                (
                    side,
                    f"{step} x {shapes.seq_len}",
                    f"{1000 * step * shapes.seq_len / speed:,.0f}",
                    f"{speed:,.0f}",
                    "-" if rate is None else f"{100 * flops * speed / rate:.1f} %",
                    "-" if peak is None else f"{peak / 2**20:,.0f}",
                )
            )
    return Table("training steps", ("step", "tokens", "ms", "tokens/s", "of matmul rate", "peak extra MiB"), rows)


_STEP_FIGURES = {"llama_vs_trainer", "two_process_efficiency"}


class _Bench:
    """The figures by name; they share one corpus of random tokens."""

    def __init__(self, shapes: Shapes, folder: Path, setting: Setting) -> None:
        self._shapes, self._folder, self._setting = shapes, folder, setting
        self._corpus = random_corpus(folder, shapes)
        self._processes = Processes()

    def llama_vs_trainer(self) -> Figure:
        """Both sides train from the same weights on the same rows, in turns."""
        training = self._training()
        turns = take_turns(training, self._folder / "trainer", device=self._processes.device)
        ours, theirs = turns.losses[OURS], turns.losses[TRAINER]
        # bf16 rounds in another order, and every step begins where the one before it ended
        assert abs(ours - theirs) < 0.01 * theirs, f"the steps differ: cross-entropy {ours} here, {theirs} there"
        speeds = {side: self._shapes.tokens / timing.median for side, timing in turns.timings.items()}
        memory = {side: timing.peak_bytes for side, timing in turns.timings.items()}
        return GOALS["llama_vs_trainer"].reached(speeds[OURS] / speeds[TRAINER], speeds, "tokens/s", memory)

    def two_process_efficiency(self) -> Figure:
        """Of the CPU, whatever else this machine has."""
        precision = resolve_precision(self._setting.precision, "cpu")
        repetitions = self._setting.repetitions
        seconds = step_seconds(self._shapes, self._folder, precision=precision, repetitions=repetitions)
        tokens = step_rows(self._shapes) * self._shapes.seq_len
        speeds = {side: tokens / statistics.median(taken) for side, taken in seconds.items()}
        return GOALS["two_process_efficiency"].reached(speeds[TWO] / speeds[ONE], speeds, "tokens/s")

    def checkpoint_cost(self) -> Figure:
        """As the loop saves it, once there are two: a whole one is written, and the older of them deleted."""
        [seconds] = self._medians({"checkpoint": self._checkpoint()}).values()
        medians = {"checkpoint": seconds, "interval": INTERVAL}
        return GOALS["checkpoint_cost"].reached(seconds / INTERVAL, medians, "s")

    def loader_headroom(self) -> Figure:
        """Rows that meet several documents, of a causal run and of one whose epochs go through the folds."""
        tokens = self._shapes.tokens
        seconds = self._medians({**{ROWS[view]: self._rows(view) for view in VIEWS}, "step": self._training().step})
        rows = {side: LOADED * tokens / seconds[side] for side in ROWS.values()}
        step = tokens / seconds["step"]
        return GOALS["loader_headroom"].reached(min(rows.values()) / step, rows | {"step": step}, "tokens/s")

    def _training(self) -> OurTraining:
        shapes, steps = self._shapes, WARM_UP + self._setting.repetitions
        config = comparable(shapes.rows, shapes.seq_len, steps=steps, precision=self._setting.precision)
        return OurTraining(shapes.student, config, corpus=self._corpus, processes=self._processes)

    def _checkpoint(self) -> Callable[[], None]:
        learner = (training := self._training()).learner
        training.step()  # AdamW has state from its first step on
        modules = nn.ModuleDict({"objective": learner.objective})
        checkpoints = Checkpoints(self._folder / "checkpoints", modules, learner.optimizer, {})
        steps = itertools.count(1)
        return lambda: checkpoints.save(Progress(step=next(steps)))

    def _rows(self, view: Objective) -> Callable[[], None]:
        shapes, timed = self._shapes, LOADED * (WARM_UP + self._setting.repetitions)
        config = TrainConfig(view=view, steps=timed, batch_size=shapes.rows, seq_len=shapes.seq_len)
        plan = plan_run(config, self._corpus.streams["train"], seed=SEED)
        steps = iter(range(timed))

        def load() -> None:
            for step in itertools.islice(steps, LOADED):
                step_data(
                    step,
                    plan,
                    corpus=self._corpus,
                    config=config,
                    cache=CACHE,
                    terms=[CROSS_ENTROPY],
                    processes=self._processes,
                )

        return load

    def _medians(self, sides: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Seconds of each side; they take turns."""
        timings = interleaved(sides, repetitions=self._setting.repetitions, device=default_device())
        return {side: timing.median for side, timing in timings.items()}
