"""The preset `minicons` gives minicons' scores and verdicts: causal, masked, both pseudo-log-likelihoods, contexts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared import CONTINUED, PAIRS, TOLERANCE, our_scores, require_equal, saved_model, their_scores

from benchmarks.peers import Peer
from benchmarks.protocol import PROTOCOLS, Protocol
from benchmarks.request import Request
from corpora.batch import Objective

MINICONS = PROTOCOLS["minicons"]
MODELS: dict[str, dict[str, Any]] = {
    "causal": {"objective": "causal"},
    "causal_begins": {"objective": "causal", "begins": True},
    "masked": {"objective": "masked"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: saved_model(root / name, **options) for name, options in MODELS.items()}


@pytest.fixture(scope="module", params=["causal", "causal_begins"])
def causal(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Iterator[tuple[Path, Peer]]:
    yield from opened(folders[request.param], "causal")


@pytest.fixture(scope="module")
def masked(folders: dict[str, Path]) -> Iterator[tuple[Path, Peer]]:
    yield from opened(folders["masked"], "masked")


def opened(folder: Path, objective: Objective) -> Iterator[tuple[Path, Peer]]:
    with Peer("minicons", objective, folder) as child:
        yield folder, child


def with_pll(pll: str) -> Protocol:
    return replace(MINICONS, pll=pll)  # type: ignore[arg-type]


@pytest.mark.parametrize("requests", [PAIRS, CONTINUED], ids=["pairs", "contexts"])
def test_causal_scores(causal: tuple[Path, Peer], requests: list[Request]) -> None:
    folder, peer = causal
    require_equal(our_scores(folder, requests, MINICONS), their_scores(peer, requests))


@pytest.mark.parametrize("pll", ["original", "within_word_l2r"])
@pytest.mark.parametrize("requests", [PAIRS, CONTINUED], ids=["pairs", "contexts"])
def test_masked_scores(masked: tuple[Path, Peer], requests: list[Request], pll: str) -> None:
    folder, peer = masked
    require_equal(our_scores(folder, requests, with_pll(pll)), their_scores(peer, requests, pll=pll))


def test_every_choice_of_the_preset_shows(causal: tuple[Path, Peer], masked: tuple[Path, Peer]) -> None:
    changed = {
        causal: (replace(MINICONS, causal_reduction="sum"), PROTOCOLS["lm-eval"]),
        masked: (replace(MINICONS, masked_reduction="sum"), with_pll("within_word_l2r")),
    }
    for (folder, peer), protocols in changed.items():
        theirs = their_scores(peer, PAIRS)
        for protocol in protocols:
            assert np.abs(our_scores(folder, PAIRS, protocol) - theirs).max() > 100 * TOLERANCE
