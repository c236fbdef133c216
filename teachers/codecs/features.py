"""`features`: the vector that meets the output embedding. Exact up to the stored type's rounding, it serves every loss,
temperature, weight and pooling rule afterwards.

bf16 and fp32 are the number itself; int8 is round(127 x / max |x|) with the largest magnitude of each position beside
it. Axes: N positions, D features.
"""

from __future__ import annotations

import numpy as np
import torch

from students.head import Head
from teachers.codecs.codec import Codec
from teachers.codecs.said import Said
from teachers.signal import FeatureSignal


class FeaturesCodec(Codec):
    """Feature vectors as bf16 (2 bytes a number), int8 (1 byte) or fp32."""

    kind = "dense"
    any_temperature = True
    needs_head = True
    settings = ("dtype",)
    difference_unit = "nats"

    @property
    def record(self) -> np.dtype:
        """`features`, and for int8 `scale`, the largest magnitude of the vector."""
        # numpy has no bf16: its 16 bits are kept
        stored = {"bf16": "<u2", "int8": "<i1", "fp32": "<f4"}[self.config.dtype]
        scale = [("scale", "<f4")] if self.config.dtype == "int8" else []
        return np.dtype([("features", stored, (self.hidden_size,)), *scale])

    def encode(self, said: Said, *, seed: int) -> np.ndarray:
        """Records of feature vectors alone: nothing is drawn, and any head and targets may be asked about later."""
        records_N = np.empty(len(said), self.record)
        features_ND = said.features_ND.float().cpu()
        if self.config.dtype == "bf16":
            records_N["features"] = features_ND.to(torch.bfloat16).view(torch.uint16).numpy()
        elif self.config.dtype == "fp32":
            records_N["features"] = features_ND.numpy()
        else:
            largest_N1 = features_ND.abs().amax(1, keepdim=True)
            # a vector of zeros has no direction to lose
            share_ND = features_ND / largest_N1.where(largest_N1 > 0, 1.0)
            records_N["features"] = (share_ND * 127).round().to(torch.int8).numpy()
            records_N["scale"] = largest_N1[:, 0].numpy()
        return records_N

    def decode(
        self, records_N: np.ndarray, head: Head | None, positions_N: np.ndarray, *, device: torch.device, draw: int
    ) -> FeatureSignal:
        """The vectors, in bf16 or fp32."""
        assert head is not None, "features are nothing without their head"
        stored_ND = torch.from_numpy(np.ascontiguousarray(records_N["features"]))
        if self.config.dtype == "bf16":
            return FeatureSignal(stored_ND.view(torch.bfloat16).to(device, non_blocking=True), head)
        if self.config.dtype == "fp32":
            return FeatureSignal(stored_ND.to(device, non_blocking=True), head)
        scale_N1 = torch.from_numpy(records_N["scale"].copy())[:, None]
        features_ND = stored_ND.to(device, non_blocking=True).float()
        return FeatureSignal(features_ND * (scale_N1.to(device, non_blocking=True) / 127), head)
