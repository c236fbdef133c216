"""A report says the same in Markdown, JSON and on the terminal, keeps the views apart, and holds no NaN."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.choices import ChoiceResult, ChoiceResults
from benchmarks.minimal_pairs import tasks_from_rows
from benchmarks.report import print_table, to_json, to_markdown, write_report
from benchmarks.report_data import Ensemble, Member, Pair, Report, Row, phenomena_table, scoring_protocol
from benchmarks.stats import GainKept, Interval
from corpora.errors import Diverged

UNDEFINED = GainKept(None, None, "the pool is not known to be better than the control")


def _report() -> Report:
    causal = {"view": "causal", "parameters": 1_234_567, "test_cross_entropy": 3.21, "bits_per_byte": 1.5}
    scored = {"accuracy": 0.8125, "accuracy_interval": Interval(0.78, 0.84), "ties": 2}
    spent = {"tokens_per_second": 12_345.6, "seconds": 42.0}
    masked = {"view": "masked", "parameters": 400_000, "test_cross_entropy": np.float32(2.5)}
    return Report(
        title="quickstart",
        rows=(
            Row(name="baby_llama", role="student", gain_kept=GainKept(0.62, Interval(0.5, 0.75)), **causal, **scored),
            Row(name="llama", role="teacher", **causal, **scored, **spent),
            Row(name="elc_bert", role="student", gain_kept=UNDEFINED, **masked, **spent),
        ),
        ensembles=(
            Ensemble(
                name="baby_llama",
                view="causal",
                pool="mixture",
                weights="fitted",
                members=(Member(name="llama", weight=0.7, test_cross_entropy=3.21), Member(name="gptj", weight=0.3)),
                test_cross_entropy=3.1,
            ),
        ),
        metadata={"corpus": {"words": {"train": 360_000}}, "recipe": {"seed": 1}, "hardware": "2 CPU cores | test"},
        protocol=scoring_protocol("causal", "masked"),
    )


def _results(name: str, wins: int) -> ChoiceResults:
    rows = [{"sentence_good": f"a{n}", "sentence_bad": f"b{n}", "linguistics_term": "term"} for n in range(10)]
    (task,) = tasks_from_rows({"agreement|plain": rows})
    good = np.where(np.arange(10) < wins, 1.0, 0.0) - np.where(np.arange(10) == 9, 1.0, 0.0)
    return ChoiceResults(name, "causal", (ChoiceResult(task, np.stack([good, np.zeros(10)], axis=1)),))


def test_markdown_keeps_causal_and_masked_apart() -> None:
    text = to_markdown(_report())
    causal, masked = text.split("## Masked models")
    assert "| model | role | params | test CE | bits/byte | pairs % |" in causal
    assert "| llama | teacher | 1.23M | 3.210 | 1.500 | 81.2 | [78.0, 84.0] | 2 | - | - | 12,346 | 42 |" in causal
    assert causal.index("| llama | teacher") < causal.index("| baby_llama | student")
    assert "| 62.0 | [50, 75] |" in causal
    assert "bits/byte" not in masked and "| elc_bert | student | 400k | 2.500 | - |" in masked
    assert "gain kept of elc_bert (masked) is undefined: the pool is not known to be better" in masked
    assert "cannot be compared" in text and "chance is 50 %" in text
    assert "| gptj | 0.300 |  | - | - | - | - | - |" in text and "| pool |  |  | - | 3.100 |  |  | - |" in text
    assert "| all | - | - |" in text and "- ECE, pairs and entropies: over - test targets" in text
    assert "- words.train: 360000" in text and "2 CPU cores \\| test" in text


def test_an_ensemble_shows_its_fit_and_its_diagnostics() -> None:
    costs = {"tune_cross_entropy": 3.0, "test_cross_entropy": 3.2, "tune_without": 3.1, "test_without": 3.3}
    members = (
        Member(name="llama", weight=0.7, weight_interval=Interval(0.6, 0.8), calibration_error=0.021, **costs),
        Member(name="elc", weight=0.3, weight_interval=Interval(0.2, 0.4), calibration_error=0.05, **costs),
    )
    ensemble = Ensemble(
        name="llama+elc (product, fitted)",
        view=None,
        pool="product",
        weights="fitted",
        members=members,
        fitted_targets=27_123,
        inverse_temperature=1.25,
        inverse_temperature_interval=Interval(1.2, 1.3),
        tune_cross_entropy=2.9,
        test_cross_entropy=3.05,
        tune_oracle=2.5,
        test_oracle=2.6,
        compared_targets=4096,
        calibration_error=0.01,
        mixture_entropy=2.5,
        member_entropy=2.25,
        mutual_information=np.float64(0.25),
        pairs=(Pair(first="llama", second="elc", jensen_shannon=0.1234, agreement=0.675),),
    )
    report = replace(_report(), ensembles=(ensemble,))
    text = to_markdown(report)
    assert "### llama+elc (product, fitted): product, weights fitted, across views" in text
    assert "| member | weight | 95% | tune CE | test CE | tune CE without | test CE without | ECE % |" in text
    assert "| llama | 0.700 | [0.600, 0.800] | 3.000 | 3.200 | 3.100 | 3.300 | 2.1 |" in text
    assert "| pool |  |  | 2.900 | 3.050 |  |  | 1.0 |" in text and "| oracle |  |  | 2.500 | 2.600 |  |  |  |" in text
    assert "| llama, elc | 0.1234 | 67.5 |" in text
    assert "fitted on 27,123 tune targets" in text
    assert "1 / temperature, fitted with the weights: 1.250 [1.200, 1.300]" in text
    assert "2.500 - 2.250 = 0.2500 nats of mutual information" in text and "over 4,096 test targets" in text
    value = json.loads(to_json(report), parse_constant=pytest.fail)["ensembles"][0]
    assert value["view"] is None and value["members"][0]["weight_interval"] == [0.6, 0.8]
    assert value["pairs"][0]["agreement"] == 0.675 and value["mutual_information"] == 0.25
    with pytest.raises(Diverged, match="report.ensembles.0.pairs.0.jensen_shannon"):
        replace(report, ensembles=(replace(ensemble, pairs=(replace(ensemble.pairs[0], jensen_shannon=math.nan),)),))


def test_json_has_null_for_what_is_undefined() -> None:
    value = json.loads(to_json(_report()), parse_constant=pytest.fail)
    kept, teacher, undefined = value["rows"]
    assert kept["gain_kept"] == 0.62 and kept["gain_kept_interval"] == [0.5, 0.75]
    assert undefined["gain_kept"] is None and undefined["gain_kept_reason"] == UNDEFINED.reason
    assert undefined["bits_per_byte"] is None and undefined["test_cross_entropy"] == 2.5
    assert teacher["gain_kept"] is None and teacher["gain_kept_reason"] == ""
    assert value["ensembles"][0]["members"][0]["weight"] == 0.7 and value["confidence"] == 0.95


@pytest.mark.parametrize("bad", [math.nan, math.inf, np.float32("nan")])
def test_what_is_not_finite_never_enters_a_report(bad: float) -> None:
    report = _report()
    with pytest.raises(Diverged, match="report.rows.0.test_cross_entropy"):
        replace(report, rows=(replace(report.rows[0], test_cross_entropy=bad),))
    with pytest.raises(Diverged, match="report.metadata.corpus.share"):
        replace(report, metadata={"corpus": {"share": bad}})
    report.metadata["late"] = bad  # what a caller may still do to a mapping
    with pytest.raises((ValueError, Diverged)):
        to_json(report)


def test_terminal_shows_the_same_cells() -> None:
    buffer = io.StringIO()
    print_table(_report(), Console(file=buffer, width=90))
    text = buffer.getvalue()
    assert "Causal models" in text and "Masked models" in text and "undefined" in text
    line = next(line for line in text.splitlines() if "baby_llama" in line)
    assert line.split() == "baby_llama student 1.23M 3.210 1.500 81.2 [78.0, 84.0] 2 62.0 [50, 75] - -".split()


def test_phenomena_stand_side_by_side() -> None:
    (phenomenon,) = phenomena_table([_results("one", 6), _results("two", 9)], confidence=0.95, resamples=200, seed=1)
    assert phenomenon.accuracy == {"one": 0.6, "two": 0.9} and phenomenon.pairs == 10
    assert phenomenon.ties == {"one": 3, "two": 0}
    assert phenomenon.intervals["one"].low < 0.6 < phenomenon.intervals["one"].high
    text = to_markdown(replace(_report(), phenomena=(phenomenon,)))
    assert "| phenomenon | term | pairs | one | two |" in text
    assert "| agreement\\|plain | term | 10 | 60.0 | 90.0 |" in text


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    write_report(tmp_path / "run", _report())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["report.json", "report.md"]
    assert (tmp_path / "run" / "report.md").read_text() == to_markdown(_report())
    assert json.loads((tmp_path / "run" / "report.json").read_text())["title"] == "quickstart"
