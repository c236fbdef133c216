"""What is wrong with a submission is named, all of it at once, and nothing is written then."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_submission import MOST, answers_of, run_of, small

from benchmarks.submission.checks import problems
from benchmarks.submission.manifest import read_submission
from benchmarks.submission.submitted_run import Answers, Predictions, Teacher, Text
from benchmarks.submission.write import write_submission
from corpora.errors import InputRefused
from corpora.storage import canonical_json

ONE_LINE = re.compile(r"[^\n]+: [^\n]+; expected[^\n]+; [^\n]+")
MILLION = 1_000_000
CORPUS = Text(name="babylm_10M", words=9 * MILLION, digest="a")
TEACHER = Teacher(
    name="llama", architecture="llama", parameters=360, data=(CORPUS,), words_seen=90 * MILLION, licence="Apache-2.0"
)


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
