"""Who may see whom: segments become attention masks and positions. And by which operations attention is worked out.

Axes: B rows, H heads, T positions (queries, then keys), E dimensions of a head. A segment is a document of the row;
padding is a segment of its own, so every position sees at least itself and no row of a softmax is empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from corpora.batch import PADDING_SEGMENT

SDPA = "cuvee_sdpa"  # the name under which transformers knows `sdpa` below
LONGEST_WRITTEN_OUT = 512  # positions of a row


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


def documents_apart(
    segments_BT: Tensor, causal: bool, *, unmasked_is_causal: bool
) -> tuple[Tensor | None, Tensor | None]:
    """What keeps the documents of a row apart: a mask as `attention_mask` makes it, and positions in segments.

    Both are None where no row holds several, or padding, and a network that gets neither does what is asked:
    `unmasked_is_causal` says which of the two that is.
    """
    if causal == unmasked_is_causal and one_segment_per_row(segments_BT):
        return None, None
    return attention_mask(segments_BT, causal), positions_in_segments(segments_BT)


def sdpa(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """transformers' own `sdpa`, but written out where autocast to bf16 meets a CPU that has no tiles for it (AMX).

    There torch's kernel takes 15 ms for rows of 128 tokens, forward and backward, and matrix products with a softmax
    between them take 8 (8 rows, 8 heads of 64, 2 cores with AVX512-BF16); for a quarter of the rows of 512 tokens 29
    and 19. The price is that the scores are kept for the backward pass, so longer rows are the kernel's.
    """
    slow_kernel = query.device.type == "cpu" and _autocasts_to_bf16() and not torch.cpu._is_amx_tile_supported()
    if not slow_kernel or key.shape[2] > LONGEST_WRITTEN_OUT:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    with torch.autocast("cpu", enabled=False):
        return _written_out(query, key, value, attention_mask, **settings), None


def _written_out(
    query_BHTE: Tensor,
    key_BHTE: Tensor,
    value_BHTE: Tensor,
    mask_B1TT: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> Tensor:
    """Attention [B, T, H, E] by its definition in bf16; without a mask it is causal."""
    scale = query_BHTE.shape[-1] ** -0.5 if scaling is None else scaling
    heads = (query_BHTE * scale, key_BHTE, value_BHTE)
    # in one copy to what the products read: cast alone, heads would stay strided and be copied again
    query_BHTE, key_BHTE, value_BHTE = (
        tensor.to(torch.bfloat16, memory_format=torch.contiguous_format) for tensor in heads
    )
    if (groups := query_BHTE.shape[1] // key_BHTE.shape[1]) > 1:  # heads that share keys and values
        key_BHTE, value_BHTE = (tensor.repeat_interleave(groups, 1) for tensor in (key_BHTE, value_BHTE))
    length = query_BHTE.shape[2]
    mask = torch.ones(length, length, dtype=torch.bool).tril() if mask_B1TT is None else mask_B1TT
    scores_BHTT = query_BHTE @ key_BHTE.transpose(2, 3) + additive_mask(mask).to(torch.bfloat16)
    # sums in fp32 inside, and rounds what it returns once
    probs_BHTT = functional.dropout(scores_BHTT.softmax(-1), dropout)
    return (probs_BHTT @ value_BHTE).transpose(1, 2).contiguous()


def _autocasts_to_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


AttentionInterface.register(SDPA, sdpa)
AttentionMaskInterface.register(SDPA, sdpa_mask)
