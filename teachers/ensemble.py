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
from teachers.signal import POOLS, MemberSignal, Signal, normalised, row_chunks

CHUNK_BYTES = 64 << 20  # of logits at once, for each member


class Teacher(Protocol):
    """Anything that answers a batch: live or cached."""

    name: str

    def answer(self, batch: Batch, device: torch.device) -> MemberSignal:
        """What it says about the batch's targets, on a device."""
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

    def signal(self, batch: Batch, device: torch.device) -> Signal:
        """What the ensemble says about the batch's targets, on a device."""
        return Signal(tuple(member.answer(batch, device) for member in self.members), self.weights, self.pool)


def target_nats(ensemble: Ensemble, positions_N: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy of each target under the pool, in nats, from the members' caches; fp64 [N]."""
    members = [member for member in ensemble.members if isinstance(member, CachedTeacher)]
    assert len(members) == len(ensemble.members), "positions are answered by caches alone"
    pieces = []
    for rows in row_chunks(len(positions_N), len(members[0].head.weight_VD), CHUNK_BYTES):
        answers = tuple(MemberSignal(member.features(positions_N[rows]), member.head) for member in members)
        log_probs_NV = Signal(answers, ensemble.weights, ensemble.pool).pooled_log_probs(slice(None))
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
    """Log-probabilities of a live ensemble at the wanted outputs, fp32 [N, V], so that it is scored like a model.

    The rows move to the device that the models are on.
    """
    device = next(models[0].parameters()).device
    ids_BT, segments_BT, wanted_BT = input_ids_BT.to(device), segments_BT.to(device), wanted_BT.to(device)
    with torch.inference_mode():
        logits = [model.head().logits(model.features(ids_BT, segments_BT, causal)[wanted_BT]) for model in models]
        return POOLS[pool](logits, weights)
