"""The learner: the same gradients whatever saves memory or time, and micro-batches that memory holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from corpora.errors import NoRoom
from corpora.prepare import Corpus
from distill.distributed import Processes
from distill.learner import Learner
from distill.objective import Objective
from distill.phases import RunPlan, plan_run
from distill.run import Run
from distill.train import train

EVERY = ("llama", "gptj", "elc_bert")


def run_of(corpus: Corpus, folder: Path, architecture: str = "llama", **changes: Any) -> Run:
    return tiny.run(corpus, folder, tiny.CROSS_ENTROPY, model=tiny.model_config(architecture), **changes)


def plan_of(run: Run) -> RunPlan:
    return plan_run(run.train, run.corpus.streams["train"], seed=3)


def gradients(run: Run, processes: Processes) -> tuple[dict[str, float], dict[str, Tensor]]:
    learner = Learner(run, processes)
    means = learner.gradients(0, plan_of(run))
    return means, {name: weight.grad.clone() for name, weight in learner.objective.named_parameters()}  # type: ignore[union-attr]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("architecture", EVERY)
def test_activations_worked_out_again_are_the_same(
    architecture: str, corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = {"view": None, "views": {"causal": 1, "masked": 1}}
    means, expected = gradients(run_of(corpus, tmp_path / "kept", architecture, **views), processes)
    calls: list[str] = []
    linear = torch.nn.Linear.forward

    def counting(self: torch.nn.Linear, *arguments: Any) -> Tensor:
        calls.append("linear")
        return linear(self, *arguments)

    monkeypatch.setattr(torch.nn.Linear, "forward", counting)
    assert gradients(run_of(corpus, tmp_path / "counted", architecture, **views), processes)[0] == means
    once = len(calls)
    run = run_of(corpus, tmp_path / "again", architecture, activation_checkpointing=True, **views)
    found_means, found = gradients(run, processes)
    assert found_means == means
    assert_same(found, expected, 1e-6)
    # all but those outside the blocks, of which ELC-BERT's head has some
    assert len(calls) - once > 1.7 * once


@pytest.mark.parametrize("architecture", EVERY)
def test_a_compiled_model_is_the_same(
    architecture: str, corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means, expected = gradients(run_of(corpus, tmp_path / "eager", architecture), processes)
    compiled: list[type] = []
    compile_ = torch.nn.Module.compile

    def captured(module: torch.nn.Module) -> None:
        compiled.append(type(module))
        compile_(module, backend="aot_eager")  # graphs are captured; making machine code of them is not ours to test

    monkeypatch.setattr(torch.nn.Module, "compile", captured)
    found_means, found = gradients(run_of(corpus, tmp_path / "compiled", architecture, compile=True), processes)
    assert len(compiled) == 1
    assert found_means == pytest.approx(means, rel=1e-6)
    assert_same(found, expected, 1e-5)


def test_half_precisions_are_close_to_fp32(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    means, expected = gradients(run_of(corpus, tmp_path / "fp32"), processes)
    for precision, tolerance in (("bf16", 0.03), ("fp16", 0.005)):
        run = run_of(corpus, tmp_path / precision, precision=precision)
        learner = Learner(run, processes)
        found_means = learner.gradients(0, plan_of(run))
        learner.scaler.unscale(learner.optimizer)
        assert found_means == pytest.approx(means, rel=0.01)
        found = {name: weight.grad for name, weight in learner.objective.named_parameters()}
        assert_same(found, expected, tolerance)  # type: ignore[arg-type]


# memory


def no_room_for_more_than(rows: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let memory run out in the middle of the forward pass of more rows; returns what was tried."""
    tried: list[int] = []
    forward = Objective.forward

    def limited(self: Objective, parts: Any, *more: Any) -> Any:
        tried.append(sum(len(part.batch) for part in parts))
        if tried[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, parts, *more)

    monkeypatch.setattr(Objective, "forward", limited)
    return tried


def test_the_micro_batch_halves_itself_until_memory_holds_it(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    expected = run_of(corpus, tmp_path / "given", micro_batch_size=2, batch_size=10)
    train(expected, processes)
    run = replace(expected, folder=tmp_path / "found", train=replace(expected.train, micro_batch_size=None))
    tried = no_room_for_more_than(2, monkeypatch)
    train(run, processes)
    assert tried[:3] == [10, 5, 3] and set(tried[3:]) == {2}
    assert capsys.readouterr().out.count("goes on with micro-batches of 2 rows") == 1
    assert (run.folder / "model.safetensors").read_bytes() == (expected.folder / "model.safetensors").read_bytes()


def test_a_resumed_run_goes_on_with_the_micro_batch_that_was_found(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(corpus, tmp_path / "run")
    with monkeypatch.context() as context:
        no_room_for_more_than(3, context)
        update = Learner.update

        def stopping(self: Learner, step: int, *more: Any) -> float:
            if step == 5:
                raise KeyboardInterrupt
            return update(self, step, *more)

        context.setattr(Learner, "update", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(run, processes)
    tried = no_room_for_more_than(1_000, monkeypatch)
    train(run, processes)
    assert set(tried) == {2}, "recorded in the checkpoint"


def test_one_row_too_much_and_a_given_micro_batch_end_the_run_with_5(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room_for_more_than(0, monkeypatch)
    with pytest.raises(NoRoom, match="step 1: one row is too much .*shorten train.seq_len") as caught:
        train(run_of(corpus, tmp_path / "none"), processes)
    assert caught.value.exit_code == 5
    with pytest.raises(NoRoom, match="set train.micro_batch_size lower than 4"):
        train(run_of(corpus, tmp_path / "given", micro_batch_size=4), processes)


def test_other_errors_of_torch_are_not_taken_for_a_lack_of_memory(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Objective, *arguments: Any) -> Any:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr(Objective, "forward", broken)
    with pytest.raises(RuntimeError, match="size of tensor a"):
        train(run_of(corpus, tmp_path / "run"), processes)
