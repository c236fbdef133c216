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
from teachers.signal import Signal, row_chunks

# logits of a chunk of target rows take at most this much; one chunk needs no recomputation
CHUNK_BYTES = 128 << 20


@dataclass(frozen=True)
class PartTerm:
    """One term of the objective for the rows of a part."""

    name: str  # of its curve: view/loss
    config: TermConfig
    signal: Signal | None  # what its teachers say; None for cross-entropy
    row_weight: float  # of each target row: share of the view * weight of the term / targets in the step


@dataclass(frozen=True)
class Part:
    """One view's rows in a micro-batch and the terms they have."""

    batch: Batch
    terms: tuple[PartTerm, ...]


class Objective(nn.Module):
    """The model and its loss in one module: DDP, FSDP2 and torch.compile wrap this."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, parts: Sequence[Part]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all terms, and by name each term's plain sum in nats, detached; fp32."""
        sums: dict[str, Tensor] = {}
        losses = []
        for part in parts:
            for term, value in zip(part.terms, self._term_sums(part).unbind(), strict=True):
                losses.append(term.row_weight * value)
                sums[term.name] = value.detach()
        return torch.stack(losses).sum(), sums

    def _term_sums(self, part: Part) -> Tensor:
        """Sum of each term's loss over the part's target rows, in nats, shape [terms]."""
        features_ND = self.model.target_features(part.batch)
        targets_N = part.batch.targets_BT[part.batch.has_target_BT]
        head = self.model.head()
        # without targets there is one empty chunk, which keeps every parameter in the graph: DDP waits for them all
        chunks = row_chunks(len(targets_N), len(head.weight_VD), CHUNK_BYTES)
        sums = []
        for rows in chunks:
            arguments = (features_ND[rows], targets_N[rows], head, part.terms, rows)
            if len(chunks) > 1 and torch.is_grad_enabled():
                # the logits of a chunk are made again in the backward pass, so that one chunk's are held at a time
                sums.append(checkpoint(_chunk_sums, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                sums.append(_chunk_sums(*arguments))
        return torch.stack(sums).sum(0)


def _chunk_sums(features_ND: Tensor, targets_N: Tensor, head: Head, terms: Sequence[PartTerm], rows: slice) -> Tensor:
    logits_NV = head.logits(features_ND)  # fp32: a bf16 log-softmax loses the tail that the teacher is there to teach
    log_probs_at: dict[float, Tensor] = {}
    sums = []
    for term in terms:
        temperature = 1.0 if term.signal is None else term.config.temperature
        if temperature not in log_probs_at:
            log_probs_at[temperature] = (logits_NV / temperature).log_softmax(-1)
        log_probs_NV = log_probs_at[temperature]
        if term.signal is None:
            sums.append(cross_entropy(log_probs_NV, targets_N).sum())
        else:
            loss = DISTILLATION_LOSSES[term.config.loss]
            teacher = term.signal.expand(rows, temperature)
            assert teacher.kind in loss.accepts, f"{term.config.loss} is wrong for {teacher.kind} signals"
            # T^2 keeps the gradient's size when the temperature changes (arXiv 1503.02531, section 2)
            sums.append(loss.divergence(log_probs_NV, teacher).sum() * temperature**2)
    return torch.stack(sums)
