"""The plan: published sizes to the last parameter, closed forms, and no weights in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from corpora.errors import RecipeError
from corpora.storage import new_folder
from distill.plan import ITEM_BYTES, TOKENS_PER_WORD, measured_rate, plan, print_plan
from distill.recipe import load_recipe
from students.registry import forward_flops_per_token

# exact counts of the published models (configs/teachers, configs/students)
PUBLISHED = {
    "teachers/llama_360m": 359_973_888,
    "teachers/gptj_705m": 704_330_368,
    "teachers/elc_bert_base": 98_229_838,
    "students/baby_llama_58m": 58_343_936,
    "students/elc_bert_small": 23_799_630,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_published_sizes_are_printed_and_nothing_is_built(
    name: str, parameters: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan builds no module")

    monkeypatch.setattr(nn.Module, "__init__", refuse)
    monkeypatch.setattr(torch, "empty", refuse)
    print_plan(plan(load_recipe(name), rate=1e12))
    printed = capsys.readouterr().out
    assert f"{parameters:,}" in printed
    for quantity in ("body", "head", "training", "capture", "cache", "optimiser state", "activations", "hours"):
        assert quantity in printed


def test_the_closed_forms() -> None:
    recipe = load_recipe("quickstart", ["run_dir=runs/nowhere", "students.baby_llama.train.steps=10"])
    planned = plan(recipe, rate=1e9)
    llama, _, elc, student, control, _, _ = planned.models
    assert [model.role for model in (llama, elc, student, control)] == ["teacher", "teacher", "student", "control"]
    words = recipe.corpus.words
    assert words and sum(planned.stream_tokens.values()) == round(words * TOKENS_PER_WORD)
    assert llama.body_parameters + 2 * 2048 * 128 == llama.parameters  # untied: two tables

    model, window = recipe.teachers["elc"].model, recipe.cache.window
    assert model
    positions = sum(planned.stream_tokens.values())
    assert elc.cache_bytes == positions * model.hidden_size * ITEM_BYTES["bf16"] == llama.cache_bytes
    assert (
        elc.capture_flops == 3 * positions * forward_flops_per_token(model, 2048, window).body
    )  # a pass for each fold

    assert student.tokens == control.tokens == 10 * recipe.students["baby_llama"].train.batch_size * 128
    forward = forward_flops_per_token(recipe.students["baby_llama"].model, 2048, 128)
    assert control.training_flops == 3 * student.tokens * (forward.body + forward.head)
    assert student.training_flops == control.training_flops + student.tokens * 2 * 2 * 2048 * 128  # two heads heard
    assert student.peak_bytes == control.peak_bytes + 4 * 2 * 2048 * 128
    assert planned.hours(3600e9) == 1


def test_epochs_are_counted_in_tokens_of_the_train_stream() -> None:
    planned = plan(load_recipe("real_text", ["run_dir=runs/nowhere"]), rate=1e9)
    assert planned.models[0].tokens == 3 * planned.stream_tokens["train"]
    assert any("no corpus is prepared" in note and "1,000,000 words" in note for note in planned.notes)
    for model, ceiling in zip(planned.models, [3e6] * 3 + [2e6] * 4, strict=True):
        assert model.parameters <= ceiling


def test_a_prepared_corpus_is_counted(tmp_path: Path) -> None:
    with new_folder(tmp_path / "corpus", kind="corpus", fingerprint={}) as writer:
        writer.facts["vocab_size"] = 2000
        writer.facts["streams"] = {name: {"tokens": 1000 + i} for i, name in enumerate(("train", "tune", "test"))}
    planned = plan(load_recipe("quickstart", [f"run_dir={tmp_path}"]), rate=1e9)
    assert planned.stream_tokens == {"train": 1000, "tune": 1001, "test": 1002}
    assert planned.models[0].head_parameters == 2 * 2000 * 128
    assert planned.notes[0].startswith("tokens: counted")


def test_text_of_unknown_length_is_refused() -> None:
    with pytest.raises(RecipeError, match="corpus.words: null.*cuvee prepare"):
        plan(load_recipe("real_text", ["run_dir=runs/nowhere", "corpus.words=null"]), rate=1e9)


def test_the_rate_is_measured_and_said() -> None:
    assert measured_rate(seconds=0.01) > 0
    planned = plan(load_recipe("smoke"))
    assert planned.rate > 0 and any("measured just now" in note for note in planned.notes)
    assert any("1e+09 FLOPS, as given" in note for note in plan(load_recipe("smoke"), rate=1e9).notes)
