"""The one way to scores: requests in, log-likelihoods out, and what was scored before is read back.

A score depends on the candidate, its tokenizer and the protocol alone; which of the texts is right, and which
benchmark they come from, is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from typing import Protocol as Interface

import numpy as np

from benchmarks.likelihood import require_scorable, scorable, token_scores
from benchmarks.protocol import Protocol
from benchmarks.request import Request
from benchmarks.score_store import ScoreStore
from benchmarks.scored_rows import ScoredRow, rows_of_requests
from benchmarks.scorer import Candidate
from benchmarks.scoring_tokenizer import ScoringTokenizer
from corpora.batch import Objective
from corpora.errors import InputRefused

TOKENS_AT_ONCE = 1 << 17  # of rows that are scored before their scores are stored: seconds of work


class Team(Interface):
    """The processes that score together."""

    rank: int
    world_size: int

    def barrier(self) -> None:
        """Wait for all."""


class Alone:
    """One process."""

    rank = 0
    world_size = 1

    def barrier(self) -> None:
        """Nobody to wait for."""


@dataclass(frozen=True)
class Scorer:
    """A candidate under a protocol. Of several parts (the two modes of a hybrid model) the scores are added."""

    name: str
    parts: tuple[Candidate, ...]
    tokenizer: ScoringTokenizer
    protocol: Protocol
    max_tokens: int  # in a forward pass
    store: ScoreStore | None = None  # where scores are kept and found again
    team: Team = Alone()

    @property
    def objective(self) -> Objective:
        """What the candidate predicts; of a hybrid's sum, what its first part does."""
        return self.parts[0].objective

    def scores(self, requests: Sequence[Request], *, places: Sequence[str] | None = None) -> np.ndarray:
        """Log-likelihood of each text after its context in nats, float64 [requests], in their order.

        `places` name the requests in messages. Raises InputRefused for a text without a token to score, whose empty
        sum would beat every log-probability, and for one that is longer than the candidate reads.
        """
        unique = list(dict.fromkeys(requests))
        known = self.store.find(unique) if self.store is not None else {}
        self.team.barrier()  # all have read the same before one adds to it
        missing = [request for request in unique if request not in known]
        if missing:
            place_of = dict(zip(reversed(requests), reversed(places or [""] * len(requests)), strict=True))
            known |= self._made([(request, place_of[request]) for request in missing])
        return np.array([known[request] for request in requests], np.float64)

    def _made(self, missing: Sequence[tuple[Request, str]]) -> dict[Request, float]:
        """Scores of requests that nobody has scored, kept a block at a time; several processes share the blocks."""
        requests = [request for request, _ in missing]
        rows = [rows_of_requests(requests, self.tokenizer, self.protocol, masked=_masked(part)) for part in self.parts]
        for number, (request, place) in enumerate(missing):
            for part, of_part in zip(self.parts, rows, strict=True):
                for row in of_part[number]:
                    self._require(row, part, place or repr(request.text[:60]))
        found: dict[Request, float] = {}
        several = self.team.world_size > 1
        assert self.store is not None or not several, "processes meet in the store"
        trees = any(part.tree_log_probs is not None for part in self.parts)
        share = -(-sum(len(row.ids) for of_request in rows[0] for row in of_request) // self.team.world_size)
        blocks = _blocks(rows[0], alike_together=trees, most_tokens=min(TOKENS_AT_ONCE, share))
        for number, block in enumerate(blocks):
            if number % self.team.world_size == self.team.rank:
                asked = [requests[index] for index in block]
                scores = self._summed(asked, [[of_part[index] for index in block] for of_part in rows])
                made = dict(zip(asked, scores, strict=True))
                if self.store is not None:
                    self.store.add(made)
                found |= made
        self.team.barrier()
        if several and self.store is not None:
            found |= self.store.find(requests)
        return found

    def _summed(
        self, requests: Sequence[Request], rows_of_parts: Sequence[Sequence[Sequence[ScoredRow]]]
    ) -> list[float]:
        """The scores of some requests, each part's reduced as they or the protocol say, and then added."""
        total = np.zeros(len(requests))
        for part, rows in zip(self.parts, rows_of_parts, strict=True):
            every = [row for of_request in rows for row in of_request]
            scores = iter(token_scores(part, every, mask_id=self.tokenizer.mask_id, max_tokens=self.max_tokens))
            of_requests = [np.concatenate([next(scores) for _ in of_request]) for of_request in rows]
            reduction = self.protocol.masked_reduction if _masked(part) else self.protocol.causal_reduction
            total += [
                each.mean() if request.mean or reduction == "mean" else each.sum()
                for request, each in zip(requests, of_requests, strict=True)
            ]
        return total.tolist()

    def _require(self, row: ScoredRow, part: Candidate, place: str) -> None:
        if not scorable(row, part):
            raise InputRefused(
                f"{place}: no token to score under the protocol {self.protocol.name}; expected at least one that "
                "something stands before; remove it, or choose a protocol with a begin token"
            )
        try:
            require_scorable(row, part, self.max_tokens)
        except InputRefused as error:
            raise InputRefused(f"{place}: {error}") from error


def scoring_identity(
    weights: str, tokenizer: ScoringTokenizer, protocol: Protocol, *, backend: str, precision: str
) -> dict[str, Any]:
    """What scores depend on, as the identity of a store; `weights` is a digest."""
    return {
        "weights": weights,
        "tokenizer": tokenizer.digest,
        "protocol": {key: value for key, value in asdict(protocol).items() if key != "source"},
        "backend": backend,
        "precision": precision,
    }


def _masked(part: Candidate) -> bool:
    return part.objective == "masked"


def _blocks(rows: Sequence[Sequence[ScoredRow]], *, alike_together: bool, most_tokens: int) -> Iterator[list[int]]:
    """Numbers of requests that are scored together, of about so many tokens.

    Either rows that begin alike stand together, for candidates that read them as trees: sorted by length, the answers
    to one question would be in several blocks. Or the longest come first, so that a block has rows of like length.
    Equal rows are never parted, because rows that are scored once tie exactly.
    """

    def order(number: int) -> tuple[Any, ...]:
        ids = rows[number][0].ids
        return (ids,) if alike_together else (-len(ids), ids)

    block: list[int] = []
    tokens = 0
    for number in sorted(range(len(rows)), key=order):
        if tokens >= most_tokens and rows[number] != rows[block[-1]]:
            yield block
            block, tokens = [], 0
        block.append(number)
        tokens += sum(len(row.ids) for row in rows[number])
    if block:
        yield block
