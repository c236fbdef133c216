"""What the reader of a run sees: a table that is drawn anew on a terminal, else a line from time to time."""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

REFRESH_EVERY = 0.25  # least seconds between two drawings of the table


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The numbers of one moment of a run."""

    name: str
    steps: int  # of the whole run
    record: Mapping[str, Any]  # step, lr, grad_norm, words, and by name the mean of each term in nats per target
    tokens_per_second: float
    matmul_share: float | None  # of the machine's rate; None: not known
    resident_bytes: int
    cuda_peak_bytes: int | None  # None: no GPU
    seconds_left: float | None  # None: not known yet

    @property
    def losses(self) -> dict[str, float]:
        """The mean of each term in nats per target: `view/loss`."""
        return {key: value for key, value in self.record.items() if "/" in key}


class Display(ABC):
    """Shows the moments of one run."""

    @abstractmethod
    def show(self, moment: Moment) -> None:
        """A new moment; the run's last one is always seen, others when it is time."""

    @abstractmethod
    def look(self, name: str, step: int, numbers: Mapping[str, float]) -> None:
        """What a look at the tune stream found after a step."""

    @abstractmethod
    def close(self) -> None:
        """Show the last moment, if it has not been seen, and leave the terminal as it was."""


def open_display(line_every: float) -> Display:
    """A table where the output is a terminal that can move its cursor, else lines `line_every` seconds apart."""
    if sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        return LiveTable()
    return PlainLines(line_every)


class PlainLines(Display):
    """A line every so many seconds, one at the end, and one for each look at the tune stream."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._printed = time.monotonic()
        self._unseen: Moment | None = None

    def show(self, moment: Moment) -> None:
        """Print the moment when it is time, or the last one."""
        self._unseen = moment
        if time.monotonic() - self._printed >= self._every or moment.record["step"] == moment.steps:
            self._print()

    def look(self, name: str, step: int, numbers: Mapping[str, float]) -> None:
        """Print what was found."""
        print(f"{name}: step {step:,}: tune  {_listed(numbers)}", flush=True)

    def close(self) -> None:
        """Print the last moment of a run that was cut short."""
        if self._unseen is not None:
            self._print()

    def _print(self) -> None:
        assert self._unseen is not None
        print(plain_line(self._unseen), flush=True)
        self._printed, self._unseen = time.monotonic(), None


class LiveTable(Display):
    """A table that stays below what is printed meanwhile; it begins with the first moment."""

    def __init__(self, console: Console | None = None) -> None:
        """`console`: where it is drawn; None: the standard output."""
        from rich.console import Console
        from rich.live import Live

        # no thread of its own: numbers change when they are logged. An error output that leads elsewhere is left alone.
        self._live = Live(console=console or Console(), auto_refresh=False, redirect_stderr=sys.stderr.isatty())
        self._drawn = -REFRESH_EVERY
        self._look: tuple[int, Mapping[str, float]] | None = None

    def show(self, moment: Moment) -> None:
        """Draw the moment, unless the last drawing is too fresh."""
        self._live.start()
        now = time.monotonic()
        due = now - self._drawn >= REFRESH_EVERY or moment.record["step"] == moment.steps
        self._drawn = now if due else self._drawn
        self._live.update(table(moment, self._look), refresh=due)

    def look(self, name: str, step: int, numbers: Mapping[str, float]) -> None:
        """Remember what was found: it is part of every table from now on."""
        self._look = (step, numbers)

    def close(self) -> None:
        """Draw the last moment and end: prints go their own way again, and the cursor is back."""
        self._live.stop()


def table(moment: Moment, look: tuple[int, Mapping[str, float]] | None) -> Table:
    """All numbers of a moment, and those of the last look at the tune stream: its step and what was found."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=box.SIMPLE, show_header=False, title=Text(moment.name), title_justify="left")
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True, justify="right")
    for label, value in _rows(moment):
        rows.add_row(label, value)
    if look is not None:
        step, numbers = look
        rows.add_section()
        rows.add_row("tune stream", f"after step {step:,}")
        for name, value in numbers.items():
            rows.add_row(f"  {name}", _number(value))
    return rows


def plain_line(moment: Moment) -> str:
    """The same numbers in one line."""
    record = moment.record
    parts = [
        f"{moment.name}: step {record['step']:,} of {moment.steps:,}",
        _listed(moment.losses),
        f"lr {record['lr']:.2e}",
        *([f"grad norm {record['grad_norm']:.3g}"] if record.get("grad_norm") is not None else []),
        *([f"{record['words']:,} words"] if "words" in record else []),
        f"{moment.tokens_per_second:,.0f} tokens/s",
        *([f"{_percent(moment.matmul_share)} of matmul"] if moment.matmul_share is not None else []),
        _gib(moment.resident_bytes),
        *([f"GPU {_gib(moment.cuda_peak_bytes)}"] if moment.cuda_peak_bytes is not None else []),
        *([f"{_duration(moment.seconds_left)} left"] if moment.seconds_left is not None else []),
    ]
    return "  ".join(filter(None, parts))


def _rows(moment: Moment) -> Iterator[tuple[str, str]]:
    """The table's rows: what they are called, and their values."""
    record = moment.record
    step = record["step"]
    yield "step", f"{step:,} of {moment.steps:,} ({_percent(step / moment.steps)})"
    for name, value in moment.losses.items():
        yield f"{name} (nats)", _number(value)
    yield "learning rate", f"{record['lr']:.2e}"
    if record.get("grad_norm") is not None:
        yield "gradient norm", f"{record['grad_norm']:.3g}"
    if "words" in record:
        yield "words seen", f"{record['words']:,}"
    yield "tokens per second", f"{moment.tokens_per_second:,.0f}"
    yield "share of the matmul rate", "-" if moment.matmul_share is None else _percent(moment.matmul_share)
    yield "memory", _gib(moment.resident_bytes)
    if moment.cuda_peak_bytes is not None:
        yield "GPU memory, most", _gib(moment.cuda_peak_bytes)
    if moment.seconds_left is not None:
        yield "time left", _duration(moment.seconds_left)


def _listed(numbers: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {_number(value)}" for name, value in numbers.items())


def _number(value: float) -> str:
    return f"{value:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _gib(number: int) -> str:
    return f"{number / 2**30:,.2f} GiB"


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds, and days before them."""
    return str(timedelta(seconds=round(seconds)))
