"""No tracker, whether it fails, hangs or never answers, ends a run or holds it up."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from test_tracking import WANDB, record_of, records, tracker_of

from corpora import storage
from corpora.errors import NoRoom
from corpora.prepare import Corpus
from corpora.storage import read_manifest
from distill import trackers
from distill.config import TrackingConfig
from distill.distributed import Processes
from distill.learner import Learner
from distill.trackers import Identity, close_trackers, identity, start_trackers
from distill.tracking import METRICS
from distill.train import train

SECONDS = 5.0  # far above the deadlines that the tests set, far below for ever


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What hanging trackers wait for, with deadlines of less than a second; set when the test is over."""
    monkeypatch.setattr(trackers, "START_SECONDS", 0.3)
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.4)
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name.startswith("tracker"):
            thread.join(SECONDS)
            assert not thread.is_alive(), "a tracker that comes back ends"


def fake_wandb(
    calls: list[str], *, failing: str = "", hanging: str = "", until: threading.Event | None = None, key: bool = False
) -> Any:
    """A tracker of which one method fails, or hangs."""

    def method(name: str, answer: Any = None) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            calls.append(name)
            sent.append((arguments, keywords))
            if name == failing:
                raise RuntimeError(f"{name} is\nbroken")
            if name == hanging and until is not None:
                until.wait()
            return answer

        return call

    sent: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    run = SimpleNamespace(log=method("log"), finish=method("finish"), define_metric=lambda name, step_metric: None)
    return SimpleNamespace(
        init=method("init", run), login=lambda **keywords: key, Settings=SimpleNamespace, sent=sent, run=None
    )


@pytest.mark.parametrize("failing", ["init", "log", "finish", ""])
def test_a_tracker_that_fails_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: str
) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls, failing=failing))
    with closing(tracker_of(tmp_path)) as tracker:
        for step in (1, 2, 3):
            tracker.log(record_of(step), tokens=10)
    expected = ["init", "log", "log", "log", "finish"]
    assert calls == (expected[: expected.index(failing) + 1] if failing else expected)
    how = "did not start" if failing == "init" else "failed"
    told = f"tracking: wandb {how} (RuntimeError: {failing} is broken); the run goes on without it\n"
    assert capsys.readouterr().err == (told if failing else "")
    assert len(records(tmp_path)) == 3


def test_a_missing_tracker_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises ImportError
    with closing(tracker_of(tmp_path)) as tracker:
        tracker.log(record_of(1), tokens=10)
    assert capsys.readouterr().err.count("wandb did not start (ModuleNotFoundError") == 1


def test_a_tracker_that_never_starts_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], release: threading.Event
) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls, hanging="init", until=release))
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 1e6)  # what was given up is not waited for
    started = time.monotonic()
    tracker = tracker_of(tmp_path)
    tracker.log(record_of(1), tokens=10)
    time.sleep(trackers.START_SECONDS + 0.1)
    tracker.log(record_of(2), tokens=10)
    tracker.log(record_of(3), tokens=10)
    tracker.close()
    assert time.monotonic() - started < SECONDS
    told = "tracking: wandb did not start within 0.3 s; the run goes on without it\n"
    assert capsys.readouterr().err == told
    assert len(records(tmp_path)) == 3
    release.set()
    wait_until(lambda: calls == ["init", "finish"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("hanging", ["init", "log", "finish"])
def test_the_end_of_a_run_waits_for_no_tracker(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    release: threading.Event,
    hanging: str,
) -> None:
    monkeypatch.setattr(trackers, "START_SECONDS", 1e6)
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls, hanging=hanging, until=release))
    tracker = tracker_of(tmp_path)
    for step in (1, 2, 3):
        tracker.log(record_of(step), tokens=10)
    wait_until(lambda: hanging in calls or hanging == "finish")
    started = time.monotonic()
    tracker.close()
    assert trackers.CLOSE_SECONDS * 0.9 < time.monotonic() - started < SECONDS
    assert capsys.readouterr().err == "tracking: wandb did not finish within 0.4 s; the run goes on without it\n"


def test_a_tracker_that_is_behind_loses_records_and_never_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], release: threading.Event
) -> None:
    monkeypatch.setattr(trackers, "QUEUED", 4)
    calls: list[str] = []
    fake = fake_wandb(calls, hanging="log", until=release)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = tracker_of(tmp_path, steps=100)
    tracker.log(record_of(1), tokens=10)
    wait_until(lambda: "log" in calls)
    for step in range(2, 21):
        tracker.log(record_of(step), tokens=10)
    assert len(records(tmp_path)) == 20
    behind = "tracking: wandb is 4 records behind; those that it cannot take are dropped\n"
    assert capsys.readouterr().err == behind, "once, while it happens"
    threading.Timer(0.1, release.set).start()
    tracker.close()
    # one was being sent, four waited, and the oldest of them made room for the end
    assert [arguments[0]["step"] for arguments, _ in fake.sent if arguments] == [1, 3, 4, 5]
    assert capsys.readouterr().err == "tracking: wandb has finished; 16 records were dropped\n"


def test_a_tracker_that_comes_back_too_late_says_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], release: threading.Event
) -> None:
    monkeypatch.setattr(trackers, "QUEUED", 2)
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls, hanging="log", until=release))
    tracker = tracker_of(tmp_path)
    tracker.log(record_of(1), tokens=10)
    wait_until(lambda: "log" in calls)
    for step in range(2, 9):
        tracker.log(record_of(step), tokens=10)
    tracker.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[1].startswith(
        "tracking: wandb did not finish within 0.4 s; 6 records were dropped"
    )
    release.set()
    wait_until(lambda: calls[-1] == "finish")
    assert calls == ["init", "log", "finish"] and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("key", "environment", "mode"), [(False, None, "offline"), (True, None, "online"), (True, "offline", "offline")]
)
def test_wandb_is_offline_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: bool, environment: str | None, mode: str
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    fake = fake_wandb([], key=key)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with closing(tracker_of(tmp_path, TrackingConfig(wandb=True, project="wine"))) as tracker:
        tracker.log(record_of(2), tokens=10)
        tracker.look({"step": 2, "causal": {"cross_entropy": 3.5, "bits_per_byte": None}})
        tracker.facts({"step": 2, "layer_weights": {"1": [0.25, 0.75]}})
    (_, init), ((log,), _), ((look,), _), ((facts,), _), _ = fake.sent
    assert (init["mode"], init["project"], init["name"], init["dir"]) == (mode, "wine", "run", str(tmp_path))
    assert log["step"] == 2 and log["causal/cross_entropy"] == 3.0 and log["words"] == 140
    assert {"tokens_per_second", "resident_bytes"} <= log.keys()
    assert look == {"step": 2, "tune/causal/cross_entropy": 3.5}
    assert facts == {"step": 2, "facts/layer_weights/1/0": 0.25, "facts/layer_weights/1/1": 0.75}


def test_the_real_wandb_takes_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 120.0)  # its process starts slowly where much else runs
    monkeypatch.setattr(trackers, "START_SECONDS", 120.0)
    known = Identity(id="0123abcd", settings={"train": {"lr": 0.125, "optimizer": "muon"}})
    for attempt in ((1, 2), (2, 3)):
        started = start_trackers(tmp_path, "run", WANDB, known)
        for step in attempt:
            for each in started:
                each.send(step, {"lr": 0.1})
        close_trackers(started)
        time.sleep(1.0 - time.time() % 1.0)  # its folders are named by the second
    assert "tracking:" not in capsys.readouterr().err
    files = sorted((tmp_path / "wandb").glob("offline-run-*-0123abcd/run-0123abcd.wandb"))
    assert len(files) == 2, "a folder for each attempt, which `wandb sync` joins by the id"
    assert all(b'"optimizer"' in path.read_bytes() for path in files)


def test_a_run_that_resumes_is_the_same_one_to_its_tracker(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(tiny.run(corpus, tmp_path / "run", steps=4, checkpoint_every=2), tracking=WANDB)
    update, crashes = Learner.update, iter([True])

    def crash(learner: Learner, step: int, *more: Any) -> float:
        if step == 3 and next(crashes, False):
            raise KeyboardInterrupt
        return update(learner, step, *more)

    monkeypatch.setattr(Learner, "update", crash)
    fake = fake_wandb([])
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(KeyboardInterrupt):
        train(run, Processes())
    train(run, Processes())
    first, second = (keywords for _, keywords in fake.sent if "project" in keywords)
    assert first["id"] == second["id"] and first["resume"] == second["resume"] == "allow"
    # what came after the checkpoint comes again; the steps are an axis that does not mind
    assert [arguments[0]["step"] for arguments, _ in fake.sent if arguments] == [1, 2, 3, 3, 4]
    assert first["config"]["train"]["lr"] == run.train.lr and first["config"]["model"]["architecture"] == "llama"
    assert first["config"] == second["config"] == json.loads(json.dumps(first["config"]))
    assert str(tmp_path) not in json.dumps(first["config"])


def test_another_recipe_or_another_folder_is_another_run(corpus: Corpus, tmp_path: Path) -> None:
    run = tiny.run(corpus, tmp_path / "run")
    others = (tiny.run(corpus, tmp_path / "run", lr=1.0), replace(run, folder=tmp_path / "other"))
    assert identity(run) == identity(replace(run, tracking=WANDB))
    assert len({identity(each).id for each in (run, *others)}) == 3


def test_event_files_hold_the_curves_of_all_attempts(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="an optional tracker")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for attempt, steps in ((1, (1, 2, 3)), (2, (2, 3, 4))):
        with closing(tracker_of(tmp_path, TrackingConfig(tensorboard=True))) as tracker:
            for step in steps:
                tracker.log(record_of(step, lr=float(attempt)), tokens=10)
            tracker.look({"step": steps[-1], "causal": {"cross_entropy": 3.5}})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("lr")] == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("tune/causal/cross_entropy")] == [(4, 3.5)]


def test_what_is_not_used_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for module in ("wandb", "tensorboard", "torch.utils.tensorboard", "rich", "rich.live", "rich.console"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    with closing(tracker_of(tmp_path, TrackingConfig(), steps=1)) as tracker:
        tracker.log(record_of(1), tokens=10)
    assert capsys.readouterr().out.startswith("run: step 1 of 1")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


# whole runs


@pytest.mark.parametrize("hanging", ["init", "log", "finish"])
def test_a_run_goes_on_beside_a_tracker_that_hangs(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: threading.Event, hanging: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb([], hanging=hanging, until=release))
    run = replace(tiny.run(corpus, tmp_path / "run", steps=3), tracking=WANDB)
    train(run, Processes())
    plain = tiny.run(corpus, tmp_path / "plain", steps=3)
    train(plain, Processes())
    assert read_manifest(run.folder) is not None
    for name in (METRICS, "model.safetensors"):
        assert (run.folder / name).read_bytes() == (plain.folder / name).read_bytes()


def test_the_tracker_is_finished_when_the_run_is_not(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls))

    writes = itertools.count(1)

    def full(operation: str, path: Path) -> None:
        if path.name == METRICS and operation == "write" and next(writes) == 3:
            raise OSError(28, "full")

    monkeypatch.setattr(storage, "fault", full)
    with pytest.raises(NoRoom):
        train(replace(tiny.run(corpus, tmp_path / "run", checkpoint_every=9), tracking=WANDB), Processes())
    assert calls == ["init", "log", "log", "finish"]
