"""The suite `models`: both sides of ELC-BERT's step do the same work. Nothing here asserts a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import speed
from benchmarks.speed_timing import Setting
from corpora.errors import InputRefused, ProcessLost
from distill.config import TrainConfig
from distill.speed import elc_step, models
from distill.speed.elc_step import OURS, SIDES, TEXTBOOK, Side, Step
from distill.speed.models import GOALS, Sizes, elc_bert_small
from distill.speed.published import Case, models_table, small_ones
from students.config import ModelConfig
from students.ltg_names import original_names
from students.registry import ARCHITECTURES

PROMISED = {  # its target and on which side of it
    "elc_step_128": (">=", 1.4),
    "elc_step_512": (">=", 1.7),
    "elc_memory_512": ("<=", 0.7),
    "elc_vs_trainer": (">=", 1.4),
}
MODEL = ModelConfig(
    architecture="elc_bert",
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    intermediate_size=48,
    max_positions=64,
    position_buckets=8,
    norm_eps=1e-7,
)
STEP = Step(model=MODEL, vocab_size=200, rows=4, seq_len=24, precision="fp32", threads=1)
SETTING = Setting(threads=1, repetitions=1, precision="fp32")


def test_the_figures_are_those_that_were_promised() -> None:
    assert {name: (goal.comparison, goal.target) for name, goal in GOALS.items()} == PROMISED
    assert speed.SUITES["models"] == models.__name__
    sizes = elc_bert_small()
    assert (sizes.model.hidden_size, sizes.model.num_layers, sizes.model.num_heads, sizes.vocab_size) == (
        384,
        12,
        6,
        16_384,
    )
    assert (sizes.model.dropout, sizes.model.variant, sizes.short, sizes.long) == (0.1, "zero", (16, 128), (4, 512))


def test_both_sides_change_the_weights_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same weights, without dropout, three steps have the same losses."""
    networks = []

    def with_our_weights(config: ModelConfig, vocab_size: int) -> torch.nn.Module:
        model = textbook(config, vocab_size)
        names = original_names(networks[0])
        model.load_state_dict({names[name]: value for name, value in networks[0].state_dict().items()}, strict=False)
        return model

    def kept(config: ModelConfig, vocab_size: int) -> torch.nn.Module:
        networks.append(random_model(config, vocab_size).network)
        return random_model(config, vocab_size)

    textbook, random_model = elc_step.textbook, elc_step.random_model
    monkeypatch.setattr(elc_step, "random_model", kept)
    monkeypatch.setattr(elc_step, "textbook", with_our_weights)
    step = replace(STEP, model=replace(MODEL, dropout=0.0, attention_dropout=0.0))
    ours, theirs = (SIDES[side](step) for side in (OURS, TEXTBOOK))
    losses = [(ours().item(), theirs().item()) for _ in range(3)]
    assert losses[0][0] > losses[2][0]
    # AdamW divides by the root of what it has seen: a rounding of a gradient near 0 may turn a step of it around
    assert all(found == pytest.approx(expected, rel=1e-5) for found, expected in losses)


def test_sides_answer_in_processes_of_their_own() -> None:
    """Each step answers with its seconds, its loss and the memory so far."""
    with Side(OURS, STEP) as ours, Side(TEXTBOOK, STEP) as theirs:
        answers = [side.step() for side in (ours, theirs, ours, theirs)]
    assert all(seconds > 0 and loss > 0 and peak > 2**20 for seconds, loss, peak in answers)
    assert answers[2][1] < answers[0][1] and answers[3][1] < answers[1][1]


def test_a_side_that_ends_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(STEP, seq_len=MODEL.max_positions, vocab_size=2)
    with Side(OURS, broken) as side, pytest.raises(ProcessLost, match="ours: its process ended with exit code 1"):
        side.step()


def test_without_the_tests_there_is_nothing_to_measure_against(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elc_step, "TEXTBOOK_FILE", tmp_path / "textbook_elc_bert.py")
    with pytest.raises(InputRefused, match=r"textbook_elc_bert\.py: missing, .*; run this in a clone"):
        elc_step.textbook(MODEL, 200)


def test_every_figure_is_measured(tmp_path: Path) -> None:
    """At small sizes; the sides compare their losses themselves."""
    sizes = Sizes(model=MODEL, vocab_size=200, short=(4, 24), long=(2, 48))
    figures = models.measured(list(PROMISED), sizes, replace(SETTING, folder=tmp_path / "work"))
    assert [figure.goal.name for figure in figures] == list(PROMISED)
    assert all(figure.value > 0 and len(figure.medians) == 2 for figure in figures)
    assert not any((tmp_path / "work").iterdir())


def test_the_table_trains_rows_of_two_views(tmp_path: Path) -> None:
    """As GPT-BERT's recipe has them."""
    model = ModelConfig(architecture="gpt_bert", num_layers=1, hidden_size=16, num_heads=2, max_positions=32)
    train = TrainConfig(views={"masked": 3, "causal": 1}, steps=1, seq_len=16, dynamic_masks=True)
    case = Case(model=model, train=train, vocab_size=100, rows=4)
    table = models_table({"mixed": case}, replace(SETTING, folder=tmp_path), compiled=False)
    assert [row[:3] for row in table.rows] == [("mixed", "as it is", "4")]


def test_the_table_has_every_architecture() -> None:
    assert {case.model.architecture for case in small_ones().values()} == set(ARCHITECTURES)
