"""What each member of an ensemble is worth, how far members disagree, and how honest they are, from their caches.

Costs need only what every codec keeps; whole distributions are compared where caches hold them.
Axes: N targets, M members, V vocabulary.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from teachers.ensemble import Ensemble
from teachers.pools import mixture, normalised
from teachers.signal import DenseSignal, LogitSignal, MemberSignal, row_chunks

BINS = 15  # of calibration, with equally many targets in each
# logits of a member at once: what stays in a core's cache, and rows enough for a matrix product
CHUNK_BYTES, LEAST_ROWS = 2 << 20, 128


@dataclass(frozen=True)
class Costs:
    """Mean cross-entropies over the same targets, in nats."""

    members_M: tuple[float, ...]  # of each alone
    pool: float
    without_M: tuple[float | None, ...]  # of the pool of all others, their weights scaled up; None where none is left
    oracle: float  # of whoever knows best at each target, as if somebody could tell: no mixture of them costs less


@dataclass(frozen=True)
class Disagreement:
    """How different the members' distributions are at a sample of targets, and how far each can be believed."""

    targets: int
    jensen_shannon_MM: list[list[float]]  # divergence of each pair, nats: from 0 to log 2
    agreement_MM: list[list[float]]  # share of the targets at which a pair has the same likeliest token
    mixture_entropy: float  # mean entropy of the members' mixture at the pool's weights, nats
    member_entropy: float  # weighted mean of the members' mean entropies, nats
    member_calibration_M: tuple[float, ...]  # expected calibration errors of the likeliest token's probability
    pool_calibration: float

    @property
    def mutual_information(self) -> float:
        """What hearing which member speaks would tell about the next token, in nats; 0 for members that are one."""
        return self.mixture_entropy - self.member_entropy


def costs(ensemble: Ensemble, positions_N: Tensor, targets_N: Tensor) -> Costs:
    """Costs on the targets at some positions that all members' caches hold; members of weight 0 are listed as well."""
    others = [_without(ensemble, place) for place in range(len(ensemble.members))]
    blends = [ensemble, *(other for other in others if other is not None)]
    sums_M, sums_B, oracle = np.zeros(len(ensemble.members)), np.zeros(len(blends)), 0.0
    for rows in _chunks(ensemble, positions_N):
        answers = [_worked_out(member.signal(positions_N[rows]), targets_N[rows]) for member in ensemble.caches]
        nats_MN = torch.stack([-answer.target_log_probs(targets_N[rows]).double() for answer in answers])
        sums_M += nats_MN.sum(1).numpy()
        oracle += float(nats_MN.amin(0).sum())
        for number, blend in enumerate(blends):
            sums_B[number] -= float(blend.pooled(answers).target_log_probs(targets_N[rows]).double().sum())
    of_members, (pool, *left), count = sums_M.tolist(), sums_B.tolist(), len(positions_N)
    remaining = iter(left)
    return Costs(
        members_M=tuple(total / count for total in of_members),
        pool=pool / count,
        without_M=tuple(None if other is None else next(remaining) / count for other in others),
        oracle=oracle / count,
    )


def disagreement(ensemble: Ensemble, positions_N: Tensor, targets_N: Tensor) -> Disagreement | None:
    """The members and their pool at some positions, not too many; None where caches do not hold whole distributions."""
    if any(member.codec.kind != "dense" for member in ensemble.caches):
        return None
    pieces = [_compared(ensemble, positions_N[rows]) for rows in _chunks(ensemble, positions_N)]
    divergences_MMN, entropies_MN, mixture_entropies_N, ids_CN, probs_CN = (
        np.concatenate(columns, -1) for columns in zip(*pieces, strict=True)
    )
    calibration = [
        calibration_error(probs_N, ids_N == targets_N.numpy()) for probs_N, ids_N in zip(probs_CN, ids_CN, strict=True)
    ]
    ids_MN = ids_CN[:-1]
    return Disagreement(
        targets=len(positions_N),
        jensen_shannon_MM=divergences_MMN.mean(-1).tolist(),
        agreement_MM=(ids_MN[:, None] == ids_MN).mean(-1).tolist(),
        mixture_entropy=float(mixture_entropies_N.mean()),
        member_entropy=float(np.array(ensemble.weights) @ entropies_MN.mean(-1)),
        member_calibration_M=tuple(calibration[:-1]),
        pool_calibration=calibration[-1],
    )


def entropy(log_probs_NV: Tensor) -> Tensor:
    """Entropy of each distribution, nats; [N]."""
    return -(log_probs_NV.exp() * log_probs_NV).sum(-1)


def jensen_shannon(one_NV: Tensor, other_NV: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions given as log-probabilities, nats; [N]."""
    return entropy(mixture([one_NV, other_NV], [0.5, 0.5])) - (entropy(one_NV) + entropy(other_NV)) / 2


def calibration_error(top_N: np.ndarray, right_N: np.ndarray, *, bins: int = BINS) -> float:
    """Expected calibration error: how far the likeliest token's probability is from how often it is right.

    Mean over bins of |share right - mean probability|, bins by rank of the probability, equally many targets in each
    (Nguyen and O'Connor, arXiv 1508.05154; equal widths, as in arXiv 1706.04599, leave most bins of a language model
    almost empty).
    """
    order_N = np.argsort(top_N, kind="stable")
    gaps = [abs(float(right_N[places].sum()) - float(top_N[places].sum())) for places in np.array_split(order_N, bins)]
    return sum(gaps) / len(top_N)


@dataclass(frozen=True)
class _Answer(DenseSignal):
    """A dense answer, worked out once for all that is asked about it."""

    logits_NV: Tensor
    target_log_probs_N: Tensor

    def logits(self, rows: slice) -> Tensor:
        return self.logits_NV[rows]

    def target_log_probs(self, targets_N: Tensor) -> Tensor:
        return self.target_log_probs_N


def _worked_out(answer: MemberSignal, targets_N: Tensor) -> MemberSignal:
    if not isinstance(answer, DenseSignal):
        return answer
    known = LogitSignal(answer.logits(slice(None)))
    return _Answer(known.logits_NV, known.target_log_probs(targets_N))


def _chunks(ensemble: Ensemble, positions_N: Tensor) -> list[slice]:
    return row_chunks(len(positions_N), ensemble.caches[0].vocab_size, CHUNK_BYTES, at_least=LEAST_ROWS)


class _Compared(NamedTuple):
    """What is kept of whole distributions at some targets. Axes: C candidates, the members and then the pool."""

    divergences_MMN: np.ndarray
    entropies_MN: np.ndarray
    mixture_entropies_N: np.ndarray
    ids_CN: np.ndarray  # of the likeliest token
    probs_CN: np.ndarray  # of it


def _compared(ensemble: Ensemble, positions_N: Tensor) -> _Compared:
    said = [member.signal(positions_N) for member in ensemble.caches]
    answers = [LogitSignal(answer.logits(slice(None))) for answer in said if isinstance(answer, DenseSignal)]
    # fp64: small differences of large entropies
    log_probs = [answer.logits_NV.double().log_softmax(-1) for answer in answers]
    pooled_NV = ensemble.pooled(answers).pooled_log_probs(slice(None)).double()
    divergences_MMN = torch.zeros(len(answers), len(answers), len(positions_N), dtype=torch.float64)
    for one, other in itertools.combinations(range(len(answers)), 2):
        divergences_MMN[one, other] = divergences_MMN[other, one] = jensen_shannon(log_probs[one], log_probs[other])
    best = [each_NV.max(-1) for each_NV in (*log_probs, pooled_NV)]
    return _Compared(
        divergences_MMN.numpy(),
        torch.stack([entropy(each_NV) for each_NV in log_probs]).numpy(),
        entropy(mixture(log_probs, ensemble.weights)).numpy(),
        torch.stack([each.indices for each in best]).numpy(),
        torch.stack([each.values.exp() for each in best]).numpy(),
    )


def _without(ensemble: Ensemble, place: int) -> Ensemble | None:
    """The same pool when one member has no weight."""
    weights = [0.0 if number == place else weight for number, weight in enumerate(ensemble.weights)]
    return replace(ensemble, weights=normalised(weights)) if any(weights) else None
