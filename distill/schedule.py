"""How a term's weight changes over a run: a pure function of the step."""

from __future__ import annotations

from distill.config import ScheduleConfig


def scheduled_share(step: int, steps: int, config: ScheduleConfig) -> float:
    """Share of the weight at a step (counted from 0) of a run of `steps`."""
    progress = step / max(steps - 1, 1)
    if config.shape == "constant":
        return 1.0
    if config.shape == "linear":
        return config.start + (config.end - config.start) * progress
    warmup, decay = round(config.warmup_share * steps), round(config.decay_share * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step >= steps - decay:
        return 1 + (config.end - 1) * (step - (steps - decay) + 1) / decay
    return 1.0
