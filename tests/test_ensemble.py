"""An ensemble is its formula: pooled by mixture or product, weighted as given or as the tune stream says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from scipy.optimize import minimize
from torch import Tensor

from corpora.batch import Objective, causal_view
from corpora.prepare import Corpus
from corpora.windows import plan_windows, window_batches
from distill.evaluate import member_nats, model_nats, pool_nats
from distill.losses import forward_kl
from students.head import Head
from teachers import ensemble as ensemble_module
from teachers.ensemble import Ensemble, pooled_log_probs
from teachers.signal import POOLS, MemberSignal, Signal, normalised, row_chunks
from teachers.weights import fit_mixture

CPU = torch.device("cpu")
ALL = slice(None)
ROWS, HIDDEN, VOCAB = 40, 8, 50


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny.corpus(tmp_path_factory.mktemp("corpus"))


def random_members(number: int) -> tuple[MemberSignal, ...]:
    """Answers of teachers with heads of every kind: plain, with bias, soft-capped and scaled."""
    draw = torch.Generator().manual_seed(5)
    members = []
    for index in range(number):
        weight_VD, bias_V = torch.randn(VOCAB, HIDDEN, generator=draw), torch.randn(VOCAB, generator=draw)
        head = [Head(weight_VD), Head(weight_VD, bias_V), Head(weight_VD, bias_V, softcap=5.0, scale=0.5)][index % 3]
        members.append(MemberSignal(torch.randn(ROWS, HIDDEN, generator=draw), head))
    return tuple(members)


def probs64(member: MemberSignal, temperature: float) -> Tensor:
    return (member.logits(ALL).double() / temperature).softmax(-1)


# pools


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("pool", POOLS)
def test_pools_equal_their_formulas(pool: str, temperature: float) -> None:
    members, weights = random_members(3), (0.2, 0.3, 0.5)
    found = Signal(members, weights, pool).pooled_log_probs(ALL, temperature)
    each = [probs64(member, temperature) for member in members]
    if pool == "mixture":
        expected = sum(weight * probs for weight, probs in zip(weights, each, strict=True)).log()
    else:
        blend = math.prod(probs**weight for weight, probs in zip(weights, each, strict=True))
        expected = (blend / blend.sum(-1, keepdim=True)).log()
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5
    assert (found.exp().sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("pool", POOLS)
def test_weight_zero_is_the_same_as_not_being_there(pool: str) -> None:
    members = random_members(3)
    with_zero, without = Signal(members, (0.4, 0.0, 0.6), pool), Signal(members[::2], (0.4, 0.6), pool)
    assert torch.equal(with_zero.pooled_log_probs(ALL), without.pooled_log_probs(ALL))


@pytest.mark.parametrize("pool", POOLS)
def test_an_ensemble_of_one_is_its_member(pool: str) -> None:
    for member in random_members(3):
        alone = Signal((member,), (1.0,), pool).pooled_log_probs(ALL, 2.0)
        assert (alone - (member.logits(ALL) / 2).log_softmax(-1)).abs().max() < 1e-6


def test_rows_are_expanded_one_chunk_at_a_time() -> None:
    signal = Signal(random_members(2), (0.5, 0.5))
    pieces = [signal.expand(rows).log_weights_NK for rows in row_chunks(ROWS, VOCAB, 7 * 4 * VOCAB)]
    assert [len(piece) for piece in pieces] == [7] * 5 + [5]
    assert (torch.cat(pieces) - signal.expand(ALL).log_weights_NK).abs().max() < 1e-6
    assert row_chunks(0, VOCAB, 1) == [slice(0, 0)]


def test_expanded_entropy_is_that_of_the_distribution() -> None:
    expanded = Signal(random_members(3), (0.2, 0.3, 0.5)).expand(ALL, 2.0)
    log_probs = expanded.log_weights_NK.double()
    assert (expanded.entropy_N + (log_probs.exp() * log_probs).sum(-1)).abs().max() < 1e-5
    assert expanded.kind == "dense" and not expanded.log_weights_NK.requires_grad


def test_a_certain_teacher_has_entropy_zero_and_a_finite_divergence() -> None:
    certain = Head(torch.full((VOCAB, HIDDEN), -100.0).index_fill(0, torch.tensor([3]), 100.0))
    expanded = Signal((MemberSignal(torch.ones(2, HIDDEN), certain),), (1.0,)).expand(ALL)
    assert torch.equal(expanded.entropy_N, torch.zeros(2))
    uniform = torch.full((2, VOCAB), -math.log(VOCAB))
    assert (forward_kl(uniform, expanded) - math.log(VOCAB)).abs().max() < 1e-5


@pytest.mark.parametrize("pool", POOLS)
def test_a_student_that_equals_the_pool_has_nothing_to_learn(pool: str) -> None:
    expanded = Signal(random_members(3), (0.2, 0.3, 0.5), pool).expand(ALL, 2.0)
    assert forward_kl(expanded.log_weights_NK, expanded).abs().max() < 2e-6


def test_autocast_costs_the_pool_less_than_a_bf16_cache_may() -> None:
    """A student that trains in bf16 hears its teachers through a bf16 product."""
    signal = Signal(random_members(3), (0.2, 0.3, 0.5))
    exact = signal.expand(ALL).log_weights_NK
    with torch.autocast("cpu", dtype=torch.bfloat16):
        heard = signal.expand(ALL).log_weights_NK
    assert heard.dtype == torch.float32
    assert (exact.exp() * (exact - heard)).sum(-1).mean() < 1e-4


# weights


def test_weights_are_normalised_and_absent_members_left_out(corpus: Corpus, tmp_path: Path) -> None:
    assert normalised([1, 3]) == (0.25, 0.75)
    model = tiny.model("llama", corpus)
    members = {name: tiny.cached(model, tiny.cache_key(corpus), tmp_path / name, name) for name in "abc"}
    ensemble = Ensemble.of(members, {"c": 3.0, "a": 0.0, "b": 1.0}, "mixture")
    assert [member.name for member in ensemble.members] == ["c", "b"] and ensemble.weights == (0.75, 0.25)
    with pytest.raises(AssertionError):
        normalised([2.0, -1.0])


def random_nats(members: int, targets: int = 3000, seed: int = 0) -> np.ndarray:
    """Cross-entropies of members that are each right about other targets."""
    draw = np.random.default_rng(seed)
    return draw.gamma(2.0, 1.5, targets) + draw.gamma(1.0, 1.0, (members, targets)) * draw.uniform(0.5, 2, (members, 1))


def mixture_nats(weights: Sequence[float] | np.ndarray, nats_MN: np.ndarray) -> float:
    return float(-np.log(np.asarray(weights) @ np.exp(-nats_MN)).mean())


@pytest.mark.parametrize("members", [2, 3, 5])
def test_fitted_weights_are_the_maximum_that_scipy_finds(members: int) -> None:
    nats_MN = random_nats(members)
    best = minimize(
        mixture_nats,
        np.full(members, 1 / members),
        args=(nats_MN,),
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    weights = fit_mixture(nats_MN)
    assert best.success and weights.sum() == pytest.approx(1)
    assert mixture_nats(weights, nats_MN) <= best.fun + 1e-8
    assert np.abs(weights - best.x).max() < 1e-3


def test_fitted_weights_follow_their_members_in_any_order() -> None:
    nats_MN, order = random_nats(4), [2, 0, 3, 1]
    assert np.abs(fit_mixture(nats_MN)[order] - fit_mixture(nats_MN[order])).max() < 1e-9


def test_a_mixture_is_at_least_as_good_as_every_member() -> None:
    for seed in range(10):
        nats_MN = random_nats(3, targets=200, seed=seed)
        fitted = mixture_nats(fit_mixture(nats_MN), nats_MN)
        assert all(fitted <= mixture_nats(alone, nats_MN) + 1e-8 for alone in np.eye(3))


def test_a_member_that_is_always_better_gets_all_the_weight() -> None:
    nats_MN = random_nats(3)
    nats_MN[1] = nats_MN.min(0) - 0.05
    assert fit_mixture(nats_MN)[1] > 1 - 1e-6


def test_twins_share_their_weight_and_hopeless_targets_do_no_harm() -> None:
    nats_N = random_nats(1)[0]
    assert fit_mixture(np.stack([nats_N, nats_N])) == pytest.approx([0.5, 0.5])
    hopeless = np.stack([nats_N + 2000, nats_N + 2001])  # probabilities below the smallest double
    assert fit_mixture(hopeless)[0] > 1 - 1e-6


# live and cached


@pytest.mark.parametrize("pool", POOLS)
def test_a_live_ensemble_is_its_cached_pool(corpus: Corpus, tmp_path: Path, pool: str) -> None:
    models = [tiny.model("llama", corpus), tiny.model("gptj", corpus, seed=1)]
    key = tiny.cache_key(corpus, stream="test")
    members = [tiny.cached(model, key, tmp_path / str(number)) for number, model in enumerate(models)]
    cached_pool = Ensemble(tuple(members), (0.3, 0.7), pool)
    stream = corpus.streams["test"]
    windows = plan_windows(stream, tiny.WINDOW, objective="causal")
    ids, size = corpus.token_ids, corpus.vocab_size
    for batch in window_batches(stream, windows, causal_view(), rows=16, token_ids=ids, vocab_size=size):
        live = pooled_log_probs(
            models, (0.3, 0.7), pool, batch.input_ids_BT, batch.segments_BT, batch.has_target_BT, causal=True
        )
        assert (live - cached_pool.signal(batch, CPU).pooled_log_probs(ALL)).abs().max() < 1e-5


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
    nats_MN = member_nats(members, corpus, "tune")
    assert mixture_nats((0.5, 0.5), nats_MN) == pytest.approx(float(nats_N.mean()), abs=1e-5)
    alone = replace(pool, members=members[:1], weights=(1.0,))
    assert np.array_equal(pool_nats(alone, corpus, "tune")[1], nats_MN[0].astype(np.float32))
