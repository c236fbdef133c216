"""Rows to log-probabilities of their tokens: causal, masked, and masked next-token prediction.

Rows of (nearly) equal length are read together, so that hardly any padding is computed, and a model never gets more
than `max_tokens` tokens at once, however long a text is.

Axes: B rows of one forward pass, T positions of its longest row, N scored positions, row by row, K scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.scored_rows import ScoredRow
from benchmarks.scorer import Candidate, TreeLogProbs, target_log_probs
from benchmarks.token_trees import token_trees, tree_tensors
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
    if candidate.tree_log_probs is not None:
        return _scores_in_trees(candidate, candidate.tree_log_probs, rows, max_tokens)
    targets = [scorable(row, candidate) for row in rows]
    scores = [np.empty(0)] * len(rows)
    order = sorted((n for n in range(len(rows)) if targets[n]), key=lambda n: (-_last(targets[n]), rows[n].ids))
    for batch in length_batches((_last(targets[number]) for number in order), _most(candidate, max_tokens)):
        numbers = [order[index] for index in batch]
        inputs_BT, segments_BT = _padded([rows[number].ids[: _last(targets[number])] for number in numbers])
        wanted_BT = torch.zeros_like(inputs_BT, dtype=torch.bool)
        for index, number in enumerate(numbers):
            wanted_BT[index, [position - 1 for position in targets[number]]] = True
        targets_N = torch.tensor([rows[number].ids[position] for number in numbers for position in targets[number]])
        asked = (inputs_BT, segments_BT, wanted_BT)
        if candidate.token_log_probs is not None:
            picked_N = candidate.token_log_probs(*asked, targets_N)
        else:
            picked_N = target_log_probs(candidate, candidate.log_probs(*asked), targets_N)
        _share_out(scores, picked_N.double().numpy(), {number: len(targets[number]) for number in numbers})
    return scores


def _scores_in_trees(
    candidate: Candidate, log_probs: TreeLogProbs, rows: list[ScoredRow], max_tokens: int
) -> list[np.ndarray]:
    """The same scores, up to rounding, where rows that begin alike are read as one."""
    targets = [scorable(row, candidate) for row in rows]
    scores = [np.empty(0)] * len(rows)
    read = [row.ids[: _last(wanted)] if wanted else () for row, wanted in zip(rows, targets, strict=True)]
    trees = token_trees(read, most=max_tokens)
    for batch in length_batches((len(tree.ids) for tree in trees), _most(candidate, max_tokens)):
        together = [trees[index] for index in batch]
        inputs_BT, depths_BT, sees_BTT = tree_tensors(together)
        numbers = [number for tree in together for number in tree.rows]
        outputs = [
            index * inputs_BT.shape[1] + path[position - 1]
            for index, tree in enumerate(together)
            for number, path in tree.rows.items()
            for position in targets[number]
        ]
        # a node that predicts a target of several rows has one output
        wanted, outputs_K = torch.tensor(outputs).unique(return_inverse=True)
        wanted_BT = torch.zeros_like(inputs_BT, dtype=torch.bool)
        wanted_BT.view(-1)[wanted] = True
        targets_K = torch.tensor([rows[number].ids[position] for number in numbers for position in targets[number]])
        log_probs_NV = log_probs(inputs_BT, depths_BT, sees_BTT, wanted_BT)
        picked_K = target_log_probs(candidate, log_probs_NV, targets_K, outputs_K).double().numpy()
        _share_out(scores, picked_K, {number: len(targets[number]) for number in numbers})
    return scores


def _share_out(scores: list[np.ndarray], found: np.ndarray, lengths: Mapping[int, int]) -> None:
    """Give each row its part of what was found; `lengths`: how long it is, by number of the row and in their order."""
    ends = np.cumsum(list(lengths.values()))
    for number, part in zip(lengths, np.split(found, ends[:-1]), strict=True):
        scores[number] = part


def _most(candidate: Candidate, max_tokens: int) -> int:
    """Tokens of a forward pass of short rows."""
    return min(max_tokens, candidate.best_tokens or max_tokens)


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
        # copies that differ only in what they hide are one: those of a pair, hidden where its sentences differ
        found: dict[tuple[Ids, int], int] = {}
        outputs = [
            found.setdefault(_masked(rows[number].ids, hidden, mask_id), len(found)) for number, _, hidden in copies
        ]
        inputs_BT, segments_BT = _padded([ids for ids, _ in found])
        wanted_BT = torch.zeros_like(inputs_BT, dtype=torch.bool)
        wanted_BT[torch.arange(len(found)), torch.tensor([place - candidate.shift for _, place in found])] = True
        targets_K = torch.tensor([rows[number].ids[hidden[0]] for number, _, hidden in copies])
        log_probs_NV = candidate.log_probs(inputs_BT, segments_BT, wanted_BT)
        picked_K = target_log_probs(candidate, log_probs_NV, targets_K, torch.tensor(outputs))
        for (number, place, _), score in zip(copies, picked_K.double().tolist(), strict=True):
            scores[number][place] = score
    return scores


def _masked(ids: Ids, hidden: Ids, mask_id: int) -> tuple[Ids, int]:
    """A copy of a row with its tokens hidden, and the position that is asked for."""
    copy = list(ids)
    for position in hidden:
        copy[position] = mask_id
    return tuple(copy), hidden[0]


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
