"""An ensemble is its formula: pooled by mixture, product or power mean, in one view or across them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from corpora.batch import Objective, causal_view
from corpora.errors import InputRefused
from corpora.masking import corruption
from corpora.prepare import Corpus
from corpora.windows import plan_windows, window_batches
from distill.config import TermConfig
from distill.evaluate import member_nats, model_nats, pool_nats
from distill.losses import forward_kl
from students.head import Head
from teachers import ensemble as ensemble_module
from teachers.cache import CachedTeacher
from teachers.ensemble import Ensemble, pooled_log_probs
from teachers.pools import POOLS, normalised
from teachers.signal import FeatureSignal, Signal, row_chunks

CPU = torch.device("cpu")
ALL = slice(None)
ROWS, HIDDEN, VOCAB = 40, 8, 50
RULES = [("mixture", 0.5), ("product", 0.5), ("power", 0.0), ("power", 0.3), ("power", 0.9), ("power", 1.0)]
KL = TermConfig(loss="forward_kl")


def random_members(number: int) -> tuple[FeatureSignal, ...]:
    """Answers of teachers with heads of every kind: plain, with bias, soft-capped and scaled."""
    draw = torch.Generator().manual_seed(5)
    members = []
    for index in range(number):
        weight_VD, bias_V = torch.randn(VOCAB, HIDDEN, generator=draw), torch.randn(VOCAB, generator=draw)
        head = [Head(weight_VD), Head(weight_VD, bias_V), Head(weight_VD, bias_V, softcap=5.0, scale=0.5)][index % 3]
        members.append(FeatureSignal(torch.randn(ROWS, HIDDEN, generator=draw), head))
    return tuple(members)


def log_probs64(member: FeatureSignal, temperature: float) -> Tensor:
    return (member.logits(ALL).double() / temperature).log_softmax(-1)


def expanded(signal: Signal, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N, V] and entropies [N]."""
    found = signal.expand(ALL, temperature)
    assert found.log_weights_NK is not None and found.entropy_N is not None
    return found.log_weights_NK, found.entropy_N


# pools


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("pool", "exponent"), RULES)
def test_pools_equal_their_formulas(pool: str, exponent: float, temperature: float) -> None:
    members, weights = random_members(3), (0.2, 0.3, 0.5)
    signal = Signal(members, weights, pool, exponent)
    found = signal.pooled_log_probs(ALL, temperature)
    each = [log_probs64(member, temperature) for member in members]
    pairs = list(zip(weights, each, strict=True))
    if pool == "mixture" or exponent == 1.0:
        expected = sum(weight * log_probs.exp() for weight, log_probs in pairs).log()
    elif pool == "product" or exponent == 0.0:
        expected = sum(weight * log_probs for weight, log_probs in pairs).log_softmax(-1)
    else:
        blend = sum(weight * log_probs.exp() ** exponent for weight, log_probs in pairs) ** (1 / exponent)
        expected = (blend / blend.sum(-1, keepdim=True)).log()
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5
    assert (found.exp().sum(-1) - 1).abs().max() < 1e-5
    probs = signal.expand(ALL, temperature, log_weights=False).weights_NK
    assert (probs - expected.exp()).abs().max() < 1e-6


@pytest.mark.parametrize(("exponent", "pool"), [(0.0, "product"), (1.0, "mixture")])
def test_the_ends_of_the_power_mean_are_the_other_pools(exponent: float, pool: str) -> None:
    members, weights = random_members(3), (0.2, 0.3, 0.5)
    end, other = Signal(members, weights, "power", exponent), Signal(members, weights, pool)
    assert torch.equal(end.pooled_log_probs(ALL), other.pooled_log_probs(ALL))
    # and it comes to them without a jump
    near = Signal(members, weights, "power", abs(exponent - 1e-3)).pooled_log_probs(ALL)
    assert (near - other.pooled_log_probs(ALL)).abs().max() < 0.05


@pytest.mark.parametrize(("pool", "exponent"), RULES)
def test_a_pool_costs_no_more_than_its_members_do_on_average(pool: str, exponent: float) -> None:
    members, weights = random_members(3), (0.2, 0.3, 0.5)
    targets_N = torch.arange(ROWS) % VOCAB
    pooled_N = Signal(members, weights, pool, exponent).target_log_probs(targets_N)
    each = [weight * log_probs64(member, 1.0) for weight, member in zip(weights, members, strict=True)]
    assert (pooled_N >= sum(each)[torch.arange(ROWS), targets_N] - 1e-5).all()


@pytest.mark.parametrize(("pool", "exponent"), RULES)
def test_weight_zero_is_the_same_as_not_being_there(pool: str, exponent: float) -> None:
    members = random_members(3)
    with_zero = Signal(members, (0.4, 0.0, 0.6), pool, exponent)
    without = Signal(members[::2], (0.4, 0.6), pool, exponent)
    assert torch.equal(with_zero.pooled_log_probs(ALL), without.pooled_log_probs(ALL))
    assert torch.equal(
        with_zero.expand(ALL, log_weights=False).weights_NK, without.expand(ALL, log_weights=False).weights_NK
    )


@pytest.mark.parametrize(("pool", "exponent"), RULES)
def test_an_ensemble_of_one_is_its_member(pool: str, exponent: float) -> None:
    for member in random_members(3):
        alone = Signal((member,), (1.0,), pool, exponent).pooled_log_probs(ALL, 2.0)
        assert (alone - (member.logits(ALL) / 2).log_softmax(-1)).abs().max() < 2e-6


def test_a_fitted_temperature_divides_a_product_whose_weights_add_up_to_one() -> None:
    members, weights = random_members(3), (0.2, 0.3, 0.5)
    pairs = list(zip(weights, members, strict=True))
    for temperature in (1.0, 2.0):
        fitted = Signal(members, weights, "product", pool_temperature=0.8).pooled_log_probs(ALL, temperature)
        scaled = sum(weight / 0.8 * log_probs64(member, temperature) for weight, member in pairs)
        assert (fitted - scaled.log_softmax(-1)).abs().max() < 1e-5


def test_rows_are_expanded_one_chunk_at_a_time() -> None:
    signal = Signal(random_members(2), (0.5, 0.5))
    pieces = [signal.expand(rows).weights_NK for rows in row_chunks(ROWS, VOCAB, 7 * 4 * VOCAB)]
    assert sum(map(len, pieces)) == ROWS and {len(piece) for piece in pieces} == {6, 7}  # all about as large
    assert (torch.cat(pieces) - signal.expand(ALL).weights_NK).abs().max() < 1e-6
    assert row_chunks(0, VOCAB, 1) == [slice(0, 0)]


@pytest.mark.parametrize(("pool", "exponent"), RULES)
def test_expanded_entropy_is_that_of_the_distribution(pool: str, exponent: float) -> None:
    signal = Signal(random_members(3), (0.2, 0.3, 0.5), pool, exponent)
    log_probs, entropy_N = expanded(signal, 2.0)
    assert (entropy_N + (log_probs.double().exp() * log_probs).sum(-1)).abs().max() < 1e-5
    without_logs = signal.expand(ALL, 2.0, log_weights=False).entropy_N
    assert without_logs is not None and (without_logs - entropy_N).abs().max() < 1e-5
    assert signal.expand(ALL).kind == "dense" and not log_probs.requires_grad


def test_a_certain_teacher_has_entropy_zero_and_a_finite_divergence() -> None:
    certain = Head(torch.full((VOCAB, HIDDEN), -100.0).index_fill(0, torch.tensor([3]), 100.0))
    signal = Signal((FeatureSignal(torch.ones(2, HIDDEN), certain),), (1.0,))
    assert torch.equal(expanded(signal)[1], torch.zeros(2))
    uniform = torch.full((2, VOCAB), -math.log(VOCAB))
    assert (forward_kl(uniform, signal.expand(ALL), KL) - math.log(VOCAB)).abs().max() < 1e-5


@pytest.mark.parametrize(("pool", "exponent"), RULES)
def test_a_student_that_equals_the_pool_has_nothing_to_learn(pool: str, exponent: float) -> None:
    signal = Signal(random_members(3), (0.2, 0.3, 0.5), pool, exponent)
    assert forward_kl(expanded(signal, 2.0)[0], signal.expand(ALL, 2.0), KL).abs().max() < 2e-6


def test_autocast_costs_the_pool_less_than_a_bf16_cache_may() -> None:
    """A student that trains in bf16 hears its teachers through a bf16 product."""
    signal = Signal(random_members(3), (0.2, 0.3, 0.5))
    exact, _ = expanded(signal)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        heard, _ = expanded(signal)
    assert heard.dtype == torch.float32
    assert (exact.exp() * (exact - heard)).sum(-1).mean() < 1e-4


def test_weights_are_normalised_and_absent_members_left_out(corpus: Corpus, tmp_path: Path) -> None:
    assert normalised([1, 3]) == (0.25, 0.75)
    model = tiny.model("llama", corpus)
    members = {name: tiny.cached(model, tiny.cache_key(corpus), tmp_path / name, name) for name in "abc"}
    ensemble = Ensemble.of(members, {"c": 3.0, "a": 0.0, "b": 1.0}, "mixture")
    assert [member.name for member in ensemble.members] == ["c", "b"] and ensemble.weights == (0.75, 0.25)
    with pytest.raises(AssertionError):
        normalised([2.0, -1.0])


# live and cached


@pytest.mark.parametrize("pool", POOLS)
def test_a_live_ensemble_is_its_cached_pool(corpus: Corpus, tmp_path: Path, pool: str) -> None:
    temperature = 0.8 if pool == "product" else 1.0
    models = [tiny.model("llama", corpus), tiny.model("gptj", corpus, seed=1)]
    key = tiny.cache_key(corpus, stream="test")
    members = [tiny.cached(model, key, tmp_path / str(number)) for number, model in enumerate(models)]
    cached_pool = Ensemble(tuple(members), (0.3, 0.7), pool, 0.4, temperature)
    stream = corpus.streams["test"]
    windows = plan_windows(stream, tiny.WINDOW, objective="causal")
    ids, size = corpus.token_ids, corpus.vocab_size
    for batch in window_batches(stream, windows, causal_view(), rows=16, token_ids=ids, vocab_size=size):
        live = pooled_log_probs(
            models, cached_pool, batch.input_ids_BT, batch.segments_BT, batch.has_target_BT, causal=True
        )
        signal = cached_pool.signal(batch, CPU)
        assert (live - signal.pooled_log_probs(ALL)).abs().max() < 1e-5
        # a product's members are heard as one, and say the same apart
        assert (live - replace(signal, joined=None).pooled_log_probs(ALL)).abs().max() < 1e-5


def test_an_ensemble_with_other_weights_forgets_the_heads_of_the_old_ones(corpus: Corpus, tmp_path: Path) -> None:
    key = tiny.cache_key(corpus)
    members = [tiny.cached(tiny.model("llama", corpus, seed=seed), key, tmp_path / str(seed)) for seed in range(2)]
    ensemble = Ensemble(tuple(members), (0.5, 0.5), "product")
    stream = corpus.streams["train"]
    windows = plan_windows(stream, tiny.WINDOW, objective="causal")[:4]
    ids, size = corpus.token_ids, corpus.vocab_size
    [batch] = window_batches(stream, windows, causal_view(), rows=4, token_ids=ids, vocab_size=size)
    even = ensemble.signal(batch, CPU).pooled_log_probs(ALL)
    other = replace(ensemble, weights=(1.0, 0.0)).signal(batch, CPU).pooled_log_probs(ALL)
    alone = members[0].answer(batch).logits(ALL).log_softmax(-1)  # type: ignore[attr-defined]
    assert (other - alone).abs().max() < 1e-5 and (even - alone).abs().max() > 0.1


@pytest.mark.parametrize(("architecture", "objective"), [("gptj", "causal"), ("elc_bert", "masked")])
def test_a_teacher_costs_alone_what_its_cache_costs(
    corpus: Corpus, tmp_path: Path, architecture: str, objective: Objective
) -> None:
    """Models and pools are scored on the same targets, in the same windows and masks."""
    model, key = tiny.model(architecture, corpus), tiny.cache_key(corpus, stream="test", objective=objective)
    positions_N, nats_N = model_nats(model, corpus, "test", objective, tiny.CACHE)
    pool = Ensemble((tiny.cached(model, key, tmp_path / "cache"),), (1.0,))
    pool_positions_N, pool_nats_N = pool_nats(pool, corpus, "test")
    order = np.argsort(positions_N)
    assert np.array_equal(positions_N[order], pool_positions_N)
    assert np.abs(nats_N[order] - pool_nats_N).max() < 1e-5


def test_nats_of_a_pool_are_those_of_its_signal_whatever_the_chunks(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tiny.cache_key(corpus, stream="tune")
    members = tuple(tiny.cached(tiny.model("llama", corpus, seed=seed), key, tmp_path / str(seed)) for seed in range(2))
    pool = Ensemble(members, (0.5, 0.5))
    positions_N, nats_N = pool_nats(pool, corpus, "tune")
    monkeypatch.setattr(ensemble_module, "CHUNK_BYTES", 100 * 4 * corpus.vocab_size)
    assert np.abs(pool_nats(pool, corpus, "tune")[1] - nats_N).max() < 1e-5
    stream = corpus.streams["tune"]
    assert np.array_equal(positions_N, np.flatnonzero(stream.tokens(0, len(stream)) != corpus.token_ids.begin))
    of_members_N, nats_MN = member_nats(pool, corpus, "tune")
    assert np.array_equal(of_members_N, positions_N)
    assert np.abs(-np.log(np.exp(-nats_MN).mean(0)) - nats_N).max() < 1e-5
    alone = replace(pool, members=members[:1], weights=(1.0,))
    assert np.array_equal(pool_nats(alone, corpus, "tune")[1], nats_MN[0].astype(np.float32))


# across views


def across(corpus: Corpus, folder: Path, stream: str, **masks: Any) -> Ensemble:
    """A causal and a masked teacher in one pool."""
    members = [
        tiny.cached(
            tiny.model(architecture, corpus, seed=number),
            tiny.cache_key(corpus, stream=stream, objective=objective, **masks),
            folder / architecture,
            architecture,
        )
        for number, (architecture, objective) in enumerate((("llama", "causal"), ("elc_bert", "masked")))
    ]
    return Ensemble(tuple(members), (0.25, 0.75), "product")


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_members_of_two_views_meet_by_position(corpus: Corpus, tmp_path: Path, objective: Objective) -> None:
    ensemble = across(corpus, tmp_path, "train")
    stream = corpus.streams["train"]
    view = next(member for member in ensemble.caches if member.objective == objective).rounds[0]
    windows = plan_windows(stream, tiny.WINDOW, objective=objective)[:9]
    ids, size = corpus.token_ids, corpus.vocab_size
    [batch] = window_batches(stream, windows, view, rows=9, token_ids=ids, vocab_size=size)
    answers = [member.signal(batch.target_positions_N) for member in ensemble.caches]
    by_position = ensemble.pooled(answers).pooled_log_probs(ALL)
    assert len(by_position) > 20
    signal = ensemble.signal(batch, CPU)
    assert signal.heard_N is None and (signal.pooled_log_probs(ALL) - by_position).abs().max() < 1e-5


def test_across_views_positions_are_those_that_all_members_may_speak_of(corpus: Corpus, tmp_path: Path) -> None:
    stream = corpus.streams["test"]
    tokens = torch.from_numpy(stream.tokens(0, len(stream)))
    clean = across(corpus, tmp_path / "clean", "test")
    assert torch.equal(clean.covered_positions(), (tokens != corpus.token_ids.begin).nonzero()[:, 0])
    noisy = across(corpus, tmp_path / "noisy", "test", keep_share=0.1, random_share=0.1)
    told = torch.from_numpy(corruption(0, len(stream), noisy.caches[1].rounds[0]) > 0)
    assert 0.1 < told.double().mean() < 0.3
    expected = ((tokens != corpus.token_ids.begin) & ~told).nonzero()[:, 0]
    assert torch.equal(noisy.covered_positions(), expected)
    # alone, a masked teacher is asked about all that its own view asks
    alone = Ensemble((noisy.caches[1],), (1.0,))
    assert torch.equal(alone.covered_positions(), clean.covered_positions())
    positions_N, nats_N = pool_nats(noisy, corpus, "test")
    assert np.array_equal(positions_N, expected.numpy()) and np.isfinite(nats_N).all()


def test_members_that_never_speak_of_the_same_token_are_refused(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = tiny.cached(tiny.model("llama", corpus), tiny.cache_key(corpus), tmp_path / "cache")
    monkeypatch.setattr(CachedTeacher, "covered_positions", lambda self: torch.empty(0, dtype=torch.long))
    with pytest.raises(InputRefused, match="cache: no position about which all of them speak; give .* more text"):
        Ensemble((member,), (1.0,)).covered_positions()
