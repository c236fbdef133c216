"""Checkpoints are asked about words, and the run's report says whether it learned them in the order of children."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from test_acquisition import CHECKPOINTS, _curves, _shares, _words
from tiny import byte_tokenizer

from benchmarks.config import EvaluationConfig
from benchmarks.evaluation import Evaluation
from benchmarks.scoring_tokenizer import ScoringTokenizer
from corpora.errors import Diverged, RecipeError
from distill.acquisition_scores import AcquisitionScores, acquisition_scores
from distill.submitted_predictions import Acquisition

CONFIG = EvaluationConfig(resamples=300)
TYPES = 300  # of which a word of one byte each is guessed


@dataclass(frozen=True)
class _Told:
    """A scorer whose answers are known."""

    values: np.ndarray
    tokenizer: ScoringTokenizer

    def scores(self, requests: Any) -> np.ndarray:
        assert len(requests) == len(self.values)
        return self.values


def _scores(surprisals: np.ndarray) -> tuple[AcquisitionScores, _Told]:
    """All checkpoints heard, whose surprisals of each word are given."""
    words = _words(surprisals.shape[1], 1)
    ages = list(np.linspace(18, 28, surprisals.shape[1]))
    found = AcquisitionScores(Acquisition(words, _shares(ages)), CONFIG)
    scorer = _Told(np.zeros(0), byte_tokenizer())
    for checkpoint, values in zip(CHECKPOINTS, surprisals, strict=True):
        told: Any = replace(scorer, values=-values)
        found.hear("causal", checkpoint.step, checkpoint.words_seen, told)
    return found, scorer


def test_a_run_that_learns_in_the_order_of_children_is_said_to() -> None:
    """Chance of six tokens, a space and `word0`, is 6 ln 300 = 34.2: there the planted curves begin."""
    middles = np.linspace(6.6, 8.2, 9)
    found, scorer = _scores(_curves(middles, 6 * math.log(TYPES), slope=6))
    told: Any = scorer
    evaluation = found.added(Evaluation("run", "causal", (), {}), told, TYPES)
    by_rule = {score.metric: score for score in evaluation.scores}
    nats = by_rule["Pearson, nats"]
    assert nats.value == pytest.approx(1, abs=1e-3) and nats.items == 9 and nats.interval is not None
    assert set(by_rule) == {"Pearson, nats", "Pearson, babylm2025"}
    assert any(line.startswith("Age of acquisition, nats: r = 1.000") for line in evaluation.remarks)


def test_a_score_that_is_no_number_names_checkpoint_and_word() -> None:
    surprisals = _curves([7.0, 7.5, 8.0], 30.0)
    surprisals[3, 1] = math.nan
    found, scorer = _scores(surprisals)
    told: Any = scorer
    with pytest.raises(Diverged, match="chck_4M: word1, context 0"):
        found.added(Evaluation("run", "causal", (), {}), told, TYPES)


def test_one_model_has_no_curve() -> None:
    with pytest.raises(RecipeError, match="found one model; a curve needs those of training; add --checkpoints"):
        acquisition_scores(replace(CONFIG, aoa="children"), checkpoints=False)
    with pytest.raises(RecipeError, match="the sum of two modes is no surprisal"):
        acquisition_scores(replace(CONFIG, aoa="children", backend="hybrid"), checkpoints=True)
    with pytest.raises(RecipeError, match="the sandbox reads one model"):
        acquisition_scores(replace(CONFIG, aoa="children"), checkpoints=True, own_code=True)
    assert acquisition_scores(CONFIG, checkpoints=True) is None
