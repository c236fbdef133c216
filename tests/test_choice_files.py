"""Choices are read from the official layout and from a user's own files; the canaries get what they must."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.canaries import canaries
from benchmarks.choices import Choice, ChoiceResults, ChoiceTask, asked_order, score_choices
from benchmarks.request import Request
from benchmarks.tasks.choice_files import benchmark_folder, read_choices
from benchmarks.tasks.definition import choice_benchmarks
from benchmarks.tasks.own_pairs import read_own_pairs
from corpora.errors import InputRefused

# one line of every benchmark, as the challenge lays it
LINES: dict[str, dict[str, Any]] = {
    "blimp_filtered": {
        "sentence_good": "A cat sleeps.",
        "sentence_bad": "A cat sleep.",
        "UID": "agreement_1",
        "field": "morphology",
        "linguistics_term": "agreement",
    },
    "supplement_filtered": {"sentence_good": "Is it? Yes.", "sentence_bad": "Is it? She."},
    "ewok_filtered": {
        "Context1": "It rains.",
        "Context2": "It is dry.",
        "Target1": "The road is wet.",
        "Target2": "The road is dusty.",
        "Domain": "material-dynamics",
        "ContextType": "direct",
        "ContextDiff": "antonym",
        "TargetDiff": "concept swap",
    },
    "entity_tracking": {
        "input_prefix": "Box 0 contains ",
        "options": ["the cup.", "the pen.", "nothing."],
        "numops": 2,
    },
    "comps": {"prefix_acceptable": "A dog", "prefix_unacceptable": "A stone", "property_phrase": "can bark."},
}
LINES |= {
    f"{name}_2026": LINES[base] for name, base in (("ewok", "ewok_filtered"), ("entity_tracking", "entity_tracking"))
}
LINES["entity_tracking_2026"] = LINES["entity_tracking"] | {"options": ["the cup.", "the pen.", "the hat."]}
PIQA = {"example_id": "p7", "prompt": "To cool tea", "label": 1}
LINES["global_piqa_parallel"] = PIQA | {f"solution{number}": f"do {number}" for number in range(4)}
LINES["global_piqa_nonparallel"] = PIQA | {f"solution{number}": f"do {number}" for number in range(2)}
ASKED: dict[str, list[tuple[str, str]]] = {
    "blimp_filtered": [("", "A cat sleeps."), ("", "A cat sleep.")],
    "supplement_filtered": [("", "Is it? Yes."), ("", "Is it? She.")],
    "ewok_filtered": [("It rains.", " The road is wet."), ("It rains.", " The road is dusty.")],
    "entity_tracking": [("Box 0 contains ", text) for text in ("the cup.", "the pen.", "nothing.")],
    "comps": [("A dog ", "can bark."), ("A stone ", "can bark.")],
}
ASKED["ewok_2026"] = [("It rains.", " The road is wet."), ("It is dry.", " The road is wet.")]
ASKED["entity_tracking_2026"] = [("Box 0 contains ", text) for text in ("the cup.", "the pen.", "the hat.")]
ASKED["global_piqa_parallel"] = [("To cool tea", f" do {number}") for number in (1, 0, 2, 3)]
ASKED["global_piqa_nonparallel"] = [("To cool tea", f" do {number}") for number in (1, 0)]
SAID = {
    "ewok_2026": ("It rains. The road is wet.", "It is dry. The road is wet."),
    "comps": ("A dog can bark.", "A stone can bark."),
}
UIDS = {
    "blimp_filtered": "agreement_1",
    "supplement_filtered": "comps_wugs_dist-before",
    "ewok_filtered": "material-dynamics",
    "entity_tracking": "comps_wugs_dist-before_2_ops",
    "comps": "wugs_dist_before",
    "ewok_2026": "material-dynamics",
    "entity_tracking_2026": "comps_wugs_dist-before_2_ops",
    "global_piqa_parallel": "global_piqa_parallel",
    "global_piqa_nonparallel": "global_piqa_nonparallel",
}


def write(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", LINES)
def test_lines_become_what_the_challenge_asks(name: str, tmp_path: Path) -> None:
    write(tmp_path / "comps_wugs_dist-before.jsonl", LINES[name], LINES[name])
    (task,) = read_choices(name, tmp_path)
    assert task.uid == UIDS[name] and task.benchmark == name and [item.number for item in task.items] == [1, 2]
    asked = [(option.context, option.text) for option in task.items[0].options]
    assert asked == ASKED[name] and task.num_options == len(asked) and task.chance == 1 / len(asked)
    assert task.items[0].said == SAID.get(name, tuple(text for _, text in asked))


def test_every_benchmark_is_shown_here() -> None:
    assert set(choice_benchmarks()) == set(LINES) | {"blimp"}


@pytest.mark.parametrize("layout", ["", "full_eval", "evaluation_data/full_eval"])
def test_folders_are_found_as_the_archive_lays_them(layout: str, tmp_path: Path) -> None:
    folder = tmp_path / layout / "ewok_filtered"
    write(folder / "one.jsonl", LINES["ewok_filtered"])
    assert benchmark_folder("ewok_filtered", tmp_path) == folder
    fast = write(tmp_path / "evaluation_data" / "fast_eval" / "ewok_fast" / "one.jsonl", LINES["ewok_filtered"])
    assert benchmark_folder("ewok_filtered", tmp_path, fast=True) == fast.parent
    with pytest.raises(InputRefused, match="holds no comps; expected the challenge's folder of data"):
        benchmark_folder("comps", tmp_path)
    with pytest.raises(InputRefused, match="no benchmark is called 'ewok_filterd'; .* did you mean 'ewok_filtered'"):
        benchmark_folder("ewok_filterd", tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("ewok_filtered", {"Target2": None}, "Target2 is null; expected a string"),
        ("ewok_filtered", {"Context1": " "}, "Context1 is blank"),
        ("entity_tracking", {"options": ["one"]}, "options is not a list of options; expected at least two"),
        ("entity_tracking", {"options": ["one", 2]}, "options is a number; expected a string"),
        ("comps", {"property_phrase": "a\0b"}, "property_phrase holds a NUL character"),
    ],
)
def test_what_is_no_item_is_refused_by_line(name: str, change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "file.jsonl", LINES[name], LINES[name] | change)
    with pytest.raises(InputRefused, match=f"{path}:2: {reason}"):
        read_choices(name, tmp_path)


def test_items_of_unequal_numbers_of_options_are_refused(tmp_path: Path) -> None:
    line = LINES["entity_tracking"]
    path = write(tmp_path / "file.jsonl", line, line | {"options": ["a", "b"]})
    with pytest.raises(InputRefused, match=f"{path}:2: 2 options; expected 3, as many in every item"):
        score_choices(Rule("any", lambda requests: np.zeros(len(requests))), read_choices("entity_tracking", tmp_path))


def test_a_draw_is_a_part_of_a_larger_one(tmp_path: Path) -> None:
    lines = [LINES["comps"] | {"property_phrase": f"can bark {number}."} for number in range(30)]
    write(tmp_path / "comps_base.jsonl", *lines)
    ten, twenty = (read_choices("comps", tmp_path, items=number)[0].items for number in (10, 20))
    assert len(ten) == 10 and set(ten) < set(twenty) and [i.number for i in ten] == sorted(i.number for i in ten)


# a user's own pairs


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_own_pairs_are_read_by_the_names_of_their_columns(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mine{suffix}"
    rows = [("yes, 1", "no", "b"), ("yes 2", "no", "a"), ("yes 3", "no", "b")]
    if suffix == ".csv":
        path.write_text("right,wrong,kind\n" + "".join(f'"{good}",{bad},{kind}\n' for good, bad, kind in rows))
    else:
        write(path, *({"right": good, "wrong": bad, "kind": kind} for good, bad, kind in rows))
    one = read_own_pairs(path, good="right", bad="wrong")
    assert [(task.uid, len(task.items)) for task in one] == [("mine", 3)]
    first, second = read_own_pairs(path, good="right", bad="wrong", group="kind")
    assert (first.uid, second.uid) == ("a", "b") and [item.said for item in second.items] == [
        ("yes, 1", "no"),
        ("yes 3", "no"),
    ]
    with pytest.raises(
        InputRefused, match="no column 'rigth'; expected one of right, wrong, kind; did you mean 'right'"
    ):
        read_own_pairs(path, good="rigth", bad="wrong")


def test_names_of_columns_stay_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", {"right\n\x1b[2J": "yes", "wr\u00f6ng": "no"})
    with pytest.raises(InputRefused) as refusal:
        read_own_pairs(path)
    assert str(refusal.value).isprintable() and "wr\u00f6ng" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.csv", b"good,bad\nx,y,z\n", ":2: 3 cells; expected 2, as many as the header has"),
        ("a.csv", b'good,bad\n"x,y\n', ":2: not CSV ("),
        ("a.csv", b"good,good\nx,y\n", ":1: column good occurs twice"),
        ("a.csv", b"good,bad\n", ": no row; expected a header and rows below it"),
        ("a.csv", b"good,bad\n\xff,y\n", ":2: byte 10 of the file is not UTF-8"),
        ("a.csv", b"good,bad\n,y\n", ":2: good is blank"),
        ("a.tsv", b"good\tbad\n", ": ends in .tsv; expected .jsonl or .csv"),
        ("a.jsonl", b"[1]\n", ":1: found a list; expected an object"),
        ("a.jsonl", b"", ": empty; expected one item"),
    ],
)
def test_own_files_that_are_broken_are_refused(name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputRefused) as refusal:
        read_own_pairs(path, good="good", bad="bad")
    assert str(refusal.value).startswith(f"{path}{reason}") and "\n" not in str(refusal.value)


# judgement


class Rule:
    """Answers by a rule."""

    objective = "causal"

    def __init__(self, name: str, rule: Callable[[Sequence[Request]], np.ndarray]) -> None:
        self.name, self._rule = name, rule

    def scores(self, requests: Sequence[Request], *, places: Sequence[str] | None = None) -> np.ndarray:
        return self._rule(requests)


def some_tasks() -> list[ChoiceTask]:
    """Pairs and fives; among the pairs one of equal sentences, among the fives one of equal length."""
    draw = random.Random(5)
    texts = ["".join(draw.choices("abcde ", k=draw.randint(3, 9))) + str(number) for number in range(200)]
    pairs = [Choice(options=(Request("", texts[n]), Request("", texts[n + 1]))) for n in range(0, 60, 2)]
    fives = [Choice(options=tuple(Request("x", text) for text in texts[n : n + 5])) for n in range(60, 160, 5)]
    same = Choice(options=(Request("", "same"), Request("", "same")))
    return [ChoiceTask("pairs", "", "", (*pairs, same)), ChoiceTask("fives", "", "", tuple(fives))]


def by_number(tasks: list[ChoiceTask]) -> ChoiceResults:
    """A candidate whose scores have some ties and one that is no number."""

    def rule(requests: Sequence[Request]) -> np.ndarray:
        scores = np.array([float(len(request.text) % 4) for request in requests])
        scores[3] = np.nan
        return scores

    return score_choices(Rule("toy", rule), tasks, report_invalid=True)


def test_canaries_get_exactly_what_they_must() -> None:
    tasks = some_tasks()
    found = {canary.name: canary for canary in canaries(tasks, by_number(tasks))}
    assert all(canary.lives for canary in found.values())
    items = sum(len(task.items) for task in tasks)
    assert str(found["constant"].found) == f"0 won, {items} tied, 0 invalid"
    assert str(found["not a number"].found) == f"0 won, 0 tied, {items} invalid"
    assert found["length"].found.wins and found["length"].found.ties and found["swapped"].found.invalid
    assert items / 6 < found["first asked"].found.wins < items / 1.5


def test_a_benchmark_that_pays_ties_kills_the_canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the challenges' scorers do, which take the first of equal scores."""
    monkeypatch.setattr("benchmarks.choices.ChoiceResult.wins", property(lambda self: self.scores.argmax(axis=1) == 0))
    tasks = some_tasks()
    dead = {canary.name for canary in canaries(tasks, by_number(tasks)) if not canary.lives}
    assert {"constant", "not a number"} <= dead


def test_a_benchmark_that_asks_for_the_right_one_first_kills_a_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_told(tasks: Sequence[ChoiceTask]) -> list[Request]:
        return list(dict.fromkeys(option for task in tasks for item in task.items for option in item.options))

    monkeypatch.setattr("benchmarks.choices.asked_order", as_told)
    tasks = some_tasks()
    (canary,) = (each for each in canaries(tasks, by_number(tasks)) if each.name == "first asked")
    assert not canary.lives and canary.found.wins > canary.expected.wins


def test_the_order_of_asking_does_not_know_which_is_right() -> None:
    tasks = some_tasks()
    swapped = [
        ChoiceTask("t", "", "", tuple(Choice(options=item.options[::-1]) for item in task.items)) for task in tasks
    ]
    assert asked_order(tasks) == asked_order(swapped)


def test_ties_are_shown_as_the_challenge_counts_them() -> None:
    (pairs, _) = by_number(some_tasks()).tasks
    assert pairs.ties > 1 and pairs.accuracy_ties_won == pytest.approx(pairs.accuracy + pairs.ties / len(pairs.scores))
