"""One small run with every kind of pool: what is fitted, scored, learned from and reported of each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from corpora.storage import read_manifest
from distill.cli import app

SMOKE = str(Path(__file__).parent.parent / "configs" / "smoke.yaml")
SIZES = {"architecture": "llama", "num_layers": 1, "hidden_size": 16, "num_heads": 2, "max_positions": 64}
TRAIN = {"view": "causal", "steps": 3, "batch_size": 4, "seq_len": 64}
CE = {"loss": "cross_entropy", "weight": 0.5}
KL = {"loss": "forward_kl", "weight": 0.5}
PAIR = {"llama": 1, "gptj": 1}
ACROSS = {**KL, "members": {"llama": 1, "elc": 1}, "across_views": True, "weights": "fitted"}
STUDENTS = {
    "fitted": [CE, {**KL, "members": PAIR, "pool": "product", "weights": "fitted"}],
    "between": [CE, {**KL, "members": PAIR, "pool": "power", "exponent": 0.5}],
    "across": [CE, ACROSS],
}


def command(run_dir: Path) -> list[str]:
    students = {name: {"model": SIZES, "train": TRAIN, "terms": terms} for name, terms in STUDENTS.items()}
    students["across"]["controls"] = ["no_teacher_equal_steps"]
    short = [f"teachers.{name}.train.steps=4" for name in ("llama", "gptj", "elc")]
    return ["run", SMOKE, f"run_dir={run_dir}", *short, "students=null", f"students={json.dumps(students)}"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensembles") / "run"
    result = CliRunner().invoke(app, command(folder), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert "weights: llama+gptj (product, fitted): llama 0." in result.stdout
    return folder


@pytest.fixture(scope="module")
def report(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "report.json").read_text(), parse_constant=pytest.fail)


def test_pools_of_one_view_are_scored_like_models(report: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in report["rows"]}
    assert {name for name, row in rows.items() if row["role"] == "pool"} == {
        "llama+gptj (product, fitted)",
        "llama+gptj (power 0.5)",
    }
    ensembles = {ensemble["name"]: ensemble for ensemble in report["ensembles"]}
    assert ensembles.keys() == {
        "llama+gptj (product, fitted)",
        "llama+gptj (power 0.5)",
        "llama+elc (mixture, fitted)",
    }
    for name, ensemble in ensembles.items():
        if name in rows:
            assert rows[name]["test_cross_entropy"] == pytest.approx(ensemble["test_cross_entropy"], abs=1e-5)
            assert 0 <= rows[name]["accuracy"] <= 1
        if ensemble["view"] is not None:
            for member in ensemble["members"]:
                of_member = rows[member["name"]]["test_cross_entropy"]
                assert member["test_cross_entropy"] == pytest.approx(of_member, abs=0.01), "the cache is bf16"


def test_every_pool_has_its_diagnostics(report: dict[str, Any]) -> None:
    for ensemble in report["ensembles"]:
        one, other = ensemble["members"]
        for stream in ("tune", "test"):
            costs = [member[f"{stream}_cross_entropy"] for member in ensemble["members"]]
            assert ensemble[f"{stream}_oracle"] <= min(costs)
            if ensemble["inverse_temperature"] is None:
                assert one[f"{stream}_without"] == pytest.approx(costs[1])
                assert other[f"{stream}_without"] == pytest.approx(costs[0])
        assert ensemble["mutual_information"] >= 0 and 0 <= ensemble["calibration_error"] <= 1
        [pair] = ensemble["pairs"]
        assert 0 <= pair["jensen_shannon"] <= math.log(2) and 0 <= pair["agreement"] <= 1
        assert 0 < ensemble["compared_targets"] <= 4096
        if ensemble["weights"] == "fitted":
            assert ensemble["tune_cross_entropy"] <= min(m["tune_cross_entropy"] for m in (one, other)) + 1e-5
            for member in (one, other):
                low, high = member["weight_interval"]
                assert 0 <= low <= member["weight"] <= high <= 1
        else:
            assert one["weight_interval"] is None and ensemble["fitted_targets"] is None
    product = report["ensembles"][0]
    low, high = product["inverse_temperature_interval"]
    assert low <= product["inverse_temperature"] <= high


def test_a_pool_across_views_teaches_and_is_no_measure_of_gain(report: dict[str, Any], run_dir: Path) -> None:
    across = next(ensemble for ensemble in report["ensembles"] if ensemble["name"].startswith("llama+elc"))
    assert across["view"] is None and across["weights"] == "fitted" and across["fitted_targets"] > 0
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["across"]["gain_kept"] is None
    assert "llama+elc (mixture, fitted) is pooled across views" in rows["across"]["gain_kept_reason"]
    assert "llama+elc (mixture, fitted): mixture, weights fitted, across views" in (run_dir / "report.md").read_text()
    [student] = [path for path in (run_dir / "students").iterdir() if path.name.startswith("across-")]
    manifest = read_manifest(student)
    assert manifest is not None
    weights = manifest.fingerprint["terms"][1]["resolved"]["weights"]
    assert weights == {member["name"]: member["weight"] for member in across["members"]}


def test_fits_and_diagnostics_are_made_once(report: dict[str, Any], run_dir: Path) -> None:
    result = CliRunner().invoke(app, command(run_dir), catch_exceptions=False)
    assert result.exit_code == 0
    assert "weights:" not in result.stdout and "diagnostics:" not in result.stdout
    again = json.loads((run_dir / "report.json").read_text())
    assert again["ensembles"] == report["ensembles"]
