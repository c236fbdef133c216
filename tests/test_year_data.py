"""`cuvee score --year` asks what a year asks, and refuses data that its table does not count."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import test_submitting
from test_end_to_end import cuvee
from test_submitting import FAST, FULL, Spoil, drop, shorten, student

scaled_years, run_dir, data = test_submitting.scaled_years, test_submitting.run_dir, test_submitting.data


@pytest.mark.parametrize("number", [2025, 2026])
def test_a_model_is_scored_on_what_a_year_asks(run_dir: Path, data: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    command = ["score", str(student(run_dir)), "--data", str(data), "--year", str(number), "--out", str(out)]
    assert cuvee(*command)[0] == 0
    (scores,) = out.glob("baby_llama*-babylm2025/scores.json")
    asked = {score["benchmark"] for score in json.loads(scores.read_text())[0]["scores"]}
    always = {"blimp_filtered", "supplement_filtered", "comps", "reading"}
    of_year = {
        2025: {"ewok_filtered", "entity_tracking", "wug_adj", "wug_past"},
        2026: {"ewok_2026", "entity_tracking_2026", "global_piqa_parallel", "global_piqa_nonparallel"},
    }
    assert asked == always | of_year[number]


@pytest.mark.parametrize(
    ("spoil", "options", "code", "line"),
    [
        (
            shorten(f"{FULL}/comps/comps_wugs.jsonl"),
            [],
            3,
            "2025: comps.wugs: 2 predictions; expected 3; score the task",
        ),
        (shorten(f"{FULL}/wug_past_tense/wug_past_tense.jsonl"), [], 3, "2025: wug_past_tense.wug_past: 2 predictions"),
        (shorten(f"{FULL}/reading/reading_data.csv"), [], 3, "2025: reading.reading: 39 predictions; expected 40"),
        (shorten(f"{FAST}/blimp_fast/passive_1.jsonl"), ["--fast"], 3, "2025: blimp_fast.passive_1: 2 predictions"),
        (drop(f"{FULL}/comps"), [], 3, "holds no comps; expected the challenge's folder"),
        (None, ["--tasks", "comp"], 2, "--tasks: 'comp' is not asked in 2025; did you mean 'comps'?"),
        (None, ["--items", "2"], 2, "--items: other items than those of 2025; leave it out, or --year"),
    ],
)
def test_fewer_items_than_the_table_of_the_year_are_refused(
    run_dir: Path, data: Path, tmp_path: Path, spoil: Spoil | None, options: list[str], code: int, line: str
) -> None:
    if spoil is not None:
        data = Path(shutil.copytree(data, tmp_path / "data"))
        spoil(run_dir, data)
    found, lines = cuvee("score", str(student(run_dir)), "--data", str(data), "--year", "2025", *options)
    assert found == code and len(lines) == 1 and line in lines[0], lines


def test_the_age_of_acquisition_is_scored_without_a_submission(run_dir: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["score", str(student(run_dir)), "--aoa", str(data / "children"), "--out", str(out)]
    assert cuvee(*command, "--checkpoints")[0] == 0
    *_, last = json.loads((out / "scores.json").read_text())
    assert [score["metric"] for score in last["scores"]] == ["Pearson, babylm2025", "Pearson, nats"]
    assert all(score["value"] is None and score["reason"] for score in last["scores"])
    assert "model: fewer than 4 checkpoints: dog, cat" in (out / "scores.md").read_text()
    assert cuvee(*command)[0] == 2


def test_data_of_other_benchmarks_may_be_missing(run_dir: Path, data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(data, tmp_path / "data"))
    shutil.rmtree(data / f"{FULL}/comps")
    assert cuvee("score", str(student(run_dir)), "--data", str(data), "--year", "2025", "--tasks", "wug_adj")[0] == 0
    code, lines = cuvee("score", str(student(run_dir)), "--year", "2025")
    assert code == 2 and "--year 2025: found no data" in lines[0]
