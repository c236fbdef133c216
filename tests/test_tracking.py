"""Watching a run: the logs keep what is reproducible, the reader sees the numbers on a terminal or in lines, and no
tracker, whether it fails, hangs or never answers, ends a run or holds it up."""

from __future__ import annotations

import io
import itertools
import json
import mmap
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
import torch
from rich.console import Console

from corpora import storage
from corpora.errors import NoRoom
from corpora.prepare import Corpus
from corpora.storage import read_manifest
from distill import console, throughput, trackers, tracking
from distill.config import TrackingConfig
from distill.console import LiveTable, Moment, PlainLines, open_display, plain_line
from distill.distributed import Processes
from distill.learner import Learner
from distill.throughput import Meter, comparable_rate, matmul_rate, resident_bytes
from distill.trackers import Identity, close_trackers, identity, start_trackers
from distill.tracking import METRICS, TIMINGS, Tracker, layer_weights, read_timings
from distill.train import train

CPU = torch.device("cpu")
WANDB = TrackingConfig(wandb=True)
SECONDS = 5.0  # far above the deadlines that the tests set, far below for ever


def tracker_of(folder: Path, config: TrackingConfig = WANDB, **changes: Any) -> Tracker:
    fields: dict[str, Any] = {"name": "run", "steps": 9, "log_length": 0, "writes": True}
    return Tracker(folder, config=config, **(fields | changes))


def record_of(step: int, **changes: Any) -> dict[str, Any]:
    fields = {"step": step, "lr": 0.1, "grad_norm": 0.5, "words": 70 * step, "causal/cross_entropy": 6.0 / step}
    return fields | changes


def records(folder: Path, name: str = METRICS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


# logs


class Clock:
    """A clock that is told the time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    told = Clock()
    monkeypatch.setattr(tracking, "time", told)
    return told


def test_the_metrics_repeat_and_the_times_lie_apart(tmp_path: Path, clock: Clock) -> None:
    tracker = tracker_of(tmp_path, TrackingConfig())
    with closing(tracker):
        clock.now += 2.0
        tracker.log(record_of(1), tokens=100)
        with tracker.apart():
            clock.now += 50.0
            tracker.look({"step": 1, "causal": {"cross_entropy": 3.5, "bits_per_byte": 1.5}, "probe_accuracy": 0.75})
        tracker.facts({"step": 1, "layer_weights": {"0": [1.0], "1": [0.25, 0.75]}})
        clock.now += 3.0
        tracker.log(record_of(2), tokens=200)
    assert records(tmp_path) == [
        record_of(1),
        {"step": 1, "tune": {"causal": {"cross_entropy": 3.5, "bits_per_byte": 1.5}, "probe_accuracy": 0.75}},
        {"step": 1, "facts": {"layer_weights": {"0": [1.0], "1": [0.25, 0.75]}}},
        record_of(2),
    ]
    assert records(tmp_path, TIMINGS) == [
        {"step": 1, "seconds": 2.0, "tokens": 100},
        {"step": 2, "seconds": 3.0, "tokens": 200},  # the look's time is no step's
    ]
    assert read_timings(tmp_path) == (5.0, 300)


def test_a_gradient_that_overflowed_has_no_norm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(tracker_of(tmp_path, TrackingConfig(), steps=1)) as tracker:
        tracker.log(record_of(1, grad_norm=float("inf")), tokens=1)
    assert records(tmp_path) == [record_of(1, grad_norm=None)]
    assert "lr 1.00e-01  70 words" in capsys.readouterr().out


def test_a_run_that_resumes_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    tracker = tracker_of(tmp_path, TrackingConfig())
    tracker.log(record_of(1), tokens=1)
    tracker.look({"step": 1, "probe_accuracy": 0.5})
    known = tracker.synced_length()
    tracker.log(record_of(2), tokens=1)
    tracker.look({"step": 2, "probe_accuracy": 0.5})
    tracker.close()
    with closing(tracker_of(tmp_path, TrackingConfig(), log_length=known)) as resumed:
        assert resumed.synced_length() == known
    assert records(tmp_path) == [record_of(1), {"step": 1, "tune": {"probe_accuracy": 0.5}}]


def test_times_are_read_back_though_a_full_disk_cut_the_last_line(tmp_path: Path) -> None:
    for attempt in range(2):
        tracker = tracker_of(tmp_path, TrackingConfig())
        tracker.log(record_of(attempt + 1), tokens=10)
        tracker.close()
        with (tmp_path / TIMINGS).open("a") as file:
            file.write('{"seconds":')
    tracker_of(tmp_path, TrackingConfig()).close()
    assert read_timings(tmp_path)[1] == 20


def test_other_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = tracker_of(tmp_path / "run", WANDB, writes=False, flops_per_token=1.0)
    tracker.log(record_of(9), tokens=1)
    tracker.look({"step": 9})
    tracker.facts({"step": 9})
    with tracker.apart():
        pass
    assert tracker.synced_length() == 0
    tracker.close()
    assert not (tmp_path / "run").exists() and capsys.readouterr() == ("", "")


# what the reader sees


def moment_of(step: int = 1200, **changes: Any) -> Moment:
    record = {"step": step, "lr": 1e-3, "grad_norm": 0.4567, "words": 81_000}
    losses = {"causal/cross_entropy": 3.21449, "causal/forward_kl": 0.51}
    fields: dict[str, Any] = {
        "name": "llama",
        "steps": 5000,
        "record": record | losses,
        "tokens_per_second": 12_345.6,
        "matmul_share": 0.3809,
        "resident_bytes": 3 * 2**29,
        "cuda_peak_bytes": None,
        "seconds_left": 3725.2,
    }
    return Moment(**(fields | changes))


def test_a_line_says_it_all() -> None:
    assert plain_line(moment_of()) == (
        "llama: step 1,200 of 5,000  causal/cross_entropy 3.214  causal/forward_kl 0.510  lr 1.00e-03  "
        "grad norm 0.457  81,000 words  12,346 tokens/s  38.1 % of matmul  1.50 GiB  1:02:05 left"
    )
    assert plain_line(moment_of(matmul_share=None, seconds_left=None, cuda_peak_bytes=2**31)).endswith(
        "  12,346 tokens/s  1.50 GiB  GPU 2.00 GiB"
    )


def test_lines_come_at_their_time_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    def steps_printed(every: float, steps: range) -> list[int]:
        lines = PlainLines(every)
        for step in steps:
            lines.show(moment_of(step, steps=5))
        lines.close()
        return [int(line.split()[2]) for line in capsys.readouterr().out.splitlines()]

    assert steps_printed(0.0, range(1, 6)) == [1, 2, 3, 4, 5]
    assert steps_printed(1e6, range(1, 6)) == [5], "the last step, once"
    assert steps_printed(1e6, range(1, 4)) == [3], "how far a run came that was cut short"
    lines = PlainLines(1e6)
    lines.look("llama", 1200, {"causal/cross_entropy": 3.5, "probe_accuracy": 0.75})
    lines.close()
    assert capsys.readouterr().out == "llama: step 1,200: tune  causal/cross_entropy 3.500  probe_accuracy 0.750\n"


class Terminal(io.StringIO):
    """An output that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


def terminal_console() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=120), file


def test_the_table_shows_every_number() -> None:
    drawn, file = terminal_console()
    live = LiveTable(drawn)
    live.look("llama", 1000, {"causal/bits_per_byte": 1.875})
    live.show(moment_of(cuda_peak_bytes=2**31))
    live.close()
    shown = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    for row in (
        "step 1,200 of 5,000 (24 %)",
        "causal/cross_entropy (nats) 3.214",
        "causal/forward_kl (nats) 0.510",
        "learning rate 1.00e-03",
        "gradient norm 0.457",
        "words seen 81,000",
        "tokens per second 12,346",
        "share of the matmul rate 38.1 %",
        "memory 1.50 GiB",
        "GPU memory, most 2.00 GiB",
        "time left 1:02:05",
        "tune stream after step 1,000",
        "causal/bits_per_byte 1.875",
    ):
        assert row in shown
    assert any(line.endswith("llama") for line in shown)


def test_the_table_is_drawn_some_times_a_second_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)

    def drawings(file: io.StringIO) -> int:
        return file.getvalue().count("step  ")

    drawn, file = terminal_console()
    live = LiveTable(drawn)
    seen = []
    for step in range(1, 101):  # ten seconds
        clock.now += 0.1
        live.show(moment_of(step, steps=100))
        seen.append(drawings(file))
    assert 10 / 0.3 <= seen[-1] <= 10 / console.REFRESH_EVERY + 1
    assert seen[-1] == seen[-2] + 1 and "100 of 100" in file.getvalue(), "the last moment does not wait"
    live.close()


def test_the_terminal_is_left_as_it_was_and_no_print_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the run fails, and also what is printed by those who know nothing of the table."""
    terminal, errors = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    live = open_display(10.0)
    assert isinstance(live, LiveTable) and sys.stdout is terminal, "nothing is touched before the first moment"
    with pytest.raises(ZeroDivisionError), closing(live):
        live.show(moment_of())
        print("a line from elsewhere")
        print("and an error", file=sys.stderr)
        live.show(moment_of())
        _ = 1 / 0
    assert sys.stdout is terminal and sys.stderr is errors
    print("afterwards")
    shown = terminal.getvalue()
    assert shown.count("a line from elsewhere\n") == 1 and shown.endswith("afterwards\n")
    assert shown.rindex("\x1b[?25l") < shown.rindex("\x1b[?25h"), "the cursor is back"
    assert errors.getvalue() == "and an error\n", "errors that lead elsewhere still do"


def test_lines_where_the_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_display(1.0), PlainLines)
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_display(1.0), PlainLines)


def test_what_is_shown_is_what_was_logged(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens per second, the share of the rate and the time left, by a clock that is told the time."""
    config = TrackingConfig(line_every=0.0)
    with closing(tracker_of(tmp_path, config, steps=100, flops_per_token=1e4, devices=2)) as tracker:
        for step in (10, 20, 30):
            clock.now += 60.0 if step == 10 else 20.0  # kernels are compiled at first
            tracker.log(record_of(step), tokens=1000)
    first, second, third = capsys.readouterr().out.splitlines()
    assert " 17 tokens/s" in first and "left" not in first
    assert " 25 tokens/s" in second and second.endswith("0:02:40 left")
    assert " 50 tokens/s" in third and third.endswith("0:02:20 left"), "the slow start is out of the window"
    share = 100 * 50 * 1e4 / (2 * matmul_rate("fp32", CPU))
    assert f"{share:.3g} % of matmul" in third


# throughput


def test_the_meter_looks_back_half_a_minute() -> None:
    meter = Meter(flops_per_token=6.0, rate=24_000.0)
    assert meter.tokens_per_second == 0
    meter.add(100_000, 100.0)
    assert meter.tokens_per_second == 1000 and meter.share == 6.0 * 1000 / 24_000
    for _ in range(3):
        meter.add(1000, 10.0)
    assert meter.tokens_per_second == pytest.approx(100), "what is older is forgotten"
    meter.add(4000, 10.0)
    assert meter.tokens_per_second == pytest.approx(6000 / 30)
    assert Meter(rate=1.0).share is None and Meter(flops_per_token=1.0).share is None


def test_a_share_that_cannot_be_is_told_once_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(flops_per_token=10.0, rate=1000.0)
    meter.add(105, 1.0)
    assert meter.share == 1.05, "noise"
    for _ in range(2):
        meter.add(500, 1.0)
        assert meter.share is None
    assert capsys.readouterr().err == (
        "throughput: the model has 302% of the rate of matrix products, which was measured while the machine did "
        "something else; the share is left out\n"
    )
    meter.add(1, 1000.0)
    assert meter.share is None, "the rate is as wrong as it was"


@pytest.mark.parametrize(
    ("precision", "device", "supported", "there"),
    [
        ("fp16", "cpu", False, False),
        ("fp16", "cpu", True, True),
        ("bf16", "cpu", False, False),
        ("bf16", "cpu", True, True),
        ("fp32", "cpu", False, True),
        ("fp16", "cuda", False, True),
    ],
)
def test_products_that_a_cpu_does_not_have_are_no_rate(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, supported: bool, there: bool
) -> None:
    """Products in a loop take what their shape takes: an fp16 run had 294 % of them."""
    monkeypatch.setattr(throughput, "matmul_rate", lambda precision, device: 7.0)
    answers = dict.fromkeys(("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"), lambda: supported)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**answers))
    assert comparable_rate(precision, torch.device(device)) == (7.0 if there else None)


def test_the_rate_is_measured_once_and_counts_a_product_as_two(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []

    def seconds(square: torch.Tensor, product: torch.Tensor, products: int) -> float:
        assert square.dtype == torch.bfloat16 and square.shape == (1024, 1024)
        rounds.append(products)
        return products * 0.004

    matmul_rate.cache_clear()
    state = torch.get_rng_state()
    with monkeypatch.context() as patch:
        patch.setattr(throughput, "_seconds", seconds)
        assert matmul_rate("bf16", CPU) == pytest.approx(2 * 1024**3 / 0.004)
        measured = len(rounds)
        matmul_rate("bf16", CPU)
    matmul_rate.cache_clear()
    assert len(rounds) == measured and rounds[-1] * 0.004 >= 0.2
    assert torch.equal(torch.get_rng_state(), state)


def test_the_products_that_are_timed_are_made() -> None:
    square, product = torch.randn(8, 8), torch.zeros(8, 8)
    assert throughput._seconds(square, product, 2) > 0
    assert torch.allclose(product, square @ square)
    assert matmul_rate("fp32", CPU) > 1e6


def test_resident_memory_grows_with_what_is_held() -> None:
    """Pages of its own: a block of the heap may be one that was freed before, and kept."""
    before = resident_bytes()
    with mmap.mmap(-1, 2**27) as held:
        for _ in range(128):
            held.write(b"\1" * 2**20)
        assert 2**26 < resident_bytes() - before < 2**28


# trackers


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


# layer weights


@pytest.mark.parametrize("variant", ["base", "zero", "normalized", "weighted_output"])
def test_layer_weights_are_those_that_the_layers_use(corpus: Corpus, variant: str) -> None:
    """By a state's own share in what a mix makes of one-hot states."""
    model = tiny.model("elc_bert", corpus, num_layers=3, variant=variant)
    network: Any = model.network.elc_bert
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter, memory_format=torch.contiguous_format))
    mixes = {str(number): layer.mix for number, layer in enumerate(network.layers)}
    if variant == "weighted_output":
        mixes["output"] = network.output_mix
    found = layer_weights(model)
    assert found is not None and list(found) == list(mixes)
    for number, (name, mix) in enumerate(mixes.items()):
        assert found[name] == pytest.approx(mix(tuple(torch.eye(number + 1))).tolist())
        assert sum(found[name]) == pytest.approx(1)
    assert json.loads(json.dumps(found)) == found


def test_other_architectures_have_no_layer_weights(corpus: Corpus) -> None:
    assert layer_weights(tiny.model("llama", corpus)) is None
