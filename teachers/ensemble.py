"""An ensemble: members with weights and a pooling rule, answering a batch with one signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from corpora.batch import Batch
from students.language_model import LanguageModel
from teachers.cache import CachedTeacher
from teachers.signal import POOLS, MemberSignal, Signal, normalised


class Teacher(Protocol):
    """Anything that answers a batch: live or cached."""

    name: str

    def answer(self, batch: Batch) -> MemberSignal:
        """What it says about the batch's targets."""
        ...


@dataclass(frozen=True)
class Ensemble:
    """Members in a fixed order; the weights are normalised and decided when the student trains, not before."""

    members: tuple[Teacher, ...]
    weights: tuple[float, ...]
    pool: str = "mixture"

    @classmethod
    def of(cls, members: Mapping[str, Teacher], weights: Mapping[str, float], pool: str) -> Ensemble:
        """The named members with their weights; members of weight 0 are left out."""
        names = [name for name, weight in weights.items() if weight > 0]
        return cls(tuple(members[name] for name in names), normalised([weights[name] for name in names]), pool)

    def signal(self, batch: Batch) -> Signal:
        """What the ensemble says about the batch's targets."""
        return Signal(tuple(member.answer(batch) for member in self.members), self.weights, self.pool)


CHUNK_BYTES = 64 << 20  # of logits at once, for each member


def target_nats(ensemble: Ensemble, positions_N: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy of each target under the pool, in nats, from the members' caches; fp64 [N]."""
    pieces = []
    for rows in _chunks(len(positions_N), _cached(ensemble.members)[0].head.weight_VD.shape[0]):
        signal = _cached_signal(ensemble, positions_N[rows])
        log_probs_NV = signal.pooled_log_probs(slice(None))
        pieces.append(-log_probs_NV.gather(1, targets_N[rows, None])[:, 0])
    return torch.cat(pieces).double()


def pooled_log_probs(
    models: Sequence[LanguageModel],
    weights: Sequence[float],
    pool: str,
    input_ids_BT: Tensor,
    segments_BT: Tensor,
    wanted_BT: Tensor,
    causal: bool,
) -> Tensor:
    """Log-probabilities of a live ensemble at the wanted outputs, fp32 [N, V], so that it is scored like a model."""
    with torch.inference_mode():
        logits = [model.head().logits(model.features(input_ids_BT, segments_BT, causal)[wanted_BT]) for model in models]
        return POOLS[pool](logits, weights)


def _cached_signal(ensemble: Ensemble, positions_N: Tensor) -> Signal:
    members = tuple(MemberSignal(member.features(positions_N), member.head) for member in _cached(ensemble.members))
    return Signal(members, ensemble.weights, ensemble.pool)


def _cached(members: Sequence[Teacher]) -> list[CachedTeacher]:
    cached = [member for member in members if isinstance(member, CachedTeacher)]
    assert len(cached) == len(members), "positions are answered by caches alone"
    return cached


def _chunks(rows: int, vocab_size: int) -> list[slice]:
    size = max(CHUNK_BYTES // (4 * vocab_size), 1)
    return [slice(first, first + size) for first in range(0, rows, size)]
