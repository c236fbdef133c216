"""The speed suite `models`: ELC-BERT's step beside a textbook's, and what every model gets out of this machine.

Sizes are ELC-BERT small's with 16,384 types; weights and tokens are random.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from benchmarks.speed_figures import Figure, Goal, Table
from benchmarks.speed_timing import WARM_UP, Setting, default_device, work_folder
from benchmarks.speed_turns import in_turns
from distill.distributed import Processes
from distill.memory import keep_freed_memory
from distill.precision import resolve_precision
from distill.speed.data import Shapes, packaged_model, random_corpus
from distill.speed.elc_step import CPU, OURS, TEXTBOOK, Side, Step, textbook
from distill.speed.published import models_table, small_ones
from distill.speed.trainer import OURS as ENGINE
from distill.speed.trainer import TRAINER, Alternative, masked_rows, take_turns
from distill.speed.whole_step import OurTraining, comparable
from distill.throughput import comparable_rate
from students.config import ModelConfig
from students.ltg_names import original_names
from students.registry import forward_flops_per_token
from teachers.config import CacheConfig

GOALS = {
    goal.name: goal
    for goal in (
        Goal(
            name="elc_step_128",
            measure="tokens per second of our ELC-BERT step / of a textbook's, 16 rows of 128",
            unit="x",
            target=1.4,
            comparison=">=",
        ),
        Goal(
            name="elc_step_512",
            measure="tokens per second of our ELC-BERT step / of a textbook's, 4 rows of 512",
            unit="x",
            target=1.7,
            comparison=">=",
        ),
        Goal(
            name="elc_memory_512",
            measure="peak memory of a process that does our steps of 4 rows of 512 / of one that does the textbook's",
            unit="x",
            target=0.7,
        ),
        Goal(
            name="elc_vs_trainer",
            measure="tokens per second of our whole training step / of transformers' Trainer around the textbook",
            unit="x",
            target=1.4,
            comparison=">=",
        ),
    )
}
VOCAB_SIZE = 16_384
FOLDS = CacheConfig(num_folds=7)  # 14.3 % of the tokens are hidden
ALIKE = 0.1  # how far two losses may be apart of other random weights and draws


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the model and of the steps."""

    model: ModelConfig
    vocab_size: int
    short: tuple[int, int]  # rows, tokens in each
    long: tuple[int, int]


def elc_bert_small() -> Sizes:
    """The published size, with the vocabulary of 100M words."""
    model = packaged_model("students/elc_bert_small.yaml")
    return Sizes(model=replace(model, vocab_size=None), vocab_size=VOCAB_SIZE, short=(16, 128), long=(4, 512))


def conditions(setting: Setting) -> dict[str, str]:
    """Arithmetic, sizes, and the release of the alternative."""
    precision = resolve_precision(setting.precision, default_device().type)
    return {
        "dtype": precision,
        "sizes": f"ELC-BERT small (zero), vocabulary {VOCAB_SIZE:,}, dropout 0.1, random weights and tokens",
        "Trainer": f"transformers {transformers.__version__}",
    }


def figures(setting: Setting, names: Collection[str]) -> list[Figure]:
    """The named figures at ELC-BERT small's sizes, in the order of their names."""
    keep_freed_memory()  # as every run of ours does: here it serves both sides
    return measured(names, elc_bert_small(), setting)


def measured(names: Collection[str], sizes: Sizes, setting: Setting) -> list[Figure]:
    """The named figures at some sizes."""
    with work_folder(setting) as folder:
        bench = _Bench(sizes, folder, setting)
        ways = (bench.elc_step_128, bench.elc_step_512, bench.elc_memory_512, bench.elc_vs_trainer)
        measure = dict(zip(GOALS, ways, strict=True))
        return [measure[name]() for name in names]


def tables(setting: Setting, figures: Sequence[Figure], *, everything: bool) -> Iterator[Table | str]:
    """The share of the machine's matrix products of each side of the figures, and of every model."""
    if (table := _shares(figures, elc_bert_small(), setting)).rows:
        yield table
    if everything:
        yield models_table(small_ones(), replace(setting, repetitions=min(5, setting.repetitions)), compiled=False)
        yield "of matmul rate: operations of the model in a second / those of square matrix products on the same device"


class _Bench:
    """The figures by name."""

    def __init__(self, sizes: Sizes, folder: Path, setting: Setting) -> None:
        self._sizes, self._folder, self._setting = sizes, folder, setting
        self._precision = resolve_precision(setting.precision, CPU.type)

    def elc_step_128(self) -> Figure:
        """Of short rows."""
        return self._speed("elc_step_128", self._step(self._sizes.short))

    def elc_step_512(self) -> Figure:
        """Of long rows."""
        return self._speed("elc_step_512", self._step(self._sizes.long))

    def elc_memory_512(self) -> Figure:
        """Of long rows; by the third step all memory that is kept between steps is there."""
        peaks = self._long[1]
        mebibytes = {side: peak / 2**20 for side, peak in peaks.items()}
        return GOALS["elc_memory_512"].reached(mebibytes[OURS] / mebibytes[TEXTBOOK], mebibytes, "MiB")

    def elc_vs_trainer(self) -> Figure:
        """Both sides train from the same weights on the same rows, in turns."""
        rows, seq_len = self._sizes.short
        steps = WARM_UP + self._setting.repetitions
        shapes = Shapes(
            student=self._sizes.model,
            teachers={},
            vocab_size=self._sizes.vocab_size,
            rows=rows,
            seq_len=seq_len,
            corpus_rows=rows * steps,
            read_positions=seq_len,
        )
        config = comparable(rows, seq_len, steps=steps, precision=self._setting.precision, view="masked")
        processes = Processes()
        corpus = random_corpus(self._folder, shapes)
        ours = OurTraining(self._sizes.model, config, corpus=corpus, processes=processes, cache=FOLDS)
        theirs = Alternative(_WithLabels(self._twin(ours)), masked_rows(ours, FOLDS))
        turns = take_turns(ours, self._folder / "trainer", device=processes.device, theirs=theirs)
        our_loss, their_loss = turns.losses[ENGINE], turns.losses[TRAINER]
        told = f"the steps differ: cross-entropy {our_loss} here, {their_loss} there"
        assert abs(our_loss - their_loss) < ALIKE * their_loss, told
        speeds = {side: rows * seq_len / timing.median for side, timing in turns.timings.items()}
        memory = {side: timing.peak_bytes for side, timing in turns.timings.items()}
        return GOALS["elc_vs_trainer"].reached(speeds[ENGINE] / speeds[TRAINER], speeds, "tokens/s", memory)

    @cached_property
    def _long(self) -> tuple[dict[str, float], dict[str, int]]:
        """Medians of seconds and peaks of bytes, of one run for two figures."""
        return _taken(self._step(self._sizes.long), self._setting.repetitions)

    def _speed(self, name: str, step: Step) -> Figure:
        long = (step.rows, step.seq_len) == self._sizes.long
        seconds, _ = self._long if long else _taken(step, self._setting.repetitions)
        speeds = {side: step.tokens / taken for side, taken in seconds.items()}
        return GOALS[name].reached(speeds[OURS] / speeds[TEXTBOOK], speeds, "tokens/s")

    def _step(self, shape: tuple[int, int]) -> Step:
        sizes, (rows, seq_len) = self._sizes, shape
        return Step(
            model=sizes.model,
            vocab_size=sizes.vocab_size,
            rows=rows,
            seq_len=seq_len,
            precision=self._precision,
            threads=self._setting.threads,
        )

    def _twin(self, ours: OurTraining) -> nn.Module:
        """The textbook's model with our weights."""
        network = ours.learner.model.network
        model = textbook(self._sizes.model, self._sizes.vocab_size)
        names = original_names(network)  # pyright: ignore[reportArgumentType]
        state = {names[name]: tensor for name, tensor in network.state_dict().items()}
        missing, unknown = model.load_state_dict(state, strict=False)
        assert not unknown and all(name.endswith("position_indices") for name in missing), "the same architecture"
        return model


class _WithLabels(nn.Module):
    """The textbook's model as Trainer calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Their loss in nats."""
        padding_BT = torch.zeros_like(input_ids, dtype=torch.bool)
        return {"loss": self.model(input_ids, padding_BT, labels)}


def _taken(step: Step, repetitions: int) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds of each side's steps, and the most memory that its process has had; the sides take turns."""
    peaks: dict[str, int] = {}
    losses: dict[str, list[float]] = {OURS: [], TEXTBOOK: []}
    with contextlib.ExitStack() as stack:
        sides = {side: stack.enter_context(Side(side, step)) for side in (OURS, TEXTBOOK)}

        def seconds_of(side: str) -> float:
            seconds, loss, peaks[side] = sides[side].step()
            losses[side].append(loss)
            return seconds

        turns: dict[str, Callable[[], float]] = {side: partial(seconds_of, side) for side in sides}
        seconds = in_turns(turns, repetitions=repetitions, warm_up=WARM_UP)
    # random weights, and dropout: alike is all that the first steps can be
    first, other = losses[OURS][0], losses[TEXTBOOK][0]
    assert abs(first - other) < ALIKE * other, f"the steps differ: cross-entropy {first} here, {other} there"
    return {side: statistics.median(taken) for side, taken in seconds.items()}, peaks


def _shares(figures: Sequence[Figure], sizes: Sizes, setting: Setting) -> Table:
    """How much of the rate of matrix products each side of a figure has."""
    shapes = {"elc_step_128": sizes.short, "elc_step_512": sizes.long, "elc_vs_trainer": sizes.short}
    rate = comparable_rate(resolve_precision(setting.precision, CPU.type), CPU)
    rows = [
        (
            f"{figure.goal.name}: {side}",
            f"{1000 * count * seq_len / speed:,.0f}",
            f"{speed:,.0f}",
            "-" if rate is None else f"{100 * _flops_per_token(sizes, seq_len) * speed / rate:.1f} %",
        )
        for figure in figures
        if figure.goal.name in shapes
        for count, seq_len in [shapes[figure.goal.name]]
        for side, speed in figure.medians.items()
    ]
    return Table("ELC-BERT's steps", ("step", "ms", "tokens/s", "of matmul rate"), rows)


def _flops_per_token(sizes: Sizes, seq_len: int) -> float:
    """Three forward passes; logits of the hidden tokens alone."""
    forward = forward_flops_per_token(sizes.model, sizes.vocab_size, seq_len)
    return 3 * (forward.body + forward.head / FOLDS.num_folds)
