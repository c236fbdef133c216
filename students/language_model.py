"""A model of any architecture as the toolkit sees it: features and head apart (house contract 3).

Axes: B rows, T positions, D features, N target rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from corpora.batch import Batch
from students.head import Head


class Sizes(Protocol):
    """What is known of every model; a ModelConfig says it all, and more."""

    @property
    def feature_size(self) -> int:
        """Width of the features."""
        ...

    @property
    def max_positions(self) -> int:
        """Longest row in tokens."""
        ...


class LanguageModel(nn.Module, ABC):
    """A network of transformers, read as features and a head. This class alone unpacks a Batch."""

    network: PreTrainedModel
    config: Sizes

    @property
    def masked_shift(self) -> Literal[0, 1]:
        """How many positions before a hidden token the output stands that predicts it, in masked rows."""
        return 0

    @abstractmethod
    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """The vectors [B, T, D] that meet the output embedding.

        Attention stays inside runs of equal segments; with `causal` a position sees itself and what stands before it.
        """

    @abstractmethod
    def head(self) -> Head:
        """Output embedding, bias, soft-cap and scale; the tensors are the live parameters."""

    def target_features(self, batch: Batch) -> Tensor:
        """Features [N, D] of the positions that have a target, row by row: no other row is ever projected."""
        features_BTD = self.features(batch.input_ids_BT, batch.segments_BT, batch.view.objective == "causal")
        return features_BTD[batch.has_target_BT]

    def forward(self, batch: Batch) -> Tensor:
        """Same as `target_features`, so that wrappers of modules can be used."""
        return self.target_features(batch)
