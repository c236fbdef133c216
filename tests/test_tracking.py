"""Watching a run: the logs keep what is reproducible, and the reader sees the numbers on a terminal or in lines."""

from __future__ import annotations

import io
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console

from corpora.prepare import Corpus
from distill import console, tracking
from distill.config import TrackingConfig
from distill.console import LiveTable, Moment, PlainLines, open_display, plain_line
from distill.throughput import matmul_rate
from distill.tracking import METRICS, TIMINGS, Tracker, layer_weights, read_timings

CPU = torch.device("cpu")
WANDB = TrackingConfig(wandb=True)


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
