"""What a step of LTG-BERT's family spends its time on beside the products of weights, by hand for CPUs.

Each function says in plain PyTorch what it means; that is what compilers and GPUs get, which fuse by themselves. On a
CPU in eager mode it is worked out by an autograd function below, with the same values and gradients up to rounding
(tests/test_students_ltg_fast.py), that goes through memory less often and keeps less for the backward pass. This file
travels with exported models: it needs torch alone.

Axes: B rows, T positions, D hidden, H heads, E dimensions of a head, P relative positions in reach, F feed-forward
width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

DRAWS = 1 << 16  # a dropout compares 16 bits of a random number
BF16_NUMBERS = 1 << 16
AT_ONCE = 1 << 20  # numbers that are worked on together: fewer would cost calls, more would leave the caches
FEW = 48  # rows and heads


class Dropout(nn.Dropout):
    """torch's, but for draws of 16 bits: p is rounded to a 65,536th, and what is kept is scaled accordingly."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's own name
        """Zeros with probability p, and the rest scaled so that means stay as they are; same shape."""
        if not self.training or not self.p:
            return input
        drawable = round(self.p * DRAWS) < DRAWS  # else everything is dropped
        return _Dropout.apply(input, self.p) if drawable and _by_hand(input) else super().forward(input)  # pyright: ignore[reportReturnType]


class Places(NamedTuple):
    """Which relative position stands between a query and a key, and in which order gradients meet it.

    Bag n T + r of queries (keys) holds the places i T + j of the scores that query n (key n) has with position r; the
    places of all bags stand behind each other, and a bag begins where it is said to.
    """

    index_TT: Tensor  # int64: row of the relative positions for query i and key j
    of_queries: tuple[Tensor, Tensor]  # int32: places [T T], beginnings [T P]
    of_keys: tuple[Tensor, Tensor]


def places(rows_of_offsets: Tensor, num_positions: int) -> Places:
    """The places of T queries and keys; `rows_of_offsets` [2 T - 1] never falls: rows of the offsets 1 - T to T - 1."""
    length = (len(rows_of_offsets) + 1) // 2
    tokens_T = torch.arange(length, device=rows_of_offsets.device)
    index_TT = rows_of_offsets[tokens_T[:, None] - tokens_T[None, :] + length - 1]
    place_TT = torch.arange(length**2, dtype=torch.int32, device=rows_of_offsets.device).view(length, length)
    # the lowest offset of each row: query i has it with keys up to i - lowest, key j with queries from j + lowest on
    positions_P = torch.arange(num_positions, device=rows_of_offsets.device)
    lowest_P = torch.searchsorted(rows_of_offsets, positions_P) - (length - 1)
    begin = tokens_T[:, None] * length
    of_queries = begin + (length - 1 - tokens_T[:, None] + lowest_P).clamp(0, length)
    of_keys = begin + (tokens_T[:, None] + lowest_P).clamp(0, length)
    return Places(
        index_TT,
        (place_TT.flip(1).flatten(), of_queries.flatten().int()),
        (place_TT.t().flatten(), of_keys.flatten().int()),
    )


def relative_attention(
    query_key_BTD: Tensor,
    value_BTD: Tensor,
    relative_PD: Tensor,
    where: Places,
    mask_B1TT: Tensor | None,
    *,
    num_heads: int,
    dropout: float,
) -> Tensor:
    """The values that each position reads, [B, T, D], heads side by side.

    score_ij = (q_i k_j + q_i kr_r + qr_r k_j) / sqrt(3 E), where r stands for the offset i - j; there is no term for
    two positions (arXiv 2006.03654, eq. 4). `query_key_BTD` holds queries, then keys, [B, T, 2 D], and `relative_PD`
    those of positions, [P, 2 D]. `mask_B1TT` is added to the scores; probabilities are dropped.
    """
    one_type = query_key_BTD.dtype == value_BTD.dtype == relative_PD.dtype
    if one_type and _by_hand(query_key_BTD):
        with torch.autocast("cpu", enabled=False):  # what is multiplied has the type of products already
            return _RelativeAttention.apply(query_key_BTD, value_BTD, relative_PD, where, mask_B1TT, num_heads, dropout)  # pyright: ignore[reportReturnType]
    query_BHTE, key_BHTE, value_BHTE, relative_query_1HPE, relative_key_1HPE = _all_heads(
        query_key_BTD, value_BTD, relative_PD, num_heads
    )
    scale = _scale(query_BHTE)
    index_BHTT = where.index_TT.expand(*query_BHTE.shape[:2], -1, -1)
    query_BHTE = query_BHTE * scale
    scores_BHTT = query_BHTE @ key_BHTE.mT
    scores_BHTT = scores_BHTT + (query_BHTE @ relative_key_1HPE.mT).gather(-1, index_BHTT)
    scores_BHTT = scores_BHTT + ((relative_query_1HPE * scale) @ key_BHTE.mT).gather(-2, index_BHTT)
    if mask_B1TT is not None:
        scores_BHTT = scores_BHTT + mask_B1TT
    # fp32: what a bf16 softmax loses in the tail adds up over the row
    probs_BHTT = scores_BHTT.softmax(-1, dtype=torch.float32).to(value_BHTE.dtype)
    return (functional.dropout(probs_BHTT, dropout) @ value_BHTE).transpose(1, 2).flatten(2)


def gated_gelu(both: Tensor) -> Tensor:
    """The first half of the last axis times GELU (tanh's approximation) of the second, [.., F] of [.., 2 F]."""
    if _by_hand(both) and both.dtype == torch.bfloat16:
        return _GatedGelu.apply(both)  # pyright: ignore[reportReturnType]
    value, gate = both.chunk(2, dim=-1)
    return value * functional.gelu(gate, approximate="tanh")


def weighted_sum(weights: Tensor, states: Sequence[Tensor]) -> Tensor:
    """sum_j weights_j states_j over tensors of one shape; `weights` are one number for each."""
    if _by_hand(states[0]) and len({state.dtype for state in states}) == 1:
        return _WeightedSum.apply(weights, *states)  # pyright: ignore[reportReturnType]
    return sum(weight * state for weight, state in zip(weights.unbind(), states, strict=True))  # pyright: ignore[reportReturnType]


def _by_hand(tensor: Tensor) -> bool:
    """Whether numbers are there to be worked on: not a compiler's, a trace's or functorch's, nor on another device."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    return not wrapped and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def _scale(query_BHTE: Tensor) -> float:
    """Three terms make a score."""
    return 1 / math.sqrt(3 * query_BHTE.shape[-1])


def _heads(projected: Tensor, num_heads: int, parts: int) -> tuple[Tensor, ...]:
    """Split the last axis into `parts`, and each into heads: [rows, H, positions, E]."""
    return tuple(part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in projected.chunk(parts, dim=-1))


def _all_heads(query_key_BTD: Tensor, value_BTD: Tensor, relative_PD: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Queries, keys and values, and queries and keys of relative positions."""
    return (
        *_heads(query_key_BTD, num_heads, 2),
        *_heads(value_BTD, num_heads, 1),
        *_heads(relative_PD[None], num_heads, 2),
    )


class _Dropout(torch.autograd.Function):
    """x_i keep_i / (1 - p), and the same of the gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:  # noqa: A002
        ctx.keep, ctx.scale = drawn(input, p)
        return kept_(input * ctx.scale, ctx.keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return kept_(gradient * ctx.scale, ctx.keep), None


class _RelativeAttention(torch.autograd.Function):
    """A few heads at a time, so that their scores stay in the cache while they are worked on.

    Of the scores nothing is kept but their probabilities, whose free sign says what was dropped. R rows and heads.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_key_BTD: Tensor,
        value_BTD: Tensor,
        relative_PD: Tensor,
        where: Places,
        mask_B1TT: Tensor | None,
        num_heads: int,
        p: float,
    ) -> Tensor:
        batch, length = value_BTD.shape[:2]
        query_RTE, key_RTE = _rows_of_heads(query_key_BTD, num_heads, 2)
        (value_RTE,) = _rows_of_heads(value_BTD, num_heads, 1)
        relative_query_RPE, relative_key_RPE = _rows_of_heads(relative_PD.expand(batch, -1, -1), num_heads, 2)
        scale, kept_scale = _scale(query_RTE), 1.0
        context_RTE = torch.empty_like(value_RTE)
        wanted = any(ctx.needs_input_grad)
        probs_RTT = value_RTE.new_empty(len(value_RTE), length, length) if wanted else None
        for part in _blocks(len(value_RTE), length**2):
            query, key = query_RTE[part], key_RTE[part]
            index = where.index_TT.expand(len(query), -1, -1)
            scores = _gathered(query @ relative_key_RPE[part].mT, -1, index)
            scores.add_(_gathered(relative_query_RPE[part] @ key.mT, -2, index))
            # products of contents are added to those of positions in the products' own accumulator
            torch.baddbmm(scores, query, key.mT, beta=scale, alpha=scale, out=scores)
            if mask_B1TT is not None:
                scores.add_(_mask_of(part, mask_B1TT, num_heads))
            # sums in fp32 inside, and rounds what it returns once
            probs = torch.softmax(scores, -1, out=None if probs_RTT is None else probs_RTT[part])
            if p:
                keep, kept_scale = drawn(probs, p)
                probs = mark_(probs, keep).relu()
            torch.bmm(probs, value_RTE[part], out=context_RTE[part])
        if probs_RTT is not None:
            ctx.save_for_backward(query_RTE, key_RTE, value_RTE, relative_query_RPE, relative_key_RPE, probs_RTT)
        ctx.where, ctx.num_heads, ctx.dropped, ctx.kept_scale = where, num_heads, bool(p), kept_scale
        return _side_by_side(context_RTE.mul_(kept_scale), num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BTD: Tensor) -> tuple[Tensor | None, ...]:
        query_RTE, key_RTE, value_RTE, relative_query_RPE, relative_key_RPE, probs_RTT = ctx.saved_tensors
        num_heads = ctx.num_heads
        (gradient_RTE,) = _rows_of_heads(gradient_BTD * ctx.kept_scale, num_heads, 1)
        slope_RTT = torch.empty_like(probs_RTT)
        by_query_RTE, by_key_RTE, by_value_RTE = (torch.empty_like(query_RTE) for _ in range(3))
        for part in _blocks(len(query_RTE), query_RTE.shape[1] ** 2):
            probs, gradient, slope = probs_RTT[part], gradient_RTE[part], slope_RTT[part]
            torch.bmm((probs.relu() if ctx.dropped else probs).mT, gradient, out=by_value_RTE[part])
            by_probs = gradient @ value_RTE[part].mT
            if ctx.dropped:  # where the sign is negative nothing was read
                by_probs = torch.ops.aten.threshold_backward(by_probs, probs, 0)
                probs = probs.abs()
            torch.ops.aten._softmax_backward_data.out(by_probs, probs, -1, probs.dtype, grad_input=slope)
            torch.bmm(slope, key_RTE[part], out=by_query_RTE[part])
            torch.bmm(slope.mT, query_RTE[part], out=by_key_RTE[part])
        of_queries_RTP, of_keys_RTP = _summed_by_position(slope_RTT, ctx.where)
        scale = _scale(query_RTE)
        by_query_RTE.baddbmm_(of_queries_RTP, relative_key_RPE, beta=scale, alpha=scale)
        by_key_RTE.baddbmm_(of_keys_RTP, relative_query_RPE, beta=scale, alpha=scale)
        by_relative_RPE = (of_keys_RTP.mT @ key_RTE, of_queries_RTP.mT @ query_RTE)
        by_relative_BPD = [_side_by_side(part.mul_(scale), num_heads) for part in by_relative_RPE]
        return (
            torch.cat([_side_by_side(part, num_heads) for part in (by_query_RTE, by_key_RTE)], -1),
            _side_by_side(by_value_RTE, num_heads),
            torch.cat([part.sum(0) for part in by_relative_BPD], -1),
            None,
            None,
            None,
            None,
        )


def _rows_of_heads(projected: Tensor, num_heads: int, parts: int) -> tuple[Tensor, ...]:
    """As `_heads`, each head of each row by itself: [R, positions, E], contiguous."""
    return tuple(part.flatten(0, 1).contiguous() for part in _heads(projected, num_heads, parts))


def _side_by_side(of_heads: Tensor, num_heads: int) -> Tensor:
    """The inverse: [B, positions, D]."""
    return of_heads.unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)


def _blocks(number: int, size: int) -> list[slice]:
    """So many things of this size in turn, a cache's worth at a time."""
    step = max(2, AT_ONCE // size)
    return [slice(first, min(first + step, number)) for first in range(0, number, step)]


def _mask_of(part: slice, mask_B1TT: Tensor, num_heads: int) -> Tensor:
    """The mask of some rows and heads, [.., T, T]."""
    rows = torch.arange(part.start, part.stop) // num_heads
    return mask_B1TT[:, 0] if len(mask_B1TT) == 1 else mask_B1TT[rows, 0]


def _gathered(small: Tensor, axis: int, index: Tensor) -> Tensor:
    """`small.gather`, which takes half the time for whole numbers of two bytes that it takes for bf16."""
    if small.dtype != torch.bfloat16:
        return small.gather(axis, index)
    return small.view(torch.int16).gather(axis, index).view(torch.bfloat16)


def _summed_by_position(slope_RTT: Tensor, where: Places) -> tuple[Tensor, Tensor]:
    """Sums over the keys of each query, and over the queries of each key, by relative position: [R, T, P] each.

    Rows and heads become the last axis, so that a sum adds long runs of memory instead of single numbers.
    """
    flat = slope_RTT.flatten(1)
    # torch interleaves a few by several threads, and transposes many by one
    last = torch.stack(flat.unbind(), -1) if len(flat) <= FEW else flat.t().contiguous()
    of_queries, of_keys = (
        functional.embedding_bag(order, last, begin, mode="sum").t().contiguous().view(*slope_RTT.shape[:2], -1)
        for order, begin in (where.of_queries, where.of_keys)
    )
    return of_queries, of_keys


class _GatedGelu(torch.autograd.Function):
    """GELU and its slope are looked up: a bf16 number is one of 65,536."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        value, gate = both.chunk(2, dim=-1)
        index = gate.view(torch.int16).long().bitwise_and_(BF16_NUMBERS - 1)
        gelu = _looked_up(0, index)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(gelu, _looked_up(1, index).mul_(value))
        return gelu * value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        by_both = gradient.new_empty(*gradient.shape[:-1], 2 * gradient.shape[-1])
        for slope, part in zip(ctx.saved_tensors, by_both.chunk(2, dim=-1), strict=True):
            torch.mul(gradient, slope, out=part)
        return by_both


@functools.cache
def _gelu_tables() -> Tensor:
    """GELU of every bf16 number by its bits, and its slope: [2, 65,536], worked out in fp64 and rounded once."""
    bits = torch.arange(BF16_NUMBERS, dtype=torch.int32).to(torch.int16)
    with torch.inference_mode(False), torch.enable_grad():
        numbers = bits.view(torch.bfloat16).double().requires_grad_()
        gelu = functional.gelu(numbers, approximate="tanh")
        (slope,) = torch.autograd.grad(gelu.sum(), numbers)
        return torch.stack([gelu.detach(), slope]).to(torch.bfloat16)


def _looked_up(table: int, index: Tensor) -> Tensor:
    rows = _gelu_tables()[table].view(torch.int16).expand(*index.shape[:-1], -1)
    return rows.gather(-1, index).view(torch.bfloat16)


class _WeightedSum(torch.autograd.Function):
    """Each state is read once on the way there, and twice on the way back."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *states: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *states)
        first, *others = weights.tolist()
        total = states[0] * first
        for weight, state in zip(others, states[1:], strict=True):
            total.add_(state, alpha=weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, *states = ctx.saved_tensors
        by_weight = [torch.linalg.vecdot(state, gradient).sum(dtype=torch.float32) for state in states]
        return torch.stack(by_weight).to(weights.dtype), *(gradient * weight for weight in weights.tolist())


def drawn(like: Tensor, p: float) -> tuple[Tensor, float]:
    """What a dropout keeps, int16 of the shape of `like`: all bits set, or none; and the scale of what is kept."""
    dropped = round(p * DRAWS)
    keep = torch.empty(like.numel(), dtype=torch.int16)
    torch.ge(random_words(like.numel()), dropped - DRAWS // 2, out=keep)
    return keep.neg_().view(like.shape), DRAWS / (DRAWS - dropped)


def random_words(count: int) -> Tensor:
    """Uniform random numbers, int16 [count]: hashes of a counter, which all threads work out side by side.

    Where the counter starts and a number within the hash come from torch's generator. The hash is lowbias32
    (Wellons, 2018); each gives two words.
    """
    start, key = torch.randint(-(1 << 31), 1 << 31, (2,)).tolist()
    bits = torch.arange(-(-count // 2), dtype=torch.int32).add_(start)
    shifted = torch.empty_like(bits)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32))):
        _xor_shifted_(bits, shift, shifted).mul_(factor).add_(key)
    return _xor_shifted_(bits, 16, shifted).view(torch.int16)[:count]


def _xor_shifted_(bits: Tensor, shift: int, shifted: Tensor) -> Tensor:
    """bits ^ (bits >> shift) in place, zeros coming in from the left; `shifted` is memory of the same shape."""
    torch.bitwise_right_shift(bits, shift, out=shifted)
    return bits.bitwise_xor_(shifted.bitwise_and_((1 << (32 - shift)) - 1))


def kept_(tensor: Tensor, keep: Tensor) -> Tensor:
    """Zeros in place where `keep` has no bit set."""
    if tensor.element_size() == 2:
        tensor.view(torch.int16).bitwise_and_(keep)
        return tensor
    return tensor.mul_(keep.neg())


def mark_(probs: Tensor, keep: Tensor) -> Tensor:
    """The sign of what is not kept becomes negative; both tensors are written over."""
    if probs.element_size() == 2:
        probs.view(torch.int16).bitwise_or_(keep.bitwise_not_().bitwise_and_(-(1 << 15)))
        return probs
    return torch.copysign(probs, keep.bitwise_not_(), out=probs)
