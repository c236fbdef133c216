"""Do two ways of scoring the same candidate give the same verdicts? What an option that saves time has to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.choices import Answering, ChoiceTask, score_choices


@dataclass(frozen=True)
class Agreement:
    """Verdicts of two ways on the same items."""

    items: int
    agreeing: int  # items that both win, or that neither wins
    largest: float  # difference between two scores of one option, nats

    @property
    def share(self) -> float:
        """Of items with the same verdict, 0 to 1."""
        return self.agreeing / self.items

    def __str__(self) -> str:
        return (
            f"{self.agreeing:,} of {self.items:,} verdicts agree ({100 * self.share:.2f} %); "
            f"scores differ by at most {self.largest:.3g} nats"
        )


def verdict_agreement(one: Answering, other: Answering, tasks: Sequence[ChoiceTask], *, items: int) -> Agreement:
    """Compare two ways on the first `items` items of each task. Raises Diverged, InputRefused as scoring does."""
    sample = [replace(task, items=task.items[:items]) for task in tasks]
    ones, others = (score_choices(way, sample).tasks for way in (one, other))
    agreeing = sum(int((a.wins == b.wins).sum()) for a, b in zip(ones, others, strict=True))
    largest = max(float(np.abs(a.scores - b.scores).max()) for a, b in zip(ones, others, strict=True))
    return Agreement(sum(len(task.items) for task in sample), agreeing, largest)
