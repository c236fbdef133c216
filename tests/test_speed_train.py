"""The suite `train`: our step and Trainer's are the same work, both sides' processes do the same steps.

Nothing here asserts a time.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from benchmarks import speed
from benchmarks.speed_timing import WARM_UP, Setting
from corpora.prepare import Corpus, open_corpus
from distill.checkpoint import Checkpoints, Progress
from distill.distributed import Processes
from distill.speed import training
from distill.speed.data import Shapes, random_corpus
from distill.speed.published import SIDES, Case, models_table, published
from distill.speed.trainer import OURS, TRAINER, Trainer, take_turns
from distill.speed.two_processes import ACCUMULATIONS, ONE, PROCESSES, TWO, ask, requests
from distill.speed.whole_step import OurTraining, comparable, flops_per_token
from distill.step_data import step_data
from students.registry import parameter_count

CPU = torch.device("cpu")
PROMISED = {  # its target and on which side of it
    "llama_vs_trainer": (">=", 1.10),
    "two_process_efficiency": (">=", 0.85),
    "checkpoint_cost": ("<=", 0.01),
    "loader_headroom": (">=", 20.0),
}
SHAPES = Shapes(
    student=tiny.model_config("llama"),
    teachers={},
    vocab_size=200,
    rows=2,
    seq_len=16,
    corpus_rows=12,
    read_positions=16,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    random_corpus(folder, SHAPES)
    return folder


@pytest.fixture(scope="module")
def corpus(prepared: Path) -> Corpus:
    return open_corpus(prepared)


@pytest.fixture
def processes() -> Processes:
    return Processes()


def training_of(
    corpus: Corpus, processes: Processes, *, steps: int, precision: str = "fp32", **changes: Any
) -> OurTraining:
    config = replace(comparable(4, SHAPES.seq_len, steps=steps, precision=precision), **changes)
    return OurTraining(SHAPES.student, config, corpus=corpus, processes=processes)


# our step and Trainer's


@pytest.mark.parametrize("steps", [1, 5])
def test_our_step_and_trainers_change_the_weights_alike(
    steps: int, corpus: Corpus, processes: Processes, tmp_path: Path
) -> None:
    # a rate, a decay and a clip that all show: with any of them otherwise the weights would be others
    ours = training_of(corpus, processes, steps=steps, lr=1e-2, weight_decay=0.5, grad_clip=0.1, betas=(0.8, 0.9))
    before = {name: weight.detach().clone() for name, weight in ours.learner.model.network.named_parameters()}
    turns = take_turns(ours, tmp_path, device=CPU, warm_up=0)
    assert turns.losses[OURS] == pytest.approx(turns.losses[TRAINER], abs=1e-4)
    assert len(ours.losses) == steps
    for (name, weight), theirs in zip(
        ours.learner.model.network.named_parameters(), turns.theirs.parameters(), strict=True
    ):
        moved = (weight - before[name]).abs().max()
        assert moved > 5e-3, name
        assert (weight - theirs).abs().max() < 0.01 * moved, name


def test_both_sides_take_every_turn_in_several_orders(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    collecting: list[bool] = []

    def noting(side: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **keywords: Any) -> Any:
            order.append(side)
            collecting.append(gc.isenabled())
            return step(*arguments, **keywords)

        return noted

    monkeypatch.setattr(OurTraining, "step", noting(OURS, OurTraining.step))
    monkeypatch.setattr(Trainer, "training_step", noting(TRAINER, Trainer.training_step))
    turns = take_turns(training_of(corpus, processes, steps=6), tmp_path, device=CPU, warm_up=2)
    rounds = [tuple(order[first : first + 2]) for first in range(0, 12, 2)]
    assert set(rounds) == {(OURS, TRAINER), (TRAINER, OURS)}
    assert not any(collecting) and gc.isenabled()
    assert {side: len(timing.seconds) for side, timing in turns.timings.items()} == {OURS: 4, TRAINER: 4}


def test_trainer_computes_in_the_precision_that_was_asked_for_and_leaves_the_state_alone(
    corpus: Corpus,
    processes: Processes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    seen: list[torch.dtype] = []
    original = Trainer.compute_loss

    def looking(self: Trainer, model: Any, inputs: Any, **keywords: Any) -> Any:
        hook = model.lm_head.register_forward_hook(lambda module, given, logits: seen.append(logits.dtype))
        try:
            return original(self, model, inputs, **keywords)
        finally:
            hook.remove()

    monkeypatch.setattr(Trainer, "compute_loss", looking)
    for precision in ("fp32", "bf16"):
        take_turns(training_of(corpus, processes, steps=1, precision=precision), tmp_path, device=CPU, warm_up=0)
    assert seen == [torch.float32, torch.bfloat16]
    assert not capfd.readouterr().out  # with --json it holds a list and nothing else
    # accelerate has one state for the whole process: other runs in it must still find theirs
    later = training_of(corpus, Processes(), steps=2, micro_batch_size=2)
    before = training_of(corpus, processes, steps=2, micro_batch_size=2)
    for each in (later, before):
        each.step()
    assert later.losses == before.losses


def test_a_run_of_the_suite_begins_anew_after_its_last_step(corpus: Corpus, processes: Processes) -> None:
    run = training_of(corpus, processes, steps=2, lr=1e-2)
    for _ in range(4):
        run.step()
    assert run.losses[2] < run.losses[0] and run.losses[3] < run.losses[1]  # the same rows again, with other weights


def test_operations_are_those_of_the_weights(corpus: Corpus) -> None:
    config = comparable(2, SHAPES.seq_len, steps=1, precision="fp32")
    found = flops_per_token(SHAPES.student, config, vocab_size=SHAPES.vocab_size)
    weights = parameter_count(SHAPES.student, SHAPES.vocab_size)
    lookups = (SHAPES.vocab_size + 2 * SHAPES.student.num_layers + 1) * SHAPES.student.hidden_size
    attention = 4 * SHAPES.seq_len * SHAPES.student.hidden_size * SHAPES.student.num_layers
    assert found == 3 * (2 * (weights - lookups) + attention)
    # of masked rows a fold has logits
    masked = flops_per_token(SHAPES.student, replace(config, view="masked"), vocab_size=SHAPES.vocab_size)
    assert found - masked == pytest.approx(3 * 2 * SHAPES.vocab_size * SHAPES.student.hidden_size * 2 / 3)


# two processes


def test_processes_answer_with_the_times_of_the_same_steps(prepared: Path, corpus: Corpus) -> None:
    asked = requests(SHAPES, prepared, precision="fp32", repetitions=2)
    answers = {side: ask(asked[side], PROCESSES[side]) for side in (ONE, TWO)}
    for answer in answers.values():
        assert len(answer.seconds) == 2 and min(answer.seconds) > 0
        assert len(answer.losses) == WARM_UP + 2
    assert answers[TWO].losses == pytest.approx(answers[ONE].losses, rel=1e-5)
    assert answers[ONE].losses[-1] != answers[ONE].losses[0]


def test_either_side_reads_its_rows_in_four_accumulations(
    prepared: Path, corpus: Corpus, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side, request in requests(SHAPES, prepared, precision="fp32", repetitions=1).items():
        assert request.rows == ACCUMULATIONS * SHAPES.rows
        assert request.threads * PROCESSES[side] == 2
        config = comparable(request.rows, request.seq_len, steps=1, precision="fp32")
        run = OurTraining(
            request.model,
            replace(config, micro_batch_size=request.rows_at_once),
            corpus=corpus,
            processes=processes,
        )
        monkeypatch.setattr(processes, "world_size", PROCESSES[side])
        data = step_data(
            0,
            run.plan,
            corpus=corpus,
            config=run.config,
            cache=tiny.CACHE,
            terms=[tiny.CROSS_ENTROPY],
            processes=processes,
        )
        assert [len(part.batch) for [part] in data.micro_batches] == ACCUMULATIONS * [request.rows_at_once]


# the suite


def test_every_figure_is_measured_at_small_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name: (goal.comparison, goal.target) for name, goal in training.GOALS.items()} == PROMISED
    kept: list[list[str]] = []
    save = Checkpoints.save

    def noting(self: Checkpoints, progress: Progress) -> None:
        save(self, progress)
        kept.append(sorted(path.name for path in self.folder.iterdir()))

    monkeypatch.setattr(Checkpoints, "save", noting)
    setting = Setting(repetitions=1, precision="fp32", folder=tmp_path)
    figures = training.measured(list(PROMISED), SHAPES, setting)
    assert [figure.goal.name for figure in figures] == list(PROMISED)
    for figure in figures:
        assert math.isfinite(figure.value) and figure.value > 0, figure.goal.name
        assert len(figure.medians) >= 2 and all(value > 0 for value in figure.medians.values())
    trainer, two, checkpoint, loader = figures
    assert trainer.value == trainer.medians[OURS] / trainer.medians[TRAINER]
    assert two.value == two.medians[TWO] / two.medians[ONE]
    assert checkpoint.value == checkpoint.medians["checkpoint"] / 300
    rows = min(loader.medians["rows (causal)"], loader.medians["rows (masked)"])
    assert loader.value == rows / loader.medians["step"]
    # what is timed is a checkpoint after two others, of which the older goes
    assert kept[-1] == ["step-00000002", "step-00000003"]
    assert not list(tmp_path.iterdir())  # nothing stays

    monkeypatch.setattr(training, "comparable_rate", lambda precision, device: 1e7)
    table = training.steps_table(figures, SHAPES, setting)
    assert [row[:2] for row in table.rows] == [(OURS, "2 x 16"), (TRAINER, "2 x 16"), (ONE, "8 x 16"), (TWO, "8 x 16")]
    flops = flops_per_token(SHAPES.student, comparable(2, 16, steps=1, precision="fp32"), vocab_size=SHAPES.vocab_size)
    for row, figure in zip(table.rows, (trainer, trainer, two, two), strict=True):
        speed, tokens = figure.medians[row[0]], 16 * int(row[1].split()[0])
        assert float(row[2].replace(",", "")) == round(1000 * tokens / speed)
        assert float(row[3].replace(",", "")) == round(speed)
        assert float(row[4].removesuffix(" %")) == pytest.approx(100 * flops * speed / 1e7, abs=0.06)


def test_figures_are_measured_alone_and_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    setting = Setting(repetitions=1, precision="bf16", folder=tmp_path)
    names = ["loader_headroom", "checkpoint_cost", "llama_vs_trainer"]
    assert [figure.goal.name for figure in training.measured(names, SHAPES, setting)] == names


def test_the_suite_has_its_place_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed.SUITES["train"] == training.__name__
    monkeypatch.setattr(training, "default_device", lambda: CPU)
    assert {"Trainer", "dtype", "sizes"} <= training.conditions(Setting()).keys()
    [line] = training.tables(Setting(), [], everything=True)
    assert "measured on a GPU" in str(line)
    assert not list(training.tables(Setting(), [], everything=False))


# the published models


def test_the_published_models_are_those_of_the_recipes() -> None:
    sizes = {name: round(parameter_count(case.model, case.vocab_size) / 1e6) for name, case in published().items()}
    assert sizes == {"Llama-360M": 360, "GPT-J-705M": 704, "ELC-BERT base": 98, "Baby-Llama 58M": 58}
    assert published()["ELC-BERT base"].train.view == "masked"


def test_models_are_measured_compiled_and_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    # making machine code is not ours to test
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    cases = {
        name: Case(
            model=tiny.model_config(architecture),
            train=tiny.train_config(seq_len=16, epochs=2.0, steps=None, view=view, micro_batch_size=1),
            vocab_size=200,
            rows=3,
        )
        for name, architecture, view in (("causal", "llama", "causal"), ("masked", "elc_bert", "masked"))
    }
    table = models_table(cases, Setting(repetitions=1, precision="fp32", folder=tmp_path))
    assert [row[:4] for row in table.rows] == [(name, side, "3", "3") for name in cases for side in SIDES]
    assert len(compiled) == len(cases)
    for row in table.rows:
        assert float(row[5].replace(",", "")) > 0 and 0 < float(row[6].removesuffix(" %")) < 100
    assert not list(tmp_path.iterdir())
