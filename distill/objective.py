"""The objective: terms, their weights, and the one module whose forward holds the loss (house contracts 3 and 6).

Every term is averaged over its targets in all rows of the step, whatever process or micro-batch they are in; views
are then mixed by their shares. Axes: N target rows, D features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from corpora.batch import Batch
from distill.config import TermConfig
from distill.losses import DISTILLATION_LOSSES, cross_entropy
from students.head import Head
from students.language_model import LanguageModel
from teachers.signal import Signal

# logits of a chunk of target rows take at most this much; one chunk needs no recomputation
CHUNK_BYTES = 128 << 20


@dataclass(frozen=True)
class Part:
    """One view's rows in a micro-batch, what its terms' teachers say, and the weight of each target row per term."""

    batch: Batch
    terms: tuple[TermConfig, ...]
    signals: tuple[Signal | None, ...]  # one for each term; None for cross-entropy
    row_weights: tuple[float, ...]  # one for each term: share of the view * weight of the term / targets in the step


class Objective(nn.Module):
    """The model and its loss in one module: DDP, FSDP2 and torch.compile wrap this."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
        """The weighted sum of all terms, and each term's unweighted sum in nats, detached, in order; fp32."""
        losses, sums = zip(*(self._part(part) for part in parts), strict=True)
        return torch.stack(losses).sum(), torch.cat(sums)

    def _part(self, part: Part) -> tuple[Tensor, Tensor]:
        features_ND = self.model.target_features(part.batch)
        targets_N = part.batch.targets_BT[part.batch.has_target_BT]
        head = self.model.head()
        loss = features_ND.new_zeros((), dtype=torch.float32)
        sums = loss.new_zeros(len(part.terms))
        chunks = _chunks(len(targets_N), head.weight_VD.shape[0])
        for rows in chunks:
            arguments = (features_ND[rows], targets_N[rows], head, part, rows)
            if len(chunks) > 1 and torch.is_grad_enabled():
                # the logits of a chunk are made again in the backward pass, so that one chunk's are held at a time
                values = checkpoint(_term_sums, *arguments, use_reentrant=False)
            else:
                values = _term_sums(*arguments)
            loss = loss + (values * values.new_tensor(part.row_weights)).sum()
            sums = sums + values.detach()
        if not chunks:  # keeps every parameter in the graph, which DDP needs
            loss = loss + 0.0 * features_ND.float().sum()
        return loss, sums


def _term_sums(features_ND: Tensor, targets_N: Tensor, head: Head, part: Part, rows: slice) -> Tensor:
    """Sum over some target rows of each term's loss, in nats, shape [terms]."""
    logits_NV = head.logits(features_ND)
    log_probs_at: dict[float, Tensor] = {}
    sums = []
    for term, signal in zip(part.terms, part.signals, strict=True):
        temperature = 1.0 if signal is None else term.temperature
        if temperature not in log_probs_at:
            # fp32: a bf16 log-softmax loses the tail that the teacher is there to teach
            log_probs_at[temperature] = (logits_NV.float() / temperature).log_softmax(-1)
        log_probs_NV = log_probs_at[temperature]
        if signal is None:
            sums.append(cross_entropy(log_probs_NV, targets_N).sum())
        else:
            divergence = DISTILLATION_LOSSES[term.loss].divergence
            values_N = divergence(log_probs_NV, signal.expand(rows, temperature))
            # T^2 keeps the gradient's size when the temperature changes (arXiv 1503.02531, section 2)
            sums.append(values_N.sum() * temperature**2)
    return torch.stack(sums)


def _chunks(rows: int, vocab_size: int) -> list[slice]:
    size = max(CHUNK_BYTES // (4 * vocab_size), 1)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
