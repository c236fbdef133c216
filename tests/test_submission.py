"""A submission is written whole, in its year's layout, and its years are known."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.submission.checks import problems
from benchmarks.submission.layout import Task, Year, known_years, read_year, wanted_checkpoints
from benchmarks.submission.manifest import read_submission
from benchmarks.submission.rules import NOT_VERIFIED, auxiliary_verdict
from benchmarks.submission.submitted_run import Answers, Checkpoint, SubmittedRun, Teacher, Text
from benchmarks.submission.write import write_submission
from corpora import storage
from corpora.errors import InputRefused
from corpora.storage import canonical_json, new_folder

ONE_LINE = re.compile(r"[^\n]+: [^\n]+; expected[^\n]+; [^\n]+")
MILLION = 1_000_000
CORPUS = Text(name="babylm_10M", words=9 * MILLION, digest="a")
TEACHER = Teacher(
    name="llama", architecture="llama", parameters=360, data=(CORPUS,), words_seen=90 * MILLION, licence="Apache-2.0"
)
# the table of these tests: at most so many predictions of each UID
MOST = 3


@cache
def small(year: int) -> Year:
    """A year whose counts are scaled down, and whose tracks want two checkpoints, where they want any."""
    found = read_year(year)

    def scaled(task: Task) -> Task:
        counts = task.counts
        by_uid = counts.counts and {uid: count and min(count, MOST) for uid, count in counts.counts.items()}
        uids = min(counts.uids, 2) if isinstance(counts.uids, int) else counts.uids
        return replace(
            task, counts=replace(counts, counts=by_uid, uids=uids, each=counts.each and min(counts.each, MOST))
        )

    return replace(
        found,
        full={name: scaled(task) for name, task in found.full.items()},
        fast={name: scaled(task) for name, task in found.fast.items()},
        tracks={name: replace(track, checkpoints=track.checkpoints[:2]) for name, track in found.tracks.items()},
    )


def row_of(task: Task, uid: str, number: int) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {
        "choice": {"id": f"{uid}_{number}", "pred": f" text {number} of é"},
        "probability": {"id": f"{uid}_{number}", "pred": f"text {number}", "prob": 0.25},
        "label": {"id": f"{uid}_{number}", "pred": number % 2},
        "reading": {"id": number, "pred": 1.5, "prev_pred": 2.5 if number else None},
        "surprisal": {
            **{"step": uid, "word_count": MILLION, "target_word": "dog", "context_id": number},
            **{"context": "BOS_ONLY", "surprisal": 7.25},
        },
        "score": {"aoa": 0.125},
    }
    return rows[task.kind]


def predictions_of(tasks: Mapping[str, Task], checkpoints: list[str]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """As many predictions as the table wants, and two where it does not say."""

    def of(task: Task) -> dict[str, list[dict[str, Any]]]:
        by_uid = task.counts.by_uid(checkpoints)
        if by_uid is None:
            assert isinstance(task.counts.uids, int)
            by_uid = {f"example{number}": task.counts.each for number in range(task.counts.uids)}
        return {uid: [row_of(task, uid, number) for number in range(count or 2)] for uid, count in by_uid.items()}

    return {name: of(task) for name, task in tasks.items()}


def answers_of(year: Year, checkpoints: list[str]) -> Answers:
    scores = {task.key: dict.fromkeys(task.scores or task.counts.counts or (), 0.5) for task in year.fast.values()}
    return Answers(
        full=predictions_of(year.full, checkpoints),
        fast={name: predictions_of(year.fast, checkpoints) for name in checkpoints},
        fast_scores=dict.fromkeys(checkpoints, scores),
    )


def model_folder(folder: Path, weights: bytes = b"weights") -> Path:
    """A finished run folder."""
    with new_folder(folder, kind="run", fingerprint={"seed": 1}) as writer:
        writer.write("model.safetensors", weights)
        writer.write_json("config.json", {"model_type": "llama"})
        writer.write("empty.txt", b"")
    return folder


def run_of(root: Path, year: Year, **fields: Any) -> SubmittedRun:
    track = fields.get("track", "strict-small")
    names = wanted_checkpoints(year.tracks[track], 90 * MILLION)
    kept = {name: Checkpoint(folder=root / name, words=(place + 1) * MILLION) for place, name in enumerate(names)}
    for name in names:
        if not (root / name).exists():
            model_folder(root / name, name.encode())
    if not (root / "model").exists():
        model_folder(root / "model")
    described: dict[str, Any] = {
        **{"name": "baby", "year": year.year, "track": track, "backend": "causal", "model": root / "model"},
        **{"corpus": (CORPUS,), "words_seen": 90 * MILLION, "epochs": 10, "checkpoints": kept, "teachers": (TEACHER,)},
    }
    return SubmittedRun(**described | fields)


def written(tmp_path: Path, year: Year, **fields: Any) -> Path:
    """A submission in its folder."""
    run = run_of(tmp_path / "run", year, **fields)
    write_submission(run, answers_of(year, list(run.checkpoints)), tmp_path / "out", year=year)
    return tmp_path / "out"


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".lock"}


# ---- the years ----------------------------------------------------------------------------------------------------


def test_every_year_is_read_and_says_where_it_was_found() -> None:
    assert known_years() == [2023, 2024, 2025, 2026]
    for year in map(read_year, known_years()):
        assert {"strict-small", "strict"} <= set(year.tracks) and year.source
        assert year.auxiliary_models.source and year.auxiliary_models.text
        for track in year.tracks.values():
            limits = (track.corpus_words, track.words_seen, track.epochs)
            assert all(limit.source and isinstance(limit.verified, bool) for limit in limits)
        for task in (*year.full.values(), *year.fast.values()):
            assert task.counts.source
            assert (task.folder is None) == (year.layout != "folders")
    with pytest.raises(InputRefused, match="year: 2022 is not known; expected one of 2023, 2024, 2025, 2026"):
        read_year(2022)


@pytest.mark.parametrize(
    ("name", "uids", "predictions"),
    [
        ("blimp_filtered", 67, 59_875),
        ("supplement_filtered", 5, 5_218),
        ("ewok_filtered", 11, 7_618),
        ("entity_tracking", 18, 9_483),
        ("comps", 4, 91_028),
        ("wug_adj_nominalization", 1, 200),
        ("wug_past_tense", 1, 50),
        ("reading", 1, 1_726),
        ("qqp", 1, 20_215),
    ],
)
def test_the_table_of_2025_has_the_published_totals(name: str, uids: int, predictions: int) -> None:
    counts = read_year(2025).full[name].counts.counts
    assert counts is not None and len(counts) == uids and sum(count or 0 for count in counts.values()) == predictions


def test_the_checkpoints_of_a_track_end_with_the_words_that_were_seen() -> None:
    tracks = read_year(2025).tracks
    assert len(wanted_checkpoints(tracks["strict-small"], 100 * MILLION)) == 19
    assert len(wanted_checkpoints(tracks["strict"], 1000 * MILLION)) == 28
    assert wanted_checkpoints(tracks["strict"], 20 * MILLION)[-2:] == ["chck_10M", "chck_20M"]


def test_a_submission_of_full_size_has_no_problem_and_one_prediction_less_is_one(tmp_path: Path) -> None:
    year = read_year(2025)
    run = run_of(tmp_path, year, words_seen=MILLION, epochs=1)
    run = replace(run, checkpoints={"chck_1M": Checkpoint(folder=tmp_path / "chck_1M", words=MILLION)})
    answers = answers_of(year, ["chck_1M"])
    assert sum(len(rows) for by_uid in answers.full.values() for rows in by_uid.values()) > 200_000
    assert not list(problems(run, answers, year))
    answers.full["comps"]["wugs"].pop()  # type: ignore[attr-defined]
    [found] = problems(run, answers, year)
    assert found.startswith("comps.wugs: 13895 predictions; expected 13896; ")


# ---- what is written ----------------------------------------------------------------------------------------------


def test_2025_is_a_tree_and_the_two_collated_files(tmp_path: Path) -> None:
    out = written(tmp_path, small(2025))
    results, causal = "results/baby", "zero_shot/causal"
    full = [
        *(f"blimp/{name}/predictions.json" for name in ("blimp_filtered", "supplement_filtered")),
        *("ewok/ewok_filtered/predictions.json", "entity_tracking/entity_tracking/predictions.json"),
        *("wug_adj/wug_adj_nominalization/predictions.json", "wug_past/wug_past_tense/predictions.json"),
        *("comps/comps/predictions.json", "reading/predictions.json", "AoA_word/surprisal.json"),
    ]
    glue = ("boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc")
    fast = [
        *(f"blimp/{name}/predictions.json" for name in ("blimp_fast", "supplement_fast")),
        *("ewok/ewok_fast/predictions.json", "entity_tracking/entity_tracking_fast/predictions.json"),
        *("wug_adj/wug_adj_nominalization/predictions.json", "wug_past/wug_past_tense/predictions.json"),
        "reading/predictions.json",
    ]
    model = ("model.safetensors", "config.json", "empty.txt", "manifest.json")
    names = ("chck_1M", "chck_2M")
    assert files_below(out) == {
        *(f"{results}/main/{causal}/{name}" for name in full),
        *(f"{results}/main/finetune/{name}/predictions.json" for name in glue),
        *(f"{results}/{checkpoint}/{causal}/{name}" for checkpoint in names for name in fast),
        f"{results}/all_full_preds_and_fast_scores_causal.json",
        f"{results}/main/all_full_preds_causal.json",
        *(f"checkpoints/{revision}/{name}" for revision in ("main", *names) for name in model),
        "manifest.json",
    }


def test_the_collated_file_of_2025_is_the_sum_of_the_tasks(tmp_path: Path) -> None:
    out = written(tmp_path, small(2025)) / "results" / "baby"
    value = json.loads((out / "all_full_preds_and_fast_scores_causal.json").read_bytes().decode("ascii"))
    scores = value.pop("fast_eval_results")
    assert list(value) == (
        "blimp blimp_supplement ewok entity_tracking wug_adj wug_past comps reading aoa glue".split()
    )
    assert value == json.loads((out / "main" / "all_full_preds_causal.json").read_bytes())
    alone = json.loads((out / "main/zero_shot/causal/blimp/blimp_filtered/predictions.json").read_bytes())
    assert value["blimp"] == alone and len(alone) == 67
    assert alone["principle_A_case_1"]["predictions"][1] == {"id": "principle_A_case_1_1", "pred": " text 1 of é"}
    assert list(value["glue"]) == ["boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc"]
    assert value["glue"]["boolq"]["predictions"][1] == {"id": "boolq_1", "pred": 1}
    assert value["wug_adj"]["wug_adj"]["predictions"][0]["prob"] == 0.25
    assert value["reading"]["reading"]["predictions"][0] == {"id": 0, "pred": 1.5, "prev_pred": None}
    about = {"model_name": "baby", "use_bos_only": True, "total_steps": 2, "completed_steps": 2}
    assert value["aoa"]["metadata"] == about
    assert [row["step"] for row in value["aoa"]["results"]] == ["chck_1M"] * MOST + ["chck_2M"] * MOST
    assert list(scores) == ["blimp", "blimp_supplement", "ewok", "entity_tracking", "wug_adj", "wug_past", "reading"]
    assert scores["reading"] == [{"spr": 0.5, "rt": 0.5}] * 2 and len(scores["blimp"][0]) == 67
    assert set(scores["entity_tracking"][1]) == {f"regular_{number}_ops" for number in range(6)}


def test_2026_has_its_own_tasks_keys_and_no_file_for_the_old_scorer(tmp_path: Path) -> None:
    out = written(tmp_path, small(2026), backend="mntp") / "results" / "baby"
    assert not (out / "main" / "all_full_preds_mntp.json").exists()
    value = json.loads((out / "all_full_preds_and_fast_scores_mntp.json").read_bytes())
    scores = value.pop("fast_eval_results")
    assert list(value) == (
        "blimp blimp_supplement ewok entity_tracking_filtered comps global_piqa_parallel global_piqa_nonparallel "
        "reading aoa_surprisals aoa glue".split()
    )
    assert value["aoa"] == {"aoa": 0.125} and len(value["aoa_surprisals"]["results"]) == 2 * MOST
    assert value["aoa"] == json.loads((out / "main/zero_shot/mntp/AoA_word/aoa_score.json").read_bytes())
    assert [len(example["predictions"]) for example in value["global_piqa_parallel"].values()] == [1, 1]
    assert scores["global_piqa_parallel"] == [{"global_piqa_parallel": 0.5}] * 2
    assert "entity_tracking_filtered" in scores and "wug_adj" not in scores
    real = read_year(2026).full
    counts = real["entity_tracking"].counts.counts
    assert counts is not None and counts["regular_0_ops"] == 517 and real["ewok_filtered"].chosen == "sentence"


def test_2024_is_one_compressed_file_without_a_time(tmp_path: Path) -> None:
    out = written(tmp_path, small(2024), name="baby-v1.5")
    data = (out / "baby-v1.5_textonly_predictions.json.gz").read_bytes()
    value = json.loads(gzip.decompress(data))
    assert list(value) == ["glue", "blimp", "blimp_supplement", "ewok"] and len(value["glue"]) == 11
    assert value["glue"]["mnli-mm"]["predictions"] == [{"id": "mnli-mm_0", "pred": 0}, {"id": "mnli-mm_1", "pred": 1}]
    assert data[4:8] == bytes(4)
    assert read_submission(out).facts["table"]["not_counted"] == sorted(value["glue"])


def test_2023_is_one_object_on_a_line_with_labels_as_text(tmp_path: Path) -> None:
    out = written(tmp_path, small(2023))
    lines = [json.loads(line) for line in (out / "all_predictions.json").read_text("ascii").splitlines()]
    assert [sum(line["task"] == name for line in lines) for name in ("glue", "msgs", "blimp", "supplement")] == [
        *(11, 11, 12, 5)
    ]
    assert lines[0] == {
        "task": "glue",
        "sub_task": "cola",
        "predictions": [{"id": "cola_0", "pred": "0"}, {"id": "cola_1", "pred": "1"}],
    }


def test_checkpoints_are_the_files_of_their_runs(tmp_path: Path) -> None:
    out = written(tmp_path, small(2025))
    assert (out / "checkpoints" / "chck_2M" / "model.safetensors").read_bytes() == b"chck_2M"
    manifest = storage.read_manifest(out / "checkpoints" / "chck_2M")
    assert manifest is not None and not any(map(manifest.damage, manifest.files))


def test_a_folder_of_transformers_is_handed_in_whole(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", ".hidden"):
        (folder / name).write_text("{}")
    out = written(tmp_path, small(2024), model=folder)
    assert files_below(out / "checkpoints" / "main") == {"config.json", "model.safetensors"}


def test_the_manifest_says_what_the_rules_ask(tmp_path: Path) -> None:
    out = written(tmp_path, small(2025))
    facts = read_submission(out).facts
    assert (facts["year"], facts["track"], facts["words_seen"], facts["epochs"]) == (
        2025,
        "strict-small",
        90 * MILLION,
        10,
    )
    assert facts["corpus"] == [{"name": "babylm_10M", "words": 9 * MILLION, "digest": "a"}]
    [teacher] = facts["teachers"]
    assert (teacher["licence"], teacher["words_seen"], teacher["parameters"]) == ("Apache-2.0", 90 * MILLION, 360)
    assert teacher["data"] == facts["corpus"]
    assert facts["models"]["chck_1M"]["words_seen"] == MILLION
    assert facts["limits"]["epochs"]["at_most"] == 10 and facts["limits"]["epochs"]["verified"]
    assert facts["auxiliary_models"]["verdict"] == "kept" and facts["items"].startswith("not given")
    assert str(tmp_path) not in canonical_json(facts), "no place of this machine is handed in"


# ---- auxiliary models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("year", "data", "verdict"),
    [
        (2025, (CORPUS,), "kept"),
        (2025, (Text(name="more", words=MILLION, digest="b"),), "kept"),
        (2025, (Text(name="more", words=MILLION + 1, digest="b"),), "broken"),
        (2025, (), "cannot be judged"),
        (2025, (Text(name="web", words=None, digest="b"),), "cannot be judged"),
        (2023, (CORPUS,), "kept"),
        (2023, (Text(name="more", words=1, digest="b"),), "broken"),
        (2026, (CORPUS,), "kept"),
    ],
)
def test_the_years_rule_judges_the_text_of_teachers(
    tmp_path: Path, year: int, data: tuple[Text, ...], verdict: str
) -> None:
    rules = small(year)
    run = run_of(tmp_path, rules, teachers=(replace(TEACHER, data=data),))
    found = auxiliary_verdict(run, rules)
    assert found.verdict == verdict and found.reason and found.source
    assert found.remark == ("" if year != 2026 else NOT_VERIFIED) and found.verified == (year != 2026)


def test_a_rule_that_was_not_verified_is_said_and_refuses_nobody(tmp_path: Path) -> None:
    year = small(2026)
    web = Text(name="web", words=50 * MILLION, digest="b")
    out = written(tmp_path, year, teachers=(replace(TEACHER, data=(web,)),))
    found = read_submission(out).facts["auxiliary_models"]
    assert (found["verdict"], found["verified"], found["remark"]) == ("broken", False, NOT_VERIFIED)
