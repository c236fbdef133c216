"""The n-gram baseline is what the paper's equations say, on every context, and runs where models run."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MemoryStream
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import ngram, ngram_baseline
from benchmarks.choices import score_choices
from benchmarks.minimal_pairs import tasks_from_rows
from benchmarks.ngram import NgramModel, count_ngrams, discounts_of
from benchmarks.ngram_baseline import (
    load_ngrams,
    ngram_candidate,
    ngram_identity,
    ngram_stream_result,
    save_ngrams,
    stored_ngrams,
)
from benchmarks.protocol import PROTOCOLS
from benchmarks.request import Request
from benchmarks.scoring import Scorer
from benchmarks.scoring_tokenizer import own_tokenizer
from corpora.batch import PADDING_SEGMENT
from corpora.errors import Damaged, InputRefused
from corpora.prepare import Corpus
from corpora.storage import MANIFEST
from corpora.token_ids import TokenIds

VOCAB = 10  # 4 special tokens, 6 types
BEGIN = TokenIds().begin
TYPES = range(4, VOCAB)
A, B, C = 4, 5, 6
Documents = Sequence[Sequence[int]]

documents_of_types = st.lists(st.lists(st.sampled_from(TYPES), max_size=12), min_size=1, max_size=6).filter(any)


def _count(documents: Documents, order: int, vocab_size: int = VOCAB) -> NgramModel:
    return count_ngrams(MemoryStream(documents), order, vocab_size=vocab_size)


def _contexts(model: NgramModel, context: Sequence[int]) -> np.ndarray:
    """What a model knows of the end of one context, [1, C]."""
    ids_BT = np.array([context])
    return model.contexts(ids_BT, np.zeros_like(ids_BT))[:, -1]


def _probs(model: NgramModel, *context: int) -> np.ndarray:
    return model.probs(_contexts(model, context))[0]


def _reference(documents: Documents, order: int, vocab_size: int = VOCAB) -> Callable[[tuple[int, ...], int], float]:
    """Interpolated modified Kneser-Ney as it is written down: dictionaries of tuples and a recursion."""
    occurrences: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
    before: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for document in documents:
        tokens = (BEGIN, *document)
        for end in range(2, len(tokens) + 1):
            for length in range(1, min(order, end) + 1):
                gram = tokens[end - length : end]
                occurrences[length][gram] += 1
                if length < end:
                    before[gram].add(tokens[end - length - 1])
    following: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
    discounts = [[0.0]]
    for length in range(1, order + 1):
        for gram, number in occurrences[length].items():
            by_types = length < order and gram[0] != BEGIN
            following[gram[:-1]][gram[-1]] = len(before[gram]) if by_types else number
        counts = [count for context, all_ in following.items() if len(context) == length - 1 for count in all_.values()]
        t = [sum(count == k for count in counts) for k in range(5)]
        estimates = [0.0, 0.5, 1.0, 1.5]
        if all(t[1:]):
            y = t[1] / (t[1] + 2 * t[2])
            found = [0.0, 1 - 2 * y * t[2] / t[1], 2 - 3 * y * t[3] / t[2], 3 - 4 * y * t[4] / t[3]]
            estimates = found if min(found[1:]) > 0 else estimates
        discounts.append(estimates)

    def prob(context: tuple[int, ...], token: int) -> float:
        if token not in range(4, vocab_size):
            return 0.0
        counts = following.get(context, {})
        shorter = prob(context[1:], token) if context else 1 / (vocab_size - 4)
        if not counts:
            return shorter
        taken = {each: discounts[len(context) + 1][min(count, 3)] for each, count in counts.items()}
        own = counts[token] - taken[token] if token in counts else 0.0
        return (own + sum(taken.values()) * shorter) / sum(counts.values())

    return prob


# ---- the distributions --------------------------------------------------------------------------------------------


def test_a_bigram_model_by_hand() -> None:
    """<s> a b a c: a follows two types, b and c one each; no bigram occurs twice, so the discounts are .5, 1, 1.5."""
    model = _count([[A, B, A, C]], 2, vocab_size=7)
    assert model.discounts == [(0.5, 1.0, 1.5)] * 2
    # a: (2 - 1) / 4, b and c: (1 - .5) / 4; the discounts leave (1 + .5 + .5) / 4 to three types
    unigrams = {A: 1 / 4 + 1 / 6, B: 1 / 8 + 1 / 6, C: 1 / 8 + 1 / 6}
    special = [0, 0, 0, 0]
    np.testing.assert_allclose(model.unigrams_V, [*special, *unigrams.values()])
    # after a: b and c once each, (1 - .5) / 2, and (.5 + .5) / 2 is left
    expected = [unigrams[A] / 2, 1 / 4 + unigrams[B] / 2, 1 / 4 + unigrams[C] / 2]
    np.testing.assert_allclose(_probs(model, A), [*special, *expected], rtol=1e-6)
    # at the beginning: a, once
    expected = [1 / 2 + unigrams[A] / 2, unigrams[B] / 2, unigrams[C] / 2]
    np.testing.assert_allclose(_probs(model, BEGIN), [*special, *expected], rtol=1e-6)
    # nothing follows c
    np.testing.assert_allclose(_probs(model, C), model.unigrams_V, rtol=1e-6)


def test_three_discounts_by_hand() -> None:
    """t = 4, 2, 1, 1: Y = 4 / 8, D1 = 1 - 2 Y 2/4, D2 = 2 - 3 Y 1/2, D3 = 3 - 4 Y 1/1."""
    counts = np.array([0, 1, 1, 1, 1, 2, 2, 3, 4, 50])
    assert discounts_of(counts).tolist() == [0, 0.5, 1.25, 1]


@pytest.mark.parametrize(
    "counts",
    [[1, 1, 2, 3], [2, 3, 4], [1, 2, 3, 3, 3, 3, 3, 4], [], [9]],
    ids=["no fours", "no ones", "a discount below 0", "nothing", "large counts alone"],
)
def test_discounts_that_cannot_be_estimated_fall_back(counts: list[int]) -> None:
    assert discounts_of(np.array(counts, np.int64)).tolist() == [0, 0.5, 1, 1.5]


@settings(max_examples=150)
@given(
    documents_of_types,
    st.integers(1, 4),
    st.lists(st.sampled_from([BEGIN, *TYPES]), min_size=1, max_size=8),
    st.integers(1, 5),
)
def test_every_distribution_is_the_references(
    documents: Documents, order: int, row: list[int], sorted_at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram, "_SORTED_AT_ONCE", sorted_at_once)
        model = _count(documents, order)
    prob = _reference(documents, order)
    ids_BT = np.array([row])
    contexts_NC = model.contexts(ids_BT, np.zeros_like(ids_BT))[0]
    probs_NV = model.probs(contexts_NC)
    expected_NV = [
        [prob(tuple(row[max(end - order + 1, 0) : end]), token) for token in range(VOCAB)]
        for end in range(1, len(row) + 1)
    ]
    np.testing.assert_allclose(probs_NV, expected_NV, rtol=2e-6)
    _require_distributions(probs_NV, model)
    every_N, token_N = np.indices(probs_NV.shape).reshape(2, -1)
    direct_N = model.token_log_probs(contexts_NC[every_N], token_N)
    np.testing.assert_allclose(np.exp(direct_N), np.ravel(expected_NV), rtol=1e-12)


def _require_distributions(probs_NV: np.ndarray, model: NgramModel) -> None:
    np.testing.assert_allclose(probs_NV.sum(1, dtype=np.float64), 1, atol=1e-6)
    assert (probs_NV[:, list(model.special)] == 0).all()
    assert (np.delete(probs_NV, model.special, axis=1) > 0).all()  # every type is possible everywhere


def _chain(length: int, *, vocab_size: int, seed: int) -> list[int]:
    """Text in which a token depends on the two before it, nine times of ten."""
    draw = random.Random(seed)
    types = range(4, vocab_size)
    table = random.Random(0)
    follows = {(first, second): table.choice(types) for first in types for second in types}
    tokens = [A, B]
    while len(tokens) < length:
        tokens.append(follows[tokens[-2], tokens[-1]] if draw.random() < 0.9 else draw.choice(types))
    return tokens


def test_estimated_discounts_are_the_references() -> None:
    draw = np.random.default_rng(5)
    documents = [(4 + draw.zipf(1.4, size=40) % 60).tolist() for _ in range(40)]
    model, prob = _count(documents, 3, vocab_size=64), _reference(documents, 3, vocab_size=64)
    assert not {(0.5, 1.0, 1.5)} & set(model.discounts)
    row = [BEGIN, *documents[0], *draw.integers(4, 64, size=60).tolist()]
    ids_BT = np.array([row])
    contexts_NC = model.contexts(ids_BT, np.zeros_like(ids_BT))[0]
    probs_NV = model.probs(contexts_NC)  # more rows than are made together
    assert len(probs_NV) > ngram._ROWS_AT_ONCE
    assert (contexts_NC[:, 1] == ngram.UNKNOWN).any() and (contexts_NC[:, 1] != ngram.UNKNOWN).any()
    expected_NV = [
        [prob(tuple(row[max(end - 2, 0) : end]), token) for token in range(64)] for end in range(1, len(row) + 1)
    ]
    np.testing.assert_allclose(probs_NV, expected_NV, rtol=2e-6)
    _require_distributions(probs_NV, model)


@given(documents_of_types, st.randoms(use_true_random=False))
def test_no_ngram_crosses_documents(documents: list[list[int]], draw: random.Random) -> None:
    """So their order does not matter."""
    shuffled = draw.sample(documents, len(documents))
    first, second = _count(documents, 3), _count(shuffled, 3)
    for one, other in zip((*first.keys, *first.counts), (*second.keys, *second.counts), strict=True):
        np.testing.assert_array_equal(one, other)


def test_order_1_knows_no_context() -> None:
    model = _count([[A, A, A, B], [A]], 1)
    assert model.counts[0].tolist() == [0, 0, 0, 0, 4, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(_probs(model, B), model.unigrams_V, rtol=1e-6)
    np.testing.assert_allclose(_probs(model, BEGIN), model.unigrams_V, rtol=1e-6)


def test_a_constant_corpus() -> None:
    """All but certain of its one token, and still finite about every other type."""
    model = _count([[A] * 100_000], 5)
    contexts = _contexts(model, [A] * 5)
    log_probs_V = np.log(model.probs(contexts)[0, 4:])
    assert log_probs_V[0] > math.log(0.9999) and np.isfinite(log_probs_V).all()
    direct = model.token_log_probs(np.repeat(contexts, 6, axis=0), np.array(TYPES))
    np.testing.assert_allclose(log_probs_V, direct, rtol=1e-5, atol=1e-6)
    # few tokens go before it, so a shorter context is less sure
    assert _probs(model, B, A)[A] < 0.9


def test_documents_shorter_than_the_order() -> None:
    model = _count([[A], [B], []], 5)
    assert [len(keys) for keys in model.keys] == [2, 0, 0, 0]
    np.testing.assert_allclose(_probs(model, A, B, A, B, A), model.unigrams_V, rtol=1e-6)
    _require_distributions(model.probs(_contexts(model, [BEGIN, A, B])), model)


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(InputRefused, match="'train' holds no token to predict; add text"):
        _count([[], []], 3)
    with pytest.raises(ValueError, match="order 0; expected at least 1"):
        _count([[A]], 0)


# ---- what it learns -----------------------------------------------------------------------------------------------


def test_perplexity_falls_to_that_of_the_source() -> None:
    vocab_size = 24
    train = MemoryStream([_chain(30_000, vocab_size=vocab_size, seed=1)])
    test = MemoryStream([_chain(3_000, vocab_size=vocab_size, seed=seed) for seed in (2, 3)])
    test.document_bytes = np.array([3_000, 3_000])
    unigram, bigram, trigram = (
        ngram_stream_result(count_ngrams(train, order, vocab_size=vocab_size), test).cross_entropy
        for order in (1, 2, 3)
    )
    certain, other = 0.9 + 0.1 / 20, 0.1 / 20
    entropy = -certain * math.log(certain) - 19 * other * math.log(other)  # nats per token
    assert unigram > bigram + 0.1 and bigram > trigram + 0.1
    assert entropy - 0.05 < trigram < entropy + 0.1


def test_a_frequent_bigram_beats_an_unseen_one(corpus: Corpus) -> None:
    rows = [
        {"sentence_good": f"the cat {verb} the red ball.", "sentence_bad": f"the cat {verb} the ball red."}
        for verb in ("sees", "wants", "finds", "likes")
    ]
    for order, won in ((1, 0.0), (2, 1.0), (5, 1.0)):
        model = count_ngrams(corpus.streams["train"], order, vocab_size=corpus.vocab_size)
        result = score_choices(_scorer(model, corpus), tasks_from_rows({"order of words": rows}))
        assert result.valid and result.accuracy == won
        if order > 1:
            assert (result.tasks[0].scores[:, 0] > result.tasks[0].scores[:, 1] + 2).all()  # nats


def _scorer(model: NgramModel, corpus: Corpus) -> Scorer:
    tokenizer = own_tokenizer(corpus.tokenizer.to_json())
    return Scorer("n-gram", (ngram_candidate(model, "n-gram"),), tokenizer, PROTOCOLS["cuvee"], 2048)


# ---- where models run ---------------------------------------------------------------------------------------------


def test_the_candidate_reads_its_segment_alone() -> None:
    documents = [_chain(300, vocab_size=VOCAB, seed=3)]
    candidate = ngram_candidate(_count(documents, 3), "n-gram")
    left, right = [BEGIN, *documents[0][:7]], documents[0][20:26]
    ids_BT = torch.tensor([[*left, *right, 0, 0]])
    segments_BT = torch.tensor([[0] * len(left) + [1] * len(right) + [PADDING_SEGMENT] * 2])
    wanted_BT = segments_BT != PADDING_SEGMENT
    together = candidate.log_probs(ids_BT, segments_BT, wanted_BT)
    alone = [
        candidate.log_probs(row, torch.zeros_like(row), torch.ones_like(row, dtype=torch.bool))
        for row in (torch.tensor([left]), torch.tensor([right]))
    ]
    assert candidate.objective == "causal" and together.dtype == torch.float32
    assert torch.equal(together, torch.cat(alone))
    assert (together[:, :4] == -torch.inf).all() and together[:, 4:].isfinite().all()
    # what stands more than two tokens before has no influence
    ids_BT[0, 2] = A if ids_BT[0, 2] != A else B
    changed = candidate.log_probs(ids_BT, segments_BT, wanted_BT)
    moved_N = (changed != together).any(1)
    assert moved_N[2] and not moved_N[:2].any() and not moved_N[4:].any()


def test_scores_are_sums_of_the_direct_log_probabilities(corpus: Corpus) -> None:
    model = count_ngrams(corpus.streams["train"], 4, vocab_size=corpus.vocab_size)
    texts = ["the cat sees a warm bed.", "two apples draws.", "zzz"]
    scores = _scorer(model, corpus).scores([Request("", text) for text in texts])
    for text, score in zip(texts, scores, strict=True):
        ids_BT = np.array([[BEGIN, *corpus.tokenizer.encode(text)]])
        contexts_NC = model.contexts(ids_BT, np.zeros_like(ids_BT))[0, :-1]
        assert score == pytest.approx(model.token_log_probs(contexts_NC, ids_BT[0, 1:]).sum(), abs=1e-4)


def test_a_stream_costs_what_its_documents_cost(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    model, stream = count_ngrams(corpus.streams["train"], 3, vocab_size=corpus.vocab_size), corpus.streams["test"]
    whole = ngram_stream_result(model, stream)
    assert whole.positions_N.tolist() == sorted(set(range(len(stream))) - set(stream.document_offsets.tolist()))
    for number, (first, stop) in enumerate(zip(stream.document_offsets, stream.document_offsets[1:], strict=False)):
        ids_BT = stream.tokens(first, stop)[None]
        contexts_NC = model.contexts(ids_BT, np.zeros_like(ids_BT))[0, :-1]
        probs_N = model.probs(contexts_NC)[np.arange(len(contexts_NC)), ids_BT[0, 1:]]
        expected = -np.log(probs_N.astype(np.float64)).sum()
        assert whole.sums_D[number] == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(ngram_baseline, "_TARGETS_AT_ONCE", 17)
    np.testing.assert_array_equal(ngram_stream_result(model, stream).nats_N, whole.nats_N)


def test_tokens_of_another_vocabulary_are_refused() -> None:
    model = _count([[A, B]], 2)
    for foreign in (VOCAB, -1):
        with pytest.raises(InputRefused, match="expected 0 to 9; use the tokenizer"):
            model.contexts(np.array([[BEGIN, foreign]]), np.zeros((1, 2), np.int64))


# ---- as a folder --------------------------------------------------------------------------------------------------


def test_a_model_is_counted_once_and_found_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = count_ngrams(corpus.streams["train"], 3, vocab_size=corpus.vocab_size)
    first = stored_ngrams(corpus, tmp_path / "ngrams", order=3)
    monkeypatch.setattr(ngram, "count_ngrams", None)  # whoever counts again fails
    second = stored_ngrams(corpus, tmp_path / "ngrams", order=3)
    for model in (first, second):
        assert (model.order, model.vocab_size, model.special) == (3, corpus.vocab_size, (0, 1, 2, 3))
        for one, other in zip((*model.keys, *model.counts), (*counted.keys, *counted.counts), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    ids_BT = corpus.streams["tune"].tokens(0, 200)[None]
    contexts_NC, again_NC = (model.contexts(ids_BT, np.zeros_like(ids_BT))[0] for model in (counted, second))
    np.testing.assert_array_equal(contexts_NC, again_NC)
    np.testing.assert_array_equal(counted.probs(contexts_NC), second.probs(again_NC))


def test_a_model_of_other_counts_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    stored_ngrams(corpus, tmp_path, order=2)
    with pytest.raises(InputRefused, match="order is 2 there and 3 here"):
        stored_ngrams(corpus, tmp_path, order=3)
    with pytest.raises(InputRefused, match="stream.tokens is "):
        stored_ngrams(corpus, tmp_path, order=2, stream="tune")
    identity = ngram_identity(corpus.identity("train"), 2)
    with pytest.raises(InputRefused, match="format is 1 there and 2 here"):
        load_ngrams(tmp_path, identity | {"format": 2})


@pytest.mark.parametrize("name", ["keys-2.npy", "keys-3.npy", "counts-1.npy", "counts-3.npy"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_damage_is_seen(tmp_path: Path, name: str, damage: str) -> None:
    identity = ngram_identity({"tokens": "t", "tokenizer": "k"}, 3)
    save_ngrams(_count([_chain(200, vocab_size=VOCAB, seed=1)], 3), tmp_path, identity)
    load_ngrams(tmp_path, identity)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(data if damage == "changed" else data[:-8])
    with pytest.raises(Damaged, match=f"{name}: .*; delete .* and run the same command again"):
        load_ngrams(tmp_path, identity)


def test_an_unfinished_folder_is_no_model(tmp_path: Path) -> None:
    identity = ngram_identity({"tokens": "t", "tokenizer": "k"}, 2)
    save_ngrams(_count([[A, B]], 2), tmp_path, identity)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(Damaged, match="not finished; run the same command again"):
        load_ngrams(tmp_path, identity)
