"""A cache says what its teacher says: by position, in every view, and after every interruption."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from corpora import storage
from corpora.batch import Batch, causal_view, masked_view
from corpora.errors import Damaged, Diverged, InputRefused
from corpora.prepare import Corpus
from corpora.rows import make_batch
from corpora.windows import plan_windows, window_batches
from students.buildable import Buildable
from teachers.cache import CachedTeacher, CacheKey, capture
from teachers.live import LiveTeacher

CPU = torch.device("cpu")
TEACHERS = [("llama", "causal"), ("gptj", "causal"), ("elc_bert", "masked")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny.corpus(tmp_path_factory.mktemp("corpus"))


def log_prob_table(model: Buildable, key: CacheKey, *, rows: int) -> Tensor:
    """What the live teacher says at the cache's own windows; [positions, V], NaN where it was not asked."""
    stream, teacher = key.corpus.streams[key.stream], LiveTeacher("live", model, key.view.objective)
    table = torch.full((len(stream), key.corpus.vocab_size), torch.nan)
    windows = plan_windows(stream, key.config.window, objective=key.view.objective)
    ids, size = key.corpus.token_ids, key.corpus.vocab_size
    for fold in range(key.view.num_folds):
        view = replace(key.view, fold=fold)
        for batch in window_batches(stream, windows, view, rows=rows, token_ids=ids, vocab_size=size):
            assert table[batch.target_positions_N].isnan().all(), "a position was asked twice"
            table[batch.target_positions_N] = log_probs(teacher, batch)
    return table


def log_probs(teacher: CachedTeacher | LiveTeacher, batch: Batch) -> Tensor:
    """A teacher's answer to a batch, expanded, [N, V]."""
    return teacher.answer(batch, CPU).logits(slice(None)).log_softmax(-1)


def rows_at_odd_offsets(corpus: Corpus, view, *, length: int = 19) -> Batch:
    """Rows that begin and end anywhere in the train stream, across documents and windows."""
    last = len(corpus.streams["train"]) - length
    starts = np.random.default_rng(3).integers(0, last, 12)
    spans = [(int(start), int(start) + length) for start in (*starts, 0, last)]
    return make_batch(corpus.streams["train"], spans, view, token_ids=corpus.token_ids, vocab_size=corpus.vocab_size)


# the same numbers


@pytest.mark.parametrize(("architecture", "objective"), TEACHERS)
def test_fp32_features_give_the_live_log_probabilities(
    corpus: Corpus, tmp_path: Path, architecture: str, objective: str
) -> None:
    model, key = tiny.model(architecture, corpus), tiny.cache_key(corpus, objective=objective)
    stored = tiny.cached(model, key, tmp_path / "cache")
    live = log_prob_table(model, key, rows=5)  # padded in other company than in the cache
    positions = stored.covered_positions()
    answers = stored.head.logits(stored.features(positions)).log_softmax(-1)
    assert torch.equal(positions, (~live[:, 0].isnan()).nonzero()[:, 0])
    largest = (answers - live[positions]).abs().max()
    print(f"{architecture} {objective}, fp32 features: largest difference of log-probabilities {largest:.1e}")
    assert largest < 1e-5


@pytest.mark.parametrize(("architecture", "objective"), TEACHERS)
def test_bf16_features_lose_next_to_nothing(corpus: Corpus, tmp_path: Path, architecture: str, objective: str) -> None:
    model, key = tiny.model(architecture, corpus), tiny.cache_key(corpus, objective=objective, dtype="bf16")
    stored = tiny.cached(model, key, tmp_path / "cache")
    positions = stored.covered_positions()
    live = log_prob_table(model, key, rows=16)[positions]
    answers = stored.head.logits(stored.features(positions).float()).log_softmax(-1)
    mean_kl = (live.exp() * (live - answers)).sum(-1).mean()
    largest = (answers - live)[live.exp() >= 1e-4].abs().max()
    print(f"{architecture} {objective}, bf16 features: mean KL {mean_kl:.1e}, largest difference {largest:.3f}")
    assert mean_kl <= 1e-4
    assert largest <= 0.1
    assert live.exp().max() > 0.3, "the comparison would be easy"


@pytest.mark.parametrize(("_architecture", "objective"), TEACHERS[1:])
def test_every_token_but_begin_tokens_has_a_record(
    corpus: Corpus, tmp_path: Path, _architecture: str, objective: str
) -> None:
    stored = tiny.cached(tiny.model(_architecture, corpus), tiny.cache_key(corpus, objective=objective), tmp_path)
    stream = corpus.streams["train"]
    assert np.diff(stream.document_offsets).max() > 2 * tiny.WINDOW, "no document is longer than its windows"
    wanted = np.flatnonzero(stream.tokens(0, len(stream)) != corpus.token_ids.begin)
    assert np.array_equal(stored.covered_positions().numpy(), wanted)
    assert len(stored.manifest.facts["shards"]) > 2


# met by position


@pytest.mark.parametrize(("architecture", "objective"), TEACHERS)
@pytest.mark.parametrize("asked", ["causal", "masked"])
def test_rows_of_any_offset_and_view_read_the_record_of_the_token_they_predict(
    corpus: Corpus, tmp_path: Path, architecture: str, objective: str, asked: str
) -> None:
    model, key = tiny.model(architecture, corpus), tiny.cache_key(corpus, objective=objective)
    stored, live = tiny.cached(model, key, tmp_path / "cache"), log_prob_table(model, key, rows=16)
    view = causal_view() if asked == "causal" else masked_view(mask_seed=1, fold=2, num_folds=3)
    batch = rows_at_odd_offsets(corpus, view)
    assert len(batch.target_positions_N) > 50
    assert (log_probs(stored, batch) - live[batch.target_positions_N]).abs().max() < 1e-5


def test_a_live_teacher_is_asked_in_its_own_view_alone(corpus: Corpus) -> None:
    batch = rows_at_odd_offsets(corpus, masked_view(mask_seed=1, fold=0, num_folds=3))
    with pytest.raises(InputRefused, match="teacher llama: reads causal rows .* masked ones; cache it"):
        LiveTeacher("llama", tiny.model("llama", corpus), "causal").answer(batch, CPU)


def test_a_masked_cache_refuses_other_masks_and_another_stream(corpus: Corpus, tmp_path: Path) -> None:
    stored = tiny.cached(tiny.model("elc_bert", corpus), tiny.cache_key(corpus, objective="masked"), tmp_path)
    with pytest.raises(InputRefused, match="mask_seed is 1 there and 2 here"):
        stored.answer(rows_at_odd_offsets(corpus, masked_view(mask_seed=2, fold=0, num_folds=3)))
    with pytest.raises(InputRefused, match="holds the stream 'train', not 'test'"):
        stored.answer(replace(rows_at_odd_offsets(corpus, causal_view()), stream="test"))


def test_missing_positions_are_counted_and_the_first_is_named(corpus: Corpus, tmp_path: Path) -> None:
    stored = tiny.cached(tiny.model("llama", corpus), tiny.cache_key(corpus), tmp_path)
    end, begin = len(corpus.streams["train"]), int(corpus.streams["train"].document_offsets[1])
    with pytest.raises(InputRefused, match=rf"4 of 6 positions have no record, the first is {begin};"):
        stored.features(torch.tensor([1, begin, 2, end, end + 10**6, -1]))


# interrupted, divided


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_capture_stopped_at_any_write_goes_on_to_the_same_bytes(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model("llama", corpus, num_layers=1)
    key = tiny.cache_key(corpus, stream="tune", shard_positions=64)
    operations: list[tuple[str, Path]] = []
    monkeypatch.setattr(storage, "fault", lambda operation, path: operations.append((operation, path)))
    capture(key, lambda: model, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert sum(name.startswith("features") for name in whole) > 2

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
        finished = [number for number in range(9) if (folder / f"shard-{number:05d}.json").exists()]
        before = {number: (folder / f"features-{number:05d}.npy").stat().st_mtime_ns for number in finished}

        monkeypatch.setattr(storage, "fault", lambda operation, path: None)
        capture(key, lambda: model, folder)
        assert contents(folder) == whole, f"stopped at {operations[stop]}"
        after = {number: (folder / f"features-{number:05d}.npy").stat().st_mtime_ns for number in finished}
        assert before == after, "a finished shard was made again"


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
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


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

    second = process(1, lambda: model)
    first = process(0, lambda: model)
    for written, numbers in ((second, {1, 3}), (first, {0, 2})):
        assert written[0] == "barrier", "it wrote before all had looked"
        assert {f"write features-{number:05d}.npy" for number in numbers} <= set(written)
        assert written.count("barrier") == 3 and written[-1] == "barrier"
    assert not {"write features-00000.npy", "write manifest.json"} & set(second)
    assert first.index("write manifest.json") > first.index("barrier", 1), "it committed before all had written"
    assert process(0, refuse_to_load) == ["barrier"]
    capture(key, lambda: model, tmp_path / "one")
    assert contents(folder) == contents(tmp_path / "one")


def refuse_to_load() -> Buildable:
    raise AssertionError("a finished cache needs no teacher")


# refused


def change_corpus(key: CacheKey, folder: Path) -> CacheKey:
    return replace(key, corpus=tiny.corpus(folder / "other", seed=2))


CHANGES: list[tuple[str, Callable[[CacheKey, Path], CacheKey]]] = [
    ("corpus.tokens", change_corpus),
    ("teacher", lambda key, _: replace(key, teacher="other weights")),
    ("view.mask_seed", lambda key, _: tiny.cache_key(key.corpus, objective="masked", mask_seed=2)),
    ("view.num_folds", lambda key, _: tiny.cache_key(key.corpus, objective="masked", num_folds=7)),
    ("window", lambda key, _: tiny.cache_key(key.corpus, objective="masked", window=20)),
    ("dtype", lambda key, _: tiny.cache_key(key.corpus, objective="masked", dtype="bf16")),
    ("stream", lambda key, _: replace(key, stream="tune")),
]


@pytest.mark.parametrize(("field", "change"), CHANGES, ids=[field for field, _ in CHANGES])
def test_a_cache_made_from_other_inputs_is_refused_with_the_field(
    corpus: Corpus, tmp_path: Path, field: str, change: Callable[[CacheKey, Path], CacheKey]
) -> None:
    key = tiny.cache_key(corpus, objective="masked")
    tiny.cached(tiny.model("elc_bert", corpus), key, tmp_path / "cache")
    before, other = contents(tmp_path / "cache"), change(key, tmp_path)
    for refuse in (
        lambda: capture(other, refuse_to_load, tmp_path / "cache"),
        lambda: CachedTeacher("elc", tmp_path / "cache", other.fingerprint()),
    ):
        with pytest.raises(InputRefused, match=rf"(: |; ){re.escape(field)} is .* there and .* here") as refused:
            refuse()
        assert refused.value.exit_code == 3 and "\n" not in str(refused.value)
    assert contents(tmp_path / "cache") == before


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


def test_a_damaged_shard_is_named(corpus: Corpus, tmp_path: Path) -> None:
    stored = tiny.cached(tiny.model("llama", corpus), tiny.cache_key(corpus), tmp_path / "cache")
    path = tmp_path / "cache" / "features-00001.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    stored.features(torch.tensor([1, 2]))  # the first shard is whole
    with pytest.raises(Damaged, match=re.escape(str(path))) as damaged:
        stored.features(torch.tensor([1, 512 + 40]))
    assert damaged.value.exit_code == 4
