"""A whole training step of transformers' `Trainer` beside ours, with the same weights, rows and settings.

They take turns in one process: Trainer's own loop runs once, and our steps take place between its steps. Its clock
holds all that its loop does from the end of one step to the end of the next, or from ours to there: rows that were made
before are stacked by its data loader, then come forward, loss, backward, clipping, fused AdamW and the rate, as on our
side. What it sets up before its first step is in no clock.

Axes: B rows of a step, T positions in a row, R rows of all steps.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.speed_timing import WARM_UP, Clock, Timing, collector_at_rest
from corpora.batch import NO_TARGET, Batch
from corpora.errors import InputRefused
from corpora.rows import make_batch
from distill.config import TrainConfig
from distill.speed.whole_step import OurTraining
from distill.step_data import step_view
from teachers.config import CacheConfig

OURS, TRAINER = "ours", "Trainer"


@dataclass(frozen=True)
class Turns:
    """What came of both sides' training."""

    timings: dict[str, Timing]  # of a step
    losses: dict[str, float]  # mean of all steps, nats per target
    theirs: nn.Module  # Trainer's model after its last step


@dataclass(frozen=True)
class Alternative:
    """What Trainer trains, and on which rows; the model answers with a dictionary that has a loss."""

    network: nn.Module
    rows: Any


def take_turns(
    ours: OurTraining,
    folder: Path,
    *,
    device: torch.device,
    warm_up: int = WARM_UP,
    theirs: Alternative | None = None,
) -> Turns:
    """Train from our model's weights on both sides, all steps of our plan; the first ones are not timed.

    Trainer has transformers' own model with our weights, or another one that it is given. In each round the sides come
    in another order. Raises InputRefused where Trainer would use several GPUs.
    """
    steps = ours.plan.steps
    theirs = theirs or _transformers_own(ours)
    turns = _Turns(ours.step, steps, device)
    with _accelerate_left_as_it_was(), collector_at_rest():
        arguments = _arguments(ours.config, steps, ours.learner.precision, device, folder)
        if arguments.n_gpu > 1:
            raise InputRefused(
                f"Trainer: found {arguments.n_gpu} GPUs, among which it would divide the rows, expected one; "
                "set CUDA_VISIBLE_DEVICES=0"
            )
        trainer = Trainer(model=theirs.network, args=arguments, train_dataset=theirs.rows, callbacks=[turns])
        trainer.remove_callback(PrinterCallback)  # stdout is for figures
        done = trainer.train()
    losses = {OURS: sum(ours.losses) / len(ours.losses), TRAINER: done.training_loss}
    return Turns({side: turns.clocks[side].timing(warm_up) for side in (OURS, TRAINER)}, losses, theirs.network)


class _Turns(TrainerCallback):
    """Does our steps between Trainer's, and times both."""

    def __init__(self, our_step: Callable[[], object], rounds: int, device: torch.device) -> None:
        self.clocks = {side: Clock(device) for side in (OURS, TRAINER)}
        self._our_step = our_step
        # how many of our steps come before the first of Trainer's, between its first and second, and so on
        self._between = [0]
        for number in range(rounds):
            for side in random.Random(number).sample((OURS, TRAINER), 2):
                if side == OURS:
                    self._between[-1] += 1
                else:
                    self._between.append(0)

    def on_train_begin(self, *states: Any, **more: Any) -> None:
        self._our_turn(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.clocks[TRAINER].stop()
        self._our_turn(state.global_step)

    def _our_turn(self, trainer_steps: int) -> None:
        for _ in range(self._between[trainer_steps]):
            self._begin(OURS)
            self._our_step()
            self.clocks[OURS].stop()
        self._begin(TRAINER)

    def _begin(self, side: str) -> None:
        gc.collect()
        self.clocks[side].start()


def masked_rows(ours: OurTraining, cache: CacheConfig) -> Any:
    """The rows of our plan in its order, labels where their tokens are hidden."""
    return _stacked((batch.input_ids_BT, batch.targets_BT) for batch in _batches(ours, cache))


def _transformers_own(ours: OurTraining) -> Alternative:
    """Its model with our weights, and causal rows, of which it shifts the labels itself."""
    network = copy.deepcopy(ours.learner.model.network)
    network.set_attn_implementation("sdpa")  # its own instead of ours
    rows = []
    for batch in _batches(ours, CacheConfig()):
        labels_BT = torch.full_like(batch.targets_BT, NO_TARGET)
        labels_BT[:, 1:] = batch.targets_BT[:, :-1]
        rows.append((batch.input_ids_BT, labels_BT))
    return Alternative(network, _stacked(rows))


def _batches(ours: OurTraining, cache: CacheConfig) -> Iterator[Batch]:
    """What our side reads, step by step."""
    corpus, config = ours.corpus, ours.config
    assert config.view is not None, "comparable settings have one"
    for step in range(ours.plan.steps):
        [epoch] = {row.epoch for row in ours.plan.rows(step)}
        yield make_batch(
            corpus.streams["train"],
            ours.plan.spans(step),
            step_view(config.view, epoch, config, cache),
            token_ids=corpus.token_ids,
            vocab_size=corpus.vocab_size,
        )


def _stacked(rows: Iterable[tuple[Tensor, Tensor]]) -> Any:
    """Inputs and labels of all steps, as Trainer reads them."""
    input_ids_RT, labels_RT = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return StackDataset(input_ids=input_ids_RT, labels=labels_RT)  # type: ignore[arg-type]


def _arguments(
    config: TrainConfig, steps: int, precision: str, device: torch.device, folder: Path
) -> TrainingArguments:
    """Our settings in Trainer's words."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=config.batch_size,
        train_sampling_strategy="sequential",
        learning_rate=config.lr,
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim="adamw_torch_fused",
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        adam_epsilon=config.eps,
        max_grad_norm=config.grad_clip,
        bf16=precision == "bf16",
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


@contextlib.contextmanager
def _accelerate_left_as_it_was() -> Iterator[None]:
    """Trainer makes accelerate's state of the whole process anew; ours comes back afterwards."""
    states = (PartialState(), AcceleratorState(), GradientState())
    kept = [dict(vars(state)) for state in states]
    try:
        yield
    finally:
        for state, before in zip(states, kept, strict=True):
            vars(state).clear()
            vars(state).update(before)
