"""Means of weights: of one run as it goes (a moving average), and of several moments of it (checkpoint averaging)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import PARAM_LIST, AveragedModel

from students.buildable import Buildable
from students.run_folder import load_model


class MovingAverage:
    """An exponential moving average of a model's weights, itself a model.

    After step t it is sum_i decay^(t-i) w_i / sum_i decay^(t-i) over the steps i from 1 to t: the weights that a run
    begins with have no say, as in Adam's corrected moments (arXiv 1412.6980, section 3). The model is copied, so one
    that FSDP2 shards is given before; `model` is then sharded like it.
    """

    model: Buildable

    def __init__(self, model: Buildable, decay: float) -> None:
        self._averaged = AveragedModel(model, multi_avg_fn=self._approach)
        self.model = self._averaged.module.eval().requires_grad_(False)  # pyright: ignore[reportAttributeAccessIssue]
        self.decay = decay

    def update(self, model: Buildable, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        self._averaged.n_averaged.fill_(step - 1)  # a run that goes on counts from where it stopped
        self._averaged.update_parameters(model)

    def _approach(self, means: PARAM_LIST, weights: PARAM_LIST, count: Tensor | int) -> None:
        """From the second step on; the first one's weights are copied."""
        # not `count`: it is on the weights' device, which would have to be waited for
        step = int(self._averaged.n_averaged) + 1
        share = (1 - self.decay) / (1 - self.decay**step)
        torch._foreach_lerp_(means, weights, share)  # pyright: ignore[reportPrivateImportUsage]


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
