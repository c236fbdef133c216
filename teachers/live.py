"""A teacher that is run on each batch."""

from __future__ import annotations

import torch

from corpora.batch import Batch, Objective
from corpora.errors import InputRefused
from students.language_model import LanguageModel
from teachers.signal import MemberSignal


class LiveTeacher:
    """Answers batches of its own objective; across views a cache is needed, whose records meet by position.

    The model moves to the device that asks.
    """

    def __init__(self, name: str, model: LanguageModel, objective: Objective) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.objective = objective

    def answer(self, batch: Batch, device: torch.device) -> MemberSignal:
        """Features of the batch's target rows, and the head."""
        if batch.view.objective != self.objective:
            raise InputRefused(
                f"teacher {self.name}: reads {self.objective} rows and was asked about {batch.view.objective} ones; "
                "cache it, so that the views meet by position"
            )
        model = self.model.to(device)
        with torch.no_grad():
            return MemberSignal(model.target_features(batch.to(device)), model.head())
