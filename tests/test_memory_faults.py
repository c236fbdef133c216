"""Memory that runs out: rows are halved on the spot where that is one process's own matter, at the next start where it
is not, and where fewer rows do not help the run ends in one line, with exit code 5 and whole checkpoints."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import torchrun
from safetensors.torch import load_file
from torch import nn

from corpora.errors import CuveeError, NoRoom
from corpora.prepare import Corpus, open_corpus
from corpora.storage import file_digest, read_manifest
from distill import learner as loop
from distill.averaging import MovingAverage
from distill.distributed import Processes
from distill.learner import Learner
from distill.look import TuneStream
from distill.memory import made_for_good
from distill.micro_batch import fewer_rows_next_time, is_out_of_memory, kept_limit
from distill.objective import Objective
from distill.precision import Scaler
from distill.run import Run
from distill.train import train

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB"
WEIGHTS = "model.safetensors"


def run_of(corpus: Corpus, folder: Path, **changes: Any) -> Run:
    """Of a model with buffers: the angles of its positions."""
    return tiny.run(corpus, folder, **changes)


@contextlib.contextmanager
def room_for(rows: int, *, first_step: int = 0) -> Iterator[list[int]]:
    """From a step on memory runs out in the forward pass of more rows; yields the rows of all that are tried."""
    tried, now = [], [0]
    forward, gradients = Objective.forward, Learner.gradients

    def limited(self: Objective, parts: Any, *more: Any) -> Any:
        tried.append(sum(len(part.batch) for part in parts))
        if now[0] >= first_step and tried[-1] > rows:
            raise torch.OutOfMemoryError(SAID)
        return forward(self, parts, *more)

    def stepping(self: Learner, step: int, *more: Any, **named: Any) -> dict[str, float]:
        now[0] = step
        return gradients(self, step, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "forward", limited)
        patch.setattr(Learner, "gradients", stepping)
        yield tried


@contextlib.contextmanager
def failing(owner: Any, method: str, *, call: int = 0, first: Callable[..., None] | None = None) -> Iterator[None]:
    """One call of a function (counted from 0) runs out of memory, after it has done something."""
    original, calls = getattr(owner, method), []

    def limited(*arguments: Any, **keywords: Any) -> Any:
        calls.append(method)
        if len(calls) == call + 1:
            if first is not None:
                first(*arguments)
            raise torch.OutOfMemoryError(SAID)
        return original(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, limited)
        yield


def assert_near(found: Path, expected: Path) -> None:
    one, two = (load_file(folder / WEIGHTS) for folder in (found, expected))
    assert one.keys() == two.keys()
    assert all((one[name] - two[name]).abs().max() < 1e-4 for name in one)


# what is a lack of memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(SAID),
        torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in CUDA's manual"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
)
def test_everything_that_says_so_is_a_lack_of_memory(
    corpus: Corpus, processes: Processes, tmp_path: Path, error: Exception
) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(NoRoom) as told, fewer_rows_next_time(run_of(corpus, tmp_path), 0, place="step 3", rows=5):
        raise error
    assert told.value.exit_code == 5 and "\n" not in str(told.value) and ": ; " not in str(told.value)


def test_other_errors_of_torch_are_not_taken_for_a_lack_of_memory(
    corpus: Corpus, processes: Processes, tmp_path: Path
) -> None:
    assert not is_out_of_memory(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="size of tensor a"):
        patch.setattr(Objective, "forward", broken)
        train(run_of(corpus, tmp_path / "run", micro_batch_size=2), processes)
    assert not (tmp_path / "run" / "memory").exists()


# on the spot


def test_the_micro_batch_halves_itself_until_memory_holds_it(
    corpus: Corpus, processes: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = run_of(corpus, tmp_path / "given", micro_batch_size=2, batch_size=10)
    train(expected, processes)
    run = replace(expected, folder=tmp_path / "found", train=replace(expected.train, micro_batch_size=None))
    with room_for(2) as tried:
        train(run, processes)
    assert tried[:3] == [10, 5, 3] and set(tried[3:]) == {2}
    assert capsys.readouterr().out.count("goes on with micro-batches of 2 rows") == 1
    assert (run.folder / WEIGHTS).read_bytes() == (expected.folder / WEIGHTS).read_bytes()


def test_a_resumed_run_goes_on_with_the_micro_batch_that_was_found(
    corpus: Corpus, processes: Processes, tmp_path: Path
) -> None:
    run = run_of(corpus, tmp_path / "run")
    with room_for(3), failing(Learner, "update", call=5), pytest.raises(torch.OutOfMemoryError):
        train(run, processes)
    with room_for(1_000) as tried:
        train(run, processes)
    assert set(tried) == {2}, "recorded in the checkpoint"


def test_one_row_too_much_ends_the_run(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    run = run_of(corpus, tmp_path / "run")
    with room_for(0), pytest.raises(NoRoom, match="step 1: one row is too much .*shorten train.seq_len") as caught:
        train(run, processes)
    assert caught.value.exit_code == 5


# at the next start


def test_a_given_micro_batch_becomes_smaller_at_the_next_start_of_the_same_command(
    corpus: Corpus, processes: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run_of(corpus, tmp_path / "whole", micro_batch_size=4)
    train(whole, processes)
    run = replace(whole, folder=tmp_path / "run")
    with room_for(2, first_step=5):
        with pytest.raises(NoRoom) as ended:
            train(run, processes)
        with room_for(1_000) as tried:  # counts alone: the other goes on inside
            capsys.readouterr()
            train(run, processes)
    said = str(ended.value)
    assert said.startswith(f"{run.folder}: step 6: CUDA out of memory") and ended.value.exit_code == 5
    assert "the same command goes on from the last checkpoint with 2 rows at a time instead of 4" in said
    assert f"delete {run.folder / 'memory'} to try 4 again" in said
    line = f"memory: {run.folder} goes on with micro-batches of 2 rows instead of 4, rounded otherwise from here on"
    assert capsys.readouterr().out.count(line) == 1
    assert tried == [2] * 4 * 4, "from the checkpoint after step 4"
    assert_near(run.folder, whole.folder)


def test_a_given_micro_batch_halves_from_start_to_start_until_one_row_is_too_much(
    corpus: Corpus, processes: Processes, tmp_path: Path
) -> None:
    run = run_of(corpus, tmp_path / "run", micro_batch_size=6)
    for found in ("with 3 rows .* instead of 6", "with 2 rows", "with 1 rows", "one row is too much"):
        with room_for(0), pytest.raises(NoRoom, match=found):
            train(run, processes)


def test_the_line_is_said_once_the_checkpoint_knows_it(
    corpus: Corpus, processes: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(corpus, tmp_path / "run")
    for rank, rows in enumerate((4, 6)):  # two processes had no room
        with pytest.raises(NoRoom), fewer_rows_next_time(run, rank, place="step 1", rows=rows):
            raise MemoryError
    assert kept_limit(run, processes) == 2, "the smallest"
    learner = Learner(run, processes)
    learner.restore({})
    assert learner.micro_batch == 2 and "micro-batches of 2 rows instead of all" in capsys.readouterr().out
    state = learner.state
    learner = Learner(run, processes)
    learner.restore(state)
    assert learner.micro_batch == 2 and not capsys.readouterr().out
    learner.restore(state | {"micro_batch": 1})
    assert learner.micro_batch == 1 and not capsys.readouterr().out
    other = run_of(corpus, run.folder, seq_len=16)
    assert kept_limit(other, processes) is None, "its rows are shorter"


# where fewer rows do not help


def test_signals_that_do_not_fit_end_the_run(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    run = run_of(corpus, tmp_path / "run")
    with failing(loop, "step_data", call=3):
        with pytest.raises(NoRoom, match="step 4: its rows and what teachers say of them: .*lower train.batch_size"):
            train(run, processes)
    assert not (run.folder / "memory").exists()


@pytest.mark.parametrize("where", [Scaler, MovingAverage])
def test_an_update_that_is_half_done_is_not_trained_on(
    corpus: Corpus, processes: Processes, tmp_path: Path, where: type
) -> None:
    whole = run_of(corpus, tmp_path / "whole", average=0.9)
    train(whole, processes)
    run = replace(whole, folder=tmp_path / "run")

    def spoil(self: object, changed: Any, *more: Any) -> None:
        weights = changed if isinstance(changed, nn.Module) else changed.param_groups[0]["params"]
        with torch.no_grad():
            next(iter(weights.parameters() if isinstance(weights, nn.Module) else weights)).zero_()

    method = {Scaler: "step", MovingAverage: "update"}[where]
    said = "step 5: the update, of which nothing is saved: CUDA out of memory"
    with failing(where, method, call=4, first=spoil), pytest.raises(NoRoom, match=said):
        train(run, processes)
    assert read_manifest(run.folder) is None and not (run.folder / "memory").exists()
    train(run, processes)
    assert (run.folder / WEIGHTS).read_bytes() == (whole.folder / WEIGHTS).read_bytes()


def test_a_look_reads_no_more_rows_than_training(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    run = run_of(corpus, tmp_path / "run", batch_size=8)
    module, tune, found = Learner(run, processes).module, TuneStream(run, processes), []
    for micro_batch, most in ((None, 8), (3, 3), (100, 8), (2, 2)):
        with room_for(1_000) as tried:
            found.append(tune.look(module, "fp32", micro_batch=micro_batch).value)
        assert max(tried) == most
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)
    with room_for(2), pytest.raises(NoRoom, match="a look at the tune stream: .* goes on .* with 2 rows at a time"):
        tune.look(module, "fp32", micro_batch=3)
    assert kept_limit(run, processes) == 2 == Learner(run, processes).micro_batch


# several processes

BOTH = """
import gc
import sys
from pathlib import Path
from test_memory_faults import first_start, second_start
{"first": first_start, "second": second_start}[sys.argv[1]](*map(Path, sys.argv[2:]))
"""


def runs(corpus: Corpus, out: Path) -> dict[str, Run]:
    """Ten rows a step, five for each of two processes."""
    model = tiny.model_config("llama", num_layers=1)
    plain = tiny.run(corpus, out / "found", model=model, batch_size=10, steps=6, evaluate_every=3)
    given = replace(plain, folder=out / "given", train=replace(plain.train, micro_batch_size=2))
    sharded = replace(plain, folder=out / "sharded", train=replace(plain.train, parallel="fsdp"))
    return {"found": plain, "given": given, "late": replace(plain, folder=out / "late"), "sharded": sharded}


def room_in_second(processes: Processes, rows: int, first_step: int = 0) -> contextlib.AbstractContextManager[Any]:
    """Memory runs out in the second process alone."""
    return room_for(rows if processes.rank == 1 else 1_000, first_step=first_step)


def first_start(prepared: Path, out: Path) -> None:
    """What both processes do: two whole runs, and one that ends where memory runs out in the second process."""
    processes = Processes(expected=2, timeout=15.0)
    run = runs(open_corpus(prepared), out)
    with processes.guarded():
        module: Any = Learner(run["given"], processes).module
        assert module.modules_buffers and not module.will_sync_module_buffers(), "a forward pass exchanges nothing"
        train(run["given"], processes)
        with room_in_second(processes, 2) as tried:
            train(run["found"], processes)
        (out / f"tried-{processes.rank}").write_text(" ".join(map(str, tried)))
    _ends(run["late"], processes, out, first_step=3)


def second_start(prepared: Path, out: Path) -> None:
    """The same command again, and a sharded run, whose processes cannot try alone."""
    processes = Processes(expected=2, timeout=15.0)
    run = runs(open_corpus(prepared), out)
    with processes.guarded(), room_in_second(processes, 3, first_step=3):
        train(run["late"], processes)
    _ends(run["sharded"], processes, out, first_step=0)


def _ends(run: Run, processes: Processes, out: Path, *, first_step: int) -> None:
    """As the command line ends."""
    try:
        with processes.guarded(), room_in_second(processes, 3, first_step):
            train(run, processes)
    except CuveeError as error:
        (out / f"{run.folder.name}-{processes.rank}").write_text(f"{error.exit_code} {error}")
        sys.exit(error.exit_code)


@pytest.fixture(scope="module")
def started(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes left that were started twice."""
    out = tmp_path_factory.mktemp("memory")
    script = out / "both.py"
    script.write_text(BOTH)
    for which in ("first", "second"):
        finished = torchrun(2, script, which, corpus.manifest.folder.parent, out)
        (out / f"{which}.out").write_text(finished.stdout)
        (out / f"{which}.err").write_text(finished.stderr)
    return out


def test_a_shortage_in_one_process_makes_the_micro_batch_of_all_smaller(started: Path) -> None:
    assert (started / "found" / WEIGHTS).exists(), (started / "first.err").read_text()[-5000:]
    # looks too read no more rows than training
    for rank in range(2):
        tried = list(map(int, (started / f"tried-{rank}").read_text().split()))
        assert [rows for rows in tried if rows > 2] == [5, 3] and tried[0] == 5
    found, given = (started / name for name in ("found", "given"))
    assert file_digest(found / WEIGHTS) == file_digest(given / WEIGHTS)
    assert "step 1 goes on with micro-batches of 2 rows" in (started / "first.out").read_text()


def test_a_shortage_in_a_later_step_is_remembered_by_the_same_command(started: Path, corpus: Corpus) -> None:
    code, said = (started / "late-1").read_text().split(" ", 1)
    assert code == "5" and said.startswith(f"{started / 'late'}: step 4: CUDA out of memory")
    assert "with 3 rows at a time instead of 5" in said
    lines = [line for line in (started / "second.out").read_text().splitlines() if line.startswith("memory:")]
    late = started / "late"
    assert lines == [
        f"memory: {late} goes on with micro-batches of 3 rows instead of 5, rounded otherwise from here on: "
        f"memory ran out at an earlier start ({late / 'memory'})"
    ], (started / "second.err").read_text()[-3000:]
    assert read_manifest(late) is not None, "it was finished"
    assert_near(late, started / "given")


def test_a_sharded_run_is_told_the_same(started: Path, corpus: Corpus, processes: Processes) -> None:
    code, said = (started / "sharded-1").read_text().split(" ", 1)
    assert code == "5" and "step 1: CUDA out of memory" in said and "with 3 rows at a time instead of 5" in said
    assert kept_limit(runs(corpus, started)["sharded"], processes) == 3


def test_what_is_made_for_good_is_no_garbage() -> None:
    """The collector rests inside, and never looks at what was made there; afterwards it works as before."""
    frozen = gc.get_freeze_count()
    with made_for_good():
        assert not gc.isenabled()
        kept = [{"pair": number} for number in range(1000)]
    assert gc.isenabled() and gc.get_freeze_count() >= frozen + len(kept)
    gc.unfreeze()
