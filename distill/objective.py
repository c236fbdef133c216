"""The objective: terms, their weights, and the one module whose forward holds the loss (house contracts 3 and 6).

Every term is averaged over its targets in all rows of the step, whatever process or micro-batch they are in; views
are then mixed by their shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from corpora.batch import Batch
from distill.fused import RowTerm, weighted_loss
from students.language_model import LanguageModel


@dataclass(frozen=True)
class Part:
    """One view's rows in a micro-batch and the terms they have."""

    batch: Batch
    terms: tuple[RowTerm, ...]


class Objective(nn.Module):
    """The model and its loss in one module: DDP, FSDP2 and torch.compile wrap this."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, parts: Sequence[Part]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all terms, and by name each term's plain sum in nats, detached; fp32."""
        losses, sums = [], {}
        for part in parts:
            features_ND = self.model.target_features(part.batch)
            targets_N = part.batch.targets_BT[part.batch.has_target_BT]
            loss, term_sums = weighted_loss(features_ND, targets_N, self.model.head(), part.terms)
            losses.append(loss)
            for term, value in zip(part.terms, term_sums.unbind(), strict=True):
                sums[term.name] = sums.get(term.name, 0.0) + value
        return torch.stack(losses).sum(), sums
