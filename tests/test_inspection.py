"""Damage is found wherever it is, recomputing finds what digests cannot, and only what is damaged is made again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from typer.testing import CliRunner

from corpora.errors import Damaged, Diverged, InputRefused
from corpora.prepare import Corpus
from corpora.storage import FolderWriter, new_folder, read_manifest, write_file
from distill.cli import app
from distill.config import Recipe, TeacherConfig
from distill.project import Project
from distill.recipe import resolved_yaml
from students.buildable import Buildable
from students.run_folder import save_model
from teachers.cache import CacheKey
from teachers.capture import capture
from teachers.codecs import CODECS
from teachers.inspection import repair_cache, verify_cache

TWO_ROUNDS = {"objective": "masked", "rounds": 2}


def refuse_to_load() -> Buildable:
    raise AssertionError("nothing has to be recomputed")


def flip(path: Path, place: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


# verified


@pytest.mark.parametrize("changes", [{}, TWO_ROUNDS], ids=["causal", "masked, two rounds"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_fresh_cache_says_what_its_teacher_says(corpus: Corpus, tmp_path: Path, codec: str, changes: dict) -> None:
    """Recomputed in other batches than those of the capture, so that the last bits differ."""
    model = tiny.model("elc_bert", corpus)
    key = tiny.cache_key(corpus, stream="tune", codec=codec, shard_positions=128, **changes)
    capture(key, lambda: model, tmp_path / "cache")
    found = verify_cache(key, lambda: model, tmp_path / "cache", 60, seed=3)
    manifest = read_manifest(tmp_path / "cache")
    assert manifest is not None and found.files == len(manifest.files) > 3
    assert found.spots == 60 < found.positions < len(corpus.streams["tune"])
    # the others round to fp16, or draw another token where two are told apart by the last bits of a sum
    assert found.mean <= found.largest < (1e-4 if codec == "features" else 0.05)
    assert found.mean < 0.01
    all_of_them = verify_cache(key, lambda: model, tmp_path / "cache", 10**6)
    assert all_of_them.spots == all_of_them.positions == found.positions


@pytest.mark.parametrize("codec", CODECS)
def test_another_teacher_is_far_from_what_is_stored(corpus: Corpus, tmp_path: Path, codec: str) -> None:
    key = tiny.cache_key(corpus, stream="tune", codec=codec)
    capture(key, lambda: tiny.model("llama", corpus, seed=1), tmp_path / "cache")
    found = verify_cache(key, lambda: tiny.model("llama", corpus, seed=2), tmp_path / "cache", 30)
    assert found.largest > 1.0 and found.mean > 0.3


def test_a_record_that_was_changed_with_its_digest_is_seen_by_recomputing(corpus: Corpus, tmp_path: Path) -> None:
    model, key, folder = tiny.model("gptj", corpus), tiny.cache_key(corpus, **TWO_ROUNDS), tmp_path / "cache"
    capture(key, lambda: model, folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    records = np.load(folder / "records-01-00001.npy")
    records["features"][:, 0] += 1.0
    with new_folder(folder, kind="cache", fingerprint=manifest.fingerprint) as writer:
        writer.facts |= manifest.facts
        for name, listed in manifest.files.items():
            writer.adopt(name, listed)
        writer.write_array("records-01-00001.npy", records)
    everywhere = verify_cache(key, lambda: model, folder, 10**6)
    assert everywhere.largest > 0.1, "the second round of the second shard was not looked at"
    assert verify_cache(key, refuse_to_load, folder, 0).largest is None


def test_every_damaged_file_is_listed_and_nothing_is_recomputed(corpus: Corpus, tmp_path: Path) -> None:
    key, folder = tiny.cache_key(corpus), tmp_path / "cache"
    capture(key, lambda: tiny.model("llama", corpus), folder)
    flip(folder / "records-00-00000.npy")
    flip(folder / "head.safetensors")
    (folder / "coverage-00002.npy").unlink()
    with pytest.raises(Damaged) as damaged:
        verify_cache(key, refuse_to_load, folder, 50)
    lines = str(damaged.value).splitlines()
    assert sorted(line.partition(": ")[0] for line in lines) == [
        str(folder / name) for name in ("coverage-00002.npy", "head.safetensors", "records-00-00000.npy")
    ]
    assert all("cuvee repair" in line for line in lines)


def test_a_cache_of_another_teacher_or_unfinished_is_not_verified(corpus: Corpus, tmp_path: Path) -> None:
    key = tiny.cache_key(corpus)
    with pytest.raises(Damaged, match="not finished"):
        verify_cache(key, refuse_to_load, tmp_path, 1)
    capture(key, lambda: tiny.model("llama", corpus), tmp_path)
    with pytest.raises(InputRefused, match="teacher is 'weights' there and 'others' here"):
        verify_cache(tiny.cache_key(corpus, teacher="others"), refuse_to_load, tmp_path, 1)


# repaired


def damage_records(folder: Path) -> set[str]:
    flip(folder / "records-01-00001.npy")
    return {"records-00-00001.npy", "records-01-00001.npy", "coverage-00001.npy"}


def lose_coverage(folder: Path) -> set[str]:
    (folder / "coverage-00000.npy").unlink()
    return {"records-00-00000.npy", "records-01-00000.npy", "coverage-00000.npy"}


def damage_head(folder: Path) -> set[str]:
    flip(folder / "head.safetensors", 200)
    return {"head.safetensors"}


def damage_manifest(folder: Path) -> set[str]:
    (folder / "manifest.json").write_text("{")
    return {"manifest.json", "head.safetensors"}


def damage_manifest_and_records(folder: Path) -> set[str]:
    return damage_manifest(folder) | damage_records(folder)


def damage_note_and_head(folder: Path) -> set[str]:
    """A note that cannot be read is no reason to ask the teacher again: the manifest knows the files."""
    (folder / "shard-00001.json").write_text("{")
    return damage_head(folder)


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[CacheKey, Buildable, Path]:
    key, model = tiny.cache_key(corpus, **TWO_ROUNDS), tiny.model("elc_bert", corpus)
    folder = tmp_path_factory.mktemp("whole") / "cache"
    capture(key, lambda: model, folder)
    return key, model, folder


@pytest.mark.parametrize(
    "damage",
    [damage_records, lose_coverage, damage_head, damage_manifest, damage_manifest_and_records, damage_note_and_head],
)
def test_only_what_is_damaged_is_made_again(whole: tuple[CacheKey, Buildable, Path], tmp_path: Path, damage) -> None:
    key, model, original = whole
    folder = Path(shutil.copytree(original, tmp_path / "cache"))
    before = tiny.times(folder)
    expected = damage(folder)
    remade = repair_cache(key, lambda: model, folder)
    assert {file.name for file in remade} == expected
    assert tiny.contents(folder) == tiny.contents(original)
    after = tiny.times(folder)
    assert {name for name in before if after[name] != before[name]} == {name for name in expected if ".npy" in name}
    manifest_was_whole = "manifest.json" not in expected
    for file in remade:
        # without a manifest, notes still say what the shards were
        assert file.as_before is (True if manifest_was_whole or file.name.endswith(".npy") else None)
    verify_cache(key, refuse_to_load, folder, 0)
    assert repair_cache(key, refuse_to_load, folder) == []


def test_a_note_that_was_lost_alone_is_written_again_without_the_teacher(
    whole: tuple[CacheKey, Buildable, Path], tmp_path: Path
) -> None:
    key, _, original = whole
    folder = Path(shutil.copytree(original, tmp_path / "cache"))
    (folder / "shard-00001.json").unlink()
    assert repair_cache(key, refuse_to_load, folder) == []
    assert tiny.contents(folder) == tiny.contents(original)


def test_another_teacher_does_not_repair(whole: tuple[CacheKey, Buildable, Path], tmp_path: Path) -> None:
    key, _, original = whole
    folder = Path(shutil.copytree(original, tmp_path / "cache"))
    damage_records(folder)
    before = tiny.contents(folder)
    with pytest.raises(InputRefused, match="teacher is 'weights' there and 'others' here"):
        repair_cache(tiny.cache_key(key.corpus, teacher="others", **TWO_ROUNDS), refuse_to_load, folder)
    assert tiny.contents(folder) == before


def test_a_repair_whose_teacher_fails_can_be_repeated(
    whole: tuple[CacheKey, Buildable, Path], tmp_path: Path, corpus: Corpus
) -> None:
    key, model, original = whole
    folder = Path(shutil.copytree(original, tmp_path / "cache"))
    damage_records(folder)
    broken = tiny.model("elc_bert", corpus)
    broken.head().weight_VD.data.fill_(float("nan"))
    with pytest.raises(Diverged):
        repair_cache(key, lambda: broken, folder)
    assert read_manifest(folder) is None, "a damaged cache would count as whole"
    repair_cache(key, lambda: model, folder)
    assert tiny.contents(folder) == tiny.contents(original)


# the commands


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves: corpus, tokenizer, a teacher, its caches and the recipe."""
    folder = tmp_path_factory.mktemp("project")
    corpus = tiny.corpus(folder)
    run_dir = corpus.tokenizer_folder.parent
    with new_folder(run_dir / "teachers" / "llama", kind="run", fingerprint={}) as writer:
        _save(writer, corpus)
    teacher = TeacherConfig(path=str(run_dir / "teachers" / "llama"))
    recipe = Recipe(run_dir=str(run_dir), teachers={"llama": teacher}, cache=tiny.CACHE)
    write_file(run_dir / "recipe.yaml", resolved_yaml(recipe).encode())
    project = Project(recipe)
    for stream in ("train", "tune"):
        folder = project.cache_folder("llama", stream)
        capture(project.cache_key("llama", stream), lambda: project.load_teacher("llama"), folder)
    return run_dir


def _save(writer: FolderWriter, corpus: Corpus) -> None:
    save_model(writer, tiny.model("llama", corpus))
    writer.facts |= {"tokenizer": corpus.tokenizer.digest, "views": ["causal"]}


def cuvee(*arguments: str | Path) -> tuple[int, list[str], list[str]]:
    """Exit code, lines printed and lines of errors."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout.splitlines(), result.stderr.splitlines()


def test_verify_reads_everything_below_and_recomputes_when_asked(run_dir: Path, tmp_path: Path) -> None:
    # a run_dir that was moved is found where it lies
    moved = Path(shutil.copytree(run_dir, tmp_path / "moved"))
    code, lines, _ = cuvee("verify", moved, "--spot", "20")
    assert code == 0
    caches = [line for line in lines if "caches" in line]
    folders = [moved / "caches" / "llama" / stream for stream in ("train", "tune")]
    assert [line.partition(":")[0] for line in caches] == [str(folder) for folder in folders]
    said = r".*: [\d,]+ positions, \d+ files; 20 spots, largest difference (\S+), mean (\S+) \(.+\)"
    for line in caches:
        numbers = re.fullmatch(said, line)
        assert numbers is not None and 0 <= float(numbers[2]) <= float(numbers[1]) < 1e-4
    code, lines, _ = cuvee("verify", moved / "caches" / "llama" / "tune")
    assert code == 0 and len(lines) == 2 and "spots" not in lines[0]


def test_verify_names_every_damaged_file_and_repair_mends_the_caches(run_dir: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run_dir, tmp_path / "moved"))
    train, tune = (moved / "caches" / "llama" / name for name in ("train", "tune"))
    before = tiny.contents(train), tiny.contents(tune)
    flip(train / "records-00-00001.npy")
    flip(tune / "coverage-00000.npy")
    for arguments in (["verify", moved], ["verify", moved, "--spot", "5"]):
        code, _, errors = cuvee(*arguments)
        assert code == 4 and len(errors) == 2
        assert f"{train / 'records-00-00001.npy'}: found" in errors[0] and str(tune / "coverage-00000.npy") in errors[1]
    code, lines, _ = cuvee("repair", moved)
    assert code == 0
    assert f"{train / 'records-00-00001.npy'}: made again, the same bytes" in lines
    assert (tiny.contents(train), tiny.contents(tune)) == before
    assert cuvee("repair", train)[1] == [f"{train}: whole"]
    flip(moved / "teachers" / "llama" / "config.json")
    code, _, errors = cuvee("verify", moved)
    assert code == 4 and len(errors) == 1 and "config.json" in errors[0] and "delete" in errors[0]


def test_a_place_without_anything_of_ours_is_refused(run_dir: Path, tmp_path: Path) -> None:
    for command, path, found in (
        ("verify", tmp_path, "no finished folder here"),
        ("verify", tmp_path / "nowhere", "no finished folder here"),
        ("repair", tmp_path, "neither here nor above is a recipe.yaml"),
        ("repair", run_dir / "teachers", "no cache of .* lies here"),
    ):
        code, _, errors = cuvee(command, path)
        assert code == 3 and len(errors) == 1 and re.search(found, errors[0]), errors
    alone = Path(shutil.copytree(run_dir / "caches" / "llama" / "tune", tmp_path / "alone"))
    assert cuvee("verify", alone)[0] == 0
    code, _, errors = cuvee("verify", alone, "--spot", "5")
    assert code == 3 and "recipe.yaml" in errors[0]
