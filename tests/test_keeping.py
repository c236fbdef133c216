"""Looks at the tune stream, and what a run keeps because of them: the best weights, a run that ends early, words."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from benchmarks.config import BenchmarksConfig, MinimalPairsConfig
from corpora.errors import InputRefused, RecipeError
from corpora.prepare import Corpus
from corpora.storage import read_manifest
from distill.distributed import Processes
from distill.evaluate import model_nats
from distill.learner import Learner
from distill.look import Look, TuneStream
from distill.run import Run, best_folder, best_folders, require_kept
from distill.stages import _train
from distill.train import train
from students.run_folder import load_model


def run_of(corpus: Corpus, folder: Path, architecture: str = "llama", **changes: Any) -> Run:
    model = tiny.model_config(architecture, dropout=0.1) if architecture == "gptj" else tiny.model_config(architecture)
    return tiny.run(corpus, folder, tiny.CROSS_ENTROPY, model=model, **changes)


def records(run: Run, key: str) -> list[dict[str, Any]]:
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if key in (record := json.loads(line))]


def test_a_look_is_the_cross_entropy_and_the_bits_of_the_stream(
    corpus: Corpus, processes: Processes, tmp_path: Path
) -> None:
    run = run_of(corpus, tmp_path / "run", "gptj", seq_len=tiny.WINDOW, evaluate_every=1)
    learner = Learner(run, processes)
    look = TuneStream(run, processes).look(learner.module, "fp32")
    assert learner.module.training, "dropout is on again"
    _, nats_N = model_nats(learner.model.eval(), corpus, "tune", "causal", run.cache)
    assert look.cross_entropy["causal"] == pytest.approx(float(nats_N.mean()), rel=1e-5)
    text = corpus.streams["tune"].document_bytes.sum()
    assert look.bits_per_byte == pytest.approx(float(nats_N.sum()) / math.log(2) / text, rel=1e-5)


def test_a_look_may_stop_at_a_document_and_masked_rows_have_no_bits(
    corpus: Corpus, processes: Processes, tmp_path: Path
) -> None:
    stream = corpus.streams["tune"]
    end = int(stream.document_offsets[3])
    run = run_of(corpus, tmp_path / "run", view="masked", seq_len=tiny.WINDOW, evaluate_tokens=end)
    learner = Learner(run, processes)
    look = TuneStream(run, processes).look(learner.module, "fp32")
    positions_N, nats_N = model_nats(learner.model.eval(), corpus, "tune", "masked", run.cache)
    from corpora.masking import hidden
    from teachers.cache import cached_view

    view = cached_view(run.cache, "masked")
    seen = np.flatnonzero(hidden(0, stream.tokens(0, end), view, corpus.token_ids.special))
    asked = np.isin(positions_N, seen) & (positions_N < end)
    assert look.bits_per_byte is None and asked.any()
    # in overlapping windows a look keeps what caches keep
    assert look.cross_entropy["masked"] == pytest.approx(float(nats_N[asked].mean()), rel=1e-4)


def looks(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Let the tune stream cost what a list says, look by look."""
    left = iter(values)
    monkeypatch.setattr(TuneStream, "look", lambda self, module, precision, **more: Look({"causal": next(left)}, 1.0))


def test_the_best_weights_are_left_and_only_they_are_kept(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks(monkeypatch, [3.0, 2.0, 2.5, 2.2])
    run = run_of(corpus, tmp_path / "run", evaluate_every=2, keep="best", snapshots=[4, 8])
    train(run, processes)
    manifest = read_manifest(run.folder)
    assert manifest is not None and manifest.facts["steps"] == 4
    snapshots = run.folder / "snapshots"
    best, last = ((snapshots / f"step-{step:08d}" / "model.safetensors").read_bytes() for step in (4, 8))
    assert (run.folder / "model.safetensors").read_bytes() == best != last
    assert best_folder(run.folder, 4).exists() and not best_folder(run.folder, 2).exists()
    assert [record["tune"]["causal/cross_entropy"] for record in records(run, "tune")] == [3.0, 2.0, 2.5, 2.2]


def test_the_best_weights_survive_a_crash_though_better_ones_are_not_found_again(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other rounding may cost more at the second attempt: what the checkpoint knows as the best must still be there."""
    fields: dict[str, Any] = {"evaluate_every": 1, "keep": "best", "checkpoint_every": 2, "steps": 6}
    run, update = run_of(corpus, tmp_path / "run", **fields), Learner.update

    def crash(self: Learner, step: int, *more: Any) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return update(self, step, *more)

    with monkeypatch.context() as context:
        context.setattr(Learner, "update", crash)
        looks(monkeypatch, [5.0, 4.0, 3.0])
        with pytest.raises(KeyboardInterrupt):
            train(run, processes)
    assert {path.name for path in best_folders(run.folder)} == {"best-00000002", "best-00000003"}
    looks(monkeypatch, [4.5, 4.6, 4.7, 4.8])
    train(run, processes)
    manifest = read_manifest(run.folder)
    assert manifest is not None and manifest.facts["steps"] == 2 and manifest.facts["reached_steps"] == 6
    assert {path.name for path in best_folders(run.folder)} == {"best-00000002"}


def test_a_run_that_ended_early_is_found_again_and_says_why(
    corpus: Corpus,
    processes: Processes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fields: dict[str, Any] = {"steps": 30, "evaluate_every": 1, "patience": 2, "snapshots": [2, 20]}
    run = run_of(corpus, tmp_path / "run", **fields)
    looks(monkeypatch, [1.0, 2.0, 2.0])
    train(run, processes)
    assert "train: run ends after step 3 of 30: 2 looks without gain" in capsys.readouterr().out
    _train(run, processes)
    assert "train: run is there" in capsys.readouterr().out
    with pytest.raises(InputRefused, match="step-00000001: missing: the run is past these weights"):
        _train(replace(run, train=replace(run.train, snapshots=[1])), processes)


def test_a_run_out_of_patience_ends_also_when_it_is_resumed(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"steps": 30, "evaluate_every": 1, "patience": 3, "checkpoint_every": 1}
    values = [5.0, 4.0, 4.5, 4.4, 4.3, 1.0]
    run = run_of(corpus, tmp_path / "run", **fields)
    looks(monkeypatch, values)
    train(run, processes)
    manifest = read_manifest(run.folder)
    assert manifest is not None and manifest.facts["steps"] == 5 and len(records(run, "tune")) == 5

    again = replace(run, folder=tmp_path / "again")
    update, stopped = Learner.update, []

    def stopping(self: Learner, step: int, *more: Any) -> float:
        if step == 3 and not stopped:
            stopped.append(step)
            raise KeyboardInterrupt
        return update(self, step, *more)

    monkeypatch.setattr(Learner, "update", stopping)
    looks(monkeypatch, values)
    with pytest.raises(KeyboardInterrupt):
        train(again, processes)
    looks(monkeypatch, values[3:])
    train(again, processes)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (again.folder / name).read_bytes() == (run.folder / name).read_bytes(), name


def test_words_name_checkpoints_as_the_challenge_does(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    run = run_of(corpus, tmp_path / "run", word_snapshots=[300, 700])
    train(run, processes)
    words = {record["step"]: record["words"] for record in records(run, "lr")}
    for asked in (300, 700):
        manifest = read_manifest(run.folder / "snapshots" / f"chck_{asked}")
        assert manifest is not None
        step = manifest.facts["steps"]
        assert words[step] == manifest.facts["words"] >= asked > words[step - 1]
        load_model(manifest.folder)


def test_words_that_a_run_is_past_or_never_sees_are_refused(
    corpus: Corpus, processes: Processes, tmp_path: Path
) -> None:
    run = run_of(corpus, tmp_path / "run")
    train(run, processes)
    manifest = read_manifest(run.folder)
    assert manifest is not None
    asked = replace(run, train=replace(run.train, word_snapshots=[300]))
    with pytest.raises(InputRefused, match="chck_300: missing: the run is past these weights"):
        require_kept(asked, done=manifest.facts["steps"], words=manifest.facts["words"])
    beyond = replace(run, folder=tmp_path / "beyond", train=replace(run.train, word_snapshots=[10**9]))
    with pytest.raises(RecipeError, match="the weights after 1,000,000,000 words are asked for, but the run sees"):
        train(beyond, processes)


def test_the_name_of_a_million_words() -> None:
    from distill.run import word_snapshot_folder

    names = [word_snapshot_folder(Path("run"), words).name for words in (1_000_000, 100_000_000, 1_500_000)]
    assert names == ["chck_1M", "chck_100M", "chck_1500000"]


def test_a_probe_scores_a_few_pairs_and_changes_nothing(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"steps": 2, "evaluate_every": 1}
    plain = run_of(corpus, tmp_path / "plain", "gptj", **fields)
    config = BenchmarksConfig(minimal_pairs=MinimalPairsConfig(pairs=100))
    probed = replace(plain, folder=tmp_path / "probed", train=replace(plain.train, probe_pairs=2), benchmarks=config)
    train(plain, processes)
    train(probed, processes)
    assert (plain.folder / "model.safetensors").read_bytes() == (probed.folder / "model.safetensors").read_bytes()
    found = [record["tune"]["causal/pairs"] for record in records(probed, "tune")]
    assert len(found) == 2 and all(0 <= accuracy <= 1 for accuracy in found)
    assert not any("causal/pairs" in record["tune"] for record in records(plain, "tune"))


def test_the_layer_weights_of_elc_bert_are_logged(corpus: Corpus, processes: Processes, tmp_path: Path) -> None:
    run = run_of(corpus, tmp_path / "run", "elc_bert", view="masked", steps=2, evaluate_every=2)
    train(run, processes)
    [record] = records(run, "facts")
    for weights in record["facts"]["layer_weights"].values():
        assert sum(weights) == pytest.approx(1, abs=1e-5)
