"""What the shares and lists in a recipe come to: views of rows, phases of a run, words after which weights are kept.

Plain sums, for which nobody waits for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill.config import PhaseConfig, TrainConfig

if TYPE_CHECKING:
    from corpora.batch import Objective

# words after which the BabyLM challenge wants the weights: of the strict-small track, and of those of 1000M words
_SMALL = [million * 1_000_000 for million in (*range(1, 10), *range(10, 101, 10))]
WORD_SNAPSHOTS = {
    "challenge": _SMALL,
    "challenge_1b": [*_SMALL, *(million * 1_000_000 for million in range(200, 1001, 100))],
}


def view_shares(config: TrainConfig | PhaseConfig) -> dict[Objective, float]:
    """Share of the rows of each objective, adding up to 1, in an order that does not depend on how they are written."""
    if isinstance(config, TrainConfig) and config.view is not None:
        return {config.view: 1.0}
    total = sum(config.views.values())
    return {objective: share / total for objective, share in sorted(config.views.items()) if share > 0}


def read_views(config: TrainConfig) -> list[Objective]:
    """The objectives of all rows of a run, in a fixed order."""
    found: set[Objective] = {view for phase in phases_of(config) for view in view_shares(phase) or view_shares(config)}
    return sorted(found)


def phases_of(config: TrainConfig) -> list[PhaseConfig]:
    """The phases of a run; where none are written it is one."""
    return config.phases or [PhaseConfig(share=1.0)]


def tokens_in_step(config: TrainConfig, phase: PhaseConfig) -> float:
    """Tokens that a step of a phase reads on average."""
    first = phase.batch_size or config.batch_size
    return (first + (phase.end_batch_size or first)) / 2 * (phase.seq_len or config.seq_len)


def mean_tokens(config: TrainConfig) -> float:
    """Tokens that a step of the run reads on average."""
    phases = phases_of(config)
    return sum(phase.share * tokens_in_step(config, phase) for phase in phases) / sum(phase.share for phase in phases)


def word_snapshots(config: TrainConfig) -> list[int]:
    """Words after which a run keeps its weights; of the challenge's lists also those that it ends before."""
    asked = config.word_snapshots
    return WORD_SNAPSHOTS[asked] if isinstance(asked, str) else asked
