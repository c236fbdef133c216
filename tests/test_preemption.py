"""A command that is asked to stop does so wherever it is safe, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from test_end_to_end import cuvee, digests

from distill import stages
from distill.learner import Learner
from distill.preemption import stop_flag
from distill.scores import ScoreBoard

SMOKE = str(Path(__file__).parent.parent / "configs" / "smoke.yaml")


def raised_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: signal.Signals) -> None:
    """Let the process get a signal at the first call of something."""
    called, before = getattr(owner, name), []

    def signalled(*given: Any, **keywords: Any) -> Any:
        if not before:
            before.append(name)
            os.kill(os.getpid(), number)
        return called(*given, **keywords)

    monkeypatch.setattr(owner, name, signalled)


@pytest.mark.parametrize(
    ("owner", "name", "number", "said", "there"),
    [
        (stages, "prepare_corpus", signal.SIGUSR1, "the corpus is there, and stopped then", "corpus/manifest.json"),
        (Learner, "whole", signal.SIGTERM, "llama is trained, and stopped then", "teachers/llama/manifest.json"),
        (stages, "capture", signal.SIGUSR1, "before shard 1 of", "teachers/elc/manifest.json"),
        (ScoreBoard, "scores", signal.SIGTERM, "before llama was scored", "students"),
    ],
    ids=["corpus", "the last step of a run", "caches", "scores"],
)
def test_a_signal_stops_every_stage_and_the_same_command_goes_on(
    owner: Any,
    name: str,
    number: signal.Signals,
    said: str,
    there: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = f"run_dir={tmp_path / 'run'}"
    with monkeypatch.context() as context:
        raised_in(context, owner, name, number)
        code, lines = cuvee("run", SMOKE, place)
    assert code == 75 and said in lines[0] and "the same command goes on" in lines[0]
    assert (tmp_path / "run" / there).exists() and not (tmp_path / "run" / "report.json").exists()
    before = digests(tmp_path / "run")
    assert cuvee("run", SMOKE, place)[0] == 0
    after = digests(tmp_path / "run")
    assert before.items() <= after.items() and json.loads((tmp_path / "run" / "report.json").read_text())


def test_a_block_inside_another_shares_its_flag_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with stop_flag() as outer:
        with stop_flag() as inner:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert inner is outer and outer.raised
        with pytest.raises(KeyboardInterrupt):  # the second one stops at once
            os.kill(os.getpid(), signal.SIGTERM)
            outer.heed("never reached")
    assert signal.getsignal(signal.SIGUSR1) is before
