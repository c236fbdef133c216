"""The challenge's lists of checkpoints, which a recipe names by a word: a run keeps the part of them that it sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from benchmarks.submission.layout import read_year, wanted_checkpoints
from corpora.errors import RecipeError
from corpora.prepare import Corpus
from corpora.storage import read_manifest
from distill import shares
from distill.config import TrainConfig
from distill.distributed import Processes
from distill.recipe import load_recipe, resolved_yaml
from distill.run import require_kept, word_snapshot_folder
from distill.shares import word_snapshots
from distill.train import train
from students.run_folder import load_model

ASKED = "teachers.llama.train.word_snapshots"


@pytest.mark.parametrize(("words", "track"), [("challenge", "strict-small"), ("challenge_1b", "strict")])
@pytest.mark.parametrize("year", [2025, 2026])
def test_the_lists_are_those_of_the_tracks(words: Any, track: str, year: int) -> None:
    folders = [
        word_snapshot_folder(Path("run"), asked).name for asked in word_snapshots(TrainConfig(word_snapshots=words))
    ]
    assert folders == wanted_checkpoints(read_year(year).tracks[track], 1_000_000_000)


def test_a_run_of_so_many_words_keeps_its_last_weights_under_their_name(
    corpus: Corpus, processes: Processes, tmp_path: Path
) -> None:
    """It ends before the step that would go beyond them."""
    run = tiny.run(corpus, tmp_path / "run", steps=None, words=1_000, word_snapshots=[500, 1_000])
    train(run, processes)
    kept, manifest = (read_manifest(folder) for folder in (word_snapshot_folder(run.folder, 1_000), run.folder))
    assert kept is not None and manifest is not None and kept.facts["words"] == manifest.facts["words"] < 1_000
    assert kept.files["model.safetensors"] == manifest.files["model.safetensors"]
    require_kept(run, done=manifest.facts["steps"], words=manifest.facts["words"], finished=True)
    beyond = tiny.run(corpus, tmp_path / "beyond", steps=None, words=1_000, word_snapshots=[1_200])
    with pytest.raises(RecipeError, match="the weights after 1,200 words are asked for, but the run sees"):
        train(beyond, processes)


def test_a_run_keeps_those_that_it_sees(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a list that is a thousand times shorter; a list that is written out must be seen whole."""
    monkeypatch.setitem(shares.WORD_SNAPSHOTS, "challenge", [100, 200, 1_000_000_000])
    run = tiny.run(corpus, tmp_path / "run", steps=3, word_snapshots="challenge")
    train(run, processes)
    kept = sorted(path.name for path in (run.folder / "snapshots").iterdir())
    assert kept == ["chck_100", "chck_200"]
    load_model(run.folder / "snapshots" / "chck_200")
    require_kept(run, done=3, words=999)
    written = replace(run, folder=tmp_path / "written", train=replace(run.train, word_snapshots=[100, 1_000_000_000]))
    with pytest.raises(RecipeError, match="1,000,000,000 words are asked for, but the run sees"):
        train(written, processes)


def test_a_recipe_says_it_in_a_word_and_is_resolved_as_it_was_written() -> None:
    recipe = load_recipe("quickstart", [f"{ASKED}=challenge"])
    resolved = yaml.safe_load(resolved_yaml(recipe))
    assert resolved["teachers"]["llama"]["train"]["word_snapshots"] == "challenge"
    assert (
        yaml.safe_load(resolved_yaml(load_recipe("quickstart")))["teachers"]["llama"]["train"]["word_snapshots"] == []
    )


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("chalenge", "word_snapshots: expected a list, 'challenge' or 'challenge_1b', found 'chalenge'"),
        ("7", "word_snapshots: expected a list, 'challenge' or 'challenge_1b', found 7"),
        ("[1, one]", "word_snapshots.1: expected a whole number, found 'one'"),
        ("[0]", "word_snapshots.0: expected at least 1, found 0"),
    ],
)
def test_anything_else_is_one_line(written: str, line: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("quickstart", [f"{ASKED}={written}"])
    assert str(error.value) == f"command line: teachers.llama.train.{line.removeprefix('teachers.llama.train.')}"
