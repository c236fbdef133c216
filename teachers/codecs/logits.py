"""Live logits beside records: in blocks of one size for what is stored, and against what is read back.

Axes: N positions (n of them in a block), D features, V vocabulary, K tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from teachers.codecs.said import Said
from teachers.signal import DenseSignal, row_chunks

BLOCK = 128  # positions: enough work for one reading of the head, and 8 MB of logits at V = 16,000
CHUNK_BYTES = 64 << 20  # of logits at once, where nothing is stored
LOG_LIKELY = math.log(1e-4)  # tokens below are left out of comparisons of log-probabilities


@dataclass(frozen=True)
class Block:
    """Some positions of a batch, always BLOCK of them: beyond the last one the block is filled up with zeros."""

    rows: slice  # of the batch; what was filled in is not in it
    logits_nV: Tensor
    targets_n: Tensor
    positions_n: np.ndarray


@torch.no_grad()
def logit_blocks(said: Said) -> Iterator[Block]:
    """Blocks of what is said, in order, with fp32 logits on the head's device.

    The last bits of a row of a matrix product depend on the number of rows. All blocks have the same, so a position's
    record does not depend on the batch it is made in.
    """
    device = said.head.weight_VD.device
    head = said.head._replace(weight_VD=said.head.weight_VD.float())
    for first in range(0, len(said), BLOCK):
        rows = slice(first, min(first + BLOCK, len(said)))
        missing = first + BLOCK - rows.stop
        features_nD = functional.pad(said.features_ND[rows].to(device).float(), (0, 0, 0, missing))
        with torch.autocast(device.type, enabled=False):
            logits_nV = head.logits(features_nD)
        targets_n = functional.pad(said.targets_N[rows].to(device), (0, missing))
        yield Block(rows, logits_nV, targets_n, np.pad(said.positions_N[rows], (0, missing)))


def fill(field_n: np.ndarray, values_n: Tensor) -> None:
    """Copy a block's values into a field of its records, as many as there are records."""
    field_n[...] = values_n[: len(field_n)].cpu().numpy()


@torch.no_grad()
def live_logits(said: Said) -> Iterator[tuple[slice, Tensor]]:
    """Parts of what is said and their fp32 logits, for comparisons."""
    for rows in row_chunks(len(said), len(said.head.weight_VD), CHUNK_BYTES):
        yield rows, said.head.logits(said.features_ND[rows].float())


def largest_difference(recorded_NK: Tensor, live_NK: Tensor) -> Tensor:
    """Largest |recorded - live| of each row's log-probabilities, over tokens that are likely by either; [N].

    A NaN on either side gives NaN.
    """
    unlikely_NK = torch.maximum(recorded_NK, live_NK) < LOG_LIKELY
    return (recorded_NK - live_NK).abs().masked_fill(unlikely_NK, 0.0).amax(-1)


def dense_differences(signal: DenseSignal, said: Said) -> np.ndarray:
    """How far a dense signal's log-probabilities at temperature 1 are from the live ones, [N].

    The largest over likely tokens and the target, likely or not.
    """
    differences = []
    for rows, logits_nV in live_logits(said):
        live_nV = logits_nV.log_softmax(-1)
        recorded_nV = signal.logits(rows).log_softmax(-1)
        at_target_n = (recorded_nV - live_nV).gather(1, said.targets_N[rows, None].to(live_nV.device))[:, 0].abs()
        differences.append(torch.maximum(largest_difference(recorded_nV, live_nV), at_target_n))
    return torch.cat(differences).cpu().numpy()
