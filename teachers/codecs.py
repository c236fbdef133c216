"""How a cache stores one position: the `features` codec keeps the vector that meets the output embedding.

Axes: N positions, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class FeaturesCodec:
    """Feature vectors as bf16 (2 bytes a number) or fp32; bf16 is kept as its 16 bits, which numpy has no type for."""

    dtype: str

    @property
    def stored(self) -> np.dtype:
        """Type of the shard's array."""
        return np.dtype(np.uint16 if self.dtype == "bf16" else np.float32)

    def encode(self, features_ND: Tensor) -> np.ndarray:
        """Stored numbers, [N, D]."""
        if self.dtype == "bf16":
            return features_ND.to(torch.bfloat16).view(torch.uint16).numpy()
        return features_ND.float().numpy()

    def decode(self, stored_ND: np.ndarray) -> Tensor:
        """Features as bf16 or fp32, [N, D]."""
        tensor = torch.from_numpy(stored_ND)
        return tensor.view(torch.bfloat16) if self.dtype == "bf16" else tensor


CODECS = {"features": FeaturesCodec}
