"""The learning rate, a pure function of the step: a warm-up to the peak, a schedule to its end value, a cool-down to 0.

Nothing here needs torch, so that a recipe is checked without waiting for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from distill.config import TrainConfig

if TYPE_CHECKING:
    from torch.optim import Optimizer

# share of the peak, by how much of the schedule's fall is behind: 1 at 0, its end value at 1
SHAPES: dict[str, Callable[[float, TrainConfig], float]] = {
    "constant": lambda progress, config: 1.0,
    "cosine": lambda progress, config: _above_floor(0.5 * (1 + math.cos(math.pi * progress)), config),
    "linear": lambda progress, config: _above_floor(1 - progress, config),
    "warmup_stable_decay": lambda progress, config: _above_floor(1 - progress, config),  # its fall begins later
    "polynomial": lambda progress, config: _above_floor((1 - progress) ** config.lr_power, config),
    "exponential": lambda progress, config: config.min_lr_share**progress,
}


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Rate of a step (counted from 0) of a run of `steps`; more than 0 wherever `never_trains` finds nothing to say.

    The warm-up rises linearly, from one part of it in the first step to the peak in its last (exponential: as the
    square of that). Then follows `lr_schedule`, and in the last `cooldown_share` of the steps a line from its end
    value to 0. Where nothing is left between warm-up and cool-down, that line begins at the peak.

    After the warm-up, `cosine`, `linear`, `polynomial` and `warmup_stable_decay` (with a linear decay) are those of
    transformers. Of academic-budget-bert (arXiv 2104.07705), from which ShareBERT comes, curve `linear` is `linear`
    with min_lr_share 0, and curve `exp` is `exponential` with min_lr_share = decay_rate ** ((steps - warm-up) /
    decay_step). Its warm-ups are these too, one step later: its first step has rate 0. Its lr_schedule `step` is
    `warmup_share`, `constant_step` is `warmup_steps`, and for `time` there is `minutes`, which becomes steps. GPT-BERT
    (arXiv 2410.24159) is `cosine` with a cool-down; there the cosine is laid out over all steps and cut off, here it
    ends where the cool-down begins.
    """
    warmup = _warmup(steps, config)
    if step < warmup:
        rate = config.lr * (step + 1) / warmup
        return rate * (step + 1) / warmup if config.lr_schedule == "exponential" else rate
    cooldown = min(round(config.cooldown_share * steps), max(steps - warmup, 0))
    between = max(steps - warmup - cooldown, 0)
    if step < warmup + between:
        return config.lr * _share(step - warmup, between, steps, config)
    return config.lr * _share(between, between, steps, config) * (steps - step) / max(cooldown, 1)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """The rate of a step for all groups, each at its own share `lr_share` of it, as `make_optimizer` gave it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_share"]


def never_trains(steps: int, config: TrainConfig) -> str | None:
    """Why a run of `steps` would learn nothing, or nothing at its end: one line that begins with the field to change.

    None when every step has a rate, and the peak is reached.
    """
    warmup = _warmup(steps, config)
    if config.lr == 0:
        return "lr: found 0, with which nothing is ever learned; expected more"
    if warmup > steps:
        return f"warmup_steps: found {warmup}, but the run ends after {steps}, before its peak; lower it"
    if learning_rate(steps - 1, steps, config) == 0:
        after = "exponential" if config.lr_schedule == "exponential" else f"cooldown_share {config.cooldown_share:g}"
        found = f"min_lr_share: found {config.min_lr_share:g}, with which {after} leaves the last steps a rate of 0"
        return f"{found}; expected more, such as 0.01"
    return None


def _warmup(steps: int, config: TrainConfig) -> int:
    """Steps over which the rate rises; one at least, which is none: it has the peak."""
    asked = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_share * steps)
    return max(asked, 1)


def _share(position: int, length: int, steps: int, config: TrainConfig) -> float:
    """Share of the peak at a position, in steps, of the part of this length between warm-up and cool-down."""
    falling = length
    if config.lr_schedule == "warmup_stable_decay":
        falling = min(round(config.decay_share * steps), length)
    progress = max(position - (length - falling), 0) / max(falling, 1)
    return SHAPES[config.lr_schedule](progress, config)


def _above_floor(share: float, config: TrainConfig) -> float:
    return config.min_lr_share + (1 - config.min_lr_share) * share
