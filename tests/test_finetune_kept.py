"""Finished fine-tunings are found again; those of other inputs, damaged or not finite ones are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune import OURS, flipped, rows, subject, toy_folder, tuned, write

import benchmarks.finetune.run as run_module
from benchmarks.finetune.classifier import Classifier
from benchmarks.finetune.loop import fit, predict
from benchmarks.finetune.run import PREDICTIONS
from corpora.errors import Damaged, Diverged, InputRefused


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return toy_folder(tmp_path)


def test_finished_runs_are_found_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    who, config = subject("elc_bert", "masked"), replace(OURS, epochs=1)
    first = tuned(who, root, tmp_path / "out", config, seeds=[1, 2])
    trainings: list[int] = []

    def counted(*arguments: Any, seed: int, **others: Any) -> Any:
        trainings.append(seed)
        return fit(*arguments, seed=seed, **others)

    monkeypatch.setattr(run_module, "fit", counted)
    again = tuned(subject("elc_bert", "masked"), root, tmp_path / "out", config, seeds=[2, 1, 3])
    assert trainings == [3] and [run.resumed for run in again.runs] == [True, True, False]
    assert again.runs[1].split("boolq").scores == first.runs[0].split("boolq").scores
    assert again.runs[1].chosen_step == first.runs[0].chosen_step
    assert again.runs[1].selecting_rows == first.runs[0].selecting_rows == 16


def test_a_folder_made_from_other_inputs_is_refused(root: Path, tmp_path: Path) -> None:
    who, config = subject("elc_bert", "masked"), replace(OURS, epochs=1)
    tuned(who, root, tmp_path / "out", config, seeds=[1])
    tuned(who, root, tmp_path / "out", replace(config, name="another name"), seeds=[1])
    with pytest.raises(InputRefused, match=r"seed_1: made from other inputs: config.lr is 0.005 there and 0.001 here"):
        tuned(who, root, tmp_path / "out", replace(config, lr=1e-3), seeds=[1])
    with pytest.raises(InputRefused, match="subject.settings is .*; subject.weights is"):
        tuned(subject("elc_bert", "masked", variant="base"), root, tmp_path / "out", config, seeds=[1])
    write(root, "boolq.valid.jsonl", flipped(rows(60, 2)))
    with pytest.raises(InputRefused, match="files.glue_filtered/boolq.valid.jsonl is"):
        tuned(who, root, tmp_path / "out", config, seeds=[1])


def test_damaged_predictions_are_not_believed(root: Path, tmp_path: Path) -> None:
    who, config = subject("elc_bert", "masked"), replace(OURS, epochs=1)
    tuned(who, root, tmp_path / "out", config, seeds=[1])
    path = tmp_path / "out/boolq/seed_1" / PREDICTIONS
    path.write_text(path.read_text().replace('"pred":1', '"pred":0', 1))
    with pytest.raises(Damaged, match="predictions.json: found .* the manifest expects"):
        tuned(who, root, tmp_path / "out", config, seeds=[1])


def test_what_is_not_finite_ends_the_run_and_leaves_the_finished_ones(root: Path, tmp_path: Path) -> None:
    who = subject("llama", "causal")
    tuned(who, root, tmp_path / "out", replace(OURS, epochs=1), seeds=[1])
    with torch.no_grad():
        next(who.model.network.parameters())[6:] = math.nan
    broken = replace(who)  # another subject: the fingerprint was taken before
    with pytest.raises(Diverged, match=r"llama: boolq, seed 2: step 1: the loss is nan .*; lower lr") as raised:
        tuned(broken, root, tmp_path / "out", replace(OURS, epochs=1), seeds=[2])
    assert raised.value.exit_code == 6
    assert [path.name for path in (tmp_path / "out/boolq").iterdir()] == ["seed_1"]


def test_logits_that_are_not_finite_are_no_predictions() -> None:
    who = subject("llama", "causal")
    classifier = Classifier(who.model, "causal", OURS, num_labels=2, seed=1)
    with torch.no_grad():
        next(who.model.network.parameters())[7] = math.inf
    with pytest.raises(Diverged, match=r"toy: logits \[nan, nan\] for row 2; expected numbers"):
        predict(classifier, [(1, 6), (1, 7)], config=OURS, place="toy")


def test_one_training_row_is_too_few_to_keep_one_out(root: Path, tmp_path: Path) -> None:
    write(root, "boolq.train.jsonl", rows(1, 1))
    with pytest.raises(InputRefused, match="boolq.train.jsonl:1: the only row; expected at least 2"):
        tuned(subject("llama", "causal"), root, tmp_path / "out")


def test_a_folder_has_one_writer(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    who = subject("llama", "causal")

    def meanwhile(*arguments: Any, **others: Any) -> Any:
        tuned(who, root, tmp_path / "out", seeds=[2])

    monkeypatch.setattr(run_module, "fit", meanwhile)
    with pytest.raises(InputRefused, match="another process is writing here"):
        tuned(who, root, tmp_path / "out", seeds=[1])
