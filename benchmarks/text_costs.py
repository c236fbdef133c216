"""What text costs a candidate, as rows of its table: bits per byte of a causal one, nats per token of any.

Bits per byte compares candidates of all tokenizers. Nats per token compares those of one tokenizer that answer one
question: what comes next, and what is hidden among words that are known, are two. Axes: D documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from benchmarks.config import EvaluationConfig
from benchmarks.evaluation import Evaluation, Score
from benchmarks.stats import bootstrap_ratio
from benchmarks.stream import StreamResult
from corpora.batch import Objective
from corpora.stream import Stream

BITS_PER_BYTE = "bits per byte"
NATS_PER_TOKEN = "nats per token"  # of a causal candidate
PSEUDO_NATS = "PLL nats per token"  # pseudo-log-likelihood: every token hidden on its own
MASKED_NATS = "masked nats per token"  # cross-entropy of a masked view: many tokens hidden at once
BY_TOKEN = (NATS_PER_TOKEN, PSEUDO_NATS, MASKED_NATS)  # these compare candidates of one tokenizer alone


@dataclass(frozen=True, kw_only=True)
class TextCosts:
    """What the documents of a text cost one candidate, each of their tokens counted once."""

    benchmark: str  # text, or stream and its name
    title: str
    objective: Objective
    measure: str  # of the nats of a token
    nats_D: np.ndarray  # float64, sums over tokens of minus their log-probabilities
    tokens_D: np.ndarray
    bytes_D: np.ndarray  # UTF-8 bytes of the text
    words_D: np.ndarray
    read: str  # how, as part of a sentence

    def __str__(self) -> str:
        words, size, tokens = (int(each.sum()) for each in (self.words_D, self.bytes_D, self.tokens_D))
        return (
            f"{self.title}: {len(self.nats_D):,} document(s), {words:,} words, {size:,} bytes, {tokens:,} tokens; "
            f"{self.read}."
        )


def stream_costs(stream: Stream, result: StreamResult, *, read: str) -> TextCosts:
    """What a prepared stream cost, from the nats of all its tokens."""
    assert (result.counts_D == np.diff(result.offsets_D1) - 1).all(), "every token but the begin tokens is a target"
    words = [stream.words(start, stop) for start, stop in pairwise(stream.document_offsets.tolist())]
    return TextCosts(
        benchmark=f"stream {stream.name}",
        title=f"Own text, {stream.name} stream",
        objective=result.objective,
        measure=NATS_PER_TOKEN if result.objective == "causal" else MASKED_NATS,
        nats_D=result.sums_D,
        tokens_D=result.counts_D,
        bytes_D=result.bytes_D,
        words_D=np.array(words),
        read=read,
    )


def with_costs(evaluation: Evaluation, costs: Sequence[TextCosts], config: EvaluationConfig) -> Evaluation:
    """An evaluation with the rows of some texts before its own, and with a line on each text."""
    rows = [score for each in costs for score in cost_scores(each, config)]
    return replace(
        evaluation, scores=(*rows, *evaluation.scores), remarks=(*evaluation.remarks, *(str(each) for each in costs))
    )


def cost_scores(costs: TextCosts, config: EvaluationConfig) -> list[Score]:
    """Total nats over the text's size in each unit, with an interval over documents."""
    units = {costs.measure: costs.tokens_D.astype(np.float64)}
    if costs.objective == "causal":
        units = {BITS_PER_BYTE: math.log(2) * costs.bytes_D} | units
    documents = len(costs.nats_D)
    how = {"confidence": config.confidence, "resamples": config.resamples, "seed": config.seed}
    return [
        Score(
            benchmark=costs.benchmark,
            title=costs.title,
            metric=metric,
            value=float(costs.nats_D.sum() / unit_D.sum()),
            interval=bootstrap_ratio(costs.nats_D, unit_D, **how) if documents > 1 else None,
            items=documents,
            reason="" if documents > 1 else "one document, and an interval over documents needs two",
        )
        for metric, unit_D in units.items()
    ]
