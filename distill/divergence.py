"""When training has gone wrong though no loss is infinite: it costs more than knowing nothing, or weights are lost."""

from __future__ import annotations

import math
from collections.abc import Mapping

from corpora.errors import Diverged

STEPS = 3  # in a row
# Every type as likely as any other costs ln V nats a token. Fresh weights are near that, so twice as much is no noise.
TIMES_UNIFORM = 2.0


class Watchdog:
    """Stops a run whose cross-entropy has exploded."""

    def __init__(self, vocab_size: int, place: str) -> None:
        self._bound = TIMES_UNIFORM * math.log(vocab_size)
        self._place = place
        self._steps = 0  # above the bound, in a row

    @property
    def alarmed(self) -> bool:
        """Whether the last step was above the bound: its weights are nothing to go on from."""
        return self._steps > 0

    def watch(self, step: int, means: Mapping[str, float]) -> None:
        """Look at the losses of a step, counted from 1; raises Diverged at the third in a row that is too high."""
        worst = max((nats for name, nats in means.items() if "cross_entropy" in name), default=0.0)
        self._steps = self._steps + 1 if worst > self._bound else 0
        if self._steps >= STEPS:
            raise Diverged(
                f"{self._place}: step {step}: cross-entropy {worst:.4g} nats, above {self._bound:.3g} for {STEPS} "
                "steps in a row, where guessing costs half of that; lower train.lr, or warm up for longer"
            )
