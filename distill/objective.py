"""The objective: terms, their weights, and the one module whose forward holds the loss (house contracts 3 and 6).

Every term is averaged over its targets in all rows of the step, whatever process or micro-batch they are in; views
are then mixed by their shares. Axes: N target rows, D features, X terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from corpora.batch import Batch
from distill.fused import RowTerm, weighted_loss
from distill.losses import FEATURE_LOSSES
from students.language_model import LanguageModel
from teachers.ensemble import Ensemble
from teachers.signal import FeatureSignal


@dataclass(frozen=True)
class Part:
    """One view's rows in a micro-batch and the terms they have."""

    batch: Batch
    terms: tuple[RowTerm, ...]


class Objective(nn.Module):
    """The model and its loss in one module: DDP, FSDP2 and torch.compile wrap this."""

    def __init__(self, model: LanguageModel, projections: nn.ModuleDict | None = None) -> None:
        """`projections` are those of the terms that compare features, as `feature_projections` makes them."""
        super().__init__()
        self.model = model
        self.projections = projections if projections is not None else nn.ModuleDict()

    def forward(self, parts: Sequence[Part]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all terms, and by name each term's plain sum over its targets, detached; fp32."""
        losses, sums = [], {}
        for part in parts:
            features_ND = self.model.target_features(part.batch)
            targets_N = part.batch.targets_BT[part.batch.has_target_BT]
            of_features = [term for term in part.terms if term.config.loss in FEATURE_LOSSES]
            of_tokens = [term for term in part.terms if term.config.loss not in FEATURE_LOSSES]
            loss, losses_XN = weighted_loss(features_ND, targets_N, self.model.head(), of_tokens)
            losses.append(loss)
            values = dict(zip((term.name for term in of_tokens), losses_XN, strict=True))
            for term in of_features:
                values[term.name] = self._feature_loss(features_ND, term)
                losses.append((values[term.name] * term.weights(slice(None))).sum())
            for term in part.terms:
                sums[term.name] = sums.get(term.name, 0.0) + _heard(values[term.name].detach(), term).sum()
        # DDP waits for every parameter, also for those of a term that has no row in this process
        losses += [0.0 * parameter.sum() for parameter in self.projections.parameters()]
        return torch.stack(losses).sum(), sums

    def _feature_loss(self, features_ND: Tensor, term: RowTerm) -> Tensor:
        """Weighted mean over the members of how far the student's projected features are from theirs, [N]."""
        assert term.signal is not None
        total_N = features_ND.new_zeros(len(features_ND), dtype=torch.float32)
        for place, (member, weight) in enumerate(zip(term.signal.members, term.signal.weights, strict=True)):
            assert isinstance(member, FeatureSignal), "the recipe was checked"
            projected_ND = self.projections[_key(term.number, place)](features_ND).float()
            total_N = total_N + weight * FEATURE_LOSSES[term.config.loss](projected_ND, member.features_ND.float())
        return total_N


def feature_projections(student_width: int, ensembles: dict[int, Ensemble], seed: int) -> nn.ModuleDict:
    """A learned map from the student's features to each member's, for the terms (by number) that compare features.

    torch's global generator is left as it was.
    """
    if not ensembles:
        return nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleDict(
            {
                _key(number, place): nn.Linear(student_width, member.hidden_size, bias=False)
                for number, ensemble in sorted(ensembles.items())
                for place, member in enumerate(ensemble.members)
            }
        )


def _key(number: int, place: int) -> str:
    return f"term{number}_member{place}"


def _heard(values_N: Tensor, term: RowTerm) -> Tensor:
    heard_N = None if term.signal is None else term.signal.heard_N
    return values_N if heard_N is None else values_N[heard_N]
