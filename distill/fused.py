"""The loss engine: logits, losses and their gradients in one pass over chunks of target rows.

Gradients are closed forms, worked out while a chunk's logits are at hand; no more than a chunk of logits exists at a
time, and none is made again in the backward pass. `losses` holds the plain functions that this file must equal.
Axes: N target rows (n of them in a chunk), D features, V vocabulary, K kept tokens, X terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.config import TermConfig
from distill.losses import (
    DIVERGENCES,
    bucketed,
    cross_entropy,
    forward_kl,
    smoothed_cross_entropy,
    unbucketed,
    z_loss,
)
from students.head import Head
from teachers.signal import Signal, row_chunks

# fp32 logits of a chunk. On CPUs about 500 rows of 16,000 types: with a quarter of them, the products read the heads
# for too little work (5 % of a step with two teachers); with more, memory grows and little else
CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
LEAST_ROWS = 128  # whatever the vocabulary


@dataclass(frozen=True)
class RowTerm:
    """One term of the objective for some target rows."""

    name: str  # of its curve: view/loss
    number: int  # of the term in the student's list
    config: TermConfig
    signal: Signal | None  # what its teachers say; None for cross-entropy
    row_weight: float  # of each target row: share of the view * weight of the term / targets in the step

    @property
    def temperature(self) -> float:
        """Of the student's logits."""
        return 1.0 if self.signal is None else self.config.temperature

    def weights(self, rows: slice) -> Tensor | float:
        """Weight of some target rows: one number, or [n] where the teachers leave some rows out."""
        heard_N = None if self.signal is None else self.signal.heard_N
        return self.row_weight if heard_N is None else self.row_weight * heard_N[rows]


def weighted_loss(
    features_ND: Tensor, targets_N: Tensor, head: Head, terms: Sequence[RowTerm], *, values: bool = True
) -> tuple[Tensor, Tensor]:
    """Sum over rows and terms of row weight * loss, and each term's loss of each row, detached; fp32, [] and [X, N].

    Differentiable in the features, the head's weight and its bias. The losses of rows are what curves show: in nats,
    with the factor T^2, without label smoothing and z-loss.

    Without `values` the gradient is the same, but divergences are not worked out and count as 0: most steps log
    nothing, and an entropy takes as long as a softmax.
    """
    # asked here: inside, gradients are off, and a context says what could have one
    wanted = torch.is_grad_enabled()
    return _apply(features_ND, head.weight_VD, head.bias_V, targets_N, head, terms, wanted, values)


class _WeightedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        head: Head,
        terms: Sequence[RowTerm],
        wanted: bool,
        values: bool,
    ) -> tuple[Tensor, Tensor]:
        device = features_ND.device
        dtype = _product_dtype(features_ND)
        # once, and not for every chunk
        inputs_ND, head = features_ND.to(dtype), head._replace(weight_VD=weight_VD.to(dtype))
        wanted = wanted and any(ctx.needs_input_grad[:3])
        gradients = _Gradients(inputs_ND, head, ctx.needs_input_grad[:3]) if wanted else None
        losses_XN = torch.empty(len(terms), len(targets_N), device=device)
        total = torch.zeros((), dtype=_sum_dtype(inputs_ND), device=device)
        # the types are settled: autocast would take sums for products
        with torch.autocast(device.type, enabled=False):
            for rows in row_chunks(len(targets_N), len(weight_VD), CHUNK_BYTES[device.type], at_least=LEAST_ROWS):
                logits_nV = head.logits(inputs_ND[rows])
                slope_nV = None if head.softcap is None else _softcap_slope(logits_nV, head.softcap)
                chunk = _Chunk(logits_nV, targets_N[rows], rows, wants_gradient=wanted, wants_values=values)
                total += chunk.add(terms, losses_XN)
                if gradients is not None:
                    gradients.add(rows, slope_nV, chunk.gradient_nV)
        if gradients is not None:
            ctx.save_for_backward(*gradients.results())
            ctx.dtypes = features_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype
        ctx.mark_non_differentiable(losses_XN)
        return total, losses_XN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        factor = grad_outputs[0]
        found = [
            None if gradient is None else (gradient * factor).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *found, None, None, None, None, None


# a graph break for torch.compile: nothing in here gains from being traced
_apply = cast("Callable[..., tuple[Tensor, Tensor]]", torch.compiler.disable(_WeightedLoss.apply))


def _product_dtype(features_ND: Tensor) -> torch.dtype:
    """The type of matrix products: autocast's where it is on, else the features' own."""
    kind = features_ND.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features_ND.dtype


class _Chunk:
    """The losses of some target rows, and the gradient of their weighted sum in the student's logits.

    It takes the memory of the logits: log-probabilities, then gradients, lie where they were.
    """

    def __init__(
        self, logits_nV: Tensor, targets_n: Tensor, rows: slice, *, wants_gradient: bool, wants_values: bool
    ) -> None:
        self._targets_n, self._rows = targets_n, rows
        self._first_n = logits_nV[:, 0].clone()
        # fp32: a bf16 log-softmax loses the tail that the teacher is there to teach
        self._log_probs_nV = torch.log_softmax(logits_nV, -1, out=logits_nV)
        self._wants_gradient, self._wants_values = wants_gradient, wants_values
        self._gradient_nV: Tensor | None = None

    @property
    def gradient_nV(self) -> Tensor:
        """What `add` has gathered."""
        return torch.zeros_like(self._log_probs_nV) if self._gradient_nV is None else self._gradient_nV

    def add(self, terms: Sequence[RowTerm], losses_XN: Tensor) -> Tensor:
        """Weighted sum of all terms; writes each one's losses of these rows. One temperature, one softmax."""
        total = self._log_probs_nV.new_zeros(())
        # temperature 1 comes last, for its gradient takes the place of its log-probabilities
        numbered = sorted(enumerate(terms), key=lambda pair: (pair[1].temperature == 1.0, pair[1].temperature))
        for temperature, group in groupby(numbered, key=lambda pair: pair[1].temperature):
            softmax = _Softmax(self._log_probs_at(temperature))
            for number, term in group:
                weight = term.weights(self._rows)
                if term.signal is None:
                    losses_n, cost_n = self._cross_entropy(softmax, term.config, weight)
                else:
                    losses_n = cost_n = self._divergence(softmax, term, weight)
                losses_XN[number, self._rows] = losses_n
                total = total + (cost_n * weight).sum()
            if self._wants_gradient:
                gradient_nV = softmax.gradient()
                if temperature != 1.0:  # from the division of the logits
                    gradient_nV /= temperature
                self._gradient_nV = gradient_nV if self._gradient_nV is None else self._gradient_nV.add_(gradient_nV)
        return total

    def _log_probs_at(self, temperature: float) -> Tensor:
        if temperature == 1.0:
            return self._log_probs_nV
        # they differ from logits by a constant in each row, which no softmax sees
        scaled_nV = self._log_probs_nV / temperature
        return torch.log_softmax(scaled_nV, -1, out=scaled_nV)

    def _cross_entropy(self, softmax: _Softmax, config: TermConfig, weight: Tensor | float) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each row, and what it adds to the objective: with smoothing and z-loss."""
        losses_n = cost_n = cross_entropy(softmax.log_probs_nV, self._targets_n)
        softmax.add_tokens(self._targets_n[:, None], -(1 - config.label_smoothing) * weight)
        if config.label_smoothing:
            cost_n = smoothed_cross_entropy(softmax.log_probs_nV, self._targets_n, config.label_smoothing)
            softmax.add_everywhere(-config.label_smoothing / softmax.log_probs_nV.shape[1] * weight)
        if config.z_loss:
            log_normaliser_n = self._first_n - softmax.log_probs_nV[:, 0]
            cost_n = cost_n + config.z_loss * z_loss(log_normaliser_n)
            # d log(Z)^2 = 2 log(Z) q
            softmax.add_probs(2 * config.z_loss * weight * log_normaliser_n)
        return losses_n, cost_n

    def _divergence(self, softmax: _Softmax, term: RowTerm, weight: Tensor | float) -> Tensor:
        """A divergence of each row, times T^2, which keeps its gradient's size (arXiv 1503.02531, section 2)."""
        assert term.signal is not None
        loss, factor = DIVERGENCES[term.config.loss], term.temperature**2
        teacher = term.signal.expand(
            self._rows,
            term.temperature,
            log_weights=loss.needs_log_weights,
            entropy=self._wants_values and loss.value is forward_kl,
        )
        assert teacher.kind in loss.accepts, f"{term.config.loss} is wrong for {teacher.kind} signals"
        weight = weight * factor
        log_probs_nK = softmax.log_probs_nV
        if teacher.kind == "sampled":  # forward KL from some tokens; `losses` says the same of all tokens
            assert teacher.ids_NK is not None
            softmax.add_tokens(teacher.ids_NK, -_column(weight) * teacher.weights_NK)
            log_probs_nK = log_probs_nK.gather(1, teacher.ids_NK) if self._wants_values else log_probs_nK
        elif teacher.ids_NK is not None:
            log_probs_nK, coarse = bucketed(softmax.log_probs_nV, teacher)
            if self._wants_gradient:
                slope_nK = loss.slope(log_probs_nK, coarse, term.config)
                softmax.add_slope(unbucketed(slope_nK, log_probs_nK, softmax.log_probs_nV, teacher), weight)
            teacher = coarse
        elif self._wants_gradient:
            if loss.value is forward_kl:  # its slope, -p, adds up to -1 in every row
                softmax.add_target(teacher.weights_NK, weight)
            else:
                softmax.add_slope(loss.slope(log_probs_nK, teacher, term.config), weight)
        if not self._wants_values:
            return torch.zeros_like(self._first_n)
        return loss.value(log_probs_nK, teacher, term.config) * factor


class _Softmax:
    """The student's log-probabilities at one temperature, and the slope of the weighted losses in them.

    Contributions are kept until `gradient`, which then needs no buffer but that of the log-probabilities.
    """

    def __init__(self, log_probs_nV: Tensor) -> None:
        self.log_probs_nV = log_probs_nV
        self._sum: Tensor | float = 0.0  # of the slope over the vocabulary, [n, 1] or the same for all rows
        self._dense: list[tuple[Tensor, Tensor | float]] = []  # slope [n, V], times a weight
        self._sparse: list[tuple[Tensor, Tensor | float]] = []  # ids [n, K], slope at them
        self._constant: Tensor | float = 0.0  # slope at every token

    def add_slope(self, slope_nV: Tensor, weight: Tensor | float) -> None:
        """A slope that is worked out for every token."""
        weight = _column(weight)
        self._sum = self._sum + weight * slope_nV.sum(-1, keepdim=True)
        self._dense.append((slope_nV, weight))

    def add_target(self, probs_nV: Tensor, weight: Tensor | float) -> None:
        """The slope -p of a cross-entropy from a distribution p."""
        weight = _column(weight)
        self._sum = self._sum - weight
        self._dense.append((probs_nV, -weight))

    def add_tokens(self, ids_nK: Tensor, slope: Tensor | float) -> None:
        """A slope that is 0 but at some tokens: [n, K], or one number for all of them."""
        slope = _column(slope)
        if isinstance(slope, Tensor):
            self._sum = self._sum + slope.expand(ids_nK.shape).sum(-1, keepdim=True)
        else:
            self._sum = self._sum + slope * ids_nK.shape[1]
        self._sparse.append((ids_nK, slope))

    def add_everywhere(self, slope: Tensor | float) -> None:
        """The same slope at every token."""
        slope = _column(slope)
        self._sum = self._sum + slope * self.log_probs_nV.shape[1]
        self._constant = self._constant + slope

    def add_probs(self, factor: Tensor | float) -> None:
        """A gradient in the logits that is the student's probabilities times a factor."""
        self._sum = self._sum - _column(factor)

    def gradient(self) -> Tensor:
        """s - q sum(s), in the place of the log-probabilities."""
        gradient_nV = self.log_probs_nV.exp_().mul_(-self._sum)
        for slope_nV, weight in self._dense:
            if isinstance(weight, Tensor):
                gradient_nV.addcmul_(slope_nV, weight)
            else:
                gradient_nV.add_(slope_nV, alpha=weight)
        if isinstance(self._constant, Tensor) or self._constant:
            gradient_nV += self._constant
        for ids_nK, slope in self._sparse:
            source = slope if isinstance(slope, Tensor) else gradient_nV.new_full((), slope)
            gradient_nV.scatter_add_(1, ids_nK, source.to(gradient_nV.dtype).expand(ids_nK.shape))
        return gradient_nV


class _Gradients:
    """What the loss's gradient is in features, weight and bias, as far as they are wanted, gathered chunk by chunk."""

    def __init__(self, inputs_ND: Tensor, head: Head, wanted: Sequence[bool]) -> None:
        self._inputs_ND, self._head = inputs_ND, head
        wants_features, wants_weight, wants_bias = wanted
        self._features_ND = torch.empty_like(inputs_ND) if wants_features else None
        # fp32: many chunks are added up
        self._weight_VD = torch.empty_like(head.weight_VD, dtype=_sum_dtype(inputs_ND)) if wants_weight else None
        self._is_first = True  # of the chunks: its part is written where the others' are added
        wants_bias = wants_bias and head.bias_V is not None
        self._bias_V = inputs_ND.new_zeros(len(head.weight_VD), dtype=_sum_dtype(inputs_ND)) if wants_bias else None

    def add(self, rows: slice, slope_nV: Tensor | None, grad_nV: Tensor) -> None:
        """Carry a chunk's gradient in the logits back through soft-cap (whose slope is given), bias, scale, product."""
        scale = self._head.scale
        if slope_nV is not None:
            grad_nV = grad_nV * slope_nV
        if self._bias_V is not None:
            self._bias_V += grad_nV.sum(0)
        if scale != 1.0:
            grad_nV = grad_nV * scale
        inputs_nD = self._inputs_ND[rows]
        grad_nV = grad_nV.to(inputs_nD.dtype)
        if self._features_ND is not None:
            self._features_ND[rows] = grad_nV @ self._head.weight_VD
        if self._weight_VD is None:
            return
        if self._weight_VD.dtype == inputs_nD.dtype:  # the product adds to what is there, without a buffer
            beta = 0 if self._is_first else 1
            torch.addmm(self._weight_VD, grad_nV.T, inputs_nD, beta=beta, out=self._weight_VD)
        elif self._is_first:
            self._weight_VD.copy_(grad_nV.T @ inputs_nD)
        else:
            self._weight_VD += grad_nV.T @ inputs_nD
        self._is_first = False

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients in features, weight and bias; None where they were not wanted."""
        return self._features_ND, self._weight_VD, self._bias_V


def _softcap_slope(logits_nV: Tensor, softcap: float) -> Tensor:
    """Derivative of softcap * tanh(x / softcap), from its value: 1 - tanh^2."""
    return 1 - (logits_nV / softcap) ** 2


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _column(value: Tensor | float) -> Tensor | float:
    """One number for each row as a column, so that it meets [n, V]."""
    return value[:, None] if isinstance(value, Tensor) and value.ndim == 1 else value
