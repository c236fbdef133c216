"""Members from few runs: weights kept on the way, their means, runs that differ in their seed, and all of them teaching
a student."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from test_end_to_end import cuvee
from test_train import at_step, stop_at
from torch import Tensor

from corpora.errors import InputRefused, RecipeError
from corpora.prepare import Corpus
from corpora.storage import read_manifest
from distill import learner as loop
from distill.averaging import MovingAverage, mean_of_runs
from distill.config import Recipe
from distill.distributed import Processes
from distill.members import asked_snapshots, expanded, heard
from distill.recipe import load_recipe, resolved_yaml
from distill.run import Run, average_folder, snapshot_folder
from distill.train import train
from students.run_folder import load_model

STEPS = 8
DECAY = 0.7
WEIGHTS = "model.safetensors"


def run(corpus: Corpus, folder: Path, **changes: Any) -> Run:
    """Eight steps with dropout, as two views, so that everything that is drawn matters."""
    model = tiny.model_config("gptj", dropout=0.1)
    return tiny.run(corpus, folder, model=model, lr=1e-2, views={"causal": 1.0, "masked": 1.0}, **changes)


@pytest.fixture(scope="module")
def whole(corpus: Corpus, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody asked for anything but its end."""
    plain = run(corpus, tmp_path_factory.mktemp("whole") / "run")
    train(plain, processes)
    return plain


@pytest.fixture(scope="module")
def keeping(corpus: Corpus, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run, which keeps the weights of every step and their moving average."""
    folder = tmp_path_factory.mktemp("keeping") / "run"
    kept = run(corpus, folder, snapshots=list(range(1, STEPS + 1)), average=DECAY)
    train(kept, processes)
    return kept


def weights_after(kept: Run, step: int) -> dict[str, Tensor]:
    return load_file(snapshot_folder(kept.folder, step) / WEIGHTS)


# what a run keeps


def test_keeping_weights_changes_nothing_that_is_learned(whole: Run, keeping: Run) -> None:
    for name in (WEIGHTS, "metrics.jsonl"):
        assert (keeping.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_snapshot_holds_the_weights_of_its_step(
    corpus: Corpus, processes: Processes, whole: Run, keeping: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, seen = [], {}
    build = loop.build_model

    def remember(*arguments: Any, **keywords: Any) -> Any:
        built.append(build(*arguments, **keywords))
        return built[-1]

    def look() -> None:
        seen.update({name: value.detach().clone() for name, value in built[0].network.named_parameters()})

    with monkeypatch.context() as context:
        context.setattr(loop, "build_model", remember)
        context.setattr(loop, "step_data", at_step(3, look))
        train(replace(whole, folder=tmp_path / "seen"), processes)
    kept = weights_after(keeping, 3)
    assert kept.keys() <= seen.keys() and kept
    assert all(torch.equal(kept[name], seen[name]) for name in kept)
    last = snapshot_folder(keeping.folder, STEPS) / WEIGHTS
    assert last.read_bytes() == (whole.folder / WEIGHTS).read_bytes()


def test_a_snapshot_is_a_run_folder_of_its_own(keeping: Run, corpus: Corpus) -> None:
    folder = snapshot_folder(keeping.folder, 5)
    manifest = read_manifest(folder)
    assert manifest is not None and manifest.kind == "run"
    assert manifest.facts["steps"] == 5 and manifest.facts["views"] == ["causal", "masked"]
    whole = read_manifest(keeping.folder)
    assert whole is not None and 0 < manifest.facts["words"] < whole.facts["words"]
    assert manifest.facts["tokenizer"] == corpus.tokenizer.digest and (folder / "tokenizer.json").exists()
    loaded = dict(load_model(folder).network.named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in weights_after(keeping, 5).items() if name in loaded)


def test_the_moving_average_is_its_formula(keeping: Run) -> None:
    shares = torch.tensor([DECAY ** (STEPS - step) for step in range(1, STEPS + 1)], dtype=torch.float64)
    found = load_file(average_folder(keeping.folder) / WEIGHTS)
    trajectory = [weights_after(keeping, step) for step in range(1, STEPS + 1)]
    for name, value in found.items():
        stacked = torch.stack([weights[name].double() for weights in trajectory], -1)
        expected = (stacked * shares).sum(-1) / shares.sum()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(value, trajectory[-1][name]) or not stacked.std(-1).any()


def test_without_memory_the_average_is_the_last(corpus: Corpus) -> None:
    model = tiny.model("llama", corpus)
    average = MovingAverage(model, 0.0)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    average.update(model, 1)
    average.update(model, 2)
    assert all(torch.equal(a, b) for a, b in zip(average.model.parameters(), model.parameters(), strict=True))


def test_what_is_kept_survives_a_resume(
    corpus: Corpus, processes: Processes, keeping: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = replace(keeping, folder=tmp_path / "stopped")
    for step in (1, 5):  # before the first checkpoint, and one step after one
        stop_at(stopped, processes, step, monkeypatch)
    train(stopped, processes)
    for path in sorted(keeping.folder.rglob(WEIGHTS)):
        if "checkpoints" not in path.parts:
            assert (stopped.folder / path.relative_to(keeping.folder)).read_bytes() == path.read_bytes(), path


def test_a_run_that_is_past_weights_cannot_give_them(
    corpus: Corpus, processes: Processes, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = replace(whole, folder=tmp_path / "run")
    stop_at(stopped, processes, 5, monkeypatch)  # its newest checkpoint is of step 4
    with pytest.raises(InputRefused, match=r"step-00000003: missing: .*; delete .*run and run the same command again"):
        train(replace(stopped, train=replace(stopped.train, snapshots=[3, 6])), processes)
    with pytest.raises(InputRefused, match=r"average is None there and 0.9 here"):
        train(replace(stopped, train=replace(stopped.train, average=0.9)), processes)
    train(replace(stopped, train=replace(stopped.train, snapshots=[6])), processes)
    assert snapshot_folder(stopped.folder, 6).exists()


def test_steps_beyond_a_run_of_epochs_are_refused(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="after step 5000 are asked for, but the run ends after"):
        train(run(corpus, tmp_path / "run", steps=None, epochs=1.0, snapshots=[2, 5000]), processes)
    assert not (tmp_path / "run").exists()


# means


def test_the_mean_of_snapshots(keeping: Run) -> None:
    early, late = (snapshot_folder(keeping.folder, step) for step in (2, 8))
    same = mean_of_runs([late, late, late]).state_dict()
    assert all(torch.equal(same[name], value) for name, value in load_model(late).state_dict().items())
    first, last = (load_model(folder).state_dict() for folder in (early, late))
    for name, value in mean_of_runs([early, late]).state_dict().items():
        torch.testing.assert_close(value, (first[name] + last[name]) / 2, rtol=1e-6, atol=1e-7)
    thirds = [load_model(snapshot_folder(keeping.folder, step)).state_dict() for step in (2, 5, 8)]
    for name, value in mean_of_runs([snapshot_folder(keeping.folder, step) for step in (2, 5, 8)]).state_dict().items():
        expected = torch.stack([state[name].double() for state in thirds]).mean(0)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)


# what a recipe says


def test_seeds_fan_out_and_share_the_weight() -> None:
    recipe = load_recipe(
        "quickstart", ["teachers.llama.seeds=3", "students.baby_llama.terms.1.members={llama: 1.5, gptj: 1}"]
    )
    assert list(recipe.teachers) == ["llama-1", "llama-2", "llama-3", "gptj", "elc"]
    assert all(teacher.seeds == 1 for teacher in recipe.teachers.values())
    assert recipe.teachers["llama-1"] == recipe.teachers["llama-3"] == load_recipe("quickstart").teachers["llama"]
    members = recipe.students["baby_llama"].terms[1].members
    assert members == {"llama-1": 0.5, "llama-2": 0.5, "llama-3": 0.5, "gptj": 1.0}
    assert expanded(recipe) == recipe


def test_a_seed_can_be_named_alone_and_weights_add_up() -> None:
    recipe = load_recipe("quickstart")
    recipe = replace(recipe, teachers=recipe.teachers | {"llama": replace(recipe.teachers["llama"], seeds=2)})
    assert heard({"llama-2": 1.0}, recipe) == {"llama-2": 1.0}
    assert heard({"llama": 1.0, "llama-2": 0.25, "elc": 2.0}, recipe) == {"llama-1": 0.5, "llama-2": 0.75, "elc": 2.0}
    # several of one name are enough to fit weights among
    fitted = "students.baby_llama.terms.1.members={llama: 1, gptj: 0}"
    [members] = [
        t.members
        for t in load_recipe("quickstart", ["teachers.llama.seeds=2", fitted]).students["baby_llama"].terms
        if t.weights == "fitted"
    ]
    assert members == {"llama-1": 0.5, "llama-2": 0.5, "gptj": 0.0}


def test_what_is_taken_from_a_run_is_asked_of_it() -> None:
    overrides = [
        "teachers.llama.train.snapshots=[50]",
        "teachers.early={of: llama, steps: [100]}",
        "teachers.mean={of: llama, steps: [400, 300]}",
        "teachers.late={of: elc, steps: [400]}",
    ]
    recipe = load_recipe("quickstart", overrides)
    assert asked_snapshots(recipe, "llama") == [50, 100, 300, 400] and asked_snapshots(recipe, "gptj") == []
    assert {name: recipe.teachers[name].view for name in ("early", "mean", "late")} == {
        "early": "causal",
        "mean": "causal",
        "late": "masked",
    }


def test_an_expanded_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["teachers.llama.seeds=2", "teachers.early={of: llama-1, steps: [100]}"])
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(recipe))
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["teachers.x={of: lama, steps: [3]}"],
            "found 'lama', expected one that is trained here: llama, gptj, elc; did",
        ),
        (["teachers.x={of: llama, steps: [401]}"], "found 401, but the run of llama ends after step 400"),
        (["teachers.x={of: llama, steps: [3], path: runs/x}"], "both a path and another teacher's run are given"),
        (["teachers.llama.of=gptj"], "both another teacher's run and a model to train are given"),
        (["teachers.x={of: llama}"], "steps or average of llama: neither is given"),
        (["teachers.x={of: llama, steps: [3], average: true}"], "steps or average of llama: both are given"),
        (["teachers.x={of: llama, steps: [3, 3]}"], "found [3, 3], expected different steps"),
        (["teachers.x={of: llama, steps: [0]}"], "expected at least 1, found 0"),
        (["teachers.x={of: llama, average: true}"], "the run of llama keeps none; give its train.average a decay"),
        (["teachers.x={of: llama, steps: [3], view: masked}"], "listened to as masked, but llama is trained on causal"),
        (["teachers.x={of: y, steps: [3]}", "teachers.y={of: llama, steps: [3]}"], "found 'y', expected one that is"),
        (["teachers.x={of: llama, steps: [3]}", "teachers.llama.seeds=2"], "found 'llama', expected one that is"),
        (["teachers.x={of: llama, steps: [3], seeds: 2}"], "2 seeds of a teacher that is not trained here"),
        (["teachers.llama.steps=[3]"], "says what is taken from another teacher's run; name it with `of`"),
        (["teachers.llama.seeds=0"], "seeds: expected from 1 to 99, found 0"),
        (["teachers.llama.seeds=1_000_000_000"], "seeds: expected from 1 to 99, found 1000000000"),
        (["teachers.llama.seeds=2", "teachers.llama-2={path: x}"], "2 seeds make members llama-1 to llama-2, so this"),
        (["teachers.llama.train.snapshots=[401]"], "step 401, but the run ends after 400"),
        (["teachers.llama.train.average=1"], "average: expected at least 0 and less than 1, found 1"),
        (["students.elc_bert.train.snapshots=[0]"], "expected at least 1, found 0"),
        (["teachers.llama.seeds=2", "students.baby_llama.terms.1.members={llama-3: 1}"], "no such teacher"),
    ],
)
def test_what_cannot_be_taken_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe("quickstart", overrides)
    found = str(refused.value).splitlines()
    assert any(line in one for one in found), found


# all of them together


def small(architecture: str) -> dict[str, Any]:
    return {"architecture": architecture, "num_layers": 1, "hidden_size": 16, "num_heads": 2, "max_positions": 64}


TRAIN = {"view": "causal", "steps": STEPS, "batch_size": 8, "seq_len": 64, "lr": 1e-2, "log_every": 1}
RECIPE = {
    "extends": "base.yaml",
    "corpus": {"words": 6_000, "split": {"tune": 0.1, "test": 0.1}},
    "tokenizer": {"vocab_size": 400},
    "cache": {"window": 64},
    "teachers": {
        "llama": {"model": small("llama"), "train": TRAIN | {"average": DECAY}, "seeds": 2},
        "early": {"of": "llama-1", "steps": [4]},
        "mean": {"of": "llama-1", "steps": [STEPS, 4]},
        "smooth": {"of": "llama-2", "average": True},
    },
    "students": {
        "student": {
            "model": small("llama"),
            "train": TRAIN,
            "terms": [
                {"loss": "cross_entropy"},
                {"loss": "forward_kl", "members": dict.fromkeys(("llama", "early", "mean", "smooth"), 1)},
            ],
        }
    },
    "benchmarks": {"minimal_pairs": None, "resamples": 50},
}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"run_dir": str(folder / "run")}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finished(recipe_file: Path) -> Path:
    assert cuvee("run", str(recipe_file))[0] == 0
    return recipe_file.parent / "run"


def test_members_of_two_runs_teach(finished: Path) -> None:
    rows = {row["name"]: row for row in json.loads((finished / "report.json").read_text())["rows"]}
    members = ["llama-1", "llama-2", "early", "mean", "smooth"]
    assert [name for name, row in rows.items() if row["role"] == "teacher"] == members
    costs = {rows[name]["test_cross_entropy"] for name in members}
    assert len(costs) == len(members), "each has weights of its own"
    assert "0.5 llama-1+0.5 llama-2+1 early+1 mean+1 smooth (mixture)" in rows
    kept = {str(path.parent.relative_to(finished / "teachers")) for path in (finished / "teachers").rglob("cuvee.json")}
    snapshots = {f"llama-1/snapshots/step-0000000{step}" for step in (4, STEPS)}
    averages = {f"llama-{seed}/snapshots/average" for seed in (1, 2)}
    assert kept == {"llama-1", "llama-2", "mean"} | snapshots | averages
    keys = [read_manifest(finished / "caches" / name / "train").fingerprint["teacher"] for name in members]  # type: ignore[union-attr]
    assert len(set(keys)) == len(keys)


def test_the_mean_is_that_of_the_snapshots_it_names(finished: Path) -> None:
    origin = finished / "teachers" / "llama-1"
    expected = mean_of_runs([snapshot_folder(origin, 4), snapshot_folder(origin, STEPS)]).state_dict()
    found = load_model(finished / "teachers" / "mean").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_second_run_finds_every_member(finished: Path, recipe_file: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")}
    assert cuvee("run", str(recipe_file))[0] == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")} == times


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("teachers.early.steps=[5]", "step-00000005: missing: the run is past these weights"),
        ("teachers.llama.train.average=0.5", "average is 0.7 there and 0.5 here"),
        ("teachers.mean.steps=[4]", ""),
    ],
)
def test_a_finished_run_gives_what_it_kept(finished: Path, recipe_file: Path, override: str, line: str) -> None:
    code, lines = cuvee("cache", str(recipe_file), override)
    # another choice of members is another cache under the name of the old one
    assert code == 3 and line in lines[0], lines


def test_the_recipe_of_a_run_is_of_single_teachers(finished: Path) -> None:
    recipe: Recipe = load_recipe(finished / "recipe.yaml")
    assert list(recipe.teachers) == ["llama-1", "llama-2", "early", "mean", "smooth"]
