"""Who may see whom: segments become attention masks and positions. And in which type attention is worked out.

Axes: B rows, T positions (queries, then keys). A segment is a document of the row; padding is a segment of its own, so
every position sees at least itself and no row of a softmax is empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from corpora.batch import PADDING_SEGMENT

SDPA = "cuvee_sdpa"  # the name under which transformers knows `sdpa` below


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


def sdpa(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """transformers' own `sdpa`, but in fp32 where autocast runs on a CPU that has no tiles for bf16 (AMX).

    There torch's kernel for bf16 rows of 128 tokens takes 17 ms, forward and backward, where that for fp32 takes 10
    (8 rows, 8 heads of 64, 2 cores with AVX512-BF16); at 512 tokens both take the same.
    """
    on_cpu = query.device.type == "cpu"
    if not on_cpu or not torch.is_autocast_enabled("cpu") or torch.cpu._is_amx_tile_supported():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **settings)


AttentionInterface.register(SDPA, sdpa)
AttentionMaskInterface.register(SDPA, sdpa_mask)
