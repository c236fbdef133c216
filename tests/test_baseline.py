"""The n-grams of a project's own text stand beside every candidate, and texts are rows like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_candidates import stranger
from test_end_to_end import ROOT, cuvee

from corpora.prepare import open_corpus
from corpora.storage import read_manifest
from distill import baseline, candidates
from distill.project import Project
from distill.recipe import load_recipe
from distill.scores import contenders, pair_tasks, score_tasks

RECIPE = """
extends: {base}
run_dir: {run_dir}
corpus: {{words: 8_000, split: {{tune: 0.1, test: 0.1}}}}
tokenizer: {{vocab_size: 512}}
cache: {{window: 64}}
benchmarks: {{minimal_pairs: {{pairs: 4}}}}
teachers:
  llama:
    model: {{architecture: llama, num_layers: 1, hidden_size: 16, num_heads: 2, max_positions: 64}}
    train: {{view: causal, steps: 4, batch_size: 8, seq_len: 64, precision: fp32, word_snapshots: [500]}}
  elc:
    model: {{architecture: elc_bert, variant: zero, num_layers: 1, hidden_size: 16, num_heads: 2, max_positions: 64}}
    train: {{view: masked, steps: 4, batch_size: 8, seq_len: 64, precision: fp32}}
"""
ITEMS = ("--items", "4")
Scores = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained teacher of each view."""
    folder = tmp_path_factory.mktemp("project")
    recipe = folder / "mini.yaml"
    recipe.write_text(RECIPE.format(base=ROOT / "configs" / "base.yaml", run_dir=folder / "mini"))
    assert cuvee("train", str(recipe))[0] == 0
    return folder / "mini"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A long document and a short one."""
    path = tmp_path / "held_out.jsonl"
    texts = ["The dog sees a red ball. It is late.\n" * 12, "My sister wants some water."]
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    return path


def report(out: Path, name: str) -> dict[str, Any]:
    (evaluation,) = json.loads((out / name / "scores.json").read_text())
    return evaluation


def scores(out: Path, name: str) -> Scores:
    """What a report says, by benchmark and measure."""
    return {(score["title"], score["metric"]): score for score in report(out, name)["scores"]}


def test_the_baseline_is_the_projects_and_stands_beside_the_candidate(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cuvee("score", str(run_dir / "teachers" / "llama"), "--out", str(out), *ITEMS)[0] == 0
    found = report(out, "llama-causal-cuvee")
    assert found["baseline"] == "mini:5-gram"
    (row,) = found["scores"]
    (own,) = scores(out, "mini_5_gram-causal-cuvee").values()
    assert row["baseline"] == own["value"] and own["baseline"] is None
    # as the project's own report has it
    project = Project(load_recipe(run_dir / "recipe.yaml"))
    tasks = pair_tasks(project.recipe.benchmarks, project.recipe.seed)
    contender = contenders(project)[0]
    candidate, _ = contender.measure(torch.device("cpu"))
    results = score_tasks(candidate, tasks, project.corpus.tokenizer, project.recipe.benchmarks)
    assert contender.name == "5-gram" and results is not None
    assert own["value"] == pytest.approx(results.accuracy) and own["ties"] == results.ties
    assert {each["uid"]: each["baseline"] for each in found["paradigms"]} == {
        result.task.uid: pytest.approx(result.accuracy) for result in results.tasks
    }
    assert [path.name for path in (run_dir / "ngrams").iterdir()] == ["5-grams"]
    markdown = (out / "llama-causal-cuvee" / "scores.md").read_text()
    assert "| chance | mini:5-gram | items |" in markdown and "| mini:5-gram % | ties |" in markdown
    folders = [str(out / name) for name in ("llama-causal-cuvee", "mini_5_gram-causal-cuvee")]
    assert cuvee("compare", *folders, "--out", str(tmp_path / "compared"))[0] == 0
    assert "mini_5_gram-causal-cuvee" in (tmp_path / "compared" / "compare.json").read_text()


def test_texts_and_streams_are_rows(run_dir: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--text", str(text), "--stream", "test", "--out", str(out)]
    for name in ("llama", "elc"):
        assert cuvee("score", str(run_dir / "teachers" / name), *options)[0] == 0
    found = scores(out, "llama-causal-cuvee")
    stream = "Own text, test stream"
    assert list(found) == [
        (title, metric) for title in (text.name, stream) for metric in ("bits per byte", "nats per token")
    ], "a text alone: no pairs"
    for score in found.values():
        low, high = score["interval"]
        assert low <= score["value"] <= high and 0 < score["baseline"] < score["value"]
    # the stream as in the project's report, of the model and of the n-grams
    project = Project(load_recipe(run_dir / "recipe.yaml"))
    test = project.corpus.streams["test"]
    for contender in contenders(project):
        _, nats = contender.measure(torch.device("cpu"))
        total = float(nats("test")[1].sum(dtype="float64"))
        name = {"5-gram": "mini_5_gram-causal"}.get(contender.name, f"{contender.name}-{contender.objective}")
        own = scores(out, f"{name}-cuvee")
        metric = "nats per token" if contender.objective == "causal" else "masked nats per token"
        assert own[stream, metric]["value"] == pytest.approx(total / (len(test) - len(test.document_bytes)), rel=1e-5)
    masked = scores(out, "elc-masked-cuvee")
    assert list(masked) == [(text.name, "PLL nats per token"), (stream, "masked nats per token")]
    assert all(score["baseline"] is None for score in masked.values()), "other questions than the n-grams'"
    remarks = report(out, "elc-masked-cuvee")["remarks"]
    assert remarks[0].startswith("held_out.jsonl: 2 document(s), 113 words, 471 bytes, ")
    assert "windows of 64 tokens and masks of 3 folds" in remarks[1] and "the baseline to beat" in remarks[2]


def test_a_stranger_has_the_baseline_that_is_named(
    run_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = stranger(tmp_path / "guest", run_dir), tmp_path / "out"
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:40]  # another tokenizer
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    options = ["score", str(folder), "--text", str(text), "--out", str(out)]
    assert cuvee(*options)[0] == 0
    alone = report(out, "guest-causal-cuvee")
    assert alone["baseline"] is None and all(score["baseline"] is None for score in alone["scores"])
    assert alone["remarks"][-1] == (
        "No n-gram baseline stands here: guest is no run of this toolkit; name a project whose text is counted with "
        "--ngrams RUN_DIR."
    )
    assert cuvee(*options, "--ngrams", str(run_dir))[0] == 0
    found = scores(out, "guest-causal-cuvee")
    assert found[text.name, "bits per byte"]["baseline"] == pytest.approx(
        scores(out, "mini_5_gram-causal-cuvee")[text.name, "bits per byte"]["value"]
    )
    assert found[text.name, "nats per token"]["baseline"] is None, "tokens of two tokenizers"
    assert cuvee(*options, "--ngrams", "none")[0] == 0
    assert "it was left out" in report(out, "guest-causal-cuvee")["remarks"][-1]
    code, lines = cuvee(*options, "--ngrams", str(tmp_path))
    assert code == 3 and "holds no prepared corpus; expected the run_dir of a project" in lines[0]
    # what stands in its way belongs to the baseline
    begin = {"type_id": 0, "id": "<s>"}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": begin}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, lines = cuvee(*options, "--protocol", "babylm2025", "--ngrams", str(run_dir))
    assert code == 3 and lines[0].startswith("cuvee: mini:5-gram (the baseline; --ngrams none leaves it out): ")


def test_a_run_without_its_corpus_says_so(run_dir: Path, text: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run_dir / "teachers" / "llama", tmp_path / "moved" / "teachers" / "llama"))
    assert cuvee("score", str(folder), *ITEMS, "--out", str(tmp_path / "out"))[0] == 0
    (remark,) = report(tmp_path / "out", "llama-causal-cuvee")["remarks"]
    assert f"{tmp_path / 'moved'} does not hold the corpus that llama was trained on; name a project" in remark
    for lost in (folder, stranger(tmp_path / "guest", run_dir)):
        code, lines = cuvee("score", str(lost), "--stream", "test")
        assert code == 3 and "is no run with its corpus beside it; expected RUN_DIR/students/NAME" in lines[0]


def test_a_project_that_cannot_be_written_to_is_told(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied", "ngrams")

    monkeypatch.setattr(baseline, "stored_ngrams", refuse)
    options = ["score", str(run_dir / "teachers" / "llama"), *ITEMS, "--out", str(tmp_path / "out")]
    assert cuvee(*options)[0] == 0
    (remark,) = report(tmp_path / "out", "llama-causal-cuvee")["remarks"]
    assert "ngrams: Permission denied; name a project" in remark
    assert cuvee(*options, "--ngrams", str(run_dir))[0] == 3, "asked for"


def test_the_baseline_is_scored_once(
    run_dir: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    score = candidates.score_baseline
    monkeypatch.setattr(candidates, "score_baseline", lambda *given: scored.append("") or score(*given))
    out = tmp_path / "out"
    options = ["--checkpoints", "--stream", "tune", "--text", str(text), *ITEMS, "--out", str(out)]
    assert cuvee("score", str(run_dir / "teachers" / "llama"), *options)[0] == 0
    evaluations = json.loads((out / "scores.json").read_text())
    assert scored == [""] and [each["baseline"] for each in evaluations] == ["mini:5-gram"] * 2
    rows = [{(score["title"], score["metric"]): score for score in each["scores"]} for each in evaluations]
    assert rows[0].keys() == rows[1].keys() and len(rows[0]) == 4
    assert {row["Own text, tune stream", "bits per byte"]["baseline"] for row in rows} == {
        scores(out, "mini_5_gram-causal-cuvee")["Own text, tune stream", "bits per byte"]["value"]
    }


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--text", "nowhere.txt"], 3, "nowhere.txt: no such file"),
        (["--text", "{folder}"], 3, "latin.txt:1: byte 4 of the line (0xe9) is not UTF-8"),
        (["--text", "{text}", "--backend", "hybrid"], 2, "--text: the sum of two modes is no cost of a token"),
        (["--stream", "test", "--backend", "mntp"], 2, "--stream: is read in the views of training"),
        (["--stream", "train"], 2, "--stream"),
        (["--text", "{text}", "--allow-code", "--backend", "causal"], 2, "--text: the sandbox answers for whole"),
        (["--text", "{text}", "--protocol", "babylm2025"], 3, "choose a protocol that places one, such as cuvee"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    options: list[str], code: int, message: str, run_dir: Path, text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    given = [option.format(folder=folder, text=text) for option in options]
    found, lines = cuvee("score", str(run_dir / "teachers" / "llama"), *given)
    assert found == code and message in lines[0]


def test_a_model_that_answers_nan_is_invalid(run_dir: Path, text: Path, tmp_path: Path) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        state["model.decoder.embed_positions.weight"][40] = 3e38  # no sentence is so long

    code, lines = cuvee("score", str(stranger(tmp_path / "guest", run_dir, spoil)), "--text", str(text))
    assert code == 6 and "held_out.jsonl:1: log-likelihood nan" in lines[0]


def test_the_tokenizer_of_the_counts_is_the_runs(run_dir: Path) -> None:
    subject = candidates.Subject(run_dir / "teachers" / "llama", "llama")
    assert read_manifest(run_dir / "ngrams" / "5-grams") is not None
    corpus = open_corpus(run_dir)
    assert subject.tokenizer.digest == baseline.own_tokenizer(corpus.tokenizer.to_json()).digest
