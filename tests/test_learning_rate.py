"""Learning rates against closed forms, against transformers' schedules, and by what holds for all of them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR
from transformers import optimization

from distill.config import TrainConfig
from distill.learning_rate import SHAPES, learning_rate, never_trains, set_learning_rate

WARMUP, STEPS = 10, 110


def rates_of(steps: int = STEPS, **changes: Any) -> list[float]:
    """Every rate of a run with a peak of 1, unless it is changed."""
    config = tiny.train_config(**{"lr": 1.0, "warmup_steps": WARMUP} | changes)
    return [learning_rate(step, steps, config) for step in range(steps)]


# closed forms


def test_the_learning_rate_rises_peaks_and_falls() -> None:
    config = tiny.train_config(lr=2.0, warmup_share=0.1, min_lr_share=0.25)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0 and max(rates) == 2.0
    assert rates[55] == pytest.approx((2.0 + 0.5) / 2)  # half way down the cosine
    assert rates[99] == pytest.approx(0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert all(later < earlier for earlier, later in zip(rates[10:], rates[11:], strict=False))


def test_the_learning_rate_of_very_short_runs_is_positive() -> None:
    for warmup_share in (0.0, 0.5, 1.0):
        for steps in (1, 2, 3):
            config = tiny.train_config(warmup_share=warmup_share, min_lr_share=0.1)
            rates = [learning_rate(step, steps, config) for step in range(steps)]
            assert min(rates) > 0 and max(rates) == pytest.approx(config.lr)


def test_the_default_is_the_cosine_that_runs_of_old_were_trained_with() -> None:
    """To the last bit: a run that resumes goes on with the rates that it began with."""
    for steps, share, floor, lr in ((97, 0.05, 0.1, 3e-4), (1000, 0.016, 0.0, 7e-3), (3, 0.4, 1.0, 1e-3)):
        config = TrainConfig(steps=steps, warmup_share=share, min_lr_share=floor, lr=lr)
        warmup = max(round(share * steps), 1)
        for step in range(steps):
            progress = (step - warmup) / max(steps - warmup, 1)
            cosine = lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
            assert learning_rate(step, steps, config) == (lr * (step + 1) / warmup if step < warmup else cosine)


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        ("constant", lambda progress: 1.0),
        ("linear", lambda progress: 0.2 + 0.8 * (1 - progress)),
        ("polynomial", lambda progress: 0.2 + 0.8 * (1 - progress) ** 3),
        ("exponential", lambda progress: 0.2**progress),
        ("warmup_stable_decay", lambda progress: 1.0 if progress < 0.67 else 0.2 + 0.8 * (1 - progress) / 0.33),
    ],
)
def test_schedules_are_their_closed_forms(schedule: str, share: Callable[[float], float]) -> None:
    rates = rates_of(lr_schedule=schedule, min_lr_share=0.2, lr_power=3.0, decay_share=0.3)  # 33 of the 100 steps
    assert rates[WARMUP:] == pytest.approx([share(step / 100) for step in range(100)])
    power = 2 if schedule == "exponential" else 1
    assert rates[:WARMUP] == pytest.approx([((step + 1) / WARMUP) ** power for step in range(WARMUP)])


def of_transformers(make: Callable[..., LambdaLR], **given: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer, num_warmup_steps=WARMUP, **given)
    return [scheduler.lr_lambdas[0](step) for step in range(STEPS)]


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        (
            lambda: of_transformers(optimization.get_linear_schedule_with_warmup, num_training_steps=STEPS),
            {"lr_schedule": "linear", "min_lr_share": 0.0},
        ),
        (
            lambda: of_transformers(
                optimization.get_cosine_with_min_lr_schedule_with_warmup, num_training_steps=STEPS, min_lr_rate=0.1
            ),
            {"lr_schedule": "cosine", "min_lr_share": 0.1},
        ),
        (
            lambda: of_transformers(
                optimization.get_polynomial_decay_schedule_with_warmup,
                num_training_steps=STEPS,
                lr_end=0.05,
                power=2.0,
            ),
            {"lr_schedule": "polynomial", "min_lr_share": 0.05, "lr_power": 2.0},
        ),
        (
            lambda: of_transformers(
                optimization.get_wsd_schedule,
                num_decay_steps=22,
                num_training_steps=STEPS,
                decay_type="linear",
                min_lr_ratio=0.1,
            ),
            {"lr_schedule": "warmup_stable_decay", "min_lr_share": 0.1, "decay_share": 0.2},
        ),
        (
            lambda: of_transformers(optimization.get_constant_schedule_with_warmup),
            {"lr_schedule": "constant"},
        ),
    ],
    ids=lambda value: value["lr_schedule"] if isinstance(value, dict) else "",
)
def test_schedules_are_those_of_transformers(expected: Callable[[], list[float]], changes: dict[str, Any]) -> None:
    """After the warm-up, which begins there with a step of rate 0, or of the floor."""
    assert rates_of(**changes)[WARMUP:] == pytest.approx(expected()[WARMUP:], abs=1e-12)


def test_the_exponential_is_that_of_academic_budget_bert() -> None:
    """decay_rate ** ((step - warm-up) / decay_step) after a warm-up of (step / warm-up)^2, by one step later."""
    decay_rate, decay_step = 0.99, 1000
    steps, warmup = 23_000, 1380  # its warmup_proportion is 0.06
    floor = decay_rate ** ((steps - warmup) / decay_step)
    found = rates_of(steps, warmup_steps=None, warmup_share=0.06, lr_schedule="exponential", min_lr_share=floor)
    for step in (0, 1, 700, 1379):
        assert found[step] == pytest.approx(((step + 1) / warmup) ** 2)
    for step in (1380, 1381, 9000, 22_999):
        assert found[step] == pytest.approx(decay_rate ** ((step - warmup) / decay_step))


def test_gpt_bert_cools_down_to_nothing() -> None:
    """Warm-up of 1.6 %, a cosine to a tenth, and 1.6 % from there to 0."""
    steps, edge = 15_625, 250
    found = rates_of(steps, warmup_steps=None, warmup_share=0.016, cooldown_share=0.016, min_lr_share=0.1)
    assert found[edge - 1] == found[edge] == 1.0
    assert found[steps - edge] == pytest.approx(0.1)
    assert found[steps - edge :] == pytest.approx([0.1 * left / edge for left in range(edge, 0, -1)])
    # the published code lays its cosine out over all steps; the two are never far apart
    for step in range(edge, steps - edge):
        theirs = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - edge) / (steps - edge)))
        assert abs(found[step] - theirs) < 0.015


def test_steps_of_warm_up_come_before_its_share() -> None:
    assert rates_of(warmup_steps=20, warmup_share=0.5)[19:21] == [1.0, 1.0]
    assert rates_of(warmup_steps=0, warmup_share=0.5)[0] == 1.0
    assert rates_of(warmup_steps=None, warmup_share=0.5)[:2] == pytest.approx([1 / 55, 2 / 55])


def test_without_a_decay_the_cool_down_begins_at_the_peak() -> None:
    found = rates_of(lr_schedule="warmup_stable_decay", decay_share=0.0, cooldown_share=0.2)
    assert found[WARMUP:88] == [1.0] * 78
    assert found[88:] == pytest.approx([left / 22 for left in range(22, 0, -1)])


# what holds for all


configs = st.builds(
    TrainConfig,
    lr=st.just(1.0),
    lr_schedule=st.sampled_from(sorted(SHAPES)),
    min_lr_share=st.floats(0.01, 1.0),
    warmup_share=st.floats(0.0, 1.0),
    warmup_steps=st.none() | st.integers(0, 60),
    decay_share=st.floats(0.0, 1.0),
    cooldown_share=st.floats(0.0, 1.0),
    lr_power=st.floats(0.5, 4.0),
)


@given(configs, st.integers(1, 60))
def test_every_rate_is_positive_and_none_is_above_the_peak(config: TrainConfig, steps: int) -> None:
    """Also where warm-up, decay and cool-down would need more steps than there are."""
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    assert all(math.isfinite(rate) and 0 < rate <= 1 + 1e-12 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[peak:], rates[peak + 1 :], strict=False))
    assert (never_trains(steps, config) is None) == (config.warmup_steps is None or config.warmup_steps <= steps)


@pytest.mark.parametrize("schedule", sorted(SHAPES))
@pytest.mark.parametrize("cooldown", [0.0, 0.1, 1.0])
def test_no_schedule_jumps(schedule: str, cooldown: float) -> None:
    """Ten times the steps make every change a tenth: parts meet, also where the cool-down leaves no room for others."""
    given = {"lr_schedule": schedule, "min_lr_share": 0.1, "cooldown_share": cooldown, "lr_power": 2.0}
    largest = []
    for steps in (400, 4000):
        rates = rates_of(steps, warmup_steps=None, warmup_share=0.05, **given)
        rates += [0.0] if cooldown else []  # where a cool-down ends
        largest.append(max(abs(b - a) for a, b in zip(rates, rates[1:], strict=False)))
    assert largest[1] == pytest.approx(largest[0] / 10, rel=0.1)


@pytest.mark.parametrize("schedule", sorted(SHAPES))
def test_a_schedule_ends_at_its_share_of_the_peak(schedule: str) -> None:
    found = rates_of(100_000, lr_schedule=schedule, min_lr_share=0.3, decay_share=0.5)[-1]
    assert found == pytest.approx(1.0 if schedule == "constant" else 0.3, abs=1e-4)


# what is refused


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"warmup_steps": 111}, "warmup_steps: found 111, but the run ends after 110, before its peak; lower it"),
        ({"lr": 0.0}, "lr: found 0, with which nothing is ever learned; expected more"),
        (
            {"min_lr_share": 0.0, "cooldown_share": 0.1},
            "min_lr_share: found 0, with which cooldown_share 0.1 leaves the last steps a rate of 0; expected more, "
            "such as 0.01",
        ),
        (
            {"min_lr_share": 0.0, "lr_schedule": "exponential"},
            "min_lr_share: found 0, with which exponential leaves the last steps a rate of 0; expected more, such as "
            "0.01",
        ),
        ({"warmup_steps": 110}, None),
        ({"min_lr_share": 0.0}, None),
        ({"min_lr_share": 0.0, "lr_schedule": "constant", "cooldown_share": 1.0}, None),
    ],
)
def test_a_schedule_that_never_trains_says_why(changes: dict[str, Any], line: str | None) -> None:
    config = tiny.train_config(**{"warmup_steps": WARMUP} | changes)
    assert never_trains(STEPS, config) == line
    idle = [step for step in range(STEPS) if learning_rate(step, STEPS, config) == 0]
    assert bool(idle) == (line is not None and "warmup" not in line)


def test_a_recipe_is_checked_without_torch() -> None:
    asked = "import sys; import distill.learning_rate; sys.exit('torch' in sys.modules)"
    house = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", asked], cwd=house).returncode == 0


def test_each_group_has_its_share_of_the_rate() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [weights[0]], "lr_share": 1.0}, {"params": [weights[1]], "lr_share": 20.0}], lr=1e-3
    )
    set_learning_rate(optimizer, 5e-4)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 1e-2]
