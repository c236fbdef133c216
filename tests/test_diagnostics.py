"""Diagnostics of an ensemble are their formulas, in float64, and keep what must hold of any members."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from corpora.prepare import Corpus
from distill.evaluate import sampled_positions, targets_at
from teachers import diagnostics
from teachers.cache import CachedTeacher
from teachers.diagnostics import calibration_error, costs, disagreement, entropy, jensen_shannon
from teachers.ensemble import Ensemble

RULES = [("mixture", 1.0), ("product", 1.0), ("product", 0.8), ("power", 1.0)]  # and a product's temperature
ALL = slice(None)


@pytest.fixture(scope="module")
def members(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[CachedTeacher, ...]:
    """Three teachers, none of which has learned anything, and all of which are sure of themselves."""
    return cached(corpus, tmp_path_factory.mktemp("caches"))


def cached(corpus: Corpus, folder: Path, **settings: Any) -> tuple[CachedTeacher, ...]:
    key = tiny.cache_key(corpus, stream="test", **settings)
    models = [("llama", 0), ("gptj", 1), ("llama", 2)]
    return tuple(
        tiny.cached(tiny.model(name, corpus, seed=seed), key, folder / str(seed), f"{name}-{seed}")
        for name, seed in models
    )


def asked(ensemble: Ensemble, corpus: Corpus) -> tuple[Tensor, Tensor]:
    positions_N = ensemble.covered_positions()
    return positions_N, targets_at(corpus, "test", positions_N)


def log_probs64(ensemble: Ensemble, positions_N: Tensor) -> Tensor:
    """[M, N, V]"""
    logits = [member.signal(positions_N).logits(ALL) for member in ensemble.caches]  # type: ignore[attr-defined]
    return torch.stack(logits).double().log_softmax(-1)


def pooled64(log_probs_MNV: Tensor, weights: Sequence[float], rule: str, temperature: float) -> Tensor:
    weights_M11 = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    if rule == "mixture":
        return (weights_M11 * log_probs_MNV.exp()).sum(0).log()
    if rule == "product":
        return ((weights_M11 * log_probs_MNV).sum(0) / temperature).log_softmax(-1)
    return (2 * (weights_M11 * (log_probs_MNV / 2).exp()).sum(0).log()).log_softmax(-1)


def mean_nats(log_probs_NV: Tensor, targets_N: Tensor) -> float:
    return -float(log_probs_NV.gather(1, targets_N[:, None]).mean())


@pytest.mark.parametrize(("rule", "temperature"), RULES)
def test_costs_are_those_of_the_formulas(
    corpus: Corpus, members: tuple[CachedTeacher, ...], rule: str, temperature: float
) -> None:
    weights = (0.5, 0.2, 0.3)
    ensemble = Ensemble(members, weights, rule, 0.5, temperature)
    positions_N, targets_N = asked(ensemble, corpus)
    log_probs_MNV = log_probs64(ensemble, positions_N)
    found = costs(ensemble, positions_N, targets_N)
    assert found.members_M == pytest.approx([mean_nats(each_NV, targets_N) for each_NV in log_probs_MNV], abs=1e-5)
    assert found.pool == pytest.approx(
        mean_nats(pooled64(log_probs_MNV, weights, rule, temperature), targets_N), abs=1e-5
    )
    for left_out in range(3):
        others = [place for place in range(3) if place != left_out]
        total = sum(weights[place] for place in others)
        rest_NV = pooled64(log_probs_MNV[others], [weights[place] / total for place in others], rule, temperature)
        assert found.without_M[left_out] == pytest.approx(mean_nats(rest_NV, targets_N), abs=1e-5)
    best_N = log_probs_MNV.gather(2, targets_N.expand(3, -1)[..., None])[..., 0].amax(0)
    assert found.oracle == pytest.approx(-float(best_N.mean()), abs=1e-5)
    assert found.oracle < min(found.members_M)
    assert rule != "mixture" or found.oracle < found.pool


@pytest.mark.parametrize("rule", ["mixture", "product", "power"])
def test_of_two_the_pool_without_one_is_the_other(
    corpus: Corpus, members: tuple[CachedTeacher, ...], rule: str
) -> None:
    ensemble = Ensemble(members[:2], (0.25, 0.75), rule)
    found = costs(ensemble, *asked(ensemble, corpus))
    assert found.without_M == pytest.approx(found.members_M[::-1], abs=1e-6)


def test_a_member_of_weight_zero_is_listed_and_changes_nothing(
    corpus: Corpus, members: tuple[CachedTeacher, ...]
) -> None:
    ensemble = Ensemble(members, (0.4, 0.0, 0.6))
    asked_N = asked(ensemble, corpus)
    found, two = costs(ensemble, *asked_N), costs(Ensemble(members[::2], (0.4, 0.6)), *asked_N)
    assert found.pool == pytest.approx(two.pool, abs=1e-9) == found.without_M[1]
    alone = costs(Ensemble(members[:2], (1.0, 0.0)), *asked_N)
    assert alone.without_M[0] is None and alone.without_M[1] == pytest.approx(alone.members_M[0], abs=1e-9)
    apart, of_two = disagreement(ensemble, *asked_N), disagreement(Ensemble(members[::2], (0.4, 0.6)), *asked_N)
    assert apart is not None and of_two is not None
    assert apart.mutual_information == pytest.approx(of_two.mutual_information, abs=1e-12)
    assert apart.pool_calibration == pytest.approx(of_two.pool_calibration, abs=1e-6)


@pytest.mark.parametrize(("rule", "temperature"), RULES)
def test_disagreement_is_that_of_the_formulas(
    corpus: Corpus, members: tuple[CachedTeacher, ...], rule: str, temperature: float
) -> None:
    weights = (0.5, 0.2, 0.3)
    ensemble = Ensemble(members, weights, rule, 0.5, temperature)
    positions_N, targets_N = asked(ensemble, corpus)
    found = disagreement(ensemble, positions_N, targets_N)
    assert found is not None and found.targets == len(positions_N)
    probs_MNV = log_probs64(ensemble, positions_N).exp().numpy()

    def entropies(probs_NV: np.ndarray) -> np.ndarray:
        return -(probs_NV * np.log(probs_NV)).sum(-1)

    mixed_NV = np.tensordot(weights, probs_MNV, 1)
    assert found.mixture_entropy == pytest.approx(entropies(mixed_NV).mean(), abs=1e-5)
    assert found.member_entropy == pytest.approx(weights @ entropies(probs_MNV).mean(-1), abs=1e-5)
    # the information that hearing the token gives about who has spoken: the mean divergence from the mixture
    apart = sum(w * (p * np.log(p / mixed_NV)).sum(-1).mean() for w, p in zip(weights, probs_MNV, strict=True))
    assert found.mutual_information == pytest.approx(apart, abs=1e-5) and apart > 0
    for one, other in itertools.product(range(3), repeat=2):
        p, q = probs_MNV[one], probs_MNV[other]
        between = (entropies((p + q) / 2) - (entropies(p) + entropies(q)) / 2).mean()
        assert found.jensen_shannon_MM[one][other] == pytest.approx(between, abs=1e-6)
        assert found.jensen_shannon_MM[one][other] == found.jensen_shannon_MM[other][one] <= np.log(2)
        same = (p.argmax(-1) == q.argmax(-1)).mean()
        assert found.agreement_MM[one][other] == pytest.approx(same) and (one != other or same == 1)
    pooled_NV = pooled64(torch.from_numpy(np.log(probs_MNV)), weights, rule, temperature).exp().numpy()
    errors = (*found.member_calibration_M, found.pool_calibration)
    for probs_NV, error in zip((*probs_MNV, pooled_NV), errors, strict=True):
        right_N = probs_NV.argmax(-1) == targets_N.numpy()
        assert error == pytest.approx(calibration_error(probs_NV.max(-1), right_N), abs=2e-3)


def test_members_that_are_one_do_not_disagree(corpus: Corpus, members: tuple[CachedTeacher, ...]) -> None:
    ensemble = Ensemble((members[0], members[0]), (0.5, 0.5))
    found = disagreement(ensemble, *asked(ensemble, corpus))
    assert found is not None
    assert abs(found.mutual_information) < 1e-12 and np.abs(found.jensen_shannon_MM).max() < 1e-12
    assert np.array_equal(found.agreement_MM, np.ones((2, 2)))
    assert found.member_calibration_M[0] == pytest.approx(found.pool_calibration, abs=1e-6)


def test_chunks_change_nothing(
    corpus: Corpus, members: tuple[CachedTeacher, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = Ensemble(members, (0.5, 0.2, 0.3), "product")
    asked_N = asked(ensemble, corpus)
    whole = costs(ensemble, *asked_N), disagreement(ensemble, *asked_N)
    monkeypatch.setattr(diagnostics, "CHUNK_BYTES", 100 * 4 * corpus.vocab_size)
    pieces = costs(ensemble, *asked_N), disagreement(ensemble, *asked_N)
    assert whole[1] is not None and pieces[1] is not None
    assert pieces[0].pool == pytest.approx(whole[0].pool, abs=1e-6)
    assert pieces[1].mutual_information == pytest.approx(whole[1].mutual_information, abs=1e-9)
    assert pieces[1].pool_calibration == pytest.approx(whole[1].pool_calibration, abs=1e-6)


@pytest.mark.parametrize("codec", ["hybrid", "sampled"])
def test_codecs_that_keep_some_tokens_give_the_same_costs_and_no_comparison(
    corpus: Corpus, members: tuple[CachedTeacher, ...], tmp_path: Path, codec: str
) -> None:
    dense = Ensemble(members, (0.5, 0.2, 0.3))
    sparse = replace(dense, members=cached(corpus, tmp_path, codec=codec, top_k=4))
    exact, found = costs(dense, *asked(dense, corpus)), costs(sparse, *asked(sparse, corpus))
    assert found.pool == pytest.approx(exact.pool, abs=1e-5)
    assert found.without_M == pytest.approx(exact.without_M, abs=1e-5)
    assert found.oracle == pytest.approx(exact.oracle, abs=1e-5)
    assert disagreement(sparse, *asked(sparse, corpus)) is None


def test_divergence_and_entropy_of_plain_distributions() -> None:
    sure = torch.tensor([[1.0, 1e-300], [1e-300, 1.0]], dtype=torch.float64).log()
    even = torch.full((2, 2), 0.5, dtype=torch.float64).log()
    assert entropy(even).tolist() == pytest.approx([np.log(2)] * 2) and entropy(sure).abs().max() < 1e-12
    assert jensen_shannon(sure, sure.flip(0)).tolist() == pytest.approx([np.log(2)] * 2)
    assert jensen_shannon(even, even).abs().max() < 1e-12
    assert torch.allclose(jensen_shannon(sure, even), jensen_shannon(even, sure))


def test_calibration_error_is_what_it_is_by_hand() -> None:
    top_N = np.array([0.9, 0.5, 0.7, 0.5, 0.9, 0.7])
    right_N = np.array([1, 0, 1, 1, 1, 0], bool)
    # bins of two by rank: probabilities (0.5, 0.5), (0.7, 0.7), (0.9, 0.9), right 1, 1 and 2 times
    assert calibration_error(top_N, right_N, bins=3) == pytest.approx((0.0 + 0.4 + 0.2) / 6)
    assert calibration_error(top_N, right_N, bins=1) == pytest.approx(abs(4 - 4.2) / 6)
    assert calibration_error(np.ones(4), np.zeros(4, bool)) == 1.0, "always sure and always wrong"


def test_a_teacher_that_means_its_probabilities_is_calibrated() -> None:
    draw = np.random.default_rng(1)
    top_N = draw.uniform(0.1, 0.9, 40_000)
    right_N = draw.uniform(size=40_000) < top_N
    assert calibration_error(top_N, right_N) < 0.012
    assert calibration_error(top_N**0.5, right_N) > 0.1


def test_a_sample_of_positions_is_seeded_and_has_none_twice() -> None:
    positions_N = torch.arange(1000) * 3
    some_N = sampled_positions(positions_N, 50, 1)
    assert len(some_N.unique()) == 50 and (some_N.diff() > 0).all() and (some_N % 3 == 0).all()
    assert torch.equal(some_N, sampled_positions(positions_N, 50, 1))
    assert not torch.equal(some_N, sampled_positions(positions_N, 50, 2))
    assert torch.equal(sampled_positions(positions_N, 4096, 1), positions_N)
