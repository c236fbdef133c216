"""Comma lists: what is one value, how runs are called, what they share, how a sweep goes on, what its summary says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.sweep_report import SweptRun, as_json, block, short_keys, summarise, to_markdown
from corpora.errors import Preempted, RecipeError
from corpora.storage import file_digest
from distill import stages
from distill.cli import app
from distill.sweep import MOST_NAME, expand, run_name, split_values, value_lists

ROOT = Path(__file__).parent.parent
LR = "students.student.train.lr"
CROSS_ENTROPIES = ("tune_cross_entropy", "test_cross_entropy")
SIZES = {"architecture": "llama", "num_layers": 1, "hidden_size": 16, "num_heads": 2, "max_positions": 64}
TRAIN = {"view": "causal", "steps": 4, "batch_size": 8, "seq_len": 32, "lr": 1e-2, "log_every": 1}
RECIPE = {
    "extends": "base.yaml",
    "corpus": {"words": 6_000, "split": {"tune": 0.1, "test": 0.1}},
    "tokenizer": {"vocab_size": 400},
    "cache": {"window": 64},
    "teachers": {"teacher": {"model": SIZES, "train": TRAIN}},
    "students": {
        "student": {
            "model": SIZES,
            "train": TRAIN,
            "terms": [
                {"loss": "cross_entropy", "weight": 0.5},
                {"loss": "forward_kl", "weight": 0.5, "members": {"teacher": 1}},
            ],
            "controls": ["no_teacher_equal_steps"],
        }
    },
    "benchmarks": {"minimal_pairs": {"pairs": 2}, "resamples": 50},
}


def cuvee(*arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, output and error lines of a command run in this process."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr.splitlines()


def recipe_in(folder: Path) -> Path:
    """The recipe, with a run_dir beside it."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(RECIPE | {"run_dir": str(folder / "run")}))  # JSON is YAML, without anchors
    return path


def weights(run_dir: Path) -> dict[str, str]:
    """Digest of every model's weights in a run_dir, links to other runs included."""
    files = sorted(run_dir.glob("teachers/*/model.safetensors")) + sorted(run_dir.glob("students/*/model.safetensors"))
    return {str(file.relative_to(run_dir)): file_digest(file) for file in files}


def written(folder: Path) -> dict[Path, int]:
    """When every finished folder below a folder was finished."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}


# what is one value


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1", ["1"]),
        ("", [""]),
        ("1,2,3", ["1", "2", "3"]),
        (" 1 , 2 ", ["1", "2"]),
        ("1e-3,3e-3", ["1e-3", "3e-3"]),
        ("[1, 2]", ["[1, 2]"]),
        ("[1, 2],[3]", ["[1, 2]", "[3]"]),
        ("{a: 1, b: 2}", ["{a: 1, b: 2}"]),
        ("{a: [1, {b: 2, c: 3}], d: 4},null", ["{a: [1, {b: 2, c: 3}], d: 4}", "null"]),
        ("'a,b'", ["'a,b'"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("'it''s, so',x", ["'it''s, so'", "x"]),
        ('"a\\",b",c', ['"a\\",b"', "c"]),
        ('"a\\\\",b', ['"a\\\\"', "b"]),
        ("it's,hers", ["it's", "hers"]),  # an apostrophe inside a word is no quote
        ("{a: 'x}, y', b: it's},z", ["{a: 'x}, y', b: it's}", "z"]),
        ("['a', 'b,c'],2", ["['a', 'b,c']", "2"]),
        ("a],b", ["a]", "b"]),
        ("[1,2", ["[1,2"]),  # is refused as YAML, as it is
        ("'a,b", ["'a,b"]),
        ("1,", ["1", ""]),
        (",", ["", ""]),
    ],
)
def test_commas_part_values_outside_brackets_braces_and_quotes(text: str, parts: list[str]) -> None:
    assert split_values(text) == parts


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(VALUES, min_size=1, max_size=4), st.sampled_from([",", ", ", " ,"]))
def test_any_values_come_apart_as_they_were_put_together(values: list[Any], comma: str) -> None:
    # JSON is YAML, and has all of its brackets and one of its quotes
    parts = split_values(comma.join(map(json.dumps, values)))
    assert [json.loads(part) for part in parts] == values


@given(st.lists(st.text("ab', "), min_size=1, max_size=3))
def test_single_quotes_come_apart_too(values: list[str]) -> None:
    quoted = ["'" + value.replace("'", "''") + "'" for value in values]
    assert split_values(",".join(quoted)) == quoted


# how runs are called


def test_keys_are_as_short_as_tells_them_apart() -> None:
    assert short_keys(["seed", "students.a.train.lr"]) == ["seed", "lr"]
    assert short_keys(["a.train.lr", "b.train.lr", "seed"]) == ["a.train.lr", "b.train.lr", "seed"]
    assert short_keys(["a.lr", "b.lr", "a.x.lr"]) == ["a.lr", "b.lr", "x.lr"]
    assert short_keys(["lr", "a.lr"]) == ["lr", "a.lr"]


def test_names_can_be_read() -> None:
    assert run_name({"seed": "1", LR: "1e-3"}) == "seed=1_lr=1e-3"
    assert run_name({"students.a.train.optimizer": "adamw"}) == "optimizer=adamw"
    assert re.fullmatch(r"betas=0\.9-0\.95-[0-9a-f]{8}", run_name({"t.betas": "[0.9, 0.95]"}))


PIECES = st.text(st.sampled_from("aZ09._+-=/ '[]{},:é\n"), min_size=1, max_size=60)


@given(st.lists(st.tuples(PIECES, PIECES), min_size=2, max_size=4, unique=True))
def test_names_are_short_valid_and_unique(values: list[tuple[str, str]]) -> None:
    names = [run_name({"seed": first, "students.a.train.x": second}) for first, second in values]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9._+=-]+", name) and len(name) <= MOST_NAME


# what is asked for


def test_every_combination_is_a_run_of_its_own(tmp_path: Path) -> None:
    overrides = ["seed=1,2", f"{LR}=1e-3,3e-3", "students.student.train.betas=[0.8, 0.9]", f"run_dir={tmp_path}"]
    runs = expand(str(recipe_in(tmp_path)), overrides)
    found = {run.name: (run.recipe.seed, run.recipe.students["student"].train.lr) for run in runs}
    assert found == {
        "seed=1_lr=1e-3": (1, 1e-3),
        "seed=1_lr=3e-3": (1, 3e-3),
        "seed=2_lr=1e-3": (2, 1e-3),
        "seed=2_lr=3e-3": (2, 3e-3),
    }
    for run in runs:
        assert run.recipe.run_dir == str(tmp_path / "sweep" / run.name)
        assert run.recipe.students["student"].train.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["seed=1,"], "a value of this list is empty"),
        (["seed=1,2", "seed=3"], "seed: given 2 times, once as a list"),
        (["seed=1,1"], "seed=1 and seed=1 are the same run"),
        ([f"{LR}=1e-3,0.001"], "lr=1e-3 and lr=0.001 are the same run"),
        (["run_dir=a,b"], "run_dir: found a and b, expected one"),
        (["seed=1,two"], "seed: expected a whole number, found 'two'"),
        ([f"seed={','.join(map(str, range(50)))}", f"{LR}={','.join(map(str, range(1, 51)))}"], "make 2,500 runs"),
    ],
)
def test_lists_that_mean_nothing_are_refused(overrides: list[str], line: str, tmp_path: Path) -> None:
    code, _, errors = cuvee("run", str(recipe_in(tmp_path)), *overrides)
    assert code == 2 and len(errors) == 1 and line in errors[0], errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["prepare", "train", "cache", "score", "plan"])
def test_other_commands_refuse_a_list(command: str, tmp_path: Path) -> None:
    code, _, errors = cuvee(command, str(recipe_in(tmp_path)), "seed=1,2")
    assert code == 2 and len(errors) == 1
    assert "seed: 2 values make 2 runs, which `cuvee run` alone does" in errors[0]


def test_what_is_quoted_is_no_list() -> None:
    assert value_lists(["corpus.root='a,b'", "cache.temperatures=[1, 2]", "seed=1"]) == {}
    with pytest.raises(RecipeError):
        value_lists(["corpus.root=a,,b"])


# a sweep


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The recipe of a finished sweep over two seeds, and what it has said."""
    recipe = recipe_in(tmp_path_factory.mktemp("sweep"))
    code, said, errors = cuvee("run", str(recipe), "seed=1,2")
    assert code == 0, errors
    return recipe, said


def reports(recipe: Path, *names: str) -> list[dict[str, Any]]:
    folder = recipe.parent / "run" / "sweep"
    return [json.loads((folder / name / "report.json").read_text()) for name in names]


def summary_of(recipe: Path) -> dict[str, Any]:
    return json.loads((recipe.parent / "run/sweep/summary.json").read_text(), parse_constant=pytest.fail)


def test_the_summary_has_means_and_spreads_of_every_model(finished: tuple[Path, str]) -> None:
    recipe, said = finished
    summary = summary_of(recipe)
    lines = {line["model"]: line for line in summary["lines"]}
    rows = [{row["name"]: row for row in report["rows"]} for report in reports(recipe, "seed=1", "seed=2")]
    assert lines.keys() == rows[0].keys() == {"5-gram", "teacher", "student", "student.no_teacher_equal_steps"}
    for name, line in lines.items():
        assert (line["runs"], line["setting"], line["best"], line["failed"]) == (2, {}, False, 0)
        measured = [measure for measure in CROSS_ENTROPIES if rows[0][name].get(measure) is not None]
        assert "test_cross_entropy" in measured
        for measure in (*measured, "accuracy"):
            values = [of_seed[name][measure] for of_seed in rows]
            assert line[measure]["values"] == values and line[measure]["runs"] == 2
            assert line[measure]["mean"] == pytest.approx(np.mean(values), rel=1e-12)
            assert line[measure]["deviation"] == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert rows[0]["student"]["test_cross_entropy"] != rows[1]["student"]["test_cross_entropy"]
    markdown = (recipe.parent / "run/sweep/summary.md").read_text()
    shown = f"{lines['student']['test_cross_entropy']['mean']:.3f} ± "
    assert shown in markdown and shown in said


def test_a_run_of_a_sweep_is_the_run_alone(finished: tuple[Path, str], tmp_path: Path) -> None:
    recipe = finished[0]
    code, _, errors = cuvee("run", str(recipe), "seed=2", f"run_dir={tmp_path / 'alone'}")
    assert code == 0, errors
    alone = weights(tmp_path / "alone")
    assert len(alone) == 3 and alone == weights(recipe.parent / "run/sweep/seed=2")


def test_the_same_command_finds_everything_and_says_the_same(finished: tuple[Path, str]) -> None:
    recipe = finished[0]
    folder = recipe.parent / "run" / "sweep"
    before, summary = written(folder), (folder / "summary.json").read_bytes()
    code, said, _ = cuvee("run", str(recipe), "seed=1,2")
    assert code == 0 and ": step " not in said and said.count("train: student is there") == 2
    assert written(folder) == before and (folder / "summary.json").read_bytes() == summary
    assert not (recipe.parent / "run" / "corpus").exists(), "nothing but the sweep is made"


def test_settings_share_what_does_not_vary_and_a_failed_run_is_recorded(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    recipe = recipe_in(tmp_path)
    code, said, errors = cuvee("run", str(recipe), f"{LR}=1e-2,1e30,2e-2")
    folder = tmp_path / "run" / "sweep"
    assert code == 6 and len(errors) == 1
    assert "1 of 3 runs diverged (lr=1e30)" in errors[0]
    # the seed is the one of a run that was made elsewhere: sharing changes nothing
    own = weights(finished[0].parent / "run/sweep/seed=1")
    assert weights(folder / "lr=1e-2") == own
    assert said.count("tokenizer: training") == 1 and said.count("teacher: step 4 of 4") == 1
    for kind in ("corpus", "tokenizer", "teachers", "caches"):
        assert not (folder / "lr=1e-2" / kind).is_symlink()
        for other in ("lr=1e30", "lr=2e-2"):
            assert (folder / other / kind).is_symlink() and (folder / other / kind).samefile(folder / "lr=1e-2" / kind)
    summary = summary_of(recipe)
    assert [bool(run["failure"]) for run in summary["runs"]] == [False, True, False]
    assert "all must be finite" in summary["runs"][1]["failure"]
    assert any(note.startswith("lr=1e30 failed: ") for note in summary["notes"])
    assert {line["setting"][LR] for line in summary["lines"]} == {"1e-2", "2e-2"}
    assert [line["runs"] for line in summary["lines"]] == [1] * 8
    assert all(line["test_cross_entropy"]["deviation"] is None for line in summary["lines"])
    # moved as a whole it is still whole; the links are relative
    moved = Path(shutil.move(tmp_path / "run", tmp_path / "moved"))
    code, said, errors = cuvee("run", str(recipe), f"run_dir={moved}", f"{LR}=2e-2,1e-2")
    assert code == 0 and ": step " not in said, errors
    # a new value finds what the others have; and what a deleted run held is made again, once
    shutil.rmtree(moved / "sweep" / "lr=1e-2")
    code, said, errors = cuvee("run", str(recipe), f"run_dir={moved}", f"{LR}=2e-2,3e-2")
    assert code == 0 and said.count("teacher: step 4 of 4") == 1, errors
    assert not (moved / "sweep/lr=2e-2/teachers").is_symlink() and (moved / "sweep/lr=3e-2/teachers").is_symlink()


def test_where_no_link_can_be_made_every_run_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *given: Any, **options: Any) -> None:
        raise OSError(95, "Operation not supported", str(path))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    code, said, errors = cuvee("run", str(recipe_in(tmp_path)), f"{LR}=1e-2,2e-2")
    assert code == 0, errors
    assert "no link can be made (Operation not supported)" in said and said.count("teacher: step 4 of 4") == 2


def test_a_stopped_sweep_goes_on_with_the_same_command(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, trained, really = recipe_in(tmp_path), [], stages.train_run

    def stopped(run: Any, processes: Any) -> None:
        trained.append(run.name)
        if len(trained) == 5:  # the student of the second run
            raise Preempted(f"{run.folder}: stopped")
        really(run, processes)

    monkeypatch.setattr(stages, "train_run", stopped)
    code, _, errors = cuvee("run", str(recipe), "seed=1,2")
    assert code == 75 and len(errors) == 1 and "seed=2" in errors[0]
    folder = tmp_path / "run" / "sweep"
    assert not (folder / "summary.json").exists()
    before = written(folder)
    trained.clear()
    monkeypatch.setattr(stages, "train_run", lambda run, processes: trained.append(run.name) or really(run, processes))
    code, _, errors = cuvee("run", str(recipe), "seed=1,2")
    assert code == 0 and trained == ["student", "student.no_teacher_equal_steps"], errors
    assert {path: time for path, time in written(folder).items() if path in before} == before
    for name in ("seed=1", "seed=2"):
        assert weights(folder / name) == weights(finished[0].parent / "run/sweep" / name)
    assert (folder / "summary.json").read_bytes().partition(b"runs")[2] == (
        finished[0].parent / "run/sweep/summary.json"
    ).read_bytes().partition(b"runs")[2]


def test_two_processes_agree_on_a_failed_run_and_go_on(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    steps = "students.student.controls=[]"
    finished = subprocess.run(
        [*launcher, "-m", "distill", "run", str(recipe_in(tmp_path)), f"{LR}=1e30,1e-2", steps],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode != 0 and "1 of 2 runs diverged (lr=1e30)" in finished.stderr, finished.stderr[-2000:]
    summary = json.loads((tmp_path / "run/sweep/summary.json").read_text())
    assert [bool(run["failure"]) for run in summary["runs"]] == [True, False]
    assert finished.stdout.count("over seeds") == 1, "the first process alone prints it"


# the summary


def row(name: str, tune: float | None, *, role: str = "student", view: str = "causal", **more: Any) -> dict[str, Any]:
    found = {"name": name, "role": role, "view": view, "accuracy": 0.5, "gain_kept": None, "gain_kept_reason": ""}
    # the test stream would choose the other way
    tuned = {} if tune is None else {"tune_cross_entropy": tune, "test_cross_entropy": 10 - tune}
    return found | tuned | more


def swept(lr: str, seed: int, *rows: dict[str, Any], **more: Any) -> SweptRun:
    return SweptRun(name=f"{lr}-{seed}", values={"seed": str(seed), "a.train.lr": lr}, rows=rows, **more)


def best(*runs: SweptRun) -> list[tuple[str, str]]:
    return [(line.model, line.setting["a.train.lr"]) for line in summarise("x", runs).lines if line.best]


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=8), st.lists(st.floats(0.1, 20), min_size=1, max_size=8))
def test_means_and_spreads_are_numpys(one: list[float], other: list[float]) -> None:
    runs = [swept("1", seed, row("s", value)) for seed, value in enumerate(one)]
    runs += [swept("2", seed, row("s", value)) for seed, value in enumerate(other)]
    lines = as_json(summarise("x", runs))["lines"]
    for line, values in zip(lines, (one, other), strict=True):
        found = line["tune_cross_entropy"]
        assert (line["runs"], found["runs"]) == (len(values), len(values))
        assert found["mean"] == pytest.approx(np.mean(values))
        if len(values) == 1:
            assert found["deviation"] is None
        else:
            assert found["deviation"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_a_setting_is_chosen_on_tune_for_each_student_and_view() -> None:
    def rows(first: float, second: float, masked: float) -> list[dict[str, Any]]:
        teacher = row("t", first, role="teacher")
        return [teacher, row("s", first), row("r", second), row("s", masked, view="masked")]

    runs = [swept("1", 1, *rows(1.0, 3.0, 5.0)), swept("1", 2, *rows(2.4, 3.0, 5.0))]
    runs += [swept("2", 1, *rows(1.5, 2.0, 5.0)), swept("2", 2, *rows(1.6, 2.0, 5.0))]
    summary = summarise("x", runs)
    chosen = {(line.model, line.view, line.setting["a.train.lr"]) for line in summary.lines if line.best}
    # the mean decides, not the lowest run; what ties is best together; teachers and pools are not chosen
    assert chosen == {("s", "causal", "2"), ("r", "causal", "2"), ("s", "masked", "1"), ("s", "masked", "2")}
    assert any("tune stream is lowest" in note for note in summary.notes)
    headers, cells = block(summary, "causal")
    assert headers[:4] == ["model", "setting", "runs", "tune CE"]
    assert ["s", "lr=2", "2", "1.550 ± 0.071", "8.450 ± 0.071", "50.0 ± 0.0", "-", "best"] in cells
    assert [line[0] for line in cells] == ["t", "t", "s", "s", "r", "r"]


def test_nothing_is_best_where_nothing_can_be_compared() -> None:
    assert best(swept("1", 1, row("s", 1.0)), swept("1", 2, row("s", 2.0))) == []
    without = [swept("1", 1, row("s", None)), swept("2", 1, row("s", None))]
    assert best(*without) == []
    assert any("no cross-entropy of students on the tune stream" in note for note in summarise("x", without).notes)
    other = [swept("1", 1, row("s", 1.0), yardstick="400"), swept("2", 1, row("s", 2.0), yardstick="800")]
    assert best(*other) == []
    assert any("not of the same targets" in note for note in summarise("x", other).notes)


def test_a_setting_with_a_failed_run_is_never_best() -> None:
    runs = [swept("1", 1, row("s", 1.0)), swept("1", 2, failure="step 3: not finite")]
    runs += [swept("2", 1, row("s", 2.0)), swept("2", 2, row("s", 2.0))]
    assert best(*runs) == [("s", "2")]
    summary = summarise("x", runs)
    assert [(line.runs, line.failed) for line in summary.lines] == [(1, 1), (2, 0)]
    assert "- 1-2 failed: step 3: not finite" in to_markdown(summary)


def test_undefined_values_are_left_out_and_counted() -> None:
    kept = [0.5, None, 0.7]
    reasons = ["", "the pool is not known to be better", ""]
    runs = [
        swept("1", seed, row("s", 1.0, gain_kept=value, gain_kept_reason=why), row("t", 1.0, role="teacher"))
        for seed, (value, why) in enumerate(zip(kept, reasons, strict=True))
    ]
    summary = summarise("x", runs)
    teacher, student = as_json(summary)["lines"]
    assert student["gain_kept"] == {
        "values": [0.5, 0.7],
        "undefined": 1,
        "runs": 2,
        "mean": pytest.approx(0.6),
        "deviation": pytest.approx(np.std([0.5, 0.7], ddof=1)),
    }
    # what does not apply is not undefined
    assert teacher["gain_kept"] == {"values": [], "undefined": 0, "runs": 0, "mean": None, "deviation": None}
    assert block(summary, "causal")[1][1][6] == "60.0 ± 14.1 (1 undefined)"
    assert any("gain kept of s (causal, a.train.lr=1) is undefined in 1 of 3 runs" in note for note in summary.notes)
