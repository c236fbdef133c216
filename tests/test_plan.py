"""The plan: published sizes to the last parameter, closed forms against numbers worked by hand, no weights built."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from corpora.errors import RecipeError
from corpora.storage import new_folder
from corpora.windows import document_windows
from distill.config import Recipe, TeacherConfig, as_plain
from distill.plan import Plan, measured_rate, plan
from distill.plan_cache import CodecPlan
from distill.plan_inputs import TOKENS_PER_WORD
from distill.plan_table import print_plan
from distill.recipe import load_recipe
from students.config import ModelConfig
from students.registry import forward_flops_per_token
from teachers.config import CacheConfig

# exact counts of the published models (configs/teachers, configs/students)
PUBLISHED = {
    "teachers/llama_360m": 359_973_888,
    "teachers/gptj_705m": 704_330_368,
    "teachers/elc_bert_base": 98_229_838,
    "students/baby_llama_58m": 58_343_936,
    "students/elc_bert_small": 23_799_630,
}

BABY_LLAMA = """
extends: base.yaml
run_dir: runs/nowhere
corpus: {words: 10_000_000}
tokenizer: {vocab_size: 16000}
teachers: {llama: {use: teachers/llama_360m.yaml}, gptj: {use: teachers/gptj_705m.yaml}}
students:
  baby_llama:
    use: students/baby_llama_58m.yaml
    terms:
      - {loss: cross_entropy, weight: 0.5}
      - {loss: forward_kl, weight: 0.5, members: {llama: 1, gptj: 1}}
    controls: [no_teacher_equal_steps, no_teacher_equal_flops, best_single_teacher]
"""


@pytest.fixture
def baby_llama(tmp_path: Path) -> Recipe:
    (tmp_path / "baby_llama.yaml").write_text(BABY_LLAMA)
    return load_recipe(tmp_path / "baby_llama.yaml")


def codec(planned: Plan, name: str) -> CodecPlan:
    return next(found for found in planned.codecs if found.name == name)


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
    assert elc.cache_bytes == positions * model.hidden_size * 2 == llama.cache_bytes  # bf16
    passes = recipe.cache.num_folds
    assert elc.capture_flops == passes * positions * forward_flops_per_token(model, 2048, window).body

    assert student.tokens == control.tokens == 10 * recipe.students["baby_llama"].train.batch_size * 128
    forward = forward_flops_per_token(recipe.students["baby_llama"].model, 2048, 128)
    assert control.training_flops == 3 * student.tokens * (forward.body + forward.head)
    assert student.training_flops == control.training_flops + student.tokens * 2 * 2 * 2048 * 128  # two heads heard
    assert student.peak_bytes == control.peak_bytes + 4 * 2 * 2048 * 128
    assert control.peak_bytes == 16 * control.parameters + control.activation_bytes
    assert planned.hours(3600e9) == 1


def test_baby_llama_by_hand(baby_llama: Recipe) -> None:
    """Two operations a weight and 4 L T D for attention, at V = 16,000 and rows of 128."""
    student = 3 * (2 * 16 * (4 * 512**2 + 3 * 512 * 1024) + 16 * 4 * 128 * 512 + 2 * 16_000 * 512)
    llama = 2 * 24 * (4 * 1024**2 + 3 * 1024 * 3072) + 24 * 4 * 128 * 1024
    gptj = 2 * 24 * (4 * 1536**2 + 2 * 1536 * 6144) + 24 * 4 * 128 * 1536
    heads = 2 * 16_000 * (1024 + 1536)
    assert [round(number / 1e6) for number in (student, llama + gptj + heads, heads)] == [313, 2127, 82]

    planned = plan(baby_llama, rate=1e12)
    assert planned.live_ratios == {"baby_llama": pytest.approx(1 + (llama + gptj + heads) / student)}
    bf16 = codec(planned, "features bf16")
    assert bf16.position_bytes == 2 * 1024 + 2 * 1536
    assert bf16.cache_bytes == 5_120 * 13_000_000
    assert bf16.capture_flops == 13_000_000 * (llama + gptj)  # features need no head
    listener = bf16.listeners["baby_llama"]
    assert listener is not None
    assert listener.step_ratio == pytest.approx((student + heads) / student)
    assert listener.tokens_per_second == pytest.approx(1e12 / (student + heads))
    assert listener.bytes_per_second == pytest.approx(5_120 * 1e12 / (student + heads))
    # a capture is one live epoch without heads, a cached epoch saves as much: they meet after one
    assert listener.break_even == pytest.approx(1.0)
    assert planned.epochs == {"baby_llama": pytest.approx(6.0)}

    full = codec(planned, "full")
    assert full.position_bytes == 2 * 2 * 16_000
    assert full.capture_flops == 13_000_000 * (llama + gptj + heads)
    assert full.listeners["baby_llama"] and full.listeners["baby_llama"].step_ratio == 1.0  # nothing is multiplied


def test_controls_by_hand(baby_llama: Recipe) -> None:
    planned = plan(baby_llama, rate=1e12)
    llama, gptj, student, equal_steps, equal_flops, best_single = planned.models
    heads = 2 * 16_000 * (1024 + 1536)
    assert student.training_flops - equal_steps.training_flops == pytest.approx(heads * student.tokens)
    assert equal_flops.flops == pytest.approx(student.flops + llama.flops + gptj.flops)
    each = equal_steps.training_flops / equal_steps.tokens
    assert equal_flops.tokens == pytest.approx(equal_flops.flops / each)
    # the widest member stands for the one that will be chosen
    assert best_single.training_flops - equal_steps.training_flops == pytest.approx(2 * 16_000 * 1536 * student.tokens)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [({"top_k": 8}, {"topk": 8 * 4, "hybrid": 8 * 4}), ({"draws": 100}, {"sampled": 100 * 2})],
)
def test_records_have_the_size_that_codecs_give_them(
    baby_llama: Recipe, settings: dict[str, int], changes: dict[str, int]
) -> None:
    """Ids of 2 bytes, and 2 bytes more of a kept token's log-probability, for each of two teachers."""
    before = plan(baby_llama, rate=1e12)
    after = plan(replace(baby_llama, cache=replace(baby_llama.cache, **settings)), rate=1e12)
    default = CacheConfig()
    was = {"topk": default.top_k * 4, "hybrid": default.top_k * 4, "sampled": default.draws * 2}
    for old, new in zip(before.codecs, after.codecs, strict=True):
        grown = changes[old.name] - was[old.name] if old.name in changes else 0
        assert new.position_bytes - old.position_bytes == 2 * grown


def test_rounds_multiply_the_bytes_and_passes_of_masked_teachers_alone() -> None:
    one, three = (
        plan(load_recipe("quickstart", ["run_dir=runs/nowhere", f"cache.rounds={rounds}"]), rate=1e9)
        for rounds in (1, 3)
    )
    for before, after, factor in zip(one.models[:3], three.models[:3], (1, 1, 3), strict=True):
        assert after.cache_bytes == factor * before.cache_bytes
        assert after.capture_flops == factor * before.capture_flops


def test_a_masked_student_hears_a_fold_and_live_teachers_run_on_all_its_rows() -> None:
    recipe = load_recipe("quickstart", ["run_dir=runs/nowhere"])
    planned = plan(recipe, rate=1e9)
    bf16 = codec(planned, "features bf16").listeners["elc_bert"]
    elc, llama, gptj = (recipe.teachers[name].model for name in ("elc", "llama", "gptj"))
    student = recipe.students["elc_bert"].model
    assert elc and llama and gptj and bf16
    forward = forward_flops_per_token(student, 2048, 128)
    plain = 3 * (forward.body + forward.head / 3)
    heads = 3 * 2 * 2048 * 128 / 3  # three members, a third of the positions
    bodies = sum(forward_flops_per_token(model, 2048, 128).body for model in (elc, llama, gptj))
    assert bf16.step_ratio == pytest.approx((plain + heads) / plain)
    assert planned.live_ratios["elc_bert"] == pytest.approx((plain + heads + bodies) / plain)
    # the masked teacher's capture reads every window once for each fold
    captured = bodies + 2 * forward_flops_per_token(elc, 2048, 128).body
    assert bf16.break_even == pytest.approx(captured / bodies)


def test_what_a_codec_cannot_serve_is_said(baby_llama: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    student = baby_llama.students["baby_llama"]
    terms = [replace(term, loss="reverse_kl") if term.members else term for term in student.terms]
    planned = plan(replace(baby_llama, students={"baby_llama": replace(student, terms=terms)}), rate=1e12)
    refused = {found.name for found in planned.codecs if found.listeners["baby_llama"] is None}
    # of samples it is biased, and the tails of two truncated teachers cannot be pooled
    assert refused == {"hybrid", "topk", "sampled"}
    print_plan(planned)
    assert capsys.readouterr().out.count("refused") == 3


def test_temperatures_that_terms_ask_for_are_counted(baby_llama: Recipe) -> None:
    student = baby_llama.students["baby_llama"]
    terms = [replace(term, temperature=2.0) if term.members else term for term in student.terms]
    planned = plan(replace(baby_llama, students={"baby_llama": replace(student, terms=terms)}), rate=1e12)
    before = codec(plan(baby_llama, rate=1e12), "sampled")
    draws = CacheConfig().draws
    assert codec(planned, "sampled").position_bytes - before.position_bytes == 2 * (2 * draws + 4)  # and an entropy


def test_terms_that_compare_features_run_a_projection_and_no_head(baby_llama: Recipe) -> None:
    student = baby_llama.students["baby_llama"]
    terms = [replace(term, loss="feature_mse") if term.members else term for term in student.terms]
    changed = replace(baby_llama, students={"baby_llama": replace(student, terms=terms)})
    model, plain = plan(changed, rate=1e12).models[2:4]
    assert model.training_flops - plain.training_flops == pytest.approx(6 * 512 * (1024 + 1536) * model.tokens)
    assert model.members_bytes == 0


def test_a_teacher_of_another_ones_run_is_captured_and_not_trained(baby_llama: Recipe) -> None:
    llama = baby_llama.teachers["llama"]
    taken = replace(llama, model=None, train=None, of="llama", steps=[100], view="causal")
    planned = plan(replace(baby_llama, teachers={"llama": llama, "early": taken}, students={}), rate=1e12)
    trained, early = planned.models
    assert early.training_flops == 0 and early.peak_bytes == 4 * early.parameters
    assert early.capture_flops == trained.capture_flops > 0
    assert early.cache_bytes == trained.cache_bytes > 0


def test_a_finished_run_teaches_with_the_sizes_of_its_folder(baby_llama: Recipe, tmp_path: Path) -> None:
    llama = baby_llama.teachers["llama"].model
    with new_folder(tmp_path / "run", kind="run", fingerprint={}) as writer:
        writer.write_json("cuvee.json", {"model": as_plain(llama)})
        writer.facts["views"] = ["causal"]
    paths = {"llama": str(tmp_path / "run"), "gptj": str(tmp_path / "elsewhere")}
    teachers = {name: TeacherConfig(path=path, view="causal") for name, path in paths.items()}
    planned = plan(replace(baby_llama, teachers=teachers), rate=1e12)
    before = plan(baby_llama, rate=1e12)
    assert planned.models[0] == replace(before.models[0], tokens=0, training_flops=0, activation_bytes=0)
    # of the other nothing is known, so it is named and left out
    assert [model.role for model in planned.models[:2]] == ["teacher", "student"]
    assert any("not planned: teacher gptj" in note and "elsewhere" in note for note in planned.notes)
    assert codec(planned, "features bf16").position_bytes == 2 * 1024


def test_a_product_of_features_holds_its_heads_twice(baby_llama: Recipe) -> None:
    student = baby_llama.students["baby_llama"]
    terms = [replace(term, pool="product") if term.members else term for term in student.terms]
    changed = replace(baby_llama, students={"baby_llama": replace(student, terms=terms)})
    mixture, product = (plan(recipe, rate=1e12).models for recipe in (baby_llama, changed))
    assert product[2].members_bytes == 2 * mixture[2].members_bytes == 2 * 4 * 16_000 * (1024 + 1536)
    assert product[5].members_bytes == mixture[5].members_bytes  # one teacher has nothing to be joined to


def test_what_is_kept_for_the_backward_pass_by_hand(baby_llama: Recipe) -> None:
    """A block for each letter of LV-BERT; GPT-BERT's layers hand on two states where blocks read averages."""
    student = baby_llama.students["baby_llama"]

    def kept(model: ModelConfig, *, again: bool) -> float:
        train = replace(student.train, precision="bf16", activation_checkpointing=again)
        changed = replace(student, model=model, train=train, controls=[])
        planned = plan(replace(baby_llama, students={"student": changed}), rate=1e12)
        return planned.models[-1].activation_bytes / (train.batch_size * 128)

    sizes: dict[str, int] = {"num_layers": 2, "hidden_size": 64, "num_heads": 4}
    attention, feed_forward, state = 13 * 64 + 5 * 4 * 128, 5 * 64 + 4 * 256, 2 * 64
    lv_bert = ModelConfig(architecture="lv_bert", layers="DSFF", **sizes)
    assert kept(lv_bert, again=False) == 21 * 64 + attention + 2 * feed_forward
    assert kept(lv_bert, again=True) == 4 * state + attention
    llama = ModelConfig(architecture="llama", **sizes)
    assert kept(llama, again=False) == 2 * (34 * 64 + 5 * 4 * 128)
    assert kept(llama, again=True) == 2 * state + 34 * 64 + 5 * 4 * 128
    for averaged, states in ((True, 4), (False, 2)):
        gpt_bert = ModelConfig(architecture="gpt_bert", layer_average=averaged, intermediate_size=200, **sizes)
        layer = attention + 6 * 64 + 5 * 64 + 10 * 200
        assert kept(gpt_bert, again=False) == 2 * layer
        assert kept(gpt_bert, again=True) == states * state + layer


def test_features_are_as_wide_as_the_output_embedding(baby_llama: Recipe) -> None:
    """LV-BERT's table of words is narrower than its layers, and so are records, heads and projections."""
    model = ModelConfig(architecture="lv_bert", num_layers=12, hidden_size=256, num_heads=4, embedding_size=128)
    teacher = TeacherConfig(model=model, train=replace(baby_llama.teachers["llama"].train, view="causal"))  # type: ignore[type-var]
    student = baby_llama.students["baby_llama"]
    terms = [replace(term, members={"lv": 1.0} if term.members else {}) for term in student.terms]
    recipe = replace(baby_llama, teachers={"lv": teacher}, students={"s": replace(student, terms=terms, controls=[])})
    planned = plan(recipe, rate=1e12)
    lv_bert, listening = planned.models
    assert lv_bert.cache_bytes == sum(planned.stream_tokens.values()) * 2 * 128
    assert listening.members_bytes == 4 * 16_000 * 128
    compared = [replace(term, loss="feature_mse") if term.members else term for term in terms]
    changed = replace(recipe, students={"s": replace(recipe.students["s"], terms=compared)})
    plain = listening.training_flops - 2 * 16_000 * 128 * listening.tokens
    assert plan(changed, rate=1e12).models[1].training_flops - plain == pytest.approx(6 * 512 * 128 * listening.tokens)


def test_epochs_are_counted_in_tokens_of_the_train_stream() -> None:
    planned = plan(load_recipe("real_text", ["run_dir=runs/nowhere"]), rate=1e9)
    assert planned.models[0].tokens == 3 * planned.stream_tokens["train"]
    assert any("no corpus is prepared" in note and "1,000,000 words" in note for note in planned.notes)
    for model, ceiling in zip(planned.models, [3e6] * 3 + [2e6] * 4, strict=True):
        assert model.parameters <= ceiling


def test_a_prepared_corpus_is_counted_with_its_windows(tmp_path: Path) -> None:
    lengths = {"train": [1000], "tune": [128, 300], "test": [5]}
    with new_folder(tmp_path / "corpus", kind="corpus", fingerprint={}) as writer:
        writer.facts["vocab_size"] = 2000
        writer.facts["streams"] = {
            name: {"tokens": sum(sizes), "words": 0, "digest": ""} for name, sizes in lengths.items()
        }
        for name, sizes in lengths.items():
            writer.write_array(f"{name}-document_offsets.npy", torch.tensor([0, *sizes]).cumsum(0).numpy())
    planned = plan(load_recipe("quickstart", [f"run_dir={tmp_path}"]), rate=1e9)
    assert planned.stream_tokens == {"train": 1000, "tune": 428, "test": 5}
    assert planned.models[0].head_parameters == 2 * 2000 * 128
    assert planned.notes[0].startswith("tokens: counted")

    model = planned.models[0]
    recipe = load_recipe("quickstart")
    body = forward_flops_per_token(recipe.teachers["llama"].model, 2000, 128).body  # type: ignore[arg-type]
    windows = [w for n in (1000, 128, 300, 5) for w in document_windows(0, n, 128, objective="causal")]
    read = sum(window.stop - window.start for window in windows)
    assert read > 1433
    assert model.capture_flops == pytest.approx(read * body)
    listener = codec(planned, "features bf16").listeners["baby_llama"]
    assert listener and listener.break_even == pytest.approx(read / 1433)


def test_text_of_unknown_length_is_refused() -> None:
    with pytest.raises(RecipeError, match="corpus.words: null.*cuvee prepare"):
        plan(load_recipe("real_text", ["run_dir=runs/nowhere", "corpus.words=null"]), rate=1e9)


def test_the_rate_is_measured_and_said() -> None:
    assert measured_rate() > 0
    planned = plan(load_recipe("smoke"))
    assert planned.rate > 0 and any("measured just now" in note for note in planned.notes)
    assert any("1e+09 FLOPS, as given" in note for note in plan(load_recipe("smoke"), rate=1e9).notes)


def test_every_number_of_the_table_is_there(baby_llama: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(plan(baby_llama, rate=1e12))
    printed = capsys.readouterr().out
    for text in ("features bf16 *", "5,120", "62.0 GiB", "1.00 epochs", "7.79 x", "none: live teachers", "trains 6"):
        assert text in printed
    assert not re.search(r"\b(inf|nan)\b", printed)


def test_planning_does_not_need_torch_to_be_imported() -> None:
    code = "import sys, distill.plan_table, distill.plan_inputs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
