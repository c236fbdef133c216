"""Means of weights: of one run as it goes (a moving average), and of several moments of it (checkpoint averaging)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch

from students.buildable import Buildable
from students.run_folder import load_model


class MovingAverage:
    """An exponential moving average of a model's weights, itself a model.

    After step t it is sum_i decay^(t-i) w_i / sum_i decay^(t-i) over the steps i from 1 to t: the weights that a run
    begins with have no say, as in Adam's corrected moments (arXiv 1412.6980, section 3).
    """

    def __init__(self, model: Buildable, decay: float) -> None:
        self.model = deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    def update(self, model: Buildable, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        share = (1 - self.decay) / (1 - self.decay**step)  # 1 at the first step: nothing was there before
        with torch.no_grad():
            for mean, weight in zip(self.model.parameters(), model.parameters(), strict=True):
                mean.lerp_(weight, share)


def mean_of_runs(folders: Sequence[Path]) -> Buildable:
    """The model whose weights are the mean of those of several run folders of one architecture, in fp32.

    One is in memory beside the mean at a time. Raises what `load_model` raises.
    """
    mean = _own_model(folders[0])
    with torch.no_grad():
        for count, folder in enumerate(folders[1:], start=2):
            # by steps towards each: equal weights stay exactly what they are
            for value, weight in zip(mean.parameters(), _own_model(folder).parameters(), strict=True):
                value.lerp_(weight, 1 / count)
    return mean


def _own_model(folder: Path) -> Buildable:
    model = load_model(folder)
    assert isinstance(model, Buildable), f"{folder} was written by this toolkit"
    return model
