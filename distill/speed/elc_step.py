"""ELC-BERT's training step as ours and as a textbook writes it, each side in a process of its own.

Both read the same random rows with random weights of the same sizes: forward, loss, backward, AdamW. The textbook
stands beside the tests, whose golden vectors prove it. As a program this does a step whenever a line comes in, and says
what it took.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed_timing import pin_threads
from corpora.batch import NO_TARGET, Batch, masked_view
from corpora.errors import InputRefused, ProcessLost
from distill.config import TermConfig
from distill.fused import RowTerm
from distill.memory import keep_freed_memory
from distill.objective import Objective, Part
from distill.precision import autocast
from distill.speed.data import SEED, random_model
from students.config import ModelConfig

OURS, TEXTBOOK = "ours", "textbook"
TEXTBOOK_FILE = Path(__file__).parents[2] / "tests" / "textbook_elc_bert.py"
HIDDEN = 0.15  # of the tokens, which are the targets
RATE = 1e-3
FIRST_WORD = 10  # ids below are left to special tokens
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What both sides do."""

    model: ModelConfig
    vocab_size: int
    rows: int
    seq_len: int
    precision: str
    threads: int  # of torch's operators

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.rows * self.seq_len


class Side:
    """One side's process, which has done nothing yet."""

    def __init__(self, side: str, step: Step) -> None:
        request = json.dumps({"side": side, "step": asdict(step)})
        command = [sys.executable, "-m", "distill.speed.elc_step", request]
        self._name = side
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.communicate()  # its stdin ends, so it does

    def step(self) -> tuple[float, float, int]:
        """Seconds of one step, its loss in nats per target, and the most memory so far in bytes; raises ProcessLost."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise ProcessLost(f"{self._name}: its process ended with exit code {self._child.wait()}; run it again")
        seconds, loss, peak = json.loads(answer)
        return seconds, loss, peak


def textbook(config: ModelConfig, vocab_size: int) -> nn.Module:
    """The textbook's model; raises InputRefused where the tests are not there."""
    if not TEXTBOOK_FILE.exists():
        raise InputRefused(f"{TEXTBOOK_FILE}: missing, and speed is measured against it; run this in a clone")
    described = importlib.util.spec_from_file_location("textbook_elc_bert", TEXTBOOK_FILE)
    assert described is not None and described.loader is not None, "a file of Python"
    module: Any = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "max_position_embeddings": config.max_positions,
        "position_bucket_size": config.position_buckets,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.norm_eps,
    }
    return module.TextbookElcBert(sizes, config.variant)


def our_step(step: Step) -> Callable[[], Tensor]:
    """Features, the loss engine on the rows that have targets, fused AdamW; returns the loss."""
    model = random_model(step.model, step.vocab_size).train()
    objective = Objective(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    input_ids_BT, targets_BT = rows(step)
    batch = Batch(
        input_ids_BT,
        targets_BT,
        torch.arange(input_ids_BT.numel()).view_as(input_ids_BT),
        torch.zeros_like(input_ids_BT),
        masked_view(mask_seed=0, fold=0, num_folds=1),
    )
    weight = 1 / int(batch.has_target_BT.sum())
    term = RowTerm("masked/cross_entropy", 0, TermConfig(loss="cross_entropy"), None, weight)

    def loss() -> Tensor:
        return objective([Part(batch, (term,))], values=False)[0]

    return _updated(loss, optimizer, step.precision)


def textbook_step(step: Step) -> Callable[[], Tensor]:
    """The same, as it comes with torch."""
    model = textbook(step.model, step.vocab_size).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    input_ids_BT, targets_BT = rows(step)
    padding_BT = torch.zeros_like(input_ids_BT, dtype=torch.bool)
    return _updated(lambda: model(input_ids_BT, padding_BT, targets_BT), optimizer, step.precision)


SIDES: dict[str, Callable[[Step], Callable[[], Tensor]]] = {OURS: our_step, TEXTBOOK: textbook_step}


def rows(step: Step) -> tuple[Tensor, Tensor]:
    """Random tokens [B, T], and targets for about as many of them as are hidden in training."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (step.rows, step.seq_len)
    input_ids_BT = torch.randint(FIRST_WORD, step.vocab_size, shape, generator=generator)
    hidden_BT = torch.rand(shape, generator=generator) < HIDDEN
    return input_ids_BT, input_ids_BT.where(hidden_BT, NO_TARGET)


def _updated(
    loss_of_rows: Callable[[], Tensor], optimizer: torch.optim.Optimizer, precision: str
) -> Callable[[], Tensor]:
    def step() -> Tensor:
        with autocast(precision, CPU):
            loss = loss_of_rows()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _peak_bytes() -> int:
    """The most memory that this process has had at once; 0 where the system does not say (Linux does).

    Not `getrusage`, which counts what the process before this program had.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def main() -> None:
    """Do a step for each line that comes in."""
    request = json.loads(sys.argv[1])
    asked = Step(**request["step"] | {"model": ModelConfig(**request["step"]["model"])})
    keep_freed_memory()  # as every run of ours does: here it serves both sides
    pin_threads(asked.threads)
    torch.manual_seed(SEED)
    step = SIDES[request["side"]](asked)
    for _ in sys.stdin:
        started = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - started
        print(json.dumps([seconds, loss.item(), _peak_bytes()]), flush=True)


if __name__ == "__main__":
    main()
