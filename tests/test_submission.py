"""A submission is refused with all its problems or written whole, in its year's layout, and no edited byte passes."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.submission.checks import problems
from benchmarks.submission.layout import Task, Year, known_years, read_year, wanted_checkpoints
from benchmarks.submission.manifest import read_submission
from benchmarks.submission.rules import NOT_VERIFIED, auxiliary_verdict
from benchmarks.submission.submitted_run import Answers, Checkpoint, Predictions, SubmittedRun, Teacher, Text
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


# ---- what is refused ----------------------------------------------------------------------------------------------

Mutation = Callable[[dict[str, Any]], None]


def drop(*keys: Any) -> Mutation:
    def mutate(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return mutate


def put(new: Any, *keys: Any) -> Mutation:
    def mutate(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = new

    return mutate


def swap(*keys: Any) -> Mutation:
    def mutate(value: Any) -> None:
        for key in keys:
            value = value[key]
        value[0], value[1] = value[1], value[0]

    return mutate


NAN = float("nan")
BLIMP = ("full", "blimp_filtered", "passive_1")
STEP = ("full", "AoA", "chck_1M", 0)


@pytest.mark.parametrize(
    ("mutate", "line"),
    [
        (drop("full", "comps"), "comps: missing; expected its predictions"),
        (put({}, "full", "compss"), "compss: not a task of the year; did you mean 'comps'"),
        (drop(*BLIMP), "blimp_filtered.passive_1: missing; expected 3 predictions"),
        (
            put([], "full", "blimp_filtered", "passive_3"),
            "blimp_filtered.passive_3: not a UID of the task; did you mean",
        ),
        (put([], "full", "blimp_filtered", "principle_a_case_1"), "did you mean 'principle_A_case_1'"),
        (put([], "full", "blimp_filtered", "a\n\x1b[2Jb"), "blimp_filtered.'a\\n\\x1b[2Jb': not a UID of the task"),
        (drop(*BLIMP, 2), "blimp_filtered.passive_1: 2 predictions; expected 3; "),
        (swap(*BLIMP), "blimp_filtered.passive_1: row 0: id is 'passive_1_1'; expected 'passive_1_0', in the order"),
        (put(None, *BLIMP, 1, "pred"), "blimp_filtered.passive_1: row 1: pred is None; expected the chosen text"),
        (put(1, *BLIMP, 1, "extra"), "row 1: found the keys id, pred, extra; expected id, pred"),
        (put("x", *BLIMP, 1), "row 1: found str; expected an object with id, pred"),
        (put(1.5, "full", "wug_past_tense", "wug_past", 0, "prob"), "wug_past_tense.wug_past: row 0: prob is 1.5"),
        (put(NAN, "full", "wug_past_tense", "wug_past", 0, "prob"), "row 0: prob is nan"),
        (
            put("0", "full", "boolq", "boolq", 0, "pred"),
            "boolq.boolq: row 0: pred is '0'; expected the number of a label",
        ),
        (put(True, "full", "boolq", "boolq", 0, "pred"), "boolq.boolq: row 0: pred is True"),
        (
            put(3, "full", "reading", "reading", 0, "pred"),
            "reading.reading: row 0: pred is 3; expected nats as a finite",
        ),
        (
            put(NAN, "full", "reading", "reading", 0, "prev_pred"),
            "row 0: prev_pred is nan; expected finite nats, or None",
        ),
        (put("reading_0", "full", "reading", "reading", 0, "id"), "row 0: id is 'reading_0'; expected 0, in the order"),
        (put(NAN, *STEP, "surprisal"), "AoA.chck_1M: row 0: surprisal is nan; expected finite nats"),
        (put("chck_2M", *STEP, "step"), "AoA.chck_1M: row 0: step is 'chck_2M'; expected 'chck_1M'"),
        (put("1M", *STEP, "word_count"), "AoA.chck_1M: row 0: word_count is '1M'; expected int"),
        (drop("full", "AoA", "chck_2M"), "AoA.chck_2M: missing; expected 3 predictions"),
        (drop("fast", "chck_2M"), "chck_2M: no prediction; expected those of blimp_fast"),
        (drop("fast", "chck_2M", "reading"), "chck_2M.reading: missing"),
        (
            drop("fast", "chck_2M", "ewok_fast", "social-relations", 0),
            "chck_2M.ewok_fast.social-relations: 2 predictions",
        ),
        (put({}, "fast", "chck_3M"), "fast.chck_3M: not a checkpoint that the track wants of so many words; did you"),
        (drop("fast_scores", "chck_1M"), "chck_1M: no score; expected those of blimp"),
        (drop("fast_scores", "chck_1M", "ewok"), "chck_1M.ewok: no score"),
        (drop("fast_scores", "chck_1M", "reading", "rt"), "chck_1M.reading: scores differ in rt; expected spr, rt"),
        (put(NAN, "fast_scores", "chck_1M", "reading", "rt"), "chck_1M.reading: rt nan; expected -1 to 1, or None"),
        (put(50.0, "fast_scores", "chck_1M", "wug_adj", "wug_adj"), "chck_1M.wug_adj: wug_adj 50.0; expected -1 to 1"),
    ],
)
def test_wrong_predictions_are_named(tmp_path: Path, mutate: Mutation, line: str) -> None:
    year = small(2025)
    run = run_of(tmp_path, year)
    answers = answers_of(year, list(run.checkpoints))
    value = {
        "full": answers.full,
        "fast": dict(answers.fast),
        "fast_scores": json.loads(canonical_json(answers.fast_scores)),
    }
    mutate(value)
    found = list(problems(run, Answers(**value), year))
    assert any(line in problem for problem in found), found
    assert all(ONE_LINE.fullmatch(problem) for problem in found), found
    assert len(found) <= 2  # an entry that should not be there may also have the wrong size


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"name": "baby-v1.5"}, "name: 'baby-v1.5' holds a dot: pipelines look for 'baby-v1'"),
        ({"name": "../baby"}, "name: '../baby' is no file name"),
        ({"name": "b" * 97}, "name: 'bbbbbbbb"),
        ({"track": "strict\n\x1b[2J"}, "track: 'strict\\n\\x1b[2J': not a track of 2025"),
        ({"track": "strict-smal"}, "track: strict-smal: not a track of 2025; did you mean 'strict-small'"),
        (
            {"words_seen": 101 * MILLION},
            "words_seen: 101,000,000; expected at most 100,000,000 in strict-small of 2025",
        ),
        ({"epochs": 10.5}, "epochs: 10.5; expected at most 10 in strict-small"),
        ({"corpus": (replace(CORPUS, words=11 * MILLION),)}, "corpus_words: 11,000,000; expected at most 10,000,000"),
        (
            {"corpus": (replace(CORPUS, digest=None),)},
            "corpus_words: not known; expected a number of words and a digest",
        ),
        ({"model": Path("nowhere")}, "model: nowhere is no model; expected a finished run or a folder of transformers"),
        ({"teachers": (replace(TEACHER, licence=" "),)}, "teachers.llama: no licence; expected the licence"),
        (
            {"teachers": (replace(TEACHER, data=(Text(name="web", words=2 * MILLION, digest="b"),)),)},
            "teachers: 11,000,000 words of text with those of teachers, of 10,000,000; expected: The text that",
        ),
    ],
)
def test_wrong_runs_are_named(tmp_path: Path, fields: dict[str, Any], line: str) -> None:
    year = small(2025)
    run = replace(run_of(tmp_path, year), **fields)
    found = list(problems(run, answers_of(year, list(run.checkpoints)), year))
    assert any(problem.startswith(line) for problem in found), found
    assert all(ONE_LINE.fullmatch(problem) for problem in found), found


def test_checkpoints_are_complete_in_order_and_no_others(tmp_path: Path) -> None:
    year = small(2025)
    run = run_of(tmp_path, year)
    kept = {"chck_2M": replace(run.checkpoints["chck_2M"], words=0), "chck_500": run.checkpoints["chck_1M"]}
    found = list(problems(replace(run, checkpoints=kept), answers_of(year, ["chck_1M", "chck_2M"]), year))
    assert [problem.partition(";")[0] for problem in found] == [
        "checkpoints.chck_1M: missing",
        "checkpoints.chck_500: not a checkpoint that the track wants of so many words",
        "checkpoints.chck_2M: after 0 words",
    ]


def test_choices_are_looked_up_among_the_texts_of_the_items(tmp_path: Path) -> None:
    year = small(2025)
    run = run_of(tmp_path / "run", year)
    answers = answers_of(year, list(run.checkpoints))
    texts = [[f" text {number} of é", "other"] for number in range(MOST)]
    items = {"ewok_filtered": dict.fromkeys(year.full["ewok_filtered"].counts.counts or (), texts)}
    assert not list(problems(run, replace(answers, items=items), year))
    write_submission(run, replace(answers, items=items), tmp_path / "out", year=year)
    assert list(read_submission(tmp_path / "out").facts["items"]) == ["ewok_filtered"]
    wrong = {"ewok_filtered": {**items["ewok_filtered"], "social-relations": [["a", "b"], *texts[1:]]}}
    [found] = problems(run, replace(answers, items=wrong), year)
    assert found.startswith(
        "ewok_filtered.social-relations: row 0: pred is ' text 0 of é'; "
        "expected one of the item's completions 'a', 'b'; "
    )
    fewer = {"ewok_filtered": {**items["ewok_filtered"], "social-relations": texts[1:]}}
    [found] = problems(run, replace(answers, items=fewer), year)
    assert found.startswith("ewok_filtered.social-relations: 3 predictions of 2 items; expected one each")


def test_without_a_table_the_items_count(tmp_path: Path) -> None:
    year = small(2023)
    run, answers = run_of(tmp_path, year), answers_of(year, [])
    assert not list(problems(run, replace(answers, items={"cola": {"cola": [[], []]}}), year))
    [found] = problems(run, replace(answers, items={"cola": {"cola": [[], [], []]}}), year)
    assert found.startswith("cola.cola: 2 predictions; expected 3; ")


def test_all_problems_are_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    year = small(2025)
    run = replace(run_of(tmp_path / "run", year), name="a.b", epochs=11)
    answers = answers_of(year, list(run.checkpoints))
    left: Predictions = {name: by_uid for name, by_uid in answers.full.items() if name not in ("comps", "rte")}
    with pytest.raises(InputRefused) as refusal:
        write_submission(run, replace(answers, full=left), tmp_path / "out", year=year)
    lines = str(refusal.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["name", "epochs", "comps", "rte"]
    assert not (tmp_path / "out").exists()


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
