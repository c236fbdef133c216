"""Sentences to log-likelihoods: the causal sum, and the pseudo-log-likelihood of masked models.

Both read rows of (nearly) equal length together, so that hardly any padding is computed, and never give a model more
than `max_tokens` tokens at once, however long a sentence is.

Axes: B rows of one forward pass, T positions of its longest row, N scored positions, row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.scorer import Candidate, target_log_probs
from corpora.batch import PADDING_SEGMENT
from corpora.errors import InputRefused

# A forward pass below this many tokens costs mostly its fixed overhead, so rows of unequal length may share it ...
TINY_BATCH_TOKENS = 512
# ... as long as no row is padded by more than this share of the longest.
LARGEST_PADDING = 0.25

Row = tuple[int, ...]


def sentence_scores(
    candidate: Candidate, token_rows: Sequence[Sequence[int]], *, mask_id: int, max_tokens: int
) -> np.ndarray:
    """Log-likelihood of each sentence in nats, float64 [number of sentences], in the order given.

    `token_rows`: token ids, each row with the begin token first; that token is context and never scored. `mask_id`:
    id of the mask token, read for masked candidates alone. `max_tokens`: most tokens in a forward pass.

    A causal candidate's score is the sum of log p(token | tokens before); a masked candidate's is the
    pseudo-log-likelihood `original`, the sum of log p(token | all other tokens), one masked copy for each token
    (Salazar et al. 2020, arXiv 1910.14659, eq. 1). There is no normalisation by length. Equal sentences are scored
    once, so they tie exactly.

    Raises InputRefused for a sentence without a token to score, or one that is longer than `max_tokens` or than the
    candidate reads.
    """
    rows = [tuple(row) for row in token_rows]
    for number, row in enumerate(rows):
        require_scorable(row, f"sentence {number}", candidate, max_tokens)
    # longest first: a forward pass that does not fit in memory fails at once, not after an hour
    unique_rows = sorted(set(rows), key=lambda row: (-len(row), row))
    if candidate.objective == "causal":
        unique_scores = _causal_scores(candidate, unique_rows, max_tokens)
    else:
        unique_scores = _masked_scores(candidate, unique_rows, mask_id, max_tokens)
    score_of = dict(zip(unique_rows, unique_scores.tolist(), strict=True))
    return np.array([score_of[row] for row in rows], np.float64)


def require_scorable(row: Sequence[int], place: str, candidate: Candidate, max_tokens: int) -> None:
    """Refuse a row that has nothing to score or does not fit; `place` opens the message. Raises InputRefused."""
    if len(row) < 2:
        raise InputRefused(f"{place}: no token to score; expected at least one after the begin token; remove it")
    longest = min(max_tokens, candidate.max_positions or max_tokens)
    if len(row) > longest:
        raise InputRefused(
            f"{place}: {len(row)} tokens; expected at most {longest} ({candidate.name} reads "
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


def _causal_scores(candidate: Candidate, rows: list[Row], max_tokens: int) -> np.ndarray:
    """Sum of log p(token | tokens before) for each row; the last token is predicted, never read."""
    scores = np.zeros(len(rows), np.float64)
    for batch in length_batches((len(row) - 1 for row in rows), max_tokens):
        inputs_BT, segments_BT = _padded([rows[index][:-1] for index in batch])
        targets_BT, _ = _padded([rows[index][1:] for index in batch])
        real_BT = segments_BT != PADDING_SEGMENT
        picked_N = target_log_probs(candidate, inputs_BT, segments_BT, targets_BT[real_BT], real_BT)
        picked_BT = torch.zeros(real_BT.shape, dtype=torch.float64)
        picked_BT[real_BT] = picked_N.double()
        scores[batch] = picked_BT.sum(1).numpy()
    return scores


def _masked_scores(candidate: Candidate, rows: list[Row], mask_id: int, max_tokens: int) -> np.ndarray:
    """Sum of log p(token | all others) for each row, from one masked copy for each token after the begin token."""
    scores = np.zeros(len(rows), np.float64)
    for copies in _masked_copies(rows, max_tokens):
        row_numbers_B = [row_number for row_number, _ in copies]
        positions_B1 = torch.tensor([[position] for _, position in copies])
        inputs_BT, segments_BT = _padded([rows[row_number] for row_number in row_numbers_B])
        targets_B = inputs_BT.gather(1, positions_B1)[:, 0]
        wanted_BT = torch.zeros_like(inputs_BT, dtype=torch.bool).scatter_(1, positions_B1, True)
        inputs_BT.scatter_(1, positions_B1, mask_id)
        picked_B = target_log_probs(candidate, inputs_BT, segments_BT, targets_B, wanted_BT)
        np.add.at(scores, row_numbers_B, picked_B.double().numpy())
    return scores


def _masked_copies(rows: list[Row], max_tokens: int) -> Iterator[list[tuple[int, int]]]:
    """Batches of (row number, masked position): only numbers exist until a batch is read."""
    waiting: list[tuple[int, int]] = []

    def lengths() -> Iterator[int]:
        for row_number, row in enumerate(rows):
            for position in range(1, len(row)):
                waiting.append((row_number, position))
                yield len(row)

    for batch in length_batches(lengths(), max_tokens):
        # the batcher has looked at one copy beyond the batch, which opens the next one
        copies = waiting[: len(batch)]
        del waiting[: len(batch)]
        yield copies


def _padded(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Rows as (ids_BT, segments_BT), padded on the right with token 0, which nobody attends to or predicts."""
    longest = max(map(len, rows))
    ids_BT = torch.tensor([row + (0,) * (longest - len(row)) for row in rows], dtype=torch.int64)
    lengths_B1 = torch.tensor([[len(row)] for row in rows])
    padding_BT = torch.arange(longest)[None, :] >= lengths_B1
    return ids_BT, torch.where(padding_BT, PADDING_SEGMENT, 0)
