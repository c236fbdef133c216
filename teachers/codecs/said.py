"""What a teacher says about some positions while it is listened to, of which codecs make records.

Axes: N positions, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from students.head import Head


@dataclass(frozen=True)
class Said:
    """Features and head of a teacher, and what they are about."""

    features_ND: Tensor  # fp32, on the head's device
    head: Head
    targets_N: Tensor  # the tokens that stand at the positions
    positions_N: np.ndarray

    def __len__(self) -> int:
        return len(self.positions_N)

    def at(self, places_n: np.ndarray) -> Said:
        """The part of it at some places."""
        there_n = torch.from_numpy(places_n)
        return replace(
            self,
            features_ND=self.features_ND[there_n.to(self.features_ND.device)],
            targets_N=self.targets_N[there_n.to(self.targets_N.device)],
            positions_N=self.positions_N[places_n],
        )
