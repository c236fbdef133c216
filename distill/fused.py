"""The loss engine: logits, losses and their gradients in one pass over chunks of target rows.

Gradients are closed forms, worked out while a chunk's logits are at hand; no more than a chunk of logits exists at a
time, and none is made again in the backward pass. `losses` holds the plain functions that this file must equal.
Axes: N target rows (n of them in a chunk), D features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.config import TermConfig
from distill.losses import DISTILLATION_LOSSES, cross_entropy
from students.head import Head
from teachers.signal import Signal, row_chunks

# fp32 logits of a chunk: what stays in a core's cache (2 to 4 MiB) makes the passes over them several times faster
CHUNK_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
LEAST_ROWS = 128  # fewer, and the matrix products would read the head for too little work


@dataclass(frozen=True)
class RowTerm:
    """One term of the objective for some target rows."""

    name: str  # of its curve: view/loss
    config: TermConfig
    signal: Signal | None  # what its teachers say; None for cross-entropy
    row_weight: float  # of each target row: share of the view * weight of the term / targets in the step


def weighted_loss(
    features_ND: Tensor, targets_N: Tensor, head: Head, terms: Sequence[RowTerm]
) -> tuple[Tensor, Tensor]:
    """Sum over rows and terms of row weight * loss, and each term's plain sum in nats, detached; fp32, [] and [terms].

    Differentiable in the features, the head's weight and its bias.
    """
    return _WeightedLoss.apply(features_ND, head.weight_VD, head.bias_V, targets_N, head, terms)  # type: ignore[return-value]


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
    ) -> tuple[Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad[:3])
        grads = _Gradients(features_ND, head) if wanted else None
        sums = torch.zeros(len(terms), device=features_ND.device)
        chunk_bytes = CHUNK_BYTES[features_ND.device.type]
        for rows in row_chunks(len(targets_N), len(weight_VD), chunk_bytes, at_least=LEAST_ROWS):
            logits_nV = head.logits(features_ND[rows])
            grad_nV = torch.zeros_like(logits_nV) if wanted else None
            sums += _term_sums(logits_nV, targets_N[rows], terms, rows, grad_nV)
            if grads is not None and grad_nV is not None:
                grads.add(rows, logits_nV, grad_nV)
        if grads is not None:
            ctx.save_for_backward(grads.features_ND, grads.weight_VD, grads.bias_V)
            ctx.dtypes = weight_VD.dtype, None if bias_V is None else bias_V.dtype
        ctx.mark_non_differentiable(sums)
        return (sums * sums.new_tensor([term.row_weight for term in terms])).sum(), sums

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_features_ND, grad_weight_VD, grad_bias_V = ctx.saved_tensors
        factor, (weight_dtype, bias_dtype) = grad_outputs[0], ctx.dtypes
        grad_bias_V = None if grad_bias_V is None else (grad_bias_V * factor).to(bias_dtype)
        return grad_features_ND * factor, (grad_weight_VD * factor).to(weight_dtype), grad_bias_V, None, None, None


class _Gradients:
    """What the loss's gradient is in features, weight and bias, gathered chunk by chunk."""

    def __init__(self, features_ND: Tensor, head: Head) -> None:
        self._inputs, self._head = features_ND, head
        self.features_ND = torch.zeros_like(features_ND)
        # fp32: hundreds of chunks are added up
        self.weight_VD = torch.zeros_like(head.weight_VD, dtype=torch.float32)
        self.bias_V = None if head.bias_V is None else torch.zeros_like(head.bias_V, dtype=torch.float32)

    def add(self, rows: slice, logits_nV: Tensor, grad_nV: Tensor) -> None:
        """Carry a chunk's gradient in the logits back through soft-cap, bias, scale and product."""
        softcap, scale = self._head.softcap, self._head.scale
        if softcap is not None:  # d tanh(x) = 1 - tanh(x)^2
            grad_nV = grad_nV * (1 - (logits_nV / softcap) ** 2)
        if self.bias_V is not None:
            self.bias_V += grad_nV.sum(0)
        if scale != 1.0:
            grad_nV = grad_nV * scale
        inputs_nD = self._inputs[rows]
        self.features_ND[rows] = torch.mm(grad_nV.to(self._head.weight_VD.dtype), self._head.weight_VD)
        self.weight_VD += torch.mm(grad_nV.to(inputs_nD.dtype).T, inputs_nD)


def _term_sums(
    logits_nV: Tensor, targets_n: Tensor, terms: Sequence[RowTerm], rows: slice, grad_nV: Tensor | None
) -> Tensor:
    """Sum of each term over a chunk, in nats; the gradient of the weighted sum in the logits is added to `grad_nV`."""
    softmax_at: dict[float, tuple[Tensor, Tensor | None]] = {}
    sums = []
    for term in terms:
        temperature = 1.0 if term.signal is None else term.config.temperature
        if temperature not in softmax_at:
            # fp32: a bf16 log-softmax loses the tail that the teacher is there to teach
            log_probs_nV = (logits_nV if temperature == 1.0 else logits_nV / temperature).log_softmax(-1)
            softmax_at[temperature] = log_probs_nV, None if grad_nV is None else log_probs_nV.exp()
        log_probs_nV, probs_nV = softmax_at[temperature]
        if term.signal is None:
            sums.append(cross_entropy(log_probs_nV, targets_n).sum())
            if grad_nV is not None and probs_nV is not None:  # softmax - one-hot
                grad_nV.add_(probs_nV, alpha=term.row_weight)
                one_hot = targets_n[:, None]
                grad_nV.scatter_add_(1, one_hot, grad_nV.new_full(one_hot.shape, -term.row_weight))
            continue
        loss = DISTILLATION_LOSSES[term.config.loss]
        teacher = term.signal.expand(rows, temperature)
        assert teacher.kind in loss.accepts, f"{term.config.loss} is wrong for {teacher.kind} signals"
        # T^2 keeps the gradient's size when the temperature changes (arXiv 1503.02531, section 2)
        sums.append(loss.divergence(log_probs_nV, teacher).sum() * temperature**2)
        if grad_nV is not None and probs_nV is not None:  # T^2 from above, 1 / T from the division of the logits
            grad_nV.add_(loss.gradient(probs_nV, teacher), alpha=term.row_weight * temperature)
    return torch.stack(sums)
