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

    def forward(self, parts: Sequence[Part], values: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all terms, and by name each term's plain sum over its targets, detached; fp32.

        Without `values` gradients are the same, but divergences are not worked out and count as 0.
        """
        losses, sums = [], {}
        for part in parts:
            features_ND = self.model.target_features(part.batch)
            of_features = [term for term in part.terms if term.config.loss in FEATURE_LOSSES]
            of_tokens = [term for term in part.terms if term.config.loss not in FEATURE_LOSSES]
            found: dict[str, Tensor] = {}
            if of_tokens:
                targets_N = part.batch.targets_BT[part.batch.has_target_BT]
                loss, losses_XN = weighted_loss(features_ND, targets_N, self.model.head(), of_tokens, values=values)
                losses.append(loss)
                found = dict(zip((term.name for term in of_tokens), losses_XN, strict=True))
            for term in of_features:
                found[term.name] = self._feature_loss(features_ND, term)
                losses.append((found[term.name] * term.weights(slice(None))).sum())
            for term in part.terms:
                sums[term.name] = sums.get(term.name, 0.0) + _heard(found[term.name].detach(), term).sum()
        # DDP waits for every parameter, also for those that no term of these rows has asked
        idle = list(self.projections.parameters())
        if all(term.config.loss in FEATURE_LOSSES for part in parts for term in part.terms):
            idle += [tensor for tensor in self.model.head()[:2] if tensor is not None]
        losses += [0.0 * parameter.sum() for parameter in idle]
        return torch.stack(losses).sum(), sums

    def _feature_loss(self, features_ND: Tensor, term: RowTerm) -> Tensor:
        """Weighted mean over the members of how far the student's projected features are from theirs, [N]."""
        assert term.signal is not None
        losses_N = []
        for place, (member, weight) in enumerate(zip(term.signal.members, term.signal.weights, strict=True)):
            assert isinstance(member, FeatureSignal), "the recipe was checked"
            projected_ND = self.projections[_key(term.number, place)](features_ND)
            # fp32 at least: under autocast the projection's type is bf16
            dtype = torch.promote_types(projected_ND.dtype, torch.float32)
            measure = FEATURE_LOSSES[term.config.loss]
            losses_N.append(weight * measure(projected_ND.to(dtype), member.features_ND.to(dtype)))
        return torch.stack(losses_N).sum(0)


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
