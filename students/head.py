"""The half of a model that turns a feature vector into logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Head(NamedTuple):
    """Output embedding and what follows it. Axes: N rows, D features, V vocabulary."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None  # logits become softcap * tanh(logits / softcap)
    scale: float = 1.0  # multiplies the product of features and weight

    def logits(self, features_ND: Tensor) -> Tensor:
        """Logits of each row, in fp32 or what is wider of the features' type, shape [N, V]."""
        logits_NV = torch.nn.functional.linear(features_ND, self.weight_VD.to(features_ND.dtype))
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.bias_V is not None:
            logits_NV = logits_NV + self.bias_V.to(logits_NV.dtype)
        if self.softcap is not None:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV
