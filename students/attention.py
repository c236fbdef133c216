"""Who may see whom: segments become attention masks and positions.

Axes: B rows, T positions (queries, then keys). A segment is a document of the row; padding is a segment of its own, so
every position sees at least itself and no row of a softmax is empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from corpora.batch import PADDING_SEGMENT


def attention_mask(segments_BT: Tensor, causal: bool) -> Tensor:
    """True where a query (third axis) may see a key (last axis), bool [B, 1, T, T].

    Both stand in the same segment; with `causal` the key does not stand after the query.
    """
    mask_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    return (mask_BTT.tril() if causal else mask_BTT)[:, None]


def additive_mask(mask_B1TT: Tensor) -> Tensor:
    """The mask as a term of the scores, fp32: 0 where seen, minus infinity elsewhere."""
    return torch.zeros_like(mask_B1TT, dtype=torch.float32).masked_fill(~mask_B1TT, -torch.inf)


def one_segment_per_row(segments_BT: Tensor) -> bool:
    """Whether every row is one document without padding, so that no mask of segments is needed.

    Reads one bit back from the device.
    """
    first_B1 = segments_BT[:, :1]
    return bool(((segments_BT == first_B1) & (first_B1 != PADDING_SEGMENT)).all())


def positions_in_segments(segments_BT: Tensor) -> Tensor:
    """Position of each token inside its segment, from 0, int64 [B, T].

    Rotary angles restart with the document, so its features do not depend on where in a row it stands.
    """
    indices_BT = torch.arange(segments_BT.shape[1], device=segments_BT.device).expand_as(segments_BT)
    starts_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    first_of_segment_BT = torch.where(starts_BT, indices_BT, 0).cummax(dim=1).values
    return indices_BT - first_of_segment_BT
