"""Requests to rows of tokens, and which of the tokens count: what a protocol says about text, carried out.

A row is all that the arithmetic of scores sees. Equal rows are scored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from benchmarks.protocol import Protocol
from benchmarks.request import Request
from benchmarks.scoring_tokenizer import ScoringTokenizer


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """Token ids, the positions that are scored, ascending, and for each of them the positions that are hidden with it.

    `hidden` is read for masked models alone; each entry begins with the scored position itself.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    hidden: tuple[tuple[int, ...], ...]


def rows_of_requests(
    requests: Sequence[Request], tokenizer: ScoringTokenizer, protocol: Protocol, *, masked: bool
) -> list[list[ScoredRow]]:
    """The rows of each request, in their order: one, or one for each token of a text before masks."""
    in_one = [request for request in requests if not (masked and request.masks)]
    rows = iter(scored_rows(in_one, tokenizer, protocol, masked=masked))
    return [
        _rows_before_masks(request, tokenizer, protocol) if masked and request.masks else [next(rows)]
        for request in requests
    ]


def scored_rows(
    requests: Sequence[Request], tokenizer: ScoringTokenizer, protocol: Protocol, *, masked: bool
) -> list[ScoredRow]:
    """A row for each request, in their order, without its `masks`. A text without a token: a row without targets."""
    texts = [_text(request, protocol, masked) for request in requests]
    joined = [text if request.apart else request.context + text for request, text in zip(requests, texts, strict=True)]
    contexts = [_context(request, protocol) for request in requests]
    # of a context alone only its tokens, or their number, are wanted, and only where the characters do not say it
    read_alone = [
        context if request.apart or protocol.boundary == "tokens" else ""
        for request, context in zip(requests, contexts, strict=True)
    ]
    rows = []
    for request, context, encoding, before in zip(
        requests, contexts, tokenizer.encode(joined), tokenizer.encode(read_alone), strict=True
    ):
        if request.apart:
            ids, words = before.ids + encoding.ids, [None] * len(before.ids) + list(encoding.word_ids)
            first = len(before.ids)
        else:
            ids, words = encoding.ids, list(encoding.word_ids)
            ended = sum(end <= len(context) for _, end in encoding.offsets)
            first = len(before.ids) if protocol.boundary == "tokens" else ended
        leading = _leading(tokenizer, protocol, masked=masked, has_context=bool(context))
        rows.append(_row(ids, words, first, leading, tokenizer.trailing if masked else (), protocol))
    return rows


def _rows_before_masks(request: Request, tokenizer: ScoringTokenizer, protocol: Protocol) -> list[ScoredRow]:
    """A row for each token of a text, which takes the place of the first of the masks.

    As in the challenge of 2025, tokens are written out one by one, and what is written is tokenised anew: behind the
    context before the next one is asked for, and alone as what is asked for. A piece that is written otherwise than it
    was read, such as BERT's `##s`, is so asked for as the first token of what is written, here `#`.
    """
    (word,) = tokenizer.encode([request.text])
    written = [tokenizer.written(token) for token in word.ids]
    contexts = [request.context + "".join(written[:place]) for place in range(max(1, len(written)))]
    leading = _leading(tokenizer, protocol, masked=True, has_context=bool(request.context))
    mask_id = tokenizer.require("mask", tokenizer.mask_id)
    trailing = (mask_id,) * (request.masks - 1) + tokenizer.trailing
    rows = []
    for before, text in zip(tokenizer.encode(contexts), tokenizer.encode([request.text, *written[1:]]), strict=True):
        ids = before.ids + text.ids[:1]
        rows.append(_row(ids, [None] * len(ids), len(before.ids), leading, trailing, protocol))
    return rows


def _row(
    ids: list[int],
    words: list[int | None],
    first: int,
    leading: tuple[int, ...],
    trailing: tuple[int, ...],
    protocol: Protocol,
) -> ScoredRow:
    """The row of tokens of which those from `first` on count, between special tokens that never do."""
    hidden = []
    for position in range(first, len(ids)):
        following = range(position + 1, len(ids)) if protocol.pll == "within_word_l2r" else ()
        same_word = takewhile(lambda later, word=words[position]: word is not None and words[later] == word, following)
        hidden.append(tuple(len(leading) + each for each in (position, *same_word)))
    return ScoredRow((*leading, *ids, *trailing), tuple(each[0] for each in hidden), tuple(hidden))


def _text(request: Request, protocol: Protocol, masked: bool) -> str:
    space_before = protocol.masked_after_end if masked else protocol.space
    return " " + request.text if space_before and not request.context else request.text


def _context(request: Request, protocol: Protocol) -> str:
    """What counts as the context; a space at its end goes with the token after it where tokens are counted."""
    return request.context.rstrip() if protocol.boundary == "tokens" else request.context


def _leading(tokenizer: ScoringTokenizer, protocol: Protocol, *, masked: bool, has_context: bool) -> tuple[int, ...]:
    """The special tokens before a row's text."""
    frame = protocol.masked if masked else protocol.causal
    if frame == "prefix" and not has_context:
        return (tokenizer.require("begin or end", _either(tokenizer.begin_id, tokenizer.end_id)),)
    leading = tokenizer.leading
    if frame == "begin" and not leading:
        leading = (tokenizer.require("begin", tokenizer.begin_id),)
    if masked and protocol.masked_after_end and not has_context:
        leading += (tokenizer.require("end", tokenizer.end_id),)
    return leading


def _either(first: int | None, second: int | None) -> int | None:
    return second if first is None else first
