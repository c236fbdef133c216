"""Controls: as many operations without teachers, and the best teacher alone; a foreign teacher is counted too."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from corpora.errors import Damaged, RecipeError
from corpora.storage import read_manifest
from corpora.windows import plan_windows
from distill.cli import app
from distill.config import StudentConfig, TermConfig, TrainConfig
from distill.controls import best_member, control_terms, describe_equal_flops, equal_flops, text_terms
from distill.evaluate import model_nats
from distill.project import Project
from distill.recipe import load_recipe
from students.config import ModelConfig
from students.registry import forward_flops_per_token

STEPS = 8
LENGTH, ROWS, WINDOW = 32, 8, 64


def small(architecture: str, size: int = 16) -> dict[str, Any]:
    sizes = {"num_layers": 1, "hidden_size": size, "num_heads": 2, "max_positions": 64}
    return {"architecture": architecture, **sizes}


TRAIN = {"view": "causal", "steps": STEPS, "batch_size": ROWS, "seq_len": LENGTH, "lr": 1e-2, "log_every": 1}
CONTROLS = ["no_teacher_equal_steps", "no_teacher_equal_flops", "best_single_teacher"]
RECIPE = {
    "extends": "base.yaml",
    "corpus": {"words": 6_000, "split": {"tune": 0.1, "test": 0.1}},
    "tokenizer": {"vocab_size": 400},
    "cache": {"window": WINDOW},
    "teachers": {
        "short": {"model": small("gptj"), "train": TRAIN | {"steps": 2}},
        "long": {"model": small("llama", 24), "train": TRAIN | {"steps": 30}},
    },
    "students": {
        "student": {
            "model": small("llama"),
            "train": TRAIN,
            "terms": [
                {"loss": "cross_entropy", "weight": 0.5},
                {"loss": "forward_kl", "weight": 0.5, "members": {"short": 3, "long": 1}, "pool": "product"},
            ],
            "controls": CONTROLS,
        }
    },
    "benchmarks": {"minimal_pairs": None, "resamples": 50},
}


def cuvee(*arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, output and error lines of a command run in this process."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr.splitlines()


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"run_dir": str(folder / "run")}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def said(recipe_file: Path) -> str:
    """What a finished run has said."""
    code, said, errors = cuvee("run", str(recipe_file))
    assert code == 0, errors
    return said


@pytest.fixture(scope="module")
def project(recipe_file: Path, said: str) -> Project:
    return Project(load_recipe(recipe_file))


def folder_of(project: Project, name: str) -> Path:
    [folder] = (project.folder / "students").glob(f"{name}-*")
    return folder


def test_weights_that_come_to_the_same_make_one_student(project: Project, recipe_file: Path) -> None:
    def student(members: str) -> Path:
        return (
            Project(load_recipe(recipe_file, [f"students.student.terms.1.members={members}"]))
            .student_run("student")
            .folder
        )

    assert student("{short: 6, long: 2}") == student("{short: 3, long: 1}") == folder_of(project, "student")
    assert student("{short: 1, long: 1}") != folder_of(project, "student")


def test_equal_operations_are_the_closed_form(project: Project) -> None:
    vocab_size, teachers = project.corpus.vocab_size, project.recipe.teachers
    streams = project.corpus.streams.values()
    windows = [window for stream in streams for window in plan_windows(stream, WINDOW, objective="causal")]
    read = sum(window.stop - window.start for window in windows)
    spent = 0.0
    for name, steps in (("short", 2), ("long", 30)):
        model = teachers[name].model
        assert model is not None
        forward = forward_flops_per_token(model, vocab_size, LENGTH)
        spent += 3 * steps * ROWS * LENGTH * (forward.body + forward.head)
        spent += read * forward_flops_per_token(model, vocab_size, WINDOW).body
        spent += STEPS * ROWS * LENGTH * 2 * vocab_size * model.hidden_size  # its head, while the student listens
    own = forward_flops_per_token(project.recipe.students["student"].model, vocab_size, LENGTH)
    steps = math.ceil(STEPS + spent / (3 * ROWS * LENGTH * (own.body + own.head)))
    found = equal_flops(project, "student")
    assert (found.own_steps, found.steps, found.notes) == (STEPS, steps, []) and steps > STEPS + 2 + 30


def test_the_control_trains_that_long_and_its_rate_is_stretched(project: Project, said: str) -> None:
    steps = equal_flops(project, "student").steps
    assert f"control: student.no_teacher_equal_flops: {steps:,} steps, the student has {STEPS}" in said
    lines = (folder_of(project, "student.no_teacher_equal_flops") / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    rates = [record["lr"] for record in records]
    assert rates.index(max(rates)) == max(round(0.05 * steps), 1) - 1 and min(rates) == rates[-1] < 0.2 * max(rates)
    assert not any("kl" in name for record in records for name in record)


def test_the_best_single_teacher_costs_least_on_tune(project: Project, said: str) -> None:
    nats = {
        name: float(
            model_nats(project.load_teacher(name), project.corpus, "tune", "causal", project.recipe.cache)[1].mean()
        )
        for name in ("short", "long")
    }
    best = min(nats, key=nats.__getitem__)
    assert best == "long", "fifteen times the steps"
    assert f"control: best single teacher on tune: {best} (" in said
    term = project.recipe.students["student"].terms[1]
    assert best_member(project, term) == best
    manifest = read_manifest(folder_of(project, "student.best_single_teacher"))
    assert manifest is not None
    heard = manifest.fingerprint["terms"][1]
    assert heard["resolved"]["weights"] == {best: 1.0} and list(heard["caches"]) == [best] and heard["weight"] == 0.5
    assert manifest.fingerprint["terms"][0] == read_manifest(folder_of(project, "student")).fingerprint["terms"][0]  # type: ignore[union-attr]


def test_the_best_single_teacher_is_the_student_with_that_member_alone(project: Project, recipe_file: Path) -> None:
    control = folder_of(project, "student.best_single_teacher")
    terms = [RECIPE["students"]["student"]["terms"][0], {"loss": "forward_kl", "weight": 0.5, "members": {"long": 1}}]
    alone = f"students.student.terms={json.dumps(terms)}"
    before = set((project.folder / "students").iterdir())
    code, _, errors = cuvee("train", str(recipe_file), alone, "students.student.controls=[]")
    assert code == 0, errors
    [student] = set((project.folder / "students").iterdir()) - before
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (student / name).read_bytes() == (control / name).read_bytes()


def test_a_choice_is_made_once_and_never_guessed(project: Project, recipe_file: Path, tmp_path: Path) -> None:
    choices = {path: path.stat().st_mtime_ns for path in (project.folder / "weights").glob("best-*/manifest.json")}
    assert len(choices) == 1
    code, said, _ = cuvee("cache", str(recipe_file))
    assert code == 0 and "best single teacher" not in said
    assert {path: path.stat().st_mtime_ns for path in choices} == choices
    [manifest] = choices
    hidden = manifest.rename(tmp_path / "manifest.json")
    with pytest.raises(Damaged, match="the best single teacher is not chosen; run the recipe with `cuvee cache`"):
        control_terms(project, "student", "best_single_teacher")
    hidden.rename(manifest)


def test_the_table_shows_controls_with_what_they_keep(project: Project) -> None:
    rows = {row["name"]: row for row in json.loads((project.folder / "report.json").read_text())["rows"]}
    for control in CONTROLS:
        row = rows[f"student.{control}"]
        assert row["role"] == "control" and row["test_cross_entropy"] > 0
        told = row["gain_kept"] is not None or row["gain_kept_reason"]
        assert bool(told) == (control != "no_teacher_equal_steps"), row
    # the pool's advantage is the same for all of them, so is whether there is one
    told = [rows[name]["gain_kept"] is None for name in ("student", *(f"student.{name}" for name in CONTROLS[1:]))]
    assert len(set(told)) == 1


def test_a_foreign_teacher_is_listened_to_and_counted(project: Project, recipe_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "guest"
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64}
    # in several files, and with a padded embedding, as many are published
    guest = GPT2LMHeadModel(GPT2Config(vocab_size=project.corpus.vocab_size + 8, **sizes))
    guest.save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    (folder / "tokenizer.json").write_bytes((project.folder / "tokenizer/tokenizer.json").read_bytes())
    members = "students.student.terms.1.members={short: 1, long: 0, guest: 1}"
    overrides = [f"teachers.guest={{path: {folder}, view: causal}}", members]
    code, said, errors = cuvee("run", str(recipe_file), *overrides)
    assert code == 0, errors
    rows = {row["name"]: row for row in json.loads((project.folder / "report.json").read_text())["rows"]}
    assert rows["guest"]["test_cross_entropy"] == pytest.approx(math.log(project.corpus.vocab_size), abs=0.2)
    assert "short+guest (product)" in rows
    with_guest = Project(load_recipe(recipe_file, overrides))
    assert "; the training of guest, which exists, is not counted" in describe_equal_flops(with_guest, "student")
    without = Project(
        load_recipe(
            recipe_file,
            ["students.student.terms.1.members={long: 0}", "students.student.controls=[no_teacher_equal_flops]"],
        )
    )
    tokens = sum(len(stream) for stream in project.corpus.streams.values())
    parameters = sum(parameter.numel() for parameter in guest.parameters())
    own = forward_flops_per_token(project.recipe.students["student"].model, project.corpus.vocab_size, LENGTH)
    more = 2 * parameters * tokens / (3 * ROWS * LENGTH * (own.body + own.head))
    difference = equal_flops(with_guest, "student").steps - equal_flops(without, "student").steps
    assert abs(difference - more) <= 1
    # listened to as a masked model it has nothing to say
    code, _, errors = cuvee(
        "cache", str(recipe_file), overrides[0].replace("causal", "masked"), "run_dir=" + str(tmp_path / "run")
    )
    assert code == 3 and "a causal model was asked to read masked rows" in errors[0]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["controls=[best_single_teacher, best_single_teacher]"], "expected each once"),
        (
            ["controls=[best_single_teacher]", "terms.1.members={llama: 1, gptj: 0}"],
            "no term of baby_llama listens to more",
        ),
        (["controls=[no_teacher_equal_flops]", "terms=[{loss: cross_entropy}]"], "baby_llama listens to no teacher"),
        (
            ["controls=[best_single_teacher]", "terms.1.members={llama: 1, elc: 1}", "terms.1.across_views=true"],
            "costs of teachers that read different views cannot be compared",
        ),
        (["controls=[best_teacher]"], "did you mean 'best_single_teacher'?"),
    ],
)
def test_controls_that_mean_nothing_are_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe("quickstart", [f"students.baby_llama.{override}" for override in overrides])
    found = str(refused.value).splitlines()
    assert any(line in one for one in found), found


def test_one_name_of_several_seeds_has_a_best_one() -> None:
    members = "students.baby_llama.terms.1.members={llama: 1}"
    controls = "students.baby_llama.controls=[best_single_teacher]"
    assert load_recipe("quickstart", ["teachers.llama.seeds=2", members, controls])


def test_a_view_that_learned_from_teachers_alone_learns_from_text_in_the_control() -> None:
    train = TrainConfig(views={"causal": 1.0, "masked": 1.0}, steps=1)
    model = ModelConfig(**small("elc_bert"))
    text = TermConfig(loss="cross_entropy", view="causal", weight=0.5)
    taught = TermConfig(loss="forward_kl", view="masked", members={"elc": 1.0})
    found = text_terms(StudentConfig(model=model, train=train, terms=[text, taught]))
    assert [(term.loss, term.view, term.weight) for term in found] == [
        ("cross_entropy", "causal", 1.0),
        ("cross_entropy", "masked", 1.0),
    ]
    alone = StudentConfig(model=model, train=train, terms=[replace(taught, view=None)])
    assert [term.view for term in text_terms(alone)] == [None]
