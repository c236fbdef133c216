"""Two processes on two cores against one process with two threads: the same steps, each side in processes of its own.

As a program it trains for some steps, alone or beside the others that torchrun started, and prints what they took.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.speed_timing import WARM_UP, interleaved, pin_threads
from corpora.prepare import open_corpus
from distill.distributed import Processes
from distill.memory import keep_freed_memory
from distill.speed.data import Shapes
from distill.speed.whole_step import OurTraining, comparable
from students.config import ModelConfig

ONE, TWO = "one process", "two processes"
PROCESSES = {ONE: 1, TWO: 2}
CORES = 2  # that either side uses
ACCUMULATIONS = 4  # forward passes of each process in a step
ROUNDS = 3  # in each of them both sides are started anew


@dataclass(frozen=True, kw_only=True)
class Request:
    """What each process of a side is asked to do."""

    prepared: str  # folder of the corpus
    model: ModelConfig
    precision: str
    rows: int  # of a step, over all processes
    rows_at_once: int  # in a forward pass of one process
    seq_len: int  # tokens in a row
    threads: int  # of torch's operators in one process
    repetitions: int  # timed steps


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the processes found together."""

    seconds: list[float]  # of each timed step
    losses: list[float]  # of every step, nats per target; those that are not timed come first


def requests(shapes: Shapes, prepared: Path, *, precision: str, repetitions: int) -> dict[str, Request]:
    """The same steps for both sides, in as many accumulations: two processes have half the rows at once each."""
    return {
        side: Request(
            prepared=str(prepared),
            model=shapes.student,
            precision=precision,
            rows=step_rows(shapes),
            rows_at_once=shapes.rows // processes,
            seq_len=shapes.seq_len,
            threads=CORES // processes,
            repetitions=repetitions,
        )
        for side, processes in PROCESSES.items()
    }


def step_rows(shapes: Shapes) -> int:
    """Rows of a step of either side."""
    return ACCUMULATIONS * shapes.rows


def step_seconds(shapes: Shapes, prepared: Path, *, precision: str, repetitions: int) -> dict[str, list[float]]:
    """Seconds of both sides' timed steps, at least so many of each; the sides take turns in an order drawn anew."""
    rounds = min(ROUNDS, repetitions)
    asked = requests(shapes, prepared, precision=precision, repetitions=math.ceil(repetitions / rounds))
    seconds: dict[str, list[float]] = {side: [] for side in asked}
    for number in range(rounds):
        answers = {side: ask(asked[side], PROCESSES[side]) for side in random.Random(number).sample(list(asked), 2)}
        one, two = (answers[side].losses[-1] for side in (ONE, TWO))
        # bf16 rounds the sums of the gradients in another order
        assert abs(one - two) < 0.01 * one, f"the steps differ: cross-entropy {one} in one process, {two} in two"
        for side, found in answers.items():
            seconds[side] += found.seconds
    return seconds


def ask(request: Request, processes: int) -> Answer:
    """Have it done by so many processes, on the CPU; raises CalledProcessError when one fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "distill.speed.two_processes"]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(request.threads),
    }
    request_text = json.dumps(asdict(request))
    finished = subprocess.run([*command, request_text], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Answer(**json.loads(finished.stdout))


def answer(request: Request) -> Answer | None:
    """Do it in this process and those beside it; None in all but the first."""
    keep_freed_memory()  # as every run does
    pin_threads(request.threads)
    processes = Processes()
    steps = WARM_UP + request.repetitions
    config = comparable(request.rows, request.seq_len, steps=steps, precision=request.precision)
    with processes.guarded():
        training = OurTraining(
            request.model,
            replace(config, micro_batch_size=request.rows_at_once),
            corpus=open_corpus(Path(request.prepared)),
            processes=processes,
        )
        timing = interleaved({"step": training.step}, repetitions=request.repetitions, device=processes.device)["step"]
    return Answer(seconds=list(timing.seconds), losses=training.losses) if processes.is_first else None


def main() -> None:
    """Print what was found; `ask` starts this in each process of a side."""
    plain = json.loads(sys.argv[1])
    found = answer(Request(**plain | {"model": ModelConfig(**plain["model"])}))
    if found is not None:
        print(json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    main()
