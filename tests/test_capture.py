"""A cache is made once, whoever stops it: resumed, divided, continued when the stream grew, or refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from corpora import storage
from corpora.document import Document
from corpora.errors import Damaged, Diverged, InputRefused
from corpora.prepare import Corpus
from corpora.stream import Stream, write_stream
from students.buildable import Buildable
from students.registry import build_model
from teachers import cache as cache_module
from teachers.cache import CachedTeacher, CacheKey
from teachers.capture import capture

TWO_ROUNDS = {"objective": "masked", "rounds": 2}


# interrupted, divided


@pytest.mark.parametrize(("architecture", "changes"), [("llama", {}), ("elc_bert", TWO_ROUNDS)])
def test_a_capture_stopped_at_any_write_goes_on_to_the_same_bytes(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, changes: dict
) -> None:
    model = tiny.model(architecture, corpus, num_layers=1)
    key = tiny.cache_key(corpus, stream="tune", shard_positions=128, **changes)
    operations: list[tuple[str, Path]] = []
    monkeypatch.setattr(storage, "fault", lambda operation, path: operations.append((operation, path)))
    capture(key, lambda: model, tmp_path / "whole")
    whole = tiny.contents(tmp_path / "whole")
    assert sum(name.startswith("records-00") for name in whole) > 1

    for stop in range(len(operations)):
        folder, left = tmp_path / f"stopped-{stop}", iter(range(stop))

        def die(operation: str, path: Path, left=left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr(storage, "fault", die)
        with pytest.raises(KeyboardInterrupt):
            capture(key, lambda: model, folder)
        if not (folder / "manifest.json").exists():  # the last sync fails when everything is there
            with pytest.raises(Damaged, match="not finished; run the same command again"):
                CachedTeacher("llama", folder)
        finished = {path.name[6:11] for path in folder.glob("shard-*.json")}
        before = {name: time for name, time in tiny.times(folder).items() if name[-9:-4] in finished}

        monkeypatch.setattr(storage, "fault", lambda operation, path: None)
        capture(key, lambda: model, folder)
        assert tiny.contents(folder) == whole, f"stopped at {operations[stop]}"
        assert before.items() <= tiny.times(folder).items(), "a finished shard was made again"


def test_shards_that_other_inputs_left_unfinished_are_not_taken_over(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A, stopped; B, stopped while it replaces A's first shard; A again: B's bytes must not pass for A's."""
    first, second = tiny.model("llama", corpus, seed=1), tiny.model("llama", corpus, seed=2)
    key_of_first, key_of_second = (tiny.cache_key(corpus, teacher=name, stream="tune") for name in ("A", "B"))

    def capture_until(key: CacheKey, model: Buildable, file: str) -> None:
        def die(operation: str, path: Path) -> None:
            if path.name == file:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(storage, "fault", die)
            capture(key, lambda: model, tmp_path / "cache")

    capture_until(key_of_first, first, "head.safetensors")
    capture_until(key_of_second, second, "shard-00000.json")
    capture(key_of_first, lambda: first, tmp_path / "cache")
    capture(key_of_first, lambda: first, tmp_path / "whole")
    assert tiny.contents(tmp_path / "cache") == tiny.contents(tmp_path / "whole")


def test_a_shard_whose_file_is_gone_is_made_again(corpus: Corpus, tmp_path: Path) -> None:
    """Before anything is finished a note is all there is; it vouches for files that are there."""
    model, key = tiny.model("llama", corpus), tiny.cache_key(corpus)
    capture(key, lambda: model, tmp_path / "cache")
    whole = tiny.contents(tmp_path / "cache")
    for name in ("manifest.json", "records-00-00001.npy"):
        (tmp_path / "cache" / name).unlink()
    capture(key, lambda: model, tmp_path / "cache")
    assert tiny.contents(tmp_path / "cache") == whole


def test_two_processes_make_what_one_makes(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, which the barriers allow: all look, then write their shards, then the first commits."""
    key, model, folder = tiny.cache_key(corpus), tiny.model("gptj", corpus), tmp_path / "two"
    events: list[str] = []
    monkeypatch.setattr(storage, "fault", lambda operation, path: events.append(f"{operation} {path.name}"))

    def process(rank: int, load_teacher: Callable[[], Buildable]) -> list[str]:
        events.clear()
        barrier = lambda: events.append("barrier")  # noqa: E731
        capture(key, load_teacher, folder, rank=rank, world_size=2, barrier=barrier)
        return [event for event in events if event == "barrier" or event.startswith("write")]

    with pytest.raises(Damaged, match="shard 2 was not finished"):
        process(0, lambda: model)  # alone, it must not say that the other's shards are there
    assert records_written(events) == {0, 2}
    second = process(1, lambda: model)
    first = process(0, lambda: model)
    for written, numbers in ((second, {1, 3}), (first, set())):
        assert written[0] == "barrier", "it wrote before all had looked"
        assert records_written(written) == numbers
        assert written.count("barrier") == 3 and written[-1] == "barrier"
    assert "write manifest.json" not in second
    assert first.index("write manifest.json") > first.index("barrier", 1), "it committed before all had written"
    assert process(0, refuse_to_load) == ["barrier"]
    capture(key, lambda: model, tmp_path / "one")
    assert tiny.contents(folder) == tiny.contents(tmp_path / "one")


def records_written(events: list[str]) -> set[int]:
    """The shards whose records were written."""
    return {int(event[-9:-4]) for event in events if event.startswith("write records")}


def refuse_to_load() -> Buildable:
    raise AssertionError("a finished cache needs no teacher")


# grown


def grown_corpus(corpus: Corpus, folder: Path, documents: int) -> Corpus:
    """The train stream of a corpus, cut to its first documents or continued, with the same tokenizer."""
    texts = [f"the cat finds {'two apples and ' * (number % 9)}a song {number}." for number in range(documents)]
    written = [Document(id=str(number), source="x", text=text) for number, text in enumerate(texts)]
    with storage.new_folder(folder, kind="corpus", fingerprint={"documents": documents}) as writer:
        writer.facts["streams"] = {"train": write_stream(writer, "train", written, corpus.tokenizer)}
    manifest = storage.read_manifest(folder)
    assert manifest is not None
    return replace(corpus, streams={"train": Stream(manifest, "train")}, manifest=manifest)


def test_the_digest_of_a_prefix_is_that_of_the_stream_it_was(corpus: Corpus, tmp_path: Path) -> None:
    short, long = (grown_corpus(corpus, tmp_path / str(number), number).streams["train"] for number in (30, 70))
    assert long.prefix_digest(len(short)) == short.digest
    assert long.prefix_digest(len(long)) == long.digest
    assert long.prefix_digest(len(short) - 1) is None, "no stream ends inside a document"
    assert short.prefix_digest(len(long)) is None
    assert long.prefix_digest(int(long.document_offsets[29])) not in (None, short.digest)


@pytest.mark.parametrize(("architecture", "changes"), [("gptj", {}), ("elc_bert", TWO_ROUNDS)])
def test_a_cache_follows_a_stream_that_grew(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, changes: dict
) -> None:
    short, long = (grown_corpus(corpus, tmp_path / str(number), number) for number in (30, 70))
    model, folder = tiny.model(architecture, corpus), tmp_path / "cache"

    def key_of(corpus: Corpus) -> CacheKey:
        return tiny.cache_key(corpus, shard_positions=200, **changes)

    capture(key_of(short), lambda: model, folder)
    whole, partial = divmod(len(short.streams["train"]), 200)
    assert whole >= 2 and partial, "nothing would be kept, or nothing made again"
    kept = {name: time for name, time in tiny.times(folder).items() if int(name[-9:-4]) < whole}

    def stop(operation: str, path: Path) -> None:
        assert not (folder / "manifest.json").exists(), "it says that the cache is whole while it changes"
        if path.name == f"shard-{whole:05d}.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage, "fault", stop)
        capture(key_of(long), lambda: model, folder)
    capture(key_of(long), lambda: model, folder)
    assert kept.items() <= tiny.times(folder).items(), "a whole shard was made again"
    capture(key_of(long), lambda: model, tmp_path / "afresh")
    assert tiny.contents(folder) == tiny.contents(tmp_path / "afresh")
    with pytest.raises(InputRefused, match="corpus.tokens is "):  # back to the short stream
        capture(key_of(short), refuse_to_load, folder)


def test_growth_and_another_change_are_refused_with_the_field(corpus: Corpus, tmp_path: Path) -> None:
    short, long = (grown_corpus(corpus, tmp_path / str(number), number) for number in (30, 70))
    tiny.cached(tiny.model("llama", corpus), tiny.cache_key(short), tmp_path / "cache")
    before = tiny.contents(tmp_path / "cache")
    with pytest.raises(InputRefused, match=r"inputs: teacher is 'weights' there and 'others' here;"):
        capture(tiny.cache_key(long, teacher="others"), refuse_to_load, tmp_path / "cache")
    assert tiny.contents(tmp_path / "cache") == before


def test_no_process_replaces_a_shard_before_the_first_has_removed_the_manifest(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = (grown_corpus(corpus, tmp_path / str(number), number) for number in (30, 70))
    model, folder = tiny.model("llama", corpus), tmp_path / "cache"
    tiny.cached(model, tiny.cache_key(short), folder)
    shutil.copytree(folder, tmp_path / "copy")
    events: list[str] = []
    monkeypatch.setattr(storage, "fault", lambda operation, path: events.append(f"{operation} {path.name}"))

    def barrier() -> None:
        events.append("barrier")
        if events == ["barrier", "barrier"]:  # what the first has done by now
            (folder / "manifest.json").unlink()

    capture(tiny.cache_key(long), lambda: model, folder, rank=1, world_size=2, barrier=barrier)
    assert events[:2] == ["barrier", "barrier"] and records_written(events)
    events.clear()
    with pytest.raises(Damaged, match="was not finished"):
        capture(tiny.cache_key(long), lambda: model, tmp_path / "copy", world_size=2, barrier=barrier)
    assert events[:3] == ["barrier", "sync copy", "barrier"] and records_written(events)


# refused


def change_corpus(key: CacheKey, folder: Path) -> CacheKey:
    return replace(key, corpus=tiny.corpus(folder / "other", seed=2))


def masked_key(**changes) -> Callable[[CacheKey, Path], CacheKey]:
    return lambda key, _: tiny.cache_key(key.corpus, objective="masked", **changes)


CHANGES: list[tuple[str, Callable[[CacheKey, Path], CacheKey]]] = [
    ("corpus.tokens", change_corpus),
    ("teacher", lambda key, _: replace(key, teacher="other weights")),
    ("view.mask_seed", masked_key(mask_seed=2)),
    ("view.num_folds", masked_key(num_folds=7)),
    ("view.keep_share", masked_key(keep_share=0.1)),
    ("rounds", masked_key(rounds=2)),
    ("window", masked_key(window=20)),
    ("precision", masked_key(precision="bf16")),
    ("codec.dtype", masked_key(dtype="bf16")),
    ("codec.name", masked_key(codec="topk")),
    ("shard_positions", masked_key(shard_positions=256)),
    ("stream", lambda key, _: replace(key, stream="tune")),
]


@pytest.fixture(scope="module")
def finished(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[CacheKey, Path]:
    folder, key = tmp_path_factory.mktemp("finished") / "cache", tiny.cache_key(corpus, objective="masked")
    tiny.cached(tiny.model("elc_bert", corpus), key, folder)
    return key, folder


@pytest.mark.parametrize(("field", "change"), CHANGES, ids=[field for field, _ in CHANGES])
def test_a_cache_made_from_other_inputs_is_refused_with_the_field(
    finished: tuple[CacheKey, Path], tmp_path: Path, field: str, change: Callable[[CacheKey, Path], CacheKey]
) -> None:
    key, folder = finished
    before, other = tiny.contents(folder), change(key, tmp_path)
    for refuse in (
        lambda: capture(other, refuse_to_load, folder),
        lambda: CachedTeacher("elc", folder, other.fingerprint()),
    ):
        with pytest.raises(InputRefused, match=rf"(: |; ){re.escape(field)} is .* there and .* here") as refused:
            refuse()
        assert refused.value.exit_code == 3 and "\n" not in str(refused.value)
    assert tiny.contents(folder) == before


def test_settings_of_another_codec_and_of_reading_change_nothing(corpus: Corpus) -> None:
    """Only what decides the bytes: nobody should read a teacher again for the sake of a field that is not used."""
    others = tiny.cache_key(corpus, top_k=7, draws=3, temperatures=(2.0,), rows=5, rounds=4)
    assert others.fingerprint() == tiny.cache_key(corpus).fingerprint()
    hybrid = tiny.cache_key(corpus, codec="hybrid")
    assert tiny.cache_key(corpus, codec="hybrid", tail_draws=3).fingerprint() == hybrid.fingerprint()
    assert tiny.cache_key(corpus, codec="hybrid", temperatures=(2.0,)).fingerprint() != hybrid.fingerprint()


def test_draws_are_other_ones_for_every_teacher_and_round(corpus: Corpus) -> None:
    seeds = {tiny.cache_key(corpus, teacher=teacher).draw_seed(round) for teacher in "AB" for round in range(3)}
    assert len(seeds) == 6


@pytest.mark.parametrize("where", ["features", "head"])
def test_a_teacher_that_is_not_finite_is_named_and_leaves_nothing(corpus: Corpus, tmp_path: Path, where: str) -> None:
    model = tiny.model("gptj", corpus)
    poisoned = model.head().bias_V if where == "head" else model.network.transformer.ln_f.weight
    with torch.no_grad():
        poisoned[3] = torch.nan
    with pytest.raises(Diverged, match=r"cache: \d+ .*not finite.*; train the teacher again") as diverged:
        capture(tiny.cache_key(corpus), lambda: model, tmp_path / "cache")
    assert diverged.value.exit_code == 6
    assert not (tmp_path / "cache").exists()


def test_a_teacher_with_another_vocabulary_is_refused_with_both_sizes(corpus: Corpus, tmp_path: Path) -> None:
    other = build_model(tiny.model_config("llama"), vocab_size=333, token_ids=corpus.token_ids, seed=0)
    found = f"cache: the teacher's head has 333 types, the corpus's tokenizer has {corpus.vocab_size}; train both"
    with pytest.raises(InputRefused, match=found):
        capture(tiny.cache_key(corpus), lambda: other, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_cache_of_another_format_is_refused(finished: tuple[CacheKey, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "CACHE_FORMAT", 3)
    with pytest.raises(InputRefused, match="format is 2 there and 3 here"):
        CachedTeacher("elc", finished[1])
