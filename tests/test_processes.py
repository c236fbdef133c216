"""Many processes: a lost one is named and takes the others with it, waiting is no fault, fp16 steps that overflow are
left out, and launchers hand on what they are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from conftest import ON_CPUS, torchrun
from torch import nn

from corpora.errors import Diverged, ProcessLost, RecipeError
from corpora.prepare import Corpus, open_corpus
from corpora.storage import file_digest
from distill import distributed
from distill.distributed import Processes
from distill.precision import Scaler, autocast
from distill.run import Run

HOUSE = Path(__file__).parent.parent
TIMEOUT = 5.0  # seconds


# what is lost

LOADED = """
import os, signal, sys, time
from pathlib import Path

import torch
from torch import nn

from corpora.errors import CuveeError
from distill.distributed import Processes
from distill.preemption import stop_flag

how, timeout, folder = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
# a busy machine may load one process seconds after the other
(folder / os.environ["RANK"]).write_text(str(os.getpid()))
while len(list(folder.glob("[0-9]"))) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.05)
"""
LOST = """
def bug():
    raise ValueError("a bug")

def hang():
    while True:
        time.sleep(1)

HOW = {
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "is stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raises": bug,
    "hangs": hang,
}

def work(processes):
    module = processes.wrap(nn.Linear(4, 1))
    with stop_flag():
        for step in range(1, 100):
            processes.arrive(step, "llama")
            if step == 9 and processes.rank == 1:
                time.sleep(1)  # so that the others have heard of this step
                (folder / "when").write_text(str(time.time()))
                HOW[how]()
            processes.any(False)
            processes.backward(module(torch.ones(2, 4)).sum())

try:
    processes = Processes(expected=2, timeout=timeout)
    with processes.guarded():
        work(processes)
except CuveeError as error:
    print(f"cuvee [rank {os.environ['RANK']}]: {error}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)
"""


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("dies", "has given no sign of life for"),
        ("is stopped", "has given no sign of life for"),
        ("raises", "has left (ValueError: a bug)"),
        ("hangs", "has been waited for"),
    ],
)
def test_a_lost_process_is_named_and_all_end(tmp_path: Path, how: str, said: str) -> None:
    script = tmp_path / "lost.py"
    script.write_text(LOADED + LOST)
    finished = torchrun(2, script, how, TIMEOUT, tmp_path)
    took = time.time() - float((tmp_path / "when").read_text())
    assert took < TIMEOUT + 10
    assert not any(runs(int((tmp_path / rank).read_text())) for rank in "01")
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("cuvee [rank 0]")]
    assert line.startswith("cuvee [rank 0]: processes: rank 1 (process ") and said in line
    assert "last heard of in step 9 of llama; the others are in step 9;" in line
    assert line.endswith("the same command goes on from the last checkpoint")
    assert finished.returncode != 0


PATIENT = """
processes = Processes(expected=2, timeout=timeout)
rank = processes.rank
assert processes.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
values = torch.tensor([rank + 1, -rank], dtype=torch.float64)
assert processes.sum(values).tolist() == [3.0, -1.0] and processes.largest(values).tolist() == [2.0, 0.0]
assert values.tolist() == [rank + 1, -rank], "the sum is another tensor"
assert processes.any(rank == 1) and not processes.any(False)
assert processes.own_share(list(range(7))) == list(range(7))[rank::2]
if rank == 1:
    time.sleep(timeout + 0.5)  # one has more to cache than the others
processes.barrier()
with processes.first_alone() as first:
    assert first == (rank == 0)
    if first:
        time.sleep(timeout + 0.5)
        (folder / "made").touch()
assert (folder / "made").exists(), "the others were let go too early"
with processes.guarded():
    try:
        with processes.guarded():
            raise RuntimeError("sizes do not match")
    except RuntimeError as error:
        assert str(error) == "sizes do not match", "a bug of one's own is no other process's fault"
print("well")
"""


def test_what_lives_is_waited_for_longer_than_the_timeout(tmp_path: Path) -> None:
    script = tmp_path / "patient.py"
    script.write_text(LOADED + PATIENT)
    finished = torchrun(2, script, "lives", 3.0, tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("well") == 2


def test_only_errors_of_exchanges_are_blamed_on_others() -> None:
    with pytest.raises(ProcessLost, match="lost: Connection closed") as lost:
        with distributed.translated(lambda error: f"lost: {str(error).split('] ')[1]}"):
            raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    assert lost.value.exit_code == 71
    with pytest.raises(torch.OutOfMemoryError):
        with distributed.translated(str):
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_one_process_cannot_share_a_model() -> None:
    with pytest.raises(RecipeError, match="train.parallel: fsdp .* found 1, needs at least 2; start them with"):
        Processes().wrap(nn.Linear(2, 2), "fsdp")


def test_with_one_process_nothing_is_waited_for() -> None:
    processes = Processes()
    processes.arrive(3, "llama")
    with processes.guarded(), processes.first_alone() as first:
        assert first
    processes.barrier()
    assert processes.gather(5) == [5] and processes.largest(torch.ones(2)).tolist() == [1, 1]
    module = processes.wrap(nn.Linear(2, 1))
    with processes.gradients_later(module, True):
        processes.backward(module(torch.ones(1, 2)).sum())
    norm = processes.clip_grad_norm(module, 1.0)
    assert norm == pytest.approx(3**0.5)
    clipped = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    assert float(clipped.norm()) == pytest.approx(1.0, rel=1e-5)


# fp16


def fp16_run(steps: int, *, scaler: Scaler, weight: nn.Parameter, rate: float, overflow: tuple[int, ...] = ()) -> None:
    """Steps of SGD on 0.5 |w|^2 in which the gradient of some overflows."""
    optimizer = torch.optim.SGD([weight], lr=rate)
    for step in range(steps):
        optimizer.zero_grad()
        scaler.scale(0.5 * (weight**2).sum()).backward()
        if step in overflow:
            assert weight.grad is not None
            weight.grad[0] = torch.inf
        scaler.unscale(optimizer)
        norm = torch.nn.utils.clip_grad_norm_([weight], 1e9)
        scaler.step(optimizer, bool(norm.isfinite()))


def test_steps_that_overflow_are_left_out_and_halve_the_scale() -> None:
    weight = nn.Parameter(torch.ones(3))
    scaler = Scaler("fp16", torch.device("cpu"), 3)
    before = scaler.state
    fp16_run(5, scaler=scaler, weight=weight, rate=0.5, overflow=(1, 2))
    assert weight.tolist() == [0.125] * 3  # three of five steps
    assert before == {
        **{"scale": 2.0**16, "growth_tracker": 0, "skipped": 0},
        **{"skipped_in_all": 0, "steps": 0, "recent": []},
    }
    assert scaler.state == {
        **{"scale": 2.0**14, "growth_tracker": 2, "skipped": 0},
        **{"skipped_in_all": 2, "steps": 5, "recent": [2, 3]},
    }


def test_too_many_overflows_in_a_row_end_the_run() -> None:
    weight = nn.Parameter(torch.ones(3))
    scaler = Scaler("fp16", torch.device("cpu"), 3)
    with pytest.raises(Diverged, match="4 steps in a row overflow fp16, down to a loss scale of 4096, at most 3 may"):
        fp16_run(9, scaler=scaler, weight=weight, rate=0.5, overflow=(2, 3, 4, 5))
    assert weight.tolist() == [0.25] * 3


def test_too_large_a_share_of_overflows_ends_the_run_though_no_two_follow_each_other() -> None:
    weight, scaler = nn.Parameter(torch.ones(3)), Scaler("fp16", torch.device("cpu"), 3)
    with pytest.raises(Diverged, match="51 of the last 101 steps overflow fp16, .* at most 50 may; lower train.lr"):
        fp16_run(200, scaler=scaler, weight=weight, rate=0.0, overflow=tuple(range(0, 200, 2)))


def test_overflows_of_long_ago_are_counted_and_forgiven() -> None:
    weight, scaler = nn.Parameter(torch.ones(3)), Scaler("fp16", torch.device("cpu"), 3)
    early = tuple(range(0, 80, 2))
    fp16_run(1_100, scaler=scaler, weight=weight, rate=0.0, overflow=early)
    fp16_run(20, scaler=scaler, weight=weight, rate=0.0, overflow=tuple(range(0, 20, 2)))
    assert scaler.skipped_in_all == 50 and len(scaler.state["recent"]) == 10
    fp16_run(81, scaler=scaler, weight=weight, rate=0.0, overflow=tuple(range(0, 80, 2)))
    assert scaler.skipped_in_all == 90 and len(scaler.state["recent"]) == 50, "exactly as many as may"


def test_the_scale_goes_on_from_a_checkpoint() -> None:
    whole, first = (nn.Parameter(torch.ones(3)) for _ in range(2))
    at_once, before, after = (Scaler("fp16", torch.device("cpu"), 3) for _ in range(3))
    fp16_run(6, scaler=at_once, weight=whole, rate=0.5, overflow=(2, 3, 4))
    fp16_run(4, scaler=before, weight=first, rate=0.5, overflow=(2, 3))
    after.restore(before.state)
    assert after.state == before.state and after.skipped == 2
    fp16_run(2, scaler=after, weight=first, rate=0.5, overflow=(0,))
    assert after.state == at_once.state and torch.equal(whole, first)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_is_scaled_where_nothing_overflows(precision: str) -> None:
    weight = nn.Parameter(torch.ones(3))
    scaler = Scaler(precision, torch.device("cpu"), 0)
    loss = weight.sum()
    assert scaler.scale(loss) is loss and scaler.state == {}
    fp16_run(2, scaler=scaler, weight=weight, rate=0.5)
    assert weight.tolist() == [0.25] * 3


def test_the_scale_keeps_gradients_that_fp16_would_lose() -> None:
    """1e-8 is below the smallest number of fp16."""
    lost, kept = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    device = torch.device("cpu")
    for module, scaler in ((lost, Scaler("fp32", device, 0)), (kept, Scaler("fp16", device, 0))):
        with autocast("fp16", device):
            output = module(torch.ones(1, 1))
            assert output.dtype is torch.float16
        scaler.scale(output.float() * 1e-8).sum().backward()
        scaler.unscale(torch.optim.SGD(module.parameters(), lr=1.0))
    assert lost.weight.grad is not None and kept.weight.grad is not None
    assert lost.weight.grad.item() == 0 and kept.weight.grad.item() == pytest.approx(1e-8, rel=1e-2)


# going on

STOPPED = """
from distill.learner import Learner
from test_processes import runs_with_dropout

class Stopped(Exception):
    pass

update = Learner.update

def stopping(self, step, *more):
    if step == 5:
        raise Stopped
    return update(self, step, *more)

processes = Processes(expected=2, timeout=60.0)
for whole, stopped in runs_with_dropout(Path(sys.argv[4]), folder):
    train(whole, processes)
    Learner.update = stopping
    try:
        train(stopped, processes)
    except Stopped:
        assert not (stopped.folder / "manifest.json").exists()
        print("stopped")
    Learner.update = update
    train(stopped, processes)
"""


def runs_with_dropout(prepared: Path, folder: Path) -> list[tuple[Run, Run]]:
    """Whole copies and shards, each twice."""
    model = tiny.model_config("gptj", dropout=0.2, attention_dropout=0.2)
    found = []
    for parallel in ("ddp", "fsdp"):
        fields = {"micro_batch_size": 2, "batch_size": 9, "parallel": parallel}
        run = tiny.run(open_corpus(prepared), folder / parallel, model=model, **fields)
        found.append((run, replace(run, folder=folder / f"{parallel}-stopped")))
    return found


def test_two_processes_go_on_to_the_same_bits_with_dropout(corpus: Corpus, tmp_path: Path) -> None:
    prepared, script = corpus.manifest.folder.parent, tmp_path / "going_on.py"
    script.write_text(LOADED + "from distill.train import train\n" + STOPPED)
    finished = torchrun(2, script, "goes on", 60.0, tmp_path, prepared)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("stopped") == 4, "both processes, twice"
    for whole, stopped in runs_with_dropout(prepared, tmp_path):
        for name in ("model.safetensors", "metrics.jsonl"):
            assert file_digest(stopped.folder / name) == file_digest(whole.folder / name), stopped.folder.name


# launchers


def test_the_files_for_accelerate_leave_everything_to_the_recipe() -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (HOUSE / "configs" / "accelerate").glob("*.yaml")}
    assert files.keys() == {"single", "ddp"}
    for name, read in files.items():
        assert read["mixed_precision"] == "no" and not [key for key in read if key.endswith("_config")], name
    assert files["single"]["num_processes"] == 1 and files["single"]["distributed_type"] == "NO"


@pytest.mark.parametrize(("name", "number"), [("single", 1), ("ddp", 2)])
def test_accelerate_starts_as_many_as_it_is_told(tmp_path: Path, name: str, number: int) -> None:
    script = tmp_path / "started.py"
    script.write_text(
        "from distill.distributed import Processes\n"
        f"processes = Processes(expected={number}, timeout=60.0)\n"
        "processes.barrier()\n"
        "print('started')\n"
    )
    file = HOUSE / "configs" / "accelerate" / f"{name}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    finished = subprocess.run(
        [*command, "--num_processes", str(number), str(script)],
        env=os.environ | ON_CPUS,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("started") == number


STUBS = {
    # one node: what follows srun's own options runs here, and signals reach it alone, as a task
    "srun": 'while [[ $1 == --* ]]; do shift; done; echo $$ > "$STUBS/task"; exec "$@"',
    "scontrol": 'echo "$*" >> "$STUBS/asked"; [ "$1" != show ] || echo localhost',
}
WORKER = """
import os, signal, sys, time
from pathlib import Path

stubs, flag = Path(os.environ["STUBS"]), []
signal.signal(signal.SIGUSR1, lambda *arguments: flag.append(1))
(stubs / f"ready{os.environ['RANK']}").touch()
while not flag:
    time.sleep(0.05)
assert sys.argv[1:3] == ["run", "recipe.yaml"]
sys.exit(int(sys.argv[3]))
"""


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (6, False)])
def test_a_job_goes_back_into_the_queue_when_it_was_preempted_and_then_alone(
    tmp_path: Path, code: int, requeued: bool
) -> None:
    """The batch script with stand-ins for SLURM: the signal reaches the processes, and their exit code the script."""
    for name, body in STUBS.items():
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f"#!/bin/bash\n{body}\n")
        stub.chmod(0o755)
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "__init__.py").touch()
    (tmp_path / "distill" / "__main__.py").write_text(WORKER)
    settings = {
        "STUBS": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "PYTHON": sys.executable,
        "PORT": "0",  # any
        **{"SLURM_JOB_NODELIST": "a", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7"},
    }
    script = subprocess.Popen(
        ["bash", str(HOUSE / "configs" / "slurm" / "train.sbatch"), "recipe.yaml", str(code)],
        cwd=tmp_path,  # where the stand-in for our package is found first
        env=os.environ | ON_CPUS | settings,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not all((tmp_path / f"ready{rank}").exists() for rank in "01"):
        assert script.poll() is None, script.communicate()[1][-3000:]
        time.sleep(0.1)
    os.kill(int((tmp_path / "task").read_text()), signal.SIGUSR1)
    assert script.wait(timeout=60) == code
    assert ("requeue 7" in (tmp_path / "asked").read_text().splitlines()) == requeued
