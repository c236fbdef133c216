"""An ensemble: members with weights and a pooling rule, answering a batch with one signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from corpora.batch import Batch
from corpora.errors import InputRefused
from corpora.masking import corruption
from students.head import Head
from students.language_model import LanguageModel
from teachers.cache import CachedTeacher
from teachers.pools import normalised
from teachers.signal import FeatureSignal, LogitSignal, MemberSignal, Signal, row_chunks

CHUNK_BYTES = 64 << 20  # of logits at once, for each member


class Teacher(Protocol):
    """Anything that answers a batch: live or cached."""

    name: str

    @property
    def hidden_size(self) -> int:
        """Width of its features."""
        ...

    def answer(self, batch: Batch, device: torch.device, *, draw: int, dtype: torch.dtype) -> MemberSignal:
        """What it says about the batch's targets, on a device.

        `draw` numbers the visit, for caches that say other samples each time; heads are held in `dtype`, the type of
        matrix products.
        """
        ...

    def heard(self, batch: Batch, *, draw: int) -> Tensor | None:
        """Which of the batch's targets it has something to say about, bool [N] on the CPU; None: all of them."""
        ...


@dataclass(frozen=True)
class Ensemble:
    """Members in a fixed order; the weights are normalised and decided when the student trains, not before."""

    members: tuple[Teacher, ...]
    weights: tuple[float, ...]
    pool: str = "mixture"
    exponent: float = 0.5  # of the pool `power`
    temperature: float = 1.0  # fitted with the weights of a product; the temperature of a term comes on top
    # of other weights they would be others: a changed copy starts without them
    _heads: dict[tuple[torch.device, torch.dtype], Head] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @classmethod
    def of(
        cls,
        members: Mapping[str, Teacher],
        weights: Mapping[str, float],
        pool: str,
        exponent: float = 0.5,
        temperature: float = 1.0,
    ) -> Ensemble:
        """The named members with their weights; members of weight 0 are left out."""
        names = [name for name, weight in weights.items() if weight > 0]
        chosen = tuple(members[name] for name in names)
        return cls(chosen, normalised([weights[name] for name in names]), pool, exponent, temperature)

    def signal(
        self, batch: Batch, device: torch.device, *, draw: int = 0, dtype: torch.dtype = torch.float32
    ) -> Signal:
        """What the ensemble says about the batch's targets, on a device; it is heard where all members are."""
        answers = tuple(member.answer(batch, device, draw=draw, dtype=dtype) for member in self.members)
        heard = [heard_N for member in self.members if (heard_N := member.heard(batch, draw=draw)) is not None]
        heard_N = torch.stack(heard).all(0).to(device, non_blocking=True) if heard else None
        joined = self._joined(answers, dtype) if self.pool == "product" and len(answers) > 1 else None
        return replace(self.pooled(answers), heard_N=heard_N, joined=joined)

    def pooled(self, answers: Sequence[MemberSignal]) -> Signal:
        """The answers of its members, in their order, as one signal."""
        return Signal(tuple(answers), self.weights, self.pool, self.exponent, pool_temperature=self.temperature)

    @property
    def caches(self) -> list[CachedTeacher]:
        """Its members, all of them caches: only those are asked by position, without a batch."""
        members = [member for member in self.members if isinstance(member, CachedTeacher)]
        assert len(members) == len(self.members), "positions are answered by caches alone"
        return members

    def covered_positions(self) -> Tensor:
        """Every position about which all members have something to say, in order; int64 [N].

        Across views that leaves out where a masked member's noise showed it the answer, or junk. Raises InputRefused
        when nothing is left.
        """
        held = [member.covered_positions().numpy() for member in self.caches]
        positions_N = reduce(partial(np.intersect1d, assume_unique=True), held)
        if len({member.objective for member in self.caches}) > 1:
            noisy = [member.rounds[0] for member in self.caches if member.rounds[0].objective == "masked"]
            for view in noisy:
                positions_N = positions_N[corruption(0, int(positions_N.max(initial=0)) + 1, view)[positions_N] == 0]
        if not len(positions_N):
            names = ", ".join(str(member.manifest.folder) for member in self.caches)
            raise InputRefused(f"{names}: no position about which all of them speak; give the stream more text")
        return torch.from_numpy(positions_N)

    def _joined(self, answers: Sequence[MemberSignal], dtype: torch.dtype) -> FeatureSignal | None:
        """One member that says what a product of members says: their features side by side, and so their heads.

        sum_m w_m W_m h_m is one matrix product instead of one for each member and their sum. None where some member
        has no features, or a soft-cap, which is not linear.
        """
        members = [answer for answer in answers if isinstance(answer, FeatureSignal) and answer.head.softcap is None]
        if len(members) < len(answers):
            return None
        features_ND = torch.cat([member.features_ND for member in members], 1)
        if (features_ND.device, dtype) not in self._heads:
            heads = [member.head for member in members]
            pairs = list(zip(heads, self.weights, strict=True))
            # the weights go into the heads, where they are multiplied once
            weight_VD = torch.cat([head.weight_VD.float() * (weight * head.scale) for head, weight in pairs], 1)
            biases = [head.bias_V.float() * weight for head, weight in pairs if head.bias_V is not None]
            bias_V = torch.stack(biases).sum(0) if biases else None
            self._heads[features_ND.device, dtype] = Head(weight_VD.to(dtype), bias_V)
        return FeatureSignal(features_ND, self._heads[features_ND.device, dtype])


def target_nats(ensemble: Ensemble, positions_N: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy of each target under the pool, in nats, from the members' caches; fp64 [N]."""
    members, pieces = ensemble.caches, []
    for rows in row_chunks(len(positions_N), members[0].vocab_size, CHUNK_BYTES):
        signal = ensemble.pooled([member.signal(positions_N[rows]) for member in members])
        pieces.append(-signal.target_log_probs(targets_N[rows]))
    return torch.cat(pieces).double()


def pooled_log_probs(
    models: Sequence[LanguageModel],
    ensemble: Ensemble,
    input_ids_BT: Tensor,
    segments_BT: Tensor,
    wanted_BT: Tensor,
    causal: bool,
) -> Tensor:
    """Log-probabilities of a live ensemble at the wanted outputs, fp32 [N, V], so that it is scored like a model.

    `models` are the ensemble's members, in their order. The rows move to the device that the models are on.
    """
    device = next(models[0].parameters()).device
    ids_BT, segments_BT, wanted_BT = input_ids_BT.to(device), segments_BT.to(device), wanted_BT.to(device)
    with torch.inference_mode():
        logits = [model.head().logits(model.features(ids_BT, segments_BT, causal)[wanted_BT]) for model in models]
        return ensemble.pooled([LogitSignal(logits_NV) for logits_NV in logits]).pooled_log_probs(slice(None))
