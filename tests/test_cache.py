"""A cache says what its teacher says: by position, in every view and round, and after every interruption."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corpora.batch import Batch, View, causal_view, masked_view
from corpora.errors import Damaged, InputRefused
from corpora.masking import folds
from corpora.prepare import Corpus
from corpora.rows import make_batch
from corpora.windows import plan_windows, window_batches
from students.buildable import Buildable
from teachers.cache import CachedTeacher, CacheKey
from teachers.codecs import CODECS
from teachers.layout import places
from teachers.live import LiveTeacher
from teachers.signal import Signal

CPU = torch.device("cpu")
TEACHERS = [("llama", "causal"), ("gptj", "causal"), ("elc_bert", "masked")]
NOISE = {"keep_share": 0.3, "random_share": 0.3}


def log_prob_table(model: Buildable, key: CacheKey, *, rows: int, round: int = 0) -> Tensor:
    """What the live teacher says at the cache's own windows; [positions, V], NaN where it was not asked."""
    stream, teacher = key.corpus.streams[key.stream], LiveTeacher("live", model, key.view.objective)
    table = torch.full((len(stream), key.corpus.vocab_size), torch.nan)
    windows = plan_windows(stream, key.config.window, objective=key.view.objective)
    for fold in range(key.view.num_folds):
        for batch in batches(key, windows, replace(key.rounds[round], fold=fold), rows=rows):
            assert table[batch.target_positions_N].isnan().all(), "a position was asked twice"
            table[batch.target_positions_N] = log_probs(teacher, batch)
    return table


def batches(key: CacheKey, windows: list, view: View, *, rows: int = 16):
    stream, ids = key.corpus.streams[key.stream], key.corpus.token_ids
    return window_batches(stream, windows, view, rows=rows, token_ids=ids, vocab_size=key.corpus.vocab_size)


def log_probs(teacher: CachedTeacher | LiveTeacher, batch: Batch, *, draw: int = 0) -> Tensor:
    """A teacher's answer to a batch, expanded, [N, V]."""
    return teacher.answer(batch, CPU, draw=draw).logits(slice(None)).log_softmax(-1)


def stored_log_probs(stored: CachedTeacher) -> Tensor:
    """What a cache of features says at every position that it covers, [N, V]."""
    return stored.signal(stored.covered_positions()).logits(slice(None)).log_softmax(-1)


def rows_at_odd_offsets(corpus: Corpus, view: View, *, length: int = 19) -> Batch:
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
    assert torch.equal(positions, (~live[:, 0].isnan()).nonzero()[:, 0])
    largest = (stored_log_probs(stored) - live[positions]).abs().max()
    print(f"{architecture} {objective}, fp32 features: largest difference of log-probabilities {largest:.1e}")
    assert largest < 1e-5


@pytest.mark.parametrize(("architecture", "objective"), TEACHERS)
def test_bf16_features_lose_next_to_nothing(corpus: Corpus, tmp_path: Path, architecture: str, objective: str) -> None:
    model, key = tiny.model(architecture, corpus), tiny.cache_key(corpus, objective=objective, dtype="bf16")
    stored = tiny.cached(model, key, tmp_path / "cache")
    live = log_prob_table(model, key, rows=16)[stored.covered_positions()]
    answers = stored_log_probs(stored)
    mean_kl = (live.exp() * (live - answers)).sum(-1).mean()
    largest = (answers - live)[live.exp() >= 1e-4].abs().max()
    print(f"{architecture} {objective}, bf16 features: mean KL {mean_kl:.1e}, largest difference {largest:.3f}")
    assert mean_kl <= 1e-4
    assert largest <= 0.1
    assert live.exp().max() > 0.3, "the comparison would be easy"


@pytest.mark.parametrize("codec", CODECS)
def test_a_cache_of_every_codec_knows_how_likely_the_targets_were(corpus: Corpus, tmp_path: Path, codec: str) -> None:
    model, key = tiny.model("gptj", corpus), tiny.cache_key(corpus, stream="tune", codec=codec, top_k=8, draws=5)
    stored, live = tiny.cached(model, key, tmp_path / "cache"), log_prob_table(model, key, rows=16)
    assert (stored.objective, stored.hidden_size, stored.vocab_size) == ("causal", 16, corpus.vocab_size)
    assert stored.codec.kind == stored.signal(torch.tensor([1])).kind
    assert (tmp_path / "cache" / "head.safetensors").exists() == stored.codec.needs_head
    positions = stored.covered_positions()
    stream = corpus.streams["tune"]
    targets = torch.from_numpy(stream.tokens(0, len(stream)))[positions]
    found = Signal((stored.signal(positions),), (1.0,)).target_log_probs(targets)
    assert (found - live[positions].gather(1, targets[:, None])[:, 0]).abs().max() < (0.01 if codec == "full" else 1e-5)


def test_a_teacher_may_be_read_in_bf16(corpus: Corpus, tmp_path: Path) -> None:
    model = tiny.model("llama", corpus)
    exact = tiny.cached(model, tiny.cache_key(corpus), tmp_path / "fp32")
    rounded = tiny.cached(model, tiny.cache_key(corpus, precision="bf16"), tmp_path / "bf16")
    difference = (stored_log_probs(exact) - stored_log_probs(rounded)).abs().max()
    assert 1e-4 < difference < 0.5


@pytest.mark.parametrize(("architecture", "objective"), TEACHERS[1:])
def test_every_token_but_begin_tokens_has_a_record(
    corpus: Corpus, tmp_path: Path, architecture: str, objective: str
) -> None:
    stored = tiny.cached(tiny.model(architecture, corpus), tiny.cache_key(corpus, objective=objective), tmp_path)
    stream = corpus.streams["train"]
    assert np.diff(stream.document_offsets).max() > 2 * tiny.WINDOW, "no document is longer than its windows"
    wanted = np.flatnonzero(stream.tokens(0, len(stream)) != corpus.token_ids.begin)
    assert np.array_equal(stored.covered_positions().numpy(), wanted)
    assert len(list(tmp_path.glob("records-00-*.npy"))) > 2


# where records lie

views = st.builds(
    masked_view,
    mask_seed=st.integers(0, 2**63 - 1),
    fold=st.just(0),
    num_folds=st.integers(1, 8),
    mean_span=st.floats(1, 5),
)


@given(st.one_of(views, st.just(causal_view())), st.integers(0, 500), st.integers(1, 300), st.data())
def test_what_a_fold_hides_in_a_row_is_one_range_of_places(view: View, start: int, size: int, data) -> None:
    found, fold_of = places(start, start + size, view), folds(start, start + size, view)
    assert sorted(found) == list(range(size))
    first = data.draw(st.integers(0, size - 1))
    row = slice(first, data.draw(st.integers(first + 1, size)))
    for fold in range(view.num_folds):
        hidden = found[row][fold_of[row] == fold]
        assert np.array_equal(hidden, np.arange(len(hidden)) + hidden[0]) if len(hidden) else True
    if view.objective == "causal":
        assert np.array_equal(found, np.arange(size))


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_the_file_holds_a_rows_fold_in_one_piece(corpus: Corpus, tmp_path: Path, objective: str) -> None:
    """Read without the reader: the piece of the file is what the reader says, up to the begin token inside it."""
    model, key = tiny.model("elc_bert", corpus), tiny.cache_key(corpus, objective=objective)
    stored = tiny.cached(model, key, tmp_path)
    positions = np.arange(512 + 60, 512 + 110)
    tokens = corpus.streams["train"].tokens(positions[0], positions[-1] + 1)
    hidden = positions[folds(positions[0], positions[-1] + 1, key.view) == 0]
    file = np.load(tmp_path / "records-00-00001.npy")
    place = places(512, 1024, key.view)[hidden[0] - 512]
    piece = file[place : place + len(hidden)]
    asked = tokens[hidden - positions[0]] != corpus.token_ids.begin
    assert asked.sum() > 10
    assert np.array_equal(piece[asked], stored.records(hidden[asked]))
    assert not piece["features"][~asked].any()


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_records_are_the_same_in_any_order(corpus: Corpus, tmp_path: Path, objective: str) -> None:
    stored = tiny.cached(tiny.model("elc_bert", corpus), tiny.cache_key(corpus, objective=objective), tmp_path)
    positions = stored.covered_positions().numpy()
    alone = np.concatenate([stored.records(positions[[number]]) for number in range(len(positions))])
    assert len(np.unique(alone["features"], axis=0)) > len(alone) // 2, "the comparison would be easy"
    orders = np.random.default_rng(1).permutation(len(positions)), np.arange(len(positions)), np.r_[7, 7, 5:600, 3]
    for order in orders:
        assert np.array_equal(stored.records(positions[order]), alone[order])
    assert len(stored.records(np.empty(0, np.int64))) == 0


def test_the_head_is_kept_for_each_type(corpus: Corpus, tmp_path: Path) -> None:
    stored = tiny.cached(tiny.model("gptj", corpus), tiny.cache_key(corpus, dtype="bf16"), tmp_path)
    batch = rows_at_odd_offsets(corpus, causal_view())
    heads = {dtype: stored.answer(batch, CPU, dtype=dtype).head for dtype in (torch.float32, torch.bfloat16)}
    for dtype, head in heads.items():
        assert head.weight_VD.dtype == dtype and head.bias_V.dtype == torch.float32
        assert stored.answer(batch, CPU, dtype=dtype).head.weight_VD is head.weight_VD


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


def test_every_round_is_what_the_teacher_says_under_its_masks(corpus: Corpus, tmp_path: Path) -> None:
    model, key = tiny.model("elc_bert", corpus), tiny.cache_key(corpus, objective="masked", rounds=3)
    stored = tiny.cached(model, key, tmp_path / "cache")
    assert [view.mask_seed for view in key.rounds] == list(key.config.mask_seeds)
    tables = [log_prob_table(model, key, rows=16, round=round) for round in range(3)]
    positions = stored.covered_positions()
    assert (tables[0] - tables[1])[positions].abs().max() > 0.1, "the comparison would be easy"
    causal = rows_at_odd_offsets(corpus, causal_view())
    for round, (view, table) in enumerate(zip(key.rounds, tables, strict=True)):
        masked = rows_at_odd_offsets(corpus, replace(view, fold=1))
        assert (log_probs(stored, masked, draw=7) - table[masked.target_positions_N]).abs().max() < 1e-5
        for draw in (round, round + 3):  # rows of the other view hear the rounds in turn
            assert (log_probs(stored, causal, draw=draw) - table[causal.target_positions_N]).abs().max() < 1e-5
    assert tiny.cache_key(corpus, rounds=3).rounds == (causal_view(),), "a causal view has no masks to vary"


def test_noise_is_heard_in_its_own_view_alone(corpus: Corpus, tmp_path: Path) -> None:
    """Across views the positions count whose token was replaced by the mask token when the teacher read them."""
    model, key = tiny.model("elc_bert", corpus), tiny.cache_key(corpus, objective="masked", rounds=2, **NOISE)
    stored = tiny.cached(model, key, tmp_path / "cache")
    live = log_prob_table(model, key, rows=5)[stored.covered_positions()]
    assert (stored_log_probs(stored) - live).abs().max() < 1e-5
    causal = rows_at_odd_offsets(corpus, causal_view())
    windows = plan_windows(corpus.streams["train"], tiny.WINDOW, objective="masked")
    for round, view in enumerate(key.rounds):
        masked = torch.zeros(len(corpus.streams["train"]), dtype=torch.bool)
        for fold in range(view.num_folds):
            for batch in batches(key, windows, replace(view, fold=fold)):
                read = batch.input_ids_BT[batch.has_target_BT]
                masked[batch.target_positions_N] = read == corpus.token_ids.mask
        for draw in (round, round + 2):
            heard = stored.heard(causal, draw=draw)
            assert heard is not None and torch.equal(heard, masked[causal.target_positions_N])
        assert 0.2 < masked.float().mean() < 0.6
        assert stored.heard(rows_at_odd_offsets(corpus, view), draw=round) is None
    quiet = tiny.cached(model, tiny.cache_key(corpus, objective="masked"), tmp_path / "quiet")
    assert quiet.heard(causal) is None


def test_a_live_teacher_is_asked_in_its_own_view_alone(corpus: Corpus) -> None:
    batch = rows_at_odd_offsets(corpus, masked_view(mask_seed=1, fold=0, num_folds=3))
    with pytest.raises(InputRefused, match="teacher llama: reads causal rows .* masked ones; cache it"):
        LiveTeacher("llama", tiny.model("llama", corpus), "causal").answer(batch, CPU)


def test_a_masked_cache_refuses_other_masks_and_another_stream(corpus: Corpus, tmp_path: Path) -> None:
    def key(**changes) -> CacheKey:
        return tiny.cache_key(corpus, objective="masked", stream="train", **changes)

    model = tiny.model("elc_bert", corpus)
    stored = tiny.cached(model, key(), tmp_path / "one")
    with pytest.raises(InputRefused, match="mask_seed is 1 there and 2 here"):
        stored.answer(rows_at_odd_offsets(corpus, masked_view(mask_seed=2, fold=0, num_folds=3)))
    with pytest.raises(InputRefused, match="keep_share is 0.0 there and 0.3 here"):
        stored.answer(rows_at_odd_offsets(corpus, key(**NOISE).view))
    with pytest.raises(InputRefused, match="holds the stream 'train', not 'test'"):
        stored.answer(replace(rows_at_odd_offsets(corpus, causal_view()), stream="test"))
    two = tiny.cached(model, key(rounds=2), tmp_path / "two")
    with pytest.raises(InputRefused, match=r"mask_seed is \[1, 1000004\] there and 2 here"):
        two.answer(rows_at_odd_offsets(corpus, masked_view(mask_seed=2, fold=0, num_folds=3)))
    with pytest.raises(InputRefused, match=r"view: num_folds is 3 there and 7 here;"):
        two.answer(rows_at_odd_offsets(corpus, masked_view(mask_seed=1_000_004, fold=0, num_folds=7)))


def test_missing_positions_are_counted_and_placed(corpus: Corpus, tmp_path: Path) -> None:
    stored = tiny.cached(tiny.model("llama", corpus), tiny.cache_key(corpus), tmp_path)
    offsets = corpus.streams["train"].document_offsets
    end, begin = len(corpus.streams["train"]), int(offsets[1])
    spans = rf"-1, {begin}, {end} to {end + 1}, {end + 10**6}"
    with pytest.raises(InputRefused, match=rf"5 of 7 positions have no record, the first is -1 \(in all {spans}\);"):
        stored.records(torch.tensor([1, begin, 2, end, end + 1, end + 10**6, -1]))
    with pytest.raises(InputRefused, match=rf"{len(offsets) - 1} of {end} positions have no record, the first is 0; "):
        stored.records(np.arange(end))


def test_a_damaged_shard_is_named(corpus: Corpus, tmp_path: Path) -> None:
    stored = tiny.cached(tiny.model("llama", corpus), tiny.cache_key(corpus), tmp_path / "cache")
    path = tmp_path / "cache" / "records-00-00001.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    stored.records(torch.tensor([1, 2]))  # the first shard is whole
    with pytest.raises(Damaged, match=rf"^{re.escape(str(path))}: found .*; cuvee repair {path.parent} ") as damaged:
        stored.records(torch.tensor([1, 512 + 40]))
    assert damaged.value.exit_code == 4
