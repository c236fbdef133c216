"""`full`: every token's logit in fp16. It serves all that `features` do, needs no head, and takes 2 V bytes a position.

Axes: N positions (n of them in a block), D features, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch

from students.head import Head
from teachers.codecs.codec import Codec
from teachers.codecs.logits import fill, logit_blocks
from teachers.codecs.said import Said
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

    def encode(self, said: Said, *, seed: int) -> np.ndarray:
        """Records of logits; nothing is drawn."""
        records_N = np.empty(len(said), self.record)
        for block in logit_blocks(said):
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
