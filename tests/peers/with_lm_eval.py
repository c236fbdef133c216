"""The preset `lm-eval` gives lm-eval's scores and verdicts, on its own BLiMP task and after contexts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compared import CONTINUED, PAIRS, TOLERANCE, our_scores, require_equal, saved_model, saved_pairs, their_scores

from benchmarks.minimal_pairs import blimp_tasks
from benchmarks.peers import Peer
from benchmarks.protocol import PROTOCOLS
from benchmarks.request import Request

LM_EVAL = PROTOCOLS["lm-eval"]


@pytest.fixture(scope="module", params=[False, True], ids=["bare", "begins"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model; its tokenizer adds nothing, as GPT-2's, or a begin token, as Llama's."""
    return saved_model(tmp_path_factory.mktemp("causal"), "causal", begins=request.param)


@pytest.fixture(scope="module")
def peer(folder: Path) -> Iterator[Peer]:
    with Peer("lm-eval", "causal", folder) as child:
        yield child


def test_its_own_task_gives_our_scores(folder: Path, peer: Peer, tmp_path: Path) -> None:
    for path in saved_pairs(tmp_path):
        theirs = peer.pair_scores(path)
        (task,) = (task for task in blimp_tasks(tmp_path, None, seed=1) if task.uid == path.stem)
        asked = [option for item in task.items for option in item.options]
        assert theirs["requests"] == [["", " " + request.text] for request in asked]
        require_equal(our_scores(folder, asked, LM_EVAL), np.array(theirs["scores"]))


@pytest.mark.parametrize("border", [("", " "), (" ", ""), ("\n", ""), (" ", " ")], ids=repr)
def test_contexts_give_our_scores(folder: Path, peer: Peer, border: tuple[str, str]) -> None:
    before, behind = border
    requests = [Request(request.context + before, behind + request.text[1:]) for request in CONTINUED]
    require_equal(our_scores(folder, requests, LM_EVAL), their_scores(peer, requests))


def test_every_choice_of_the_preset_shows(folder: Path, peer: Peer) -> None:
    theirs = their_scores(peer, [Request("", " " + request.text) for request in PAIRS])
    require_equal(our_scores(folder, PAIRS, LM_EVAL), theirs)
    for changed in (replace(LM_EVAL, space=False), replace(LM_EVAL, causal_reduction="mean"), PROTOCOLS["minicons"]):
        assert np.abs(our_scores(folder, PAIRS, changed) - theirs).max() > 100 * TOLERANCE
