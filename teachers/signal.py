"""What teachers say about the targets of a batch, in the one form that losses read (house contract 4).

Axes: N target rows (row by row of the batch), D features, V vocabulary, K kept tokens, M members.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from students.head import Head
from teachers.pools import POOLS

Kind = Literal["dense", "truncated", "sampled"]


@dataclass(frozen=True)
class Expanded:
    """A teacher distribution over each of some target rows, at one temperature.

    `weights_NK` are probabilities of the tokens `ids_NK` (None: every token of the vocabulary, K = V) and
    `log_weights_NK` their logs; of a `sampled` signal they are importance weights, right only for losses linear in the
    target, and an id may come twice. `log_outside_N` is the log of the mass of all other tokens (None: there is none,
    or it is spread over the draws), `entropy_N` the entropy in nats. `log_weights_NK` and `entropy_N` are None where
    they were not asked for.
    """

    kind: Kind
    weights_NK: Tensor
    log_weights_NK: Tensor | None = None
    ids_NK: Tensor | None = None
    log_outside_N: Tensor | None = None
    entropy_N: Tensor | None = None


class MemberSignal(ABC):
    """One teacher's answer for the target rows of a batch."""

    kind: Kind

    @abstractmethod
    def target_log_probs(self, targets_N: Tensor) -> Tensor:
        """Log-probability of every target row's token at temperature 1, exact, fp32 [N]."""


class DenseSignal(MemberSignal):
    """An answer that knows every token's logit."""

    kind: Kind = "dense"

    @abstractmethod
    def logits(self, rows: slice) -> Tensor:
        """Logits of some target rows, fp32 [N, V]."""

    def target_log_probs(self, targets_N: Tensor) -> Tensor:
        """Log-probability of every target row's token: its logit less the log of the normaliser."""
        logits_NV = self.logits(slice(None))
        return logits_NV.gather(1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


@dataclass(frozen=True)
class FeatureSignal(DenseSignal):
    """A feature vector for each target row, and the head that makes logits of it."""

    features_ND: Tensor
    head: Head

    def logits(self, rows: slice) -> Tensor:
        """Logits of some target rows; under autocast the product that makes them is rounded to bf16."""
        return self.head.logits(self.features_ND[rows].to(self.head.weight_VD.dtype))


@dataclass(frozen=True)
class LogitSignal(DenseSignal):
    """Stored logits; any constant may have been added to a row."""

    logits_NV: Tensor

    def logits(self, rows: slice) -> Tensor:
        """Logits of some target rows."""
        return self.logits_NV[rows].to(torch.float32, copy=True)


@dataclass(frozen=True)
class SparseSignal(MemberSignal):
    """Some tokens of each distribution, at the temperatures at which they were stored."""

    kind: Kind
    at: Mapping[float, Expanded]
    target_log_probs_N: Tensor  # exact, of the token that the stream has there, at temperature 1

    def target_log_probs(self, targets_N: Tensor) -> Tensor:
        """Log-probability of every target row's token, as it was stored."""
        return self.target_log_probs_N

    def expand(self, rows: slice, temperature: float) -> Expanded:
        """The stored tokens of some target rows."""
        whole = self.at[temperature]

        def some(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows]

        return Expanded(
            whole.kind,
            whole.weights_NK[rows],
            some(whole.log_weights_NK),
            some(whole.ids_NK),
            some(whole.log_outside_N),
            some(whole.entropy_N),
        )


@dataclass(frozen=True)
class Signal:
    """The members' answers and how they are pooled. Weights are not negative and add up to 1."""

    members: tuple[MemberSignal, ...]
    weights: tuple[float, ...]
    pool: str = "mixture"
    exponent: float = 0.5  # of the pool `power`
    heard_N: Tensor | None = None  # False at target rows about which some member has nothing to say; None: at none
    joined: FeatureSignal | None = None  # of a product: one member that says what all of them say together
    pool_temperature: float = 1.0  # fitted with the weights of a product; the temperature of a term comes on top

    @property
    def kind(self) -> Kind:
        """The kind of all members: one that needs more than another's answer holds could not be served."""
        kind = self.members[0].kind
        assert all(member.kind == kind for member in self.members)
        return kind

    def pooled_log_probs(self, rows: slice, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of a dense pool, fp32 [N, V]; each member's logits are divided by the temperature first."""
        return POOLS[self.pool].log_probs(self._logits(rows, temperature), self._weights, self.exponent)

    def target_log_probs(self, targets_N: Tensor) -> Tensor:
        """Log-probability of every target row's token under the pool at temperature 1, fp32 [N].

        Sparse members know it exactly, and so does their mixture; another pool of them does not.
        """
        if self.pool != "mixture" and (len(self.members) > 1 or self.pool_temperature != 1.0):
            assert self.kind == "dense", "the recipe was checked"
            return self.pooled_log_probs(slice(None)).gather(1, targets_N[:, None])[:, 0]
        weighted = [
            member.target_log_probs(targets_N) + math.log(weight)
            for member, weight in zip(self.members, self.weights, strict=True)
            if weight
        ]
        return torch.stack(weighted).logsumexp(0)

    def expand(
        self, rows: slice, temperature: float = 1.0, *, log_weights: bool = True, entropy: bool = True
    ) -> Expanded:
        """The pool's distribution over some target rows, without gradient.

        A dense pool works out logs and entropy only where they are asked for. The entropy of a pool of samples is the
        weighted mean of its members' (that of their mixture is larger, and not stored), so a divergence from it is the
        mean divergence from the members: the same gradient, a larger value.
        """
        with torch.no_grad():
            if self.kind != "dense":
                return self._sparse(rows, temperature)
            if not log_weights:
                probs_NV = POOLS[self.pool].probs(self._logits(rows, temperature), self._weights, self.exponent)
                # 0 log 0 = 0; a tenth of the time of torch.special.entr, which is not vectorised
                smallest = torch.finfo(probs_NV.dtype).tiny
                entropy_N = -probs_NV.clamp_min(smallest).log_().mul_(probs_NV).sum(-1) if entropy else None
                return Expanded("dense", probs_NV, entropy_N=entropy_N)
            log_probs_NV = self.pooled_log_probs(rows, temperature)
            probs_NV = log_probs_NV.exp()
            # finite logits have finite log-probabilities, so nothing here is 0 * -inf
            entropy_N = -(probs_NV * log_probs_NV).sum(-1) if entropy else None
            return Expanded("dense", probs_NV, log_probs_NV, entropy_N=entropy_N)

    @property
    def _weights(self) -> tuple[float, ...]:
        """Of what `_logits` gives."""
        return self.weights if self.joined is None else (1.0,)

    def _logits(self, rows: slice, temperature: float) -> list[Tensor]:
        heard = self.members if self.joined is None else (self.joined,)
        members = [member for member in heard if isinstance(member, DenseSignal)]
        assert len(members) == len(heard), "a sparse signal has no logits"
        logits = [member.logits(rows) for member in members]
        temperature *= self.pool_temperature
        return logits if temperature == 1.0 else [logits_NV / temperature for logits_NV in logits]

    def _sparse(self, rows: slice, temperature: float) -> Expanded:
        members = [member for member in self.members if isinstance(member, SparseSignal)]
        parts = [member.expand(rows, temperature) for member in members]
        if len(parts) == 1:
            return parts[0]
        assert self.kind == "sampled" and POOLS[self.pool].sampled, "the recipe was checked"
        pairs = list(zip(parts, self.weights, strict=True))
        entropies = [part.entropy_N * weight for part, weight in pairs if part.entropy_N is not None]
        return Expanded(
            "sampled",
            torch.cat([part.weights_NK * weight for part, weight in pairs], 1),
            ids_NK=torch.cat([part.ids_NK for part, _ in pairs if part.ids_NK is not None], 1),
            entropy_N=torch.stack(entropies).sum(0),
        )


def row_chunks(rows: int, vocab_size: int, chunk_bytes: int, *, at_least: int = 1) -> list[slice]:
    """Consecutive parts of so many target rows whose fp32 logits take at most `chunk_bytes`; at least one part.

    A part may have `at_least` so many rows, whatever they take. All are about as large: a short last one would read the
    head for little work.
    """
    most = max(chunk_bytes // (4 * vocab_size), at_least)
    count = max(-(-rows // most), 1)
    edges = [rows * number // count for number in range(count + 1)]
    return [slice(first, last) for first, last in pairwise(edges)]
