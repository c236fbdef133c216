"""What the tests against peers share: models, pairs and our own scores of them.

`make test-peers` runs the files `with_*.py` of this folder; `pytest` alone collects none of them, because their peers
live in environments of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.peers import Peer
from benchmarks.protocol import Protocol
from benchmarks.request import Request
from benchmarks.scorer import candidate_from_model
from benchmarks.scoring import Scorer
from benchmarks.scoring_tokenizer import read_scoring_tokenizer
from benchmarks.speed_models import RandomModel, generated_pairs, save_random_model, write_pairs
from corpora.batch import Objective
from students.run_folder import load_model, saved_objective

TOLERANCE = 1e-3  # nats, of a score
ROWS = generated_pairs(4, 20)
SENTENCES = [row[key] for rows in ROWS.values() for row in rows for key in ("sentence_good", "sentence_bad")]
PAIRS = [Request("", sentence) for sentence in SENTENCES]  # good and bad in turn
# as EWoK asks: two continuations of one context, the good sentence of the pair before
CONTINUED = [Request(SENTENCES[number - number % 2 - 2], " " + sentence) for number, sentence in enumerate(SENTENCES)]
# most words are several of its tokens; peers make logits of every position, so that more would take minutes
SIZES = RandomModel(num_layers=3, hidden_size=96, num_heads=3, vocab_size=1024, types=400, spread=0.3)


def saved_model(folder: Path, objective: Objective, *, begins: bool = False) -> Path:
    """A random model in a folder."""
    return save_random_model(folder, objective, SIZES, SENTENCES, begins=begins)


def saved_pairs(folder: Path) -> list[Path]:
    """The pairs as files."""
    return sorted(write_pairs(folder, ROWS).glob("*.jsonl"))


def our_scores(folder: Path, requests: Sequence[Request], protocol: Protocol) -> np.ndarray:
    """Scores under a protocol, float64 [requests]."""
    model = load_model(folder)
    candidate = candidate_from_model("ours", model, saved_objective(model))
    return Scorer("ours", (candidate,), read_scoring_tokenizer(folder), protocol, 4096).scores(requests)


def their_scores(peer: Peer, requests: Sequence[Request], *, pll: str = "original") -> np.ndarray:
    """A peer's scores, float64 [requests]."""
    return np.array(peer.scores(requests, pll=pll)["scores"])


def require_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
    """The same scores and the same verdict on every pair, among verdicts of both kinds."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    won = theirs[::2] > theirs[1::2]
    assert np.array_equal(ours[::2] > ours[1::2], won)
    assert 0.1 < won.mean() < 0.9, "verdicts that are all alike would prove nothing"
    assert np.median(np.abs(theirs[::2] - theirs[1::2])) > 100 * TOLERANCE, "scores that are all alike neither"
