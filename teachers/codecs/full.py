"""`full`: every token's logit in fp16. It serves all that `features` do, needs no head, and takes 2 V bytes a position.

Axes: N positions (n of them in a block), D features, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from students.head import Head
from teachers.codecs.codec import Codec
from teachers.codecs.logits import dense_differences, fill, logit_blocks
from teachers.signal import LogitSignal


class FullCodec(Codec):
    """Logits less the largest of their row: likely tokens are near 0, where fp16 is finest."""

    kind = "dense"
    any_temperature = True
    needs_head = False
    settings = ()
    difference_unit = "nats"

    @property
    def record(self) -> np.dtype:
        """`logits`."""
        return np.dtype([("logits", "<f2", (self.vocab_size,))])

    def encode(
        self, features_ND: Tensor, head: Head, targets_N: Tensor, positions_N: np.ndarray, *, seed: int
    ) -> np.ndarray:
        """Records of logits; nothing is drawn."""
        records_N = np.empty(len(features_ND), self.record)
        for block in logit_blocks(features_ND, head, targets_N, positions_N):
            shifted_nV = block.logits_nV - block.logits_nV.amax(-1, keepdim=True)
            # fp16 ends at -65504, and -inf would become NaN in a loss; a token below has no mass at any temperature
            # under several hundred, so none is lost
            fill(records_N["logits"][block.rows], shifted_nV.clamp_(min=torch.finfo(torch.float16).min).half())
        return records_N

    def decode(
        self, records_N: np.ndarray, head: Head | None, positions_N: np.ndarray, *, device: torch.device, draw: int
    ) -> LogitSignal:
        """The logits, in fp16."""
        stored_NV = torch.from_numpy(np.ascontiguousarray(records_N["logits"]))
        return LogitSignal(stored_NV.to(device, non_blocking=True))

    def differences(
        self,
        records_N: np.ndarray,
        features_ND: Tensor,
        head: Head,
        targets_N: Tensor,
        positions_N: np.ndarray,
        *,
        seed: int,
    ) -> np.ndarray:
        """Largest difference of log-probabilities at temperature 1, over likely tokens and the target; [N]."""
        signal = self.decode(records_N, None, positions_N, device=head.weight_VD.device, draw=0)
        return dense_differences(signal, features_ND, head, targets_N)
