"""A teacher that is run on each batch."""

from __future__ import annotations

import torch
from torch import Tensor

from corpora.batch import Batch, Objective
from corpora.errors import InputRefused
from students.language_model import LanguageModel
from teachers.signal import FeatureSignal


class LiveTeacher:
    """Answers batches of its own objective; across views a cache is needed, whose records meet by position.

    The model moves to the device that asks.
    """

    def __init__(self, name: str, model: LanguageModel, objective: Objective) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.objective = objective

    @property
    def hidden_size(self) -> int:
        """Width of the model's features."""
        return self.model.config.feature_size

    def answer(
        self, batch: Batch, device: torch.device, *, draw: int = 0, dtype: torch.dtype = torch.float32
    ) -> FeatureSignal:
        """Features of the batch's target rows, and the head; computed in `dtype`."""
        if batch.view.objective != self.objective:
            raise InputRefused(
                f"teacher {self.name}: reads {self.objective} rows and was asked about {batch.view.objective} ones; "
                "cache it, so that the views meet by position"
            )
        model = self.model.to(device)
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            features_ND = model.target_features(batch.to(device))
        head = model.head()
        return FeatureSignal(features_ND.to(dtype), head._replace(weight_VD=head.weight_VD.to(dtype)))

    def heard(self, batch: Batch, *, draw: int = 0) -> Tensor | None:
        """It has something to say about every target of its own view."""
        return None
