"""The learner: the same gradients whatever saves memory or time, and steps that fp16 leaves out."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from corpora.prepare import Corpus
from distill.distributed import Processes
from distill.learner import Learner
from distill.phases import RunPlan, plan_run
from distill.run import Run
from distill.sharding import transformer_blocks
from students.registry import ARCHITECTURES

EVERY = tuple(ARCHITECTURES)


def run_of(corpus: Corpus, folder: Path, architecture: str = "llama", **changes: Any) -> Run:
    return tiny.run(corpus, folder, tiny.CROSS_ENTROPY, model=tiny.model_config(architecture), **changes)


def plan_of(run: Run) -> RunPlan:
    return plan_run(run.train, run.corpus.streams["train"], seed=3)


def gradients(run: Run, processes: Processes) -> tuple[dict[str, float], dict[str, Tensor]]:
    return gradients_of(Learner(run, processes), run)


def gradients_of(learner: Learner, run: Run) -> tuple[dict[str, float], dict[str, Tensor]]:
    means = learner.gradients(0, plan_of(run))
    trained = {name: weight for name, weight in learner.objective.named_parameters() if weight.requires_grad}
    return means, {name: weight.grad.clone() for name, weight in trained.items()}  # type: ignore[union-attr]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("architecture", EVERY)
def test_activations_worked_out_again_are_the_same(
    architecture: str, corpus: Corpus, processes: Processes, tmp_path: Path
) -> None:
    views = {"view": None, "views": {"causal": 1, "masked": 1}}
    runs = [
        run_of(corpus, tmp_path / name, architecture, activation_checkpointing=name == "again", **views)
        for name in ("kept", "again")
    ]
    kept, again = (Learner(run, processes) for run in runs)
    calls: Counter[torch.nn.Module] = Counter()
    with register_module_forward_pre_hook(lambda module, _: calls.update([module])):
        means, expected = gradients_of(kept, runs[0])
        found_means, found = gradients_of(again, runs[1])
    assert found_means == means
    assert_same(found, expected, 1e-6)

    def in_blocks(learner: Learner) -> int:
        parts = [part for block in transformer_blocks(learner.model) for part in block.modules()]
        return sum(calls[part] for part in parts if not list(part.children()))

    # all twice, but what stands behind the last tensor that a block keeps
    assert 1.7 * in_blocks(kept) < in_blocks(again) <= 2 * in_blocks(kept)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
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


# steps that fp16 leaves out


def test_steps_that_fp16_leaves_out_are_counted_and_change_nothing(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(corpus, tmp_path / "fp16", precision="fp16")
    learner, plan = Learner(run, processes), plan_of(run)
    clip = Processes.clip_grad_norm

    def overflowing(self: Processes, module: torch.nn.Module, max_norm: float) -> float:
        return clip(self, module, max_norm) if step != 1 else math.inf

    monkeypatch.setattr(Processes, "clip_grad_norm", overflowing)
    weight, counted = next(learner.model.parameters()), []
    for step in range(3):
        means, before = learner.gradients(step, plan), weight.detach().clone()
        learner.update(step, means, rate=1e-3)
        counted.append(learner.facts["skipped_steps"])
        assert torch.equal(weight, before) == (step == 1)
    assert counted == [0, 1, 1]
    again = Learner(run, processes)
    again.restore(json.loads(json.dumps(learner.state)))
    assert again.facts == {"skipped_steps": 1} and again.state == learner.state
    assert Learner(run_of(corpus, tmp_path / "fp32"), processes).facts == {}
