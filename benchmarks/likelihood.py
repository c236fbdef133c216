"""Rows to log-probabilities of their tokens: causal, masked, and masked next-token prediction.

Rows of (nearly) equal length are read together, so that hardly any padding is computed, and a model never gets more
than `max_tokens` tokens at once, however long a text is.

Axes: B rows of one forward pass, T positions of its longest row, N scored positions, row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.scored_rows import ScoredRow
from benchmarks.scorer import Candidate, target_log_probs
from corpora.batch import PADDING_SEGMENT
from corpora.errors import InputRefused

# A forward pass below this many tokens costs mostly its fixed overhead, so rows of unequal length may share it ...
TINY_BATCH_TOKENS = 512
# ... as long as no row is padded by more than this share of the longest.
LARGEST_PADDING = 0.25

Ids = tuple[int, ...]


def token_scores(
    candidate: Candidate, rows: Sequence[ScoredRow], *, mask_id: int | None, max_tokens: int
) -> list[np.ndarray]:
    """Log-probabilities in nats of the scored tokens of each row, float64 [targets of the row], rows as given.

    A causal candidate says log p(token | tokens before); a masked one log p(token | all others but those hidden with
    it), from one masked copy for each token. `mask_id`: of the mask token, read for masked candidates alone.
    `max_tokens`: most tokens in a forward pass. Equal rows are scored once, so that they tie exactly. A token that no
    output predicts (the first one of a row, where outputs predict the next) is left out.

    Raises InputRefused for a row that is longer than `max_tokens` or than the candidate reads, and where a masked
    candidate has no mask token.
    """
    for row in rows:
        require_scorable(row, candidate, max_tokens)
    # longest first: a forward pass that does not fit in memory fails at once, not after an hour
    unique = sorted(set(rows), key=lambda row: (-len(row.ids), row.ids, row.targets))
    if candidate.objective == "causal":
        scores = _causal_scores(candidate, unique, max_tokens)
    else:
        scores = _masked_scores(candidate, unique, mask_id, max_tokens)
    score_of = dict(zip(unique, scores, strict=True))
    return [score_of[row] for row in rows]


def scorable(row: ScoredRow, candidate: Candidate) -> tuple[int, ...]:
    """The positions of a row that an output predicts."""
    return tuple(position for position in row.targets if position >= candidate.lookback)


def require_scorable(row: ScoredRow, candidate: Candidate, max_tokens: int) -> None:
    """Refuse a row that does not fit. Raises InputRefused."""
    longest = min(max_tokens, candidate.max_positions or max_tokens)
    if len(row.ids) > longest:
        raise InputRefused(
            f"{len(row.ids)} tokens; expected at most {longest} ({candidate.name} reads "
            f"{candidate.max_positions or 'any number'}, benchmarks.max_tokens is {max_tokens}); shorten or remove it"
        )


def length_batches(lengths: Iterable[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of rows to be read together; `lengths` come longest first and are taken one at a time.

    Rows of different lengths share a batch only while it is tiny. Padding included, a batch has at most `max_tokens`
    tokens; a single longer row would stand alone.
    """
    batch: list[int] = []
    longest = 0
    for index, length in enumerate(lengths):
        full = (len(batch) + 1) * longest > max_tokens
        padded = length != longest and (
            len(batch) * longest >= TINY_BATCH_TOKENS or length < (1 - LARGEST_PADDING) * longest
        )
        if batch and (full or padded):
            yield batch
            batch = []
        if not batch:
            longest = length
        batch.append(index)
    if batch:
        yield batch


def _causal_scores(candidate: Candidate, rows: list[ScoredRow], max_tokens: int) -> list[np.ndarray]:
    """log p(token | tokens before) of the scored tokens of each row; what stands behind the last one is not read."""
    targets = [scorable(row, candidate) for row in rows]
    scores = [np.empty(0)] * len(rows)
    order = sorted((n for n in range(len(rows)) if targets[n]), key=lambda n: (-_last(targets[n]), rows[n].ids))
    for batch in length_batches((_last(targets[number]) for number in order), max_tokens):
        numbers = [order[index] for index in batch]
        inputs_BT, segments_BT = _padded([rows[number].ids[: _last(targets[number])] for number in numbers])
        wanted_BT = torch.zeros_like(inputs_BT, dtype=torch.bool)
        for index, number in enumerate(numbers):
            wanted_BT[index, [position - 1 for position in targets[number]]] = True
        targets_N = torch.tensor([rows[number].ids[position] for number in numbers for position in targets[number]])
        picked_N = target_log_probs(candidate, inputs_BT, segments_BT, targets_N, wanted_BT).double().numpy()
        ends = np.cumsum([len(targets[number]) for number in numbers])
        for number, part in zip(numbers, np.split(picked_N, ends[:-1]), strict=True):
            scores[number] = part
    return scores


def _last(targets: Sequence[int]) -> int:
    """Tokens that must be read to predict the last target."""
    return targets[-1]


def _masked_scores(
    candidate: Candidate, rows: list[ScoredRow], mask_id: int | None, max_tokens: int
) -> list[np.ndarray]:
    """log p(token | all others but those hidden with it) of the scored tokens of each row."""
    if mask_id is None:
        raise InputRefused(f"{candidate.name}: its tokenizer has no mask token; expected one for a masked model")
    scores = [np.empty(len(scorable(row, candidate))) for row in rows]
    for copies in _masked_copies(candidate, rows, max_tokens):
        inputs_BT, segments_BT = _padded([rows[copy[0]].ids for copy in copies])
        positions_B = torch.tensor([hidden[0] for _, _, hidden in copies])
        targets_B = inputs_BT.gather(1, positions_B[:, None])[:, 0]
        for index, (_, _, hidden) in enumerate(copies):
            inputs_BT[index, list(hidden)] = mask_id
        wanted_BT = torch.zeros_like(inputs_BT, dtype=torch.bool)
        wanted_BT[torch.arange(len(copies)), positions_B - candidate.shift] = True
        picked_B = target_log_probs(candidate, inputs_BT, segments_BT, targets_B, wanted_BT).double().numpy()
        for (number, place, _), score in zip(copies, picked_B, strict=True):
            scores[number][place] = score
    return scores


def _masked_copies(
    candidate: Candidate, rows: list[ScoredRow], max_tokens: int
) -> Iterator[list[tuple[int, int, Ids]]]:
    """Batches of (row number, number of the score, hidden positions): only numbers exist until a batch is read."""
    waiting: list[tuple[int, int, Ids]] = []

    def lengths() -> Iterator[int]:
        for number, row in enumerate(rows):
            hidden = [each for each in row.hidden if each[0] >= candidate.lookback]
            for place, each in enumerate(hidden):
                waiting.append((number, place, each))
                yield len(row.ids)

    for batch in length_batches(lengths(), max_tokens):
        # the batcher has looked at one copy beyond the batch, which opens the next one
        copies = waiting[: len(batch)]
        del waiting[: len(batch)]
        yield copies


def _padded(rows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Rows as (ids_BT, segments_BT), padded on the right with token 0, which nobody attends to or predicts."""
    longest = max(map(len, rows))
    ids_BT = torch.tensor([row + (0,) * (longest - len(row)) for row in rows], dtype=torch.int64)
    lengths_B1 = torch.tensor([[len(row)] for row in rows])
    padding_BT = torch.arange(longest)[None, :] >= lengths_B1
    return ids_BT, torch.where(padding_BT, PADDING_SEGMENT, 0)
