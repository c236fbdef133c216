"""The suite `score`: every figure is made of both sides, which do the same work. Nothing here asserts a time."""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks import speed, speed_score
from benchmarks.minimal_pairs import blimp_tasks
from benchmarks.peers import ENVIRONMENTS, Peer, peer_python
from benchmarks.plain_scores import plain_scores
from benchmarks.protocol import PROTOCOLS
from benchmarks.request import Request
from benchmarks.scorer import candidate_from_model
from benchmarks.scoring import Scorer
from benchmarks.scoring_tokenizer import read_scoring_tokenizer
from benchmarks.speed_figures import figures_json
from benchmarks.speed_models import RandomModel, generated_pairs, save_random_model, write_pairs, write_rows
from benchmarks.speed_prefixes import MADE, PrefixSizes, prefix_table
from benchmarks.speed_score import GOALS, OURS, Sizes, measured
from benchmarks.speed_timing import Setting
from benchmarks.speed_turns import in_turns
from benchmarks.tasks.choice_files import read_choices
from corpora.batch import Objective
from corpora.errors import InputRefused, ProcessLost
from students.run_folder import load_model

PROMISED = {  # its target and on which side of it
    "causal_fp32": (">=", 1.25),
    "causal_bf16": (">=", 2.5),
    "masked_fp32": (">=", 1.9),
    "masked_bf16": (">=", 4.0),
    "whole_command_ratio": ("<=", 0.5),
    "blimp_minutes": ("<=", 4.0),
    "rerun_ratio": ("<=", 0.05),
}
TINY = RandomModel(num_layers=1, hidden_size=16, num_heads=2, vocab_size=512, types=400, spread=0.3)
SIZES = Sizes(
    model=TINY,
    small_model=TINY,
    pairs={"causal": 3, "masked": 2, "command": 2},
    paradigms=3,
    pairs_of_paradigm=2,
    batches=(4,),
)


@pytest.fixture(autouse=True)
def no_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No environment of any peer, wherever the tests run."""
    monkeypatch.setenv(ENVIRONMENTS, str(tmp_path / "environments"))
    return tmp_path / "environments"


@pytest.fixture(autouse=True)
def as_many_threads() -> Iterator[None]:
    """As many threads afterwards as before: the command line sets its own for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_scoring_figures_are_measured_at_small_sizes(tmp_path: Path) -> None:
    assert {name: (goal.comparison, goal.target) for name, goal in GOALS.items()} == PROMISED
    names = ["causal_fp32", "causal_bf16", "masked_fp32", "masked_bf16"]
    figures = measured(names, SIZES, Setting(repetitions=1, folder=tmp_path / "work"))
    assert [figure.goal.name for figure in figures] == names
    for figure, side in zip(figures, [*OURS.values()] * 2, strict=True):
        assert figure.medians.keys() == {side, "minicons, plain code (4 at once)"}
        theirs = figure.medians["minicons, plain code (4 at once)"]
        assert figure.value == figure.medians[side] / theirs and math.isfinite(figure.value)
    assert (
        figures[0].medians["minicons, plain code (4 at once)"] == figures[1].medians["minicons, plain code (4 at once)"]
    )  # fp32 and bf16 stand beside the same turns
    assert not list((tmp_path / "work").iterdir())  # nothing stays
    keys = {"name", "value", "unit", "target", "comparison", "holds", "measure", "medians", "medians_unit"}
    assert all(keys <= each.keys() for each in json.loads(figures_json(figures)))


def test_the_best_of_the_others_is_what_ours_is_compared_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {"ours": [2.0], "ours, bf16": [1.0], "lm-eval (4 at once)": [4.0], "minicons (4 at once)": [8.0]}
    turns: list[object] = []

    def taken(*given: object, **more: int) -> dict[str, list[float]]:
        turns.append(given)
        return sides

    monkeypatch.setattr(speed_score, "in_turns", taken)
    fp32, bf16 = measured(["causal_fp32", "causal_bf16"], SIZES, Setting(repetitions=1, folder=tmp_path))
    assert fp32.value == 2 and bf16.value == 4 and len(turns) == 1
    assert fp32.medians == {"ours": 3.0, "lm-eval (4 at once)": 1.5, "minicons (4 at once)": 0.75}  # 6 pairs


def test_commands_are_measured_from_start_to_end(
    tmp_path: Path, no_peers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[tuple[list[str], int]] = []
    (no_peers / "lm-eval" / "bin").mkdir(parents=True)
    (no_peers / "lm-eval" / "bin" / "python").touch()

    def noting(command: Sequence[str], *, threads: int, peer: bool = False) -> float:
        run.append((list(command), threads))
        pairs = {path.name: len(path.read_text().splitlines()) for path in Path(value(command, "--blimp")).iterdir()}
        assert set(pairs.values()) == {2}
        assert (Path(command[4]) / "model.safetensors").exists()
        return float(len(run))

    def value(command: Sequence[str], option: str) -> str:
        return command[list(command).index(option) + 1]

    monkeypatch.setattr(speed_score, "_run", noting)
    minutes, again = measured(["blimp_minutes", "rerun_ratio"], SIZES, Setting(folder=tmp_path / "work"))
    assert minutes.value == 1 / 60 and again.value == 3 / 2 and [threads for _, threads in run] == [2, 1, 1]
    assert run[1] == run[2] and run[1][0][:-2] == run[0][0] and run[1][0][-2] == "--out"  # the very same command
    assert run[0][0][:4] == [sys.executable, "-m", "distill", "score"]

    def telling(command: Sequence[str], *, threads: int, peer: bool = False) -> float:
        run.append((list(command), threads))
        if peer:
            tasks = {path.name: path.read_text() for path in Path(value(command, "--include_path")).iterdir()}
            assert len(tasks) == 2
            assert value(command, "--tasks") == ",".join(sorted(f"pairs_{name[:-5]}" for name in tasks))
            assert all("sentence_good, sentence_bad" in text and "{{" in text for text in tasks.values())
            read = [yaml.safe_load(text)["dataset_kwargs"] for text in tasks.values()]
            assert all(Path(found["data_files"]["train"]).exists() for found in read)
            assert all(Path(found["cache_dir"]).is_relative_to(tmp_path / "work") for found in read)
        return 6.0 if peer else 2.0

    monkeypatch.setattr(speed_score, "_run", telling)
    (figure,) = measured(["whole_command_ratio"], SIZES, Setting(repetitions=1, folder=tmp_path / "work"))
    assert figure.value == 2 / 6 and figure.medians == {"ours": 2.0, "lm-eval": 6.0}
    assert {threads for _, threads in run[3:]} == {1}


def test_a_command_that_fails_is_told() -> None:
    assert speed_score._run([sys.executable, "-c", "pass"], threads=1) > 0
    with pytest.raises(ProcessLost, match="exit code 3, told 'no room'; run it by hand"):
        speed_score._run([sys.executable, "-c", "import sys; print('no room', file=sys.stderr); exit(3)"], threads=1)


def test_missing_peers_are_said_to_be_missing(tmp_path: Path) -> None:
    assert peer_python("minicons") is None
    said = speed_score.conditions(Setting())
    assert said["peers"] == "lm-eval, minicons not installed: `make peers`; plain code stands for minicons"
    with pytest.raises(InputRefused, match="lm-eval: not installed; expected an environment of its own; run `make pee"):
        measured(["whole_command_ratio"], SIZES, Setting(folder=tmp_path))
    with pytest.raises(InputRefused, match="minicons: not installed"):
        Peer("minicons", "causal", tmp_path)


@pytest.mark.parametrize("early", [False, True], ids=["asked while it starts", "asked when it has ended"])
def test_a_peer_that_ends_is_told(early: bool, tmp_path: Path, no_peers: Path) -> None:
    python = no_peers / "minicons" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 'no module' >&2\n" + ("" if early else "read question\n"))
    python.chmod(0o700)
    told = "minicons: ended without an answer, told 'no module'; expected scores; mend that, or run `make peers` again"
    with Peer("minicons", "causal", tmp_path) as peer, pytest.raises(ProcessLost, match=re.escape(told)):
        if early:
            peer._child.wait()
        peer.scores([Request("", "a")])


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_plain_code_gives_the_scores_of_the_preset(objective: Objective, tmp_path: Path) -> None:
    texts = [row[key] for rows in generated_pairs(2, 8).values() for row in rows for key in row]
    folder = save_random_model(tmp_path / "model", objective, TINY, texts)
    requests = [Request("", text) for text in texts]
    candidate = candidate_from_model("ours", load_model(folder), objective)
    scorer = Scorer("ours", (candidate,), read_scoring_tokenizer(folder), PROTOCOLS["minicons"], 512)
    np.testing.assert_allclose(plain_scores(objective, folder)(requests, 5), scorer.scores(requests), atol=1e-4)


def test_sides_take_turns_in_several_orders() -> None:
    calls: list[str] = []

    def side(name: str, seconds: float) -> float:
        calls.append(name)
        return seconds

    found = in_turns({"a": lambda: side("a", 1.0), "b": lambda: side("b", 2.0)}, repetitions=3, warm_up=1)
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3}
    rounds = [tuple(calls[first : first + 2]) for first in range(0, 8, 2)]
    assert all(sorted(turn) == ["a", "b"] for turn in rounds) and len(set(rounds)) == 2


def test_generated_pairs_differ_in_a_word_or_in_order(tmp_path: Path) -> None:
    rows = generated_pairs(5, 30)
    assert len(rows) == 5 and generated_pairs(5, 30) == rows != generated_pairs(5, 30, seed=2)
    tasks = blimp_tasks(write_pairs(tmp_path, rows), None, seed=1)
    assert [(task.uid, len(task.items)) for task in tasks] == [(uid, 30) for uid in sorted(rows)]
    for uid, of_paradigm in rows.items():
        for row in of_paradigm:
            good, bad = (row[key].rstrip(".?").split() for key in ("sentence_good", "sentence_bad"))
            assert good != bad
            assert sorted(good) == sorted(bad) if uid.startswith("island") else good[:-1] == bad[:-1]


def test_both_tokenizers_divide_words(tmp_path: Path) -> None:
    texts = [row[key] for rows in generated_pairs(2, 50).values() for row in rows for key in row]
    for objective in ("causal", "masked"):
        tokenizer = read_scoring_tokenizer(save_random_model(tmp_path / objective, objective, TINY, texts))
        assert sum(len(each.ids) for each in tokenizer.encode(texts)) > 1.2 * sum(len(text.split()) for text in texts)
    begins = read_scoring_tokenizer(save_random_model(tmp_path / "begins", "causal", TINY, texts, begins=True))
    assert begins.leading == (begins.begin_id,)


def test_the_suite_has_its_place_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed.SUITES["score"] == speed_score.__name__
    seen: list[Setting] = []

    def figures(setting: Setting, names: Sequence[str]) -> list[object]:
        seen.append(setting)
        return []

    monkeypatch.setattr(speed_score, "figures", figures)
    assert speed.main(["score", "--json", "--only", "causal_fp32", "--blimp", str(tmp_path)]) == 0
    assert seen == [replace(Setting(), blimp=tmp_path)]


def test_the_folder_of_blimp_must_have_the_paradigms(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="anaphor_number_agreement.jsonl: missing, expected BLiMP's files; name"):
        measured(["masked_fp32"], SIZES, Setting(repetitions=1, folder=tmp_path, blimp=tmp_path / "nothing"))


def test_what_trees_save_is_measured_on_items_in_the_official_layout(tmp_path: Path) -> None:
    items = {"blimp": 8, "ewok_filtered": 8, "entity_tracking": 3, "comps": 20}
    sizes = PrefixSizes(model=replace(TINY, max_positions=512), items=items)
    table = prefix_table(tmp_path, sizes, repetitions=1)
    assert [row[0] for row in table.rows] == list(items) and {len(row) for row in table.rows} == {len(table.columns)}
    for row in table.rows:
        assert int(row[1]) == items[row[0]] and float(row[3]) > float(row[4]) > 0, "trees have fewer tokens"
        assert all(float(number) > 0 for number in row[5:8]) and float(row[8].removesuffix(" nats")) < 1e-3
    saved = {row[0]: float(row[3]) / float(row[4]) for row in table.rows}
    assert saved["entity_tracking"] > 4 and saved["ewok_filtered"] > 1.8


def test_generated_items_are_as_long_as_the_challenges_own(tmp_path: Path) -> None:
    def words(name: str) -> list[float]:
        """Of a context and of a text, on the average."""
        tasks = read_choices(name, write_rows(tmp_path / name, MADE[name](60, seed=1)))
        asked = [option for task in tasks for item in task.items for option in item.options]
        return [
            statistics.mean(len(text.split()) for text in texts)
            for texts in ([option.context for option in asked], [option.text for option in asked])
        ]

    context, answer = words("entity_tracking")
    assert 115 < context < 133 and 1 < answer < 6
    context, target = words("ewok_filtered")
    assert 8 < context < 13 and 5 < target < 9
    context, phrase = words("comps")
    assert 2 < context < 8 and 3 < phrase < 8


def test_bf16_stands_beside_its_agreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_score, "Sizes", lambda: SIZES)
    monkeypatch.setattr(speed_score, "AGREEMENT_ITEMS", 5)
    figure = GOALS["causal_bf16"].reached(1.0, {}, "pairs/s")
    [line] = speed_score.tables(Setting(folder=tmp_path), [figure], everything=False)
    assert str(line).startswith("causal, bf16 against fp32: ") and "of 10 verdicts agree" in str(line)
    assert not list(speed_score.tables(Setting(folder=tmp_path), [], everything=False))
    asked: list[int] = []
    monkeypatch.setattr(speed_score, "prefix_table", lambda folder, sizes, *, repetitions: asked.append(repetitions))
    assert list(speed_score.tables(Setting(folder=tmp_path), [], everything=True)) == [None] and asked == [5]
