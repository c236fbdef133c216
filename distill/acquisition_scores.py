"""`cuvee score --checkpoints --aoa`: does a run learn words in the order in which children do?

Every checkpoint is asked about every word after its contexts; the run's own report then holds the correlation of ages
under both rules of `benchmarks/acquisition.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.acquisition import Checkpoint
from benchmarks.config import EvaluationConfig
from benchmarks.evaluation import Evaluation, Score
from benchmarks.scoring import Scorer
from corpora.errors import RecipeError
from distill.submitted_predictions import Acquisition, read_acquisition

BENCHMARK, TITLE = "aoa", "Age of acquisition"


@dataclass
class AcquisitionScores:
    """What the checkpoints of a run say about the words, mode by mode."""

    asked: Acquisition
    config: EvaluationConfig
    heard: dict[str, list[tuple[Checkpoint, np.ndarray]]] = field(default_factory=dict)  # by mode, earliest first

    def hear(self, backend: str, step: str, words_seen: int, scorer: Scorer) -> None:
        """Ask one checkpoint; raises InputRefused for a context that it cannot read."""
        values = scorer.scores(self.asked.requests)
        self.heard.setdefault(backend, []).append((Checkpoint(step=step, words_seen=words_seen), values))

    def added(self, evaluation: Evaluation, scorer: Scorer, vocab_size: int) -> Evaluation:
        """The run's evaluation with a row for each rule, and a line on the words that were left out.

        Raises Diverged, naming checkpoint and word, for a score that is not finite.
        """
        checkpoints, values = zip(*self.heard[evaluation.backend], strict=True)
        result = self.asked.result(
            checkpoints,
            values,
            tokenizer=scorer.tokenizer,
            vocab_size=vocab_size,
            how={name: getattr(self.config, name) for name in ("confidence", "resamples", "seed")},
        )
        rows = [
            Score(
                benchmark=BENCHMARK,
                title=TITLE,
                metric=f"Pearson, {rule}",
                value=agreement.correlation.value,
                interval=agreement.correlation.interval,
                chance=0.0,
                items=len(agreement.words),
                reason=agreement.correlation.reason,
            )
            for rule, agreement in result.agreements.items()
        ]
        remarks = [f"{TITLE}, {line.strip()}" for line in result.lines()]
        return replace(evaluation, scores=(*evaluation.scores, *rows), remarks=(*evaluation.remarks, *remarks))


def acquisition_scores(
    config: EvaluationConfig, *, checkpoints: bool, own_code: bool = False
) -> AcquisitionScores | None:
    """The words that are asked for, read before any weights; None where none are. Raises RecipeError, InputRefused."""
    if config.aoa is None:
        return None
    if own_code:
        raise RecipeError(f"--aoa {config.aoa}: the sandbox reads one model; leave it out, or --allow-code")
    if not checkpoints:
        raise RecipeError(f"--aoa {config.aoa}: found one model; a curve needs those of training; add --checkpoints")
    if config.backend == "hybrid":
        raise RecipeError("--aoa: the sum of two modes is no surprisal; choose --backend causal, masked or mntp")
    return AcquisitionScores(read_acquisition(Path(config.aoa), scored=True), config)
