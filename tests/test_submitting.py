"""A trained run is handed in as a year asks, and whatever it lacks is told before anything is scored."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_candidates import READING, TIMES
from test_choice_files import write
from test_end_to_end import cuvee
from test_submission import MOST, small

from benchmarks.choices import Choice, ChoiceTask
from benchmarks.config import EvaluationConfig
from benchmarks.request import Request
from benchmarks.score_store import ScoreStore
from benchmarks.scoring import Alone
from benchmarks.submission.layout import Year
from benchmarks.submission.manifest import read_submission
from benchmarks.submission.rules import NOT_VERIFIED
from corpora.storage import FolderWriter, new_folder, read_manifest
from distill import submitting, year_data
from distill.candidates import Subject, finetuned_subject, subject_scorer
from distill.submitted_predictions import Blank, Questions, answered

MILLION = 1_000_000
WORDS_READ = 40  # rows of the file of reading times
NOUNS = ("cat", "dog", "road", "stone", "cup", "pen")


@cache
def year_of(number: int) -> Year:
    """A year scaled down; a corpus of a few thousand words is read hundreds of times in it."""
    year = small(number)
    if "reading" not in year.full:
        return year
    reading = year.full["reading"]
    reading = replace(reading, counts=replace(reading.counts, counts={"reading": WORDS_READ}))
    fast = {**year.fast, "reading": replace(reading, scores=("spr", "rt"))}
    tracks = {name: replace(track, epochs=replace(track.epochs, at_most=10_000)) for name, track in year.tracks.items()}
    return replace(year, full={**year.full, "reading": reading}, fast=fast, tracks=tracks)


@pytest.fixture(autouse=True)
def scaled_years(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(year_data, "read_year", lambda year: year_of(year) if year >= 2024 else small(year))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of one teacher, as if it had seen two and a half million words and kept two checkpoints."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(folder)
    run = student(folder)
    for words, million in ((300, 1), (600, 2)):
        kept = Path(shutil.move(run / "snapshots" / f"chck_{words}", run / "snapshots" / f"chck_{million}M"))
        recount(kept, million * MILLION + 7)
    recount(run, 2_500_000)
    return folder


def train(run_dir: Path) -> None:
    """A teacher and a student that listens to it."""
    model = {"architecture": "llama", "num_layers": 2, "hidden_size": 32, "num_heads": 2, "max_positions": 64}
    steps = {"view": "causal", "steps": 4, "batch_size": 8, "seq_len": 64, "precision": "fp32"}
    recipe = {
        "run_dir": str(run_dir),
        "corpus": {"source": "synthetic", "words": 3_000, "split": {"tune": 0.1, "test": 0.1}},
        "tokenizer": {"vocab_size": 512},
        "teachers": {"llama": {"model": model, "train": steps}},
        "cache": {"window": 64},
        "students": {
            "baby_llama": {
                "model": model,
                "train": steps | {"word_snapshots": [300, 600]},
                "terms": [{"loss": "cross_entropy"}, {"loss": "forward_kl", "members": {"llama": 1}}],
            }
        },
    }
    path = run_dir.parent / "submitted.yaml"
    path.write_text(json.dumps(recipe))  # which is YAML too
    assert cuvee("train", str(path))[0] == 0


def student(run_dir: Path) -> Path:
    (folder,) = (run_dir / "students").iterdir()
    return folder


def recount(folder: Path, words: int, **files: Any) -> None:
    """Commit a run folder again with another number of words."""
    manifest = read_manifest(folder)
    assert manifest is not None
    writer = FolderWriter(folder)
    writer.files, writer.facts = manifest.files | files, manifest.facts | {"words": words}
    writer.commit("run", manifest.fingerprint)


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """A run_dir that a test may spoil."""
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated items in the official layout, as many as the scaled years have."""
    root = tmp_path_factory.mktemp("data")
    year = year_of(2025)
    for part, fast in (("full_eval", False), ("fast_eval", True)):
        tasks, place = (year.fast if fast else year.full), root / "evaluation_data" / part
        end = "fast" if fast else "filtered"
        for uid in tasks[f"blimp_{end}"].counts.counts or ():
            lines = [{"sentence_good": f"The {n} sees.", "sentence_bad": f"The {n} see.", "UID": uid} for n in nouns()]
            write(place / f"blimp_{end}" / f"{uid}.jsonl", *lines)
        for uid in tasks[f"supplement_{end}"].counts.counts or ():
            lines = [{"sentence_good": f"Is it a {n}? Yes.", "sentence_bad": f"Is it a {n}? She."} for n in nouns()]
            write(place / f"supplement_{end}" / f"{uid}.jsonl", *lines)
        for uid in tasks[f"ewok_{end}"].counts.counts or ():
            lines = [
                {"Context1": "It rains.", "Context2": "It is dry.", "Target1": f"The {n} is wet.", "Domain": uid}
                | {"Target2": f"The {n} is dusty.", "ContextType": "direct", "ContextDiff": "antonym"}
                for n in nouns()
            ]
            write(place / f"ewok_{end}" / f"{uid}.jsonl", *lines)
        for file in ("regular",) if fast else ("regular", "ambiref", "move_contents"):
            lines = [
                {"input_prefix": f"Box {ops} holds ", "options": [f"the {n}.", "a hat.", "a key."], "numops": ops}
                for ops in range(6)
                for n in nouns()
            ]
            write(place / ("entity_tracking_fast" if fast else "entity_tracking") / f"{file}.jsonl", *lines)
        for task in ("wug_adj_nominalization", "wug_past_tense"):
            lines = [{"sentences": f"A {n}ity.\tA {n}ness.", "ratio": k / MOST} for k, n in enumerate(nouns())]
            write(place / task / f"{task}.jsonl", *lines)
        for task, options in (("global_piqa_parallel", 4), ("global_piqa_nonparallel", 2)):
            lines = [
                {"prompt": f"To cool a {noun}", "label": number, "example_id": f"eng-{number}"}
                | {f"solution{k}": "wait" + " a bit" * k for k in range(options)}
                for number, noun in enumerate(NOUNS[:2])
            ]
            write(place / task / "eng_latn.jsonl", *lines)
        write_reading(place / "reading" / "reading_data.csv")
    for file in ("base", "wugs", "wugs_dist-before", "wugs_dist-in-between"):
        lines = [
            {"prefix_acceptable": f"A {n}", "prefix_unacceptable": "A sky", "property_phrase": "is."} for n in nouns()
        ]
        write(root / "evaluation_data" / "full_eval" / "comps" / f"comps_{file}.jsonl", *lines)
    children = root / "children"
    children.mkdir()
    contexts = {"dog": ["I saw a", "My big"], "cat": ["The"], "a": ["One"]}
    told = {word: [{"context": text} for text in texts] for word, texts in contexts.items()}
    (children / "cdi_childes.json").write_text(json.dumps(told))
    ages = range(16, 31)
    rows = [["word", *ages], *([word, *(round((age - 15) / 16, 2) for age in ages)] for word in contexts)]
    (children / "cdi_human.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return root


def nouns() -> Iterator[str]:
    yield from NOUNS[:MOST]


def write_reading(path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [",".join(READING + TIMES)]
    for number in range(WORDS_READ):
        numbers = [f"{value:.3f}" for value in draw.random(4 + len(TIMES))]
        previous = ("The", NOUNS[number % 5]) if number else ("", "")
        rows.append(",".join(["The small", NOUNS[number % 6], *previous, *numbers]))
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(rows) + "\n")


GLUE = {name: (name,) for name in ("boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc")}
GLUE_2024 = GLUE | {"mnli": ("mnli", "mnli-mm")} | {name: (name,) for name in ("cola", "sst2", "qnli")}


def finetuned(
    folder: Path,
    run: Path,
    *,
    seed: int = 42,
    weights: str | None = None,
    tasks: Mapping[str, tuple[str, ...]] = GLUE,
) -> Path:
    """Predictions as `cuvee finetune` leaves them."""
    used = weights or finetuned_subject(Subject(run, "run"), "causal").fingerprint["weights"]
    for name, splits in tasks.items():
        value = {
            split: {"predictions": [{"id": f"{split}_{number}", "pred": number % 2} for number in range(MOST)]}
            for split in splits
        }
        place = folder / name / f"seed_{seed}"
        with new_folder(place, kind="finetune", fingerprint={"subject": {"weights": used}}) as writer:
            writer.write_json("predictions.json", value)
    return folder


def arguments(run: Path, data: Path, out: Path, labels: Path, /, **changes: str | None) -> list[str]:
    """The command; an option that is changed to None is left out."""
    options: dict[str, str | None] = {
        "track": "strict-small",
        "year": "2026",
        "out": str(out),
        "data": str(data),
        "finetuned": str(labels),
        "aoa": str(data / "children"),
        "licence": "Apache-2.0",
    }
    given = {key: value for key, value in (options | changes).items() if value is not None}
    return ["submit", str(run), *(part for key, value in given.items() for part in (f"--{key}", value))]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_2026_is_written_whole_and_again_from_the_scores_that_are_there(
    run_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = student(run_dir), tmp_path / "made" / "out"
    command = arguments(run, data, out, finetuned(tmp_path / "labels", run))
    loaded: list[str] = []
    load = Subject.__dict__["_loaded"].func
    monkeypatch.setattr(
        Subject.__dict__["_loaded"], "func", lambda subject: loaded.append(subject.folder.name) or load(subject)
    )
    assert cuvee(*command)[0] == 0
    assert loaded == [run.name, "chck_1M", "chck_2M"], "one load each"

    facts = read_submission(out).facts
    assert (facts["name"], facts["track"], facts["backend"]) == (run.name, "strict-small", "causal")
    assert facts["words_seen"] == 2_500_000
    corpus = read_manifest(run_dir / "corpus")
    assert corpus is not None
    streams = corpus.facts["streams"]
    assert facts["epochs"] == round(2_500_000 / streams["train"]["words"], 2)
    words = sum(sum(stream["words_by_source"].values()) for stream in streams.values())
    assert sum(text["words"] for text in facts["corpus"]) == facts["limits"]["corpus_words"]["found"] == words
    (teacher,) = facts["teachers"]
    trained = read_manifest(run_dir / "teachers" / "llama")
    assert trained is not None
    assert teacher == {
        "name": "llama",
        "architecture": "llama",
        "parameters": trained.facts["parameters"],
        "data": facts["corpus"],
        "words_seen": trained.facts["words"],
        "licence": "Apache-2.0",
    }
    assert facts["auxiliary_models"]["verdict"] == "kept"
    assert facts["models"]["chck_2M"]["words_seen"] == 2 * MILLION + 7
    assert set(facts["items"]) >= {"global_piqa_parallel", "fast.ewok_fast", "comps"}

    value = json.loads((out / "results" / run.name / "all_full_preds_and_fast_scores_causal.json").read_bytes())
    assert not any("wug" in key for key in value) and value["aoa"] == {"aoa": 0.0}, "two checkpoints draw no curve"
    assert [row["step"] for row in value["aoa_surprisals"]["results"]] == ["chck_1M"] * 3 + ["chck_2M"] * 3
    ewok = value["ewok"]["material-dynamics"]["predictions"][0]["pred"]
    assert ewok in ("It rains. The cat is wet.", "It is dry. The cat is wet.")
    assert set(value["global_piqa_parallel"]) == {"eng-0", "eng-1"}
    assert value["glue"]["wsc"]["predictions"][1] == {"id": "wsc_1", "pred": 1}
    assert (out / "checkpoints" / "chck_1M" / "model.safetensors").exists()

    before = contents(out)
    added: list[int] = []
    add = ScoreStore.add
    monkeypatch.setattr(ScoreStore, "add", lambda self, scores: added.append(len(scores)) or add(self, scores))
    shutil.rmtree(out)
    assert cuvee(*command)[0] == 0
    assert not added and contents(out) == before
    path = out / "results" / run.name / "chck_1M" / "zero_shot" / "causal" / "reading" / "predictions.json"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    code, lines = cuvee(*command)
    assert code == 4 and "reading/predictions.json" in lines[0]


def test_scores_of_checkpoints_are_what_a_scorer_counts_in_their_predictions(
    run_dir: Path, data: Path, tmp_path: Path
) -> None:
    run, out = student(run_dir), tmp_path / "out"
    assert cuvee(*arguments(run, data, out, finetuned(tmp_path / "labels", run), name="baby"))[0] == 0
    results, fast = out / "results" / "baby", data / "evaluation_data" / "fast_eval"
    collated = json.loads((results / "all_full_preds_and_fast_scores_causal.json").read_bytes())["fast_eval_results"]

    def read(checkpoint: str, folder: str) -> dict[str, Any]:
        return json.loads((results / checkpoint / "zero_shot" / "causal" / folder / "predictions.json").read_bytes())

    for number, checkpoint in enumerate(("chck_1M", "chck_2M")):
        blimp = read(checkpoint, "blimp/blimp_fast")
        for uid, share in collated["blimp"][number].items():
            gold = [json.loads(line) for line in (fast / "blimp_fast" / f"{uid}.jsonl").read_text().splitlines()]
            rows = blimp[uid]["predictions"]
            hits = [row["pred"] == line["sentence_good"] for row, line in zip(rows, gold, strict=True)]
            assert share == pytest.approx(np.mean(hits))
        entity = read(checkpoint, "entity_tracking/entity_tracking_fast")["regular_2_ops"]["predictions"]
        hits = [row["pred"] == f"the {noun}." for row, noun in zip(entity, nouns(), strict=True)]
        assert collated["entity_tracking_filtered"][number]["regular_2_ops"] == pytest.approx(np.mean(hits))
        piqa = read(checkpoint, "global_piqa_parallel/global_piqa_parallel")
        gold = (fast / "global_piqa_parallel" / "eng_latn.jsonl").read_text().splitlines()
        hits = [
            piqa[line["example_id"]]["predictions"][0]["pred"].strip() == line[f"solution{line['label']}"]
            for line in map(json.loads, gold)
        ]
        assert collated["global_piqa_parallel"][number] == {"global_piqa_parallel": pytest.approx(np.mean(hits))}
        assert set(collated["reading"][number]) == {"spr", "rt"}
        assert all(0 <= share <= 1 for share in collated["reading"][number].values())
    assert collated["blimp"][0].keys() == year_of(2026).fast["blimp_fast"].counts.counts.keys()  # type: ignore[union-attr]


def test_2025_asks_wugs_and_completions(run_dir: Path, data: Path, tmp_path: Path) -> None:
    run, out, labels = student(run_dir), tmp_path / "out", finetuned(tmp_path / "labels", student(run_dir), seed=7)
    command = arguments(run, data, out, labels, year="2025", seed="7", answers=str(tmp_path / "scores"), name="baby")
    assert cuvee(*command)[0] == 0
    assert (tmp_path / "scores").is_dir() and not (tmp_path / "answers").exists()
    value = json.loads((out / "results" / "baby" / "main" / "all_full_preds_causal.json").read_bytes())
    assert value["ewok"]["material-dynamics"]["predictions"][0]["pred"] in (" The cat is wet.", " The cat is dusty.")
    (wug, *_) = value["wug_adj"]["wug_adj"]["predictions"]
    assert wug["pred"] == ("A catity." if wug["prob"] >= 0.5 else "A catness.")
    assert "global_piqa_parallel" not in value and len(value["entity_tracking"]) == 18
    assert [len(rows["predictions"]) for rows in value["comps"].values()] == [MOST] * 4
    assert value["reading"]["reading"]["predictions"][0]["prev_pred"] is None


def test_2024_is_one_file_and_wants_no_checkpoint(run_dir: Path, data: Path, tmp_path: Path) -> None:
    run, out = student(run_dir), tmp_path / "out"
    labels = finetuned(tmp_path / "labels", run, seed=12, tasks=GLUE_2024)
    assert cuvee(*arguments(run, data, out, labels, year="2024", aoa=None, name="baby"))[0] == 0
    value = json.loads(gzip.decompress((out / "baby_textonly_predictions.json.gz").read_bytes()))
    assert len(value["glue"]) == 11 and value["glue"]["mnli-mm"]["predictions"][1] == {"id": "mnli-mm_1", "pred": 1}
    assert value["ewok"]["material-dynamics"]["predictions"][0]["pred"] in (" The cat is wet.", " The cat is dusty.")
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["main"]


def test_a_run_that_ends_within_a_step_of_a_checkpoint_hands_it_in_and_the_verdict_is_told(
    copy: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = student(copy), tmp_path / "out"
    recount(run, 2 * MILLION - 9)
    recount(run / "snapshots" / "chck_2M", 2 * MILLION - 9)
    config = submitting.SubmissionConfig(
        track="strict-small",
        year=2026,
        out=out,
        data=data,
        finetuned=finetuned(tmp_path / "labels", run),
        aoa=data / "children",
        licence="MIT",
    )
    submitting.submit(run, config)
    facts = read_submission(out).facts
    assert facts["words_seen"] == 2 * MILLION and facts["models"]["chck_2M"]["words_seen"] == 2 * MILLION - 9
    said = capsys.readouterr().out
    assert "submit: auxiliary models: kept: " in said and f"submit: {NOT_VERIFIED}" in said
    assert "submit: words_seen: 2,000,000 (at most 100,000,000, second-hand)" in said
    assert all(f"submit: note: {note}" in said for note in year_of(2026).notes)
    assert "nats: undefined" in said and said.endswith(f"submit: written to {out}\n")


@pytest.mark.parametrize("year", ["2025", "2026"])
def test_a_run_that_is_shorter_than_the_first_checkpoint_is_handed_in(
    copy: Path, data: Path, tmp_path: Path, year: str
) -> None:
    run, out = student(copy), tmp_path / "out"
    recount(run, MILLION // 2)
    labels = finetuned(tmp_path / "labels", run)
    assert cuvee(*arguments(run, data, out, labels, year=year, name="baby"))[0] == 0
    value = json.loads((out / "results/baby/all_full_preds_and_fast_scores_causal.json").read_bytes())
    assert value["aoa_surprisals" if year == "2026" else "aoa"]["results"] == []
    assert year == "2025" or value["aoa"] == {"aoa": 0.0}
    assert all(scores == [] for scores in value["fast_eval_results"].values())


# ---- refused before anything is scored ----------------------------------------------------------------------------

Spoil = Callable[[Path, Path], None]  # a copy of the run_dir, and of the data


def drop(path: str) -> Spoil:
    def spoil(run_dir: Path, data: Path) -> None:
        shutil.rmtree(student(run_dir) / path if path.startswith("snapshots") else data / path)

    return spoil


def shorten(path: str) -> Spoil:
    def spoil(run_dir: Path, data: Path) -> None:
        lines = (data / path).read_text().splitlines()
        (data / path).write_text("\n".join(lines[:-1]) + "\n")

    return spoil


def more_words(run_dir: Path, data: Path) -> None:
    recount(student(run_dir), 101 * MILLION)


def other_label(run_dir: Path, data: Path) -> None:
    """Something else where the labels are looked for, beside the copy of the run."""
    place = run_dir.parent / "labels" / "boolq" / "seed_42"
    shutil.rmtree(place)
    with new_folder(place, kind="run", fingerprint={}) as writer:
        writer.write("predictions.json", b"{}")


def taken(run_dir: Path, data: Path) -> None:
    (run_dir.parent / "taken").mkdir()
    (run_dir.parent / "taken" / "thesis.txt").write_text("x")


def other_text(run_dir: Path, data: Path) -> None:
    shutil.rmtree(run_dir / "corpus")


def other_recipe(run_dir: Path, data: Path) -> None:
    path = run_dir / "recipe.yaml"
    path.write_text(path.read_text().replace("llama:", "lama:").replace("baby_lama:", "baby_llama:"))


FULL, FAST = "evaluation_data/full_eval", "evaluation_data/fast_eval"


@pytest.mark.parametrize(
    ("spoil", "changes", "lines"),
    [
        (drop(f"{FULL}/comps"), {}, ["holds no comps; expected the challenge's folder"]),
        (drop(f"{FAST}/global_piqa_parallel"), {}, ["holds no global_piqa_parallel"]),
        (drop("snapshots/chck_1M"), {}, ["checkpoints.chck_1M: missing; expected the weights after so many words"]),
        (
            shorten(f"{FULL}/comps/comps_wugs.jsonl"),
            {},
            ["comps.wugs: 2 predictions; expected 3; score the task with the year's data"],
        ),
        (
            shorten(f"{FAST}/blimp_fast/passive_1.jsonl"),
            {},
            ["fast.blimp_fast.passive_1: 2 predictions; expected 3"],
        ),
        (more_words, {}, ["words_seen: 101,000,000; expected at most 100,000,000", "epochs: "]),
        (None, {"licence": None}, ["teachers.llama: no licence; expected the licence"]),
        (None, {"name": "a.b"}, ["name: 'a.b' holds a dot"]),
        (None, {"track": "strict-smal"}, ["track: strict-smal: not a track of 2026; did you mean 'strict-small'"]),
        (None, {"seed": "3"}, [f"{name}: " for name in ("boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc")]),
        (
            None,
            {"data": None, "finetuned": None, "aoa": None},
            [
                "blimp_filtered, supplement_filtered, ewok_filtered",
                "AoA: no words of children; expected cdi_childes.json and cdi_human.csv; name their folder with --aoa",
                "boolq, mnli, mrpc, multirc, qqp, rte, wsc: no predictions; expected those of `cuvee finetune --preset",
            ],
        ),
        (None, {"year": "2023"}, ["year: the files of 2023 are laid out in a way that is not read; expected 2024"]),
        (other_label, {}, ["seed_42 holds a run; expected predictions of `cuvee finetune`; name its folder with"]),
        (taken, {"out": "taken"}, ["taken: holds thesis.txt, which is no part of a submission (1 such files)"]),
        (other_text, {}, ["corpus: missing, or not the text that baby_llama-"]),
        (other_recipe, {}, ["recipe.yaml: names no teacher 'llama', which the run listened to"]),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_scored(
    run_dir: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Spoil | None,
    changes: dict[str, str | None],
    lines: list[str],
) -> None:
    def refuse(*asked: Any) -> None:
        raise AssertionError("something is scored")

    monkeypatch.setattr(submitting, "subject_scorer", refuse)
    if spoil is not None:
        run_dir, data = (Path(shutil.copytree(each, tmp_path / each.name)) for each in (run_dir, data))
        labels = finetuned(tmp_path / "labels", student(run_dir))
        monkeypatch.setattr(
            year_data,
            "read_year",
            lambda number: (
                replace(year_of(number), tracks=small(number).tracks) if spoil is more_words else year_of(number)
            ),
        )
        spoil(run_dir, data)
    else:
        labels = finetuned(tmp_path / "labels", student(run_dir))
    if "out" in changes:
        changes = changes | {"out": str(tmp_path / str(changes["out"]))}
    code, found = cuvee(*arguments(student(run_dir), data, tmp_path / "out", labels, **changes))
    assert code == 3 and len(found) == len(lines), found
    assert all(line in told for line, told in zip(lines, found, strict=True)), found
    assert not (tmp_path / "out").exists()


def test_predictions_of_another_model_are_refused(run_dir: Path, data: Path, tmp_path: Path) -> None:
    labels = finetuned(tmp_path / "labels", student(run_dir), weights="0" * 32)
    code, found = cuvee(*arguments(student(run_dir), data, tmp_path / "out", labels))
    assert code == 3 and len(found) == 7
    assert "was made with the weights 00000000; expected" in found[0] and "fine-tune the run itself" in found[0]


def test_a_folder_that_is_no_run_and_a_mode_that_was_not_trained(run_dir: Path, data: Path, tmp_path: Path) -> None:
    code, found = cuvee(*arguments(tmp_path, data, tmp_path / "out", tmp_path))
    assert code == 3 and "nothing finished; expected a run folder of this toolkit" in found[0]
    code, found = cuvee(*arguments(student(run_dir), data, tmp_path / "out", tmp_path, backend="mlm"))
    assert code == 2 and "was trained causal" in found[0]
    code, found = cuvee(*arguments(student(run_dir), data, tmp_path / "out", tmp_path, backend="masked"))
    assert code == 2 and "expected causal or mlm or mntp" in found[0]


def test_nobody_is_told_right_for_knowing_nothing() -> None:
    options = tuple(Request("", text) for text in ("right", "wrong", "worse"))
    item = Choice(options=options, said=("right", "wrong", "worse"))
    year = year_of(2025)
    rows, scores = answered(Blank(), Questions({"comps": [ChoiceTask("base", "", "", (item, item))]}), year.full)
    assert [row["pred"] for row in rows["comps"]["base"]] == ["wrong", "wrong"]
    assert scores == {"comps": {"base": 0.0}}


def test_solutions_of_several_lengths_are_compared_by_means_over_their_tokens(run_dir: Path, tmp_path: Path) -> None:
    subject = Subject(student(run_dir), "run")
    scorer, _ = subject_scorer(subject, "causal", EvaluationConfig(protocol="babylm2025"), tmp_path, Alone())
    texts = [" wait", " wait until the road is dry"]
    sums = scorer.scores([Request("To cool a cat", text) for text in texts])
    means = scorer.scores([Request("To cool a cat", text, mean=True) for text in texts])
    tokens = [len(encoding.ids) for encoding in subject.tokenizer.encode(texts)]
    assert tokens[0] < tokens[1] and means * tokens == pytest.approx(sums)
