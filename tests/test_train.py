"""The one loop: stopped anywhere it goes on to the same bytes, divided among processes it learns the same, and what
goes wrong is said in one line with the checkpoints whole."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from conftest import torchrun
from safetensors.torch import load_file
from torch.nn import functional

from corpora import storage
from corpora.addressed import address
from corpora.batch import causal_view
from corpora.errors import Diverged, InputRefused, NoRoom, Preempted, RecipeError
from corpora.loader import plan_rows
from corpora.prepare import Corpus, open_corpus
from corpora.rows import make_batch
from corpora.storage import Manifest, read_manifest
from corpora.stream import Stream
from distill import distributed
from distill import learner as loop
from distill import train as training
from distill.config import TermConfig
from distill.distributed import Processes
from distill.objective import Objective
from distill.step_data import StepData, Term
from distill.tracking import METRICS
from distill.train import Run, train
from students.registry import build_model
from students.run_folder import load_model
from teachers.cache import CachedTeacher

STEPS = 8
HOUSE = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a prepared corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    tiny.corpus(folder)
    return folder / "prepared"


@pytest.fixture(scope="module")
def corpus(prepared: Path) -> Corpus:
    return open_corpus(prepared)


def student(corpus: Corpus, folder: Path, kind: str, **changes: Any) -> Run:
    """A run with dropout whose epochs are shorter than it: causal, masked or mixed, alone or with teachers."""
    architecture = {"causal": "gptj", "masked": "elc_bert", "mixed": "elc_bert"}[kind.split()[0]]
    view: dict[str, Any] = {"views": {"causal": 1.0, "masked": 3.0}} if "mixed" in kind else {"view": kind.split()[0]}
    terms = [tiny.CROSS_ENTROPY]
    if "teachers" in kind:
        key, caches = tiny.cache_key(corpus), folder.parent / "caches"
        members = [tiny.cached(tiny.model(name, corpus), key, caches / name, name) for name in ("llama", "gptj")]
        terms.append(tiny.distillation(*members, pool="product", temperature=2.0))
    model = tiny.model_config(architecture, dropout=0.1, attention_dropout=0.1)
    fields = {"steps": STEPS, "seq_len": 48, "batch_size": 16, "micro_batch_size": 6} | view | changes
    return tiny.run(corpus, folder, *terms, model=model, **fields)


def result(folder: Path) -> tuple[bytes, bytes]:
    """Everything that a second run must repeat to the last bit."""
    return (folder / "model.safetensors").read_bytes(), (folder / METRICS).read_bytes()


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / METRICS).read_text().splitlines()
    return [record for line in lines if "lr" in (record := json.loads(line))]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def at_step(number: int, action: Callable[[], None]) -> Callable[..., StepData]:
    """`step_data` that does something before it answers for one step."""
    original = loop.step_data

    def patched(step: int, *arguments: Any, **keywords: Any) -> StepData:
        if step == number:
            action()
        return original(step, *arguments, **keywords)

    return patched


class Killed(BaseException):
    """What no code of ours catches."""


def kill() -> None:
    raise Killed


def stop_at(run: Run, processes: Processes, step: int, patch: pytest.MonkeyPatch) -> None:
    with patch.context() as context, pytest.raises(Killed):
        context.setattr(loop, "step_data", at_step(step, kill))
        train(run, processes)


# the loop


def test_a_run_is_a_plain_training_loop(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    """Cross-entropy, clipping, AdamW, warm-up and cosine written out: the same losses and rates in every step."""
    run = tiny.run(corpus, tmp_path / "run", warmup_share=0.25, lr=1e-2, grad_clip=0.2)
    train(run, processes)
    stream, ids, size = corpus.streams["train"], corpus.token_ids, corpus.vocab_size
    model = build_model(run.model, vocab_size=size, token_ids=ids, seed=address(run.seed, "init"))
    plan = plan_rows(stream, seq_len=32, batch_size=8, seed=address(run.seed, "data"), random_offsets=True)
    decaying = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=False)
    rates = [5e-3, 1e-2, *(1e-2 * (0.55 + 0.45 * math.cos(math.pi * step / 6)) for step in range(6))]
    for step, record in enumerate(records(run.folder)):
        batch = make_batch(stream, plan.spans(step), causal_view(), token_ids=ids, vocab_size=size)
        logits = model.network.lm_head(model.features(batch.input_ids_BT, batch.segments_BT, causal=True))
        loss = functional.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        found = record["causal/cross_entropy"], record["grad_norm"], record["lr"]
        assert found == pytest.approx((loss.item(), norm.item(), rates[step]), rel=1e-4)


# resuming


@pytest.mark.parametrize("kind", ["causal", "masked", "mixed", "causal teachers", "masked teachers", "mixed teachers"])
def test_a_run_killed_in_any_step_goes_on_to_the_same_bytes(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    whole = student(corpus, tmp_path / "whole", kind)
    train(whole, processes)
    losses = [record for record in records(whole.folder) if len(record) > 4]
    assert len(losses) == STEPS
    stopped = replace(whole, folder=tmp_path / "stopped")
    for step in (1, 4, 7):  # without a checkpoint, just after one, one step after one
        stop_at(stopped, processes, step, monkeypatch)
        assert read_manifest(stopped.folder) is None
    train(stopped, processes)
    assert result(stopped.folder) == result(whole.folder)


def test_dropout_is_on_and_seeded(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    run = student(corpus, tmp_path / "run", "causal")
    for name, changed in (("again", run), ("seed", replace(run, seed=8))):
        train(replace(changed, folder=tmp_path / name), processes)
    without = replace(run, model=replace(run.model, dropout=0.0, attention_dropout=0.0), folder=tmp_path / "without")
    for each in (run, without):
        train(each, processes)
    assert result(tmp_path / "again") == result(run.folder)
    assert result(tmp_path / "seed") != result(run.folder) != result(without.folder)


def test_every_forward_pass_draws_a_dropout_of_its_own(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds, original = [], torch.manual_seed
    monkeypatch.setattr(loop.torch, "manual_seed", lambda seed: seeds.append(seed) or original(seed))
    run = student(corpus, tmp_path / "run", "causal")
    train(run, processes)
    seeds = seeds[1:]  # the first draws the weights
    assert len(seeds) == len(set(seeds)) == STEPS * 3  # 16 rows in micro-batches of at most 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_the_step_and_exits_with_75(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    whole = student(corpus, tmp_path / "whole", "causal")
    train(whole, processes)
    stopped = replace(whole, folder=tmp_path / "stopped")
    handler = signal.getsignal(number)
    with monkeypatch.context() as context, pytest.raises(Preempted, match="stopped after step 5 and saved") as stop:
        context.setattr(loop, "step_data", at_step(4, lambda: os.kill(os.getpid(), number)))
        train(stopped, processes)
    assert stop.value.exit_code == 75 and signal.getsignal(number) is handler
    assert checkpoints(stopped.folder) == ["step-00000004", "step-00000005"]
    train(stopped, processes)
    assert result(stopped.folder) == result(whole.folder)


def test_the_run_folder_loads_and_its_facts_are_right(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    run = student(corpus, tmp_path / "run", "mixed")
    train(run, processes)
    manifest = read_manifest(run.folder)
    assert manifest is not None and manifest.fingerprint == run.fingerprint
    assert manifest.facts["views"] == ["causal", "masked"] and manifest.facts["steps"] == STEPS
    assert manifest.facts["words"] == records(run.folder)[-1]["words"] > 0
    assert manifest.facts["parameters"] == sum(p.numel() for p in load_model(run.folder).parameters())
    assert all(manifest.verified(name).exists() for name in manifest.files)


# checkpoints


def test_the_newest_two_checkpoints_are_kept(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    run = tiny.run(corpus, tmp_path / "run")
    train(run, processes)
    assert checkpoints(run.folder) == ["step-00000004", "step-00000006"]


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    corpus: Corpus,
    processes: Processes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = tiny.run(corpus, tmp_path / "whole")
    train(whole, processes)
    stopped = replace(whole, folder=tmp_path / "stopped")
    stop_at(stopped, processes, 6, monkeypatch)
    damaged = stopped.folder / "checkpoints" / "step-00000006" / "optimizer.safetensors"
    flip_a_byte(damaged)
    capsys.readouterr()
    steps_done, original = [], training.learning_rate

    def remember(step: int, *arguments: Any) -> float:
        steps_done.append(step)
        return original(step, *arguments)

    monkeypatch.setattr(training, "learning_rate", remember)
    train(stopped, processes)
    assert f"{damaged}: found" in (said := capsys.readouterr().out)
    assert "going back to the checkpoint before it" in said
    assert steps_done == [4, 5, 6, 7]
    assert result(stopped.folder) == result(whole.folder)


def test_a_damaged_checkpoint_does_not_count_among_the_two_that_are_kept(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.run(corpus, tmp_path / "run")
    stop_at(run, processes, 4, monkeypatch)
    flip_a_byte(run.folder / "checkpoints" / "step-00000004" / "model.safetensors")
    with monkeypatch.context() as context, pytest.raises(Preempted):
        context.setattr(loop, "step_data", at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        train(run, processes)
    assert checkpoints(run.folder) == ["step-00000002", "step-00000003", "step-00000004.damaged"]


def test_a_checkpoint_of_another_recipe_is_refused_with_the_field(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.run(corpus, tmp_path / "run")
    stop_at(run, processes, 5, monkeypatch)
    with pytest.raises(InputRefused, match=r"train.lr is 0.003 there and 0.001 here") as refused:
        train(tiny.run(corpus, tmp_path / "run", lr=1e-3), processes)
    assert refused.value.exit_code == 3
    with pytest.raises(InputRefused, match=r"arithmetic.micro_batch is None there and 2 here"):
        train(replace(run, train=replace(run.train, micro_batch_size=2)), processes)
    assert checkpoints(run.folder) == ["step-00000002", "step-00000004"]


def test_all_checkpoints_damaged_means_from_the_beginning(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = (tiny.run(corpus, tmp_path / name) for name in ("whole", "stopped"))
    train(whole, processes)
    stop_at(stopped, processes, 4, monkeypatch)
    for path in (stopped.folder / "checkpoints").glob("*/model.safetensors"):
        flip_a_byte(path)
    train(stopped, processes)
    assert result(stopped.folder) == result(whole.folder)


# what goes wrong


@pytest.mark.parametrize("after", [0, 5])
def test_a_loss_that_is_not_finite_ends_the_run_with_6(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    run, built = tiny.run(corpus, tmp_path / "run"), []
    build = loop.build_model

    def remember(*arguments: Any, **keywords: Any) -> Any:
        built.append(build(*arguments, **keywords))
        return built[-1]

    def poison() -> None:
        with torch.no_grad():
            next(built[0].parameters())[5:] = torch.nan

    with monkeypatch.context() as context:
        context.setattr(loop, "build_model", remember)
        context.setattr(loop, "step_data", at_step(after, poison))
        with pytest.raises(
            Diverged, match=rf"step {after + 1}: causal/cross_entropy is nan, .*; lower train.lr"
        ) as ended:
            train(run, processes)
    assert ended.value.exit_code == 6 and "\n" not in str(ended.value)
    assert read_manifest(run.folder) is None and len(records(run.folder)) == after
    for path in (run.folder / "checkpoints").glob("*/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


def test_a_disk_that_is_full_at_any_write_leaves_whole_checkpoints_and_a_run_that_goes_on(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny.run(corpus, tmp_path / "whole", model=tiny.model_config("llama", num_layers=1))
    operations: list[tuple[str, Path]] = []
    monkeypatch.setattr(storage, "fault", lambda operation, path: operations.append((operation, path)))
    train(whole, processes)
    writes = [number for number, (operation, _) in enumerate(operations) if operation == "write"]
    for stop in writes[:: max(len(writes) // 12, 1)]:
        run, left = replace(whole, folder=tmp_path / f"full-{stop}"), iter(range(stop))

        def refuse(operation: str, path: Path, left=left) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(storage, "fault", refuse)
        with pytest.raises(NoRoom, match="No space left on device") as full:
            train(run, processes)
        assert full.value.exit_code == 5
        assert read_manifest(run.folder) is None and not list(run.folder.rglob("*.partial"))
        monkeypatch.setattr(storage, "fault", lambda operation, path: None)
        train(run, processes)
        assert result(run.folder) == result(whole.folder), f"full at {operations[stop]}"


def test_a_corpus_shorter_than_a_row_is_refused_before_anything_is_written(
    corpus: Corpus, processes: Processes, tmp_path: Path
) -> None:
    with pytest.raises(InputRefused, match="the stream 'train' holds .* tokens, one row needs 100001"):
        train(tiny.run(corpus, tmp_path / "run", seq_len=100_000), processes)
    assert not (tmp_path / "run").exists()


# processes


TWO_PROCESSES = """
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from corpora.prepare import open_corpus
from distill.distributed import Processes
from distill.learner import Learner
from distill.train import train
from test_train import divided_runs

class Stopped(Exception):
    pass

update = Learner.update

def stopping(self, step, *more):
    if step == 5:
        raise Stopped
    return update(self, step, *more)

prepared, folder = map(Path, sys.argv[1:])
processes = Processes(expected=2)
for run in divided_runs(open_corpus(prepared), folder):
    train(run, processes)
    sharded = replace(run, folder=folder / f"{run.name}-fsdp", train=replace(run.train, parallel="fsdp"))
    Learner.update = stopping
    with suppress(Stopped):
        train(sharded, processes)
    assert processes.is_first is False or not (sharded.folder / "manifest.json").exists()
    Learner.update = update
    train(sharded, processes)
"""


def divided_runs(corpus: Corpus, folder: Path) -> list[Run]:
    """Runs without dropout: tied and untied heads, uneven shares, micro-batches, a view that one process may lack."""
    teachers = {
        name: tiny.cached(
            tiny.model(name, corpus), tiny.cache_key(corpus, objective=objective), folder.parent / "caches" / name, name
        )
        for name, objective in (("llama", "causal"), ("elc_bert", "masked"))
    }
    llama, elc = tiny.distillation(teachers["llama"]), tiny.distillation(teachers["elc_bert"], view="masked")
    # its projection has no row in a process without causal ones
    config = TermConfig(loss="feature_mse", weight=0.1, view="causal", members={"llama": 1.0})
    compared = Term(config, llama.ensemble, number=3)
    gptj, masked = tiny.model_config("gptj"), tiny.model_config("elc_bert")
    return [
        tiny.run(corpus, folder / "causal", tiny.CROSS_ENTROPY, llama, batch_size=7),
        tiny.run(corpus, folder / "micro", tiny.CROSS_ENTROPY, model=gptj, batch_size=9, micro_batch_size=2),
        tiny.run(
            corpus,
            folder / "mixed",
            *(tiny.CROSS_ENTROPY, llama, elc, compared),
            model=masked,
            views={"causal": 1.0, "masked": 8.0},
            batch_size=9,
            micro_batch_size=3,
        ),
    ]


def test_two_processes_learn_what_one_learns(
    corpus: Corpus, prepared: Path, processes: Processes, tmp_path: Path
) -> None:
    runs = divided_runs(corpus, tmp_path / "one")
    for run in runs:
        train(run, processes)
    script = tmp_path / "two_processes.py"
    script.write_text(TWO_PROCESSES)
    finished = torchrun(2, script, prepared, tmp_path / "two")
    assert finished.returncode == 0, finished.stderr[-3000:]
    for run in runs:
        alone = records(run.folder)
        for name in (run.name, f"{run.name}-fsdp"):  # whole copies, and FSDP2's shards of a run that was stopped once
            together = records(tmp_path / "two" / name)
            assert len(alone) == len(together) == STEPS
            for one, two in zip(alone, together, strict=True):
                assert one.keys() == two.keys() and one["words"] == two["words"]
                assert two == pytest.approx(one, abs=1e-4)
            whole, found = (load_model(folder).state_dict() for folder in (run.folder, tmp_path / "two" / name))
            assert all((found[key] - value).abs().max() < 1e-4 for key, value in whole.items())
        assert alone[0]["causal/cross_entropy"] - alone[-1]["causal/cross_entropy"] > 0.01, "nothing was learned"


def test_fewer_processes_than_asked_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="processes: 1 take part, 2 were asked for; start them with torchrun") as few:
        Processes(expected=2)
    assert few.value.exit_code == 2


@pytest.mark.parametrize("taking_part", [1, 4])
def test_a_launcher_that_started_another_number_is_refused(monkeypatch: pytest.MonkeyPatch, taking_part: int) -> None:
    plain = distributed.DistributedType.MULTI_CPU
    found = SimpleNamespace(num_processes=taking_part, process_index=0, device="cpu", distributed_type=plain)
    monkeypatch.setattr(distributed, "Accelerator", lambda **keywords: found)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=f"{taking_part} take part, 2 were launched"):
        Processes()
    with pytest.raises(RecipeError, match=f"{taking_part} take part, 2 were launched"):
        Processes(expected=taking_part)


def test_other_ways_of_dividing_a_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fsdp = distributed.DistributedType.FSDP
    found = SimpleNamespace(num_processes=1, process_index=0, device="cpu", distributed_type=fsdp)
    monkeypatch.setattr(distributed, "Accelerator", lambda **keywords: found)
    with pytest.raises(RecipeError, match="the launcher asks for FSDP, expected plain data parallelism"):
        Processes()


def test_what_the_launcher_configures_does_not_change_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.ones((), requires_grad=True)
    Processes().backward(weight * 3)
    assert weight.grad == 3


def test_no_file_is_read_while_the_loss_is_computed(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Objective.forward

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a file is read inside forward")

    def guarded(self: Objective, *arguments: Any) -> Any:
        with monkeypatch.context() as context:
            for owner, method in ((CachedTeacher, "records"), (Stream, "_read"), (Manifest, "verified")):
                context.setattr(owner, method, refuse)
            return forward(self, *arguments)

    monkeypatch.setattr(Objective, "forward", guarded)
    train(student(corpus, tmp_path / "run", "causal teachers", steps=2), processes)
