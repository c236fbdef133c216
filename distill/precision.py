"""Which arithmetic a machine is good at, and the scale of the loss that fp16's gradients need."""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from corpora.errors import Diverged

RECENT = 1_000  # steps over which those that fp16 leaves out are counted
MOST_SKIPPED = RECENT // 20  # of them: 5 %; a healthy run leaves out one in 2,000, and some at its beginning
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def resolve_precision(wanted: str, device_type: str) -> str:
    """`auto` becomes bf16 where products in it are computed natively, else fp32; anything else stays."""
    if wanted != "auto":
        return wanted
    if device_type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512-BF16 or AMX); emulated, they are slower."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 or fp16, or nothing."""
    if precision in AUTOCAST:
        return torch.autocast(device.type, dtype=AUTOCAST[precision])
    return contextlib.nullcontext()


class Scaler:
    """In fp16 the loss is multiplied by a scale that keeps small gradients above 6e-8; elsewhere nothing happens.

    The scale doubles after 2,000 steps that went well and halves after each that overflowed (arXiv 1710.03740, section
    3.2). A step that overflowed is left out and counted; where many are, the gradient is too large for any scale.
    """

    def __init__(self, precision: str, device: torch.device, max_skipped_steps: int) -> None:
        """`max_skipped_steps`: steps in a row that may overflow; of the last 1,000 steps 5 % may."""
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._max_skipped_steps = max_skipped_steps
        self.skipped = 0  # steps left out in a row
        self.skipped_in_all = 0
        self._steps = 0  # in all, left out or not
        self._recent: list[int] = []  # the last RECENT steps' numbers of those left out, counted from 1

    @property
    def state(self) -> dict[str, Any]:
        """For the checkpoint: JSON values; empty where nothing is scaled."""
        if not self._scaler.is_enabled():
            return {}
        stored = self._scaler.state_dict()
        return {
            "scale": stored["scale"],
            "growth_tracker": stored["_growth_tracker"],
            "skipped": self.skipped,
            "skipped_in_all": self.skipped_in_all,
            "steps": self._steps,
            "recent": self._recent,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` said."""
        if self._scaler.is_enabled() and state:
            self._set(state["scale"], state["growth_tracker"])
            self.skipped, self.skipped_in_all = state["skipped"], state["skipped_in_all"]
            self._steps, self._recent = state["steps"], list(state["recent"])

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the optimiser's gradients by the scale: before their norm is taken."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, norm_is_finite: bool, *, place: str = "fp16") -> bool:
        """Update the weights, or leave the step out when it overflowed; returns whether they were updated.

        All processes decide alike, because the norm is that of the gradients they have exchanged. Raises Diverged,
        which names the `place`, when too many steps overflow, in a row or of the last ones.
        """
        if not self._scaler.is_enabled():
            optimizer.step()
            return True
        self._steps += 1
        if norm_is_finite:
            optimizer.step()
            self._scaler.update()
            self.skipped = 0
            return True
        self.skipped, self.skipped_in_all = self.skipped + 1, self.skipped_in_all + 1
        self._recent = [*(number for number in self._recent if number > self._steps - RECENT), self._steps]
        scale = self._scaler.get_scale() * self._scaler.get_backoff_factor()
        # said outright: a norm may overflow though no gradient does
        self._scaler.update(scale)
        self._set(scale, 0)
        last = min(self._steps, RECENT)
        for found, most, which in (
            (self.skipped, self._max_skipped_steps, "steps in a row"),
            (len(self._recent), MOST_SKIPPED, f"of the last {last:,} steps"),
        ):
            if found > most:
                raise Diverged(
                    f"{place}: {found} {which} overflow fp16, down to a loss scale of {scale:g}, at most {most} may; "
                    "lower train.lr, or set train.precision to bf16 or fp32"
                )
        return False

    def _set(self, scale: float, growth_tracker: int) -> None:
        self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": scale, "_growth_tracker": growth_tracker})
