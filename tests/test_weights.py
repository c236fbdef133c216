"""Fitted weights are the optimum that a general solver finds, on the tune stream alone; their intervals are honest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from scipy.optimize import minimize
from torch import Tensor

from corpora.errors import InputRefused
from distill import fitting
from distill.fitting import fit_pool, member_log_probs
from distill.project import Pool
from teachers.ensemble import Ensemble
from teachers.weights import (
    fit_mixture,
    fit_product,
    fitted_mixture,
    fitted_product,
    mixture_information,
    product_information,
    resampled_weights,
)

HOW = {"confidence": 0.95, "seed": 1}


def random_nats(members: int, targets: int = 3000, seed: int = 0) -> np.ndarray:
    """Cross-entropies of members that are each right about other targets."""
    draw = np.random.default_rng(seed)
    return draw.gamma(2.0, 1.5, targets) + draw.gamma(1.0, 1.0, (members, targets)) * draw.uniform(0.5, 2, (members, 1))


def mixture_nats(weights: Sequence[float] | np.ndarray, nats_MN: np.ndarray) -> float:
    return float(-np.log(np.asarray(weights) @ np.exp(-nats_MN)).mean())


def product_nats(weights: Sequence[float] | np.ndarray, log_probs_MNV: Tensor, targets_N: Tensor) -> float:
    pooled_NV = torch.tensordot(torch.as_tensor(weights, dtype=torch.float64), log_probs_MNV, 1).log_softmax(-1)
    return float(-pooled_NV.gather(1, targets_N[:, None]).mean())


def spoken(
    truth: Sequence[float], pool: str, *, documents: int, length: int = 20, types: int = 12, seed: int = 0
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Members' random distributions, tokens drawn from their pool at the true weights, and the tokens' documents."""
    draw = torch.Generator().manual_seed(seed)
    size = documents * length
    log_probs_MNV = (2 * torch.randn(len(truth), size, types, generator=draw, dtype=torch.float64)).log_softmax(-1)
    weights = torch.tensor(truth, dtype=torch.float64)
    if pool == "mixture":
        probs_NV = torch.tensordot(weights, log_probs_MNV.exp(), 1)
    else:
        probs_NV = torch.tensordot(weights, log_probs_MNV, 1).softmax(-1)
    targets_N = torch.multinomial(probs_NV, 1, generator=draw)[:, 0]
    return log_probs_MNV, targets_N, np.repeat(np.arange(documents), length)


def nats_of(log_probs_MNV: Tensor, targets_N: Tensor) -> np.ndarray:
    indices = targets_N.expand(len(log_probs_MNV), -1)[..., None]
    return -log_probs_MNV.gather(2, indices)[..., 0].numpy()


# the mixture


@pytest.mark.parametrize("members", [2, 3, 5])
def test_a_fitted_mixture_is_the_maximum_that_scipy_finds(members: int) -> None:
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


# the product


@pytest.mark.parametrize("power", [0.5, 2.0, 3.0])
def test_a_product_of_one_has_the_temperature_that_undoes_its_members(power: float) -> None:
    """Targets come exactly as often as p says; the member says p^power, made to add up to 1."""
    probs_V = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    targets_N = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
    member_NV = (power * probs_V.log()).log_softmax(-1).expand(len(targets_N), -1)
    assert fit_product(member_NV[None], targets_N) == pytest.approx([1 / power], abs=1e-5)


def test_a_fitted_product_is_the_lowest_point_of_a_grid() -> None:
    log_probs_MNV, targets_N, _ = spoken([0.7, 0.8], "product", documents=20, seed=3)
    weights = fit_product(log_probs_MNV, targets_N)
    lowest = product_nats(weights, log_probs_MNV, targets_N)
    grid = [(one, other) for one in np.linspace(0, 1.5, 16) for other in np.linspace(0, 1.5, 16)]
    costs = {point: product_nats(point, log_probs_MNV, targets_N) for point in grid}
    assert lowest <= min(costs.values())
    assert np.abs(weights - min(costs, key=costs.__getitem__)).max() < 0.1
    general = minimize(product_nats, [0.5, 0.5], args=(log_probs_MNV, targets_N), method="Nelder-Mead")
    assert lowest <= general.fun + 1e-9 and np.abs(weights - general.x).max() < 1e-3


def test_a_product_is_at_least_as_good_as_every_member_and_any_single_precision_agrees() -> None:
    for seed in range(5):
        log_probs_MNV, targets_N, _ = spoken([0.2, 0.5, 0.6], "product", documents=10, seed=seed)
        weights = fit_product(log_probs_MNV, targets_N)
        fitted = product_nats(weights, log_probs_MNV, targets_N)
        assert all(fitted <= product_nats(alone, log_probs_MNV, targets_N) + 1e-9 for alone in np.eye(3))
        assert np.abs(fit_product(log_probs_MNV.float(), targets_N) - weights).max() < 1e-3


def test_a_member_that_knows_nothing_has_no_weight() -> None:
    log_probs_MNV, targets_N, documents_N = spoken([1.0], "product", documents=30)
    misled_NV = torch.zeros_like(log_probs_MNV[0]).scatter(1, targets_N[:, None], -2.0).log_softmax(-1)
    both_MNV = torch.cat([log_probs_MNV, misled_NV[None]])
    fitted = fitted_product(["good", "misled"], both_MNV, targets_N, documents_N, **HOW)
    assert fitted.weights == {"good": 1.0, "misled": 0.0}
    assert fitted.weight_intervals is not None and fitted.weight_intervals["misled"] == (0.0, 0.0)
    with pytest.raises(InputRefused, match="no member is better than a guess"):
        fitted_product(["misled"], misled_NV[None], targets_N, documents_N, **HOW)


@pytest.mark.parametrize("pool", ["mixture", "product"])
def test_what_documents_say_is_the_derivative_of_the_cost(pool: str) -> None:
    log_probs_MNV, targets_N, documents_N = spoken([0.4, 0.6], pool, documents=5, length=7)
    weights, nats_MN = torch.tensor([0.3, 0.5], dtype=torch.float64), nats_of(log_probs_MNV, targets_N)

    def cost(weights: Tensor) -> Tensor:
        if pool == "mixture":
            return (weights.sum() - torch.log(weights @ torch.from_numpy(np.exp(-nats_MN)))).sum()
        pooled_NV = torch.tensordot(weights, log_probs_MNV, 1).log_softmax(-1)
        return -pooled_NV.gather(1, targets_N[:, None]).sum()

    says = (
        mixture_information(nats_MN, documents_N, weights.numpy())
        if pool == "mixture"
        else product_information(log_probs_MNV, targets_N, documents_N, weights.numpy())
    )
    assert np.array_equal(says.targets_D, [7] * 5)
    gradient = torch.func.grad(cost)(weights).numpy()
    hessian = torch.func.hessian(cost)(weights).numpy()
    assert np.abs(says.gradients_DM.sum(0) - gradient).max() < 1e-9
    assert np.abs(says.hessians_DMM.sum(0) - hessian).max() < 1e-9


# intervals


def refits(log_probs_MNV: Tensor, targets_N: Tensor, documents_N: np.ndarray, pool: str, times: int) -> np.ndarray:
    """What resampled documents give when everything is fitted again; sums left free."""
    draw, found = np.random.default_rng(9), []
    for _ in range(times):
        drawn = draw.integers(documents_N.max() + 1, size=documents_N.max() + 1)
        rows = np.concatenate([np.flatnonzero(documents_N == document) for document in drawn])
        chosen_MNV, chosen_N = log_probs_MNV[:, rows], targets_N[rows]
        found.append(
            fit_mixture(nats_of(chosen_MNV, chosen_N), tolerance=1e-7)
            if pool == "mixture"
            else fit_product(chosen_MNV, chosen_N)
        )
    return np.array(found)


@pytest.mark.parametrize("pool", ["mixture", "product"])
def test_one_newton_step_resamples_as_refitting_does(pool: str) -> None:
    data = log_probs_MNV, targets_N, documents_N = spoken([0.25, 0.75], pool, documents=60, seed=2)
    nats_MN = nats_of(log_probs_MNV, targets_N)
    if pool == "mixture":
        weights_M = fit_mixture(nats_MN)
        says = mixture_information(nats_MN, documents_N, weights_M)
    else:
        weights_M = fit_product(log_probs_MNV, targets_N)
        says = product_information(log_probs_MNV, targets_N, documents_N, weights_M)
    stepped = resampled_weights(weights_M, says, resamples=400, seed=1)
    again = refits(*data, pool, times=150)
    spread = again.std(0)
    assert (np.abs(stepped.mean(0) - again.mean(0)) < 0.35 * spread).all()
    assert (np.abs(stepped.std(0) / spread - 1) < 0.25).all()


@pytest.mark.parametrize(("pool", "truth"), [("mixture", [0.3, 0.7]), ("product", [0.5, 0.8])])
def test_intervals_cover_the_truth_as_often_as_they_say(pool: str, truth: list[float]) -> None:
    """Of 60 simulated corpora 57 should be covered; 51 or fewer would happen once in 200 times."""
    covered, sharpness_covered = 0, 0
    for seed in range(60):
        log_probs_MNV, targets_N, documents_N = spoken(truth, pool, documents=40, seed=seed)
        if pool == "mixture":
            fitted = fitted_mixture("ab", nats_of(log_probs_MNV, targets_N), documents_N, **HOW)
        else:
            fitted = fitted_product("ab", log_probs_MNV, targets_N, documents_N, **HOW)
            low, high = fitted.inverse_temperature_interval or (0, 0)
            sharpness_covered += low <= sum(truth) <= high
        assert fitted.weight_intervals is not None
        low, high = fitted.weight_intervals["a"]
        covered += low <= truth[0] / sum(truth) <= high
    assert covered >= 52
    assert pool == "mixture" or sharpness_covered >= 52


@pytest.mark.parametrize("pool", ["mixture", "product"])
def test_four_times_the_documents_halve_the_interval(pool: str) -> None:
    widths = []
    for documents in (50, 200):
        log_probs_MNV, targets_N, documents_N = spoken([0.4, 0.6], pool, documents=documents, seed=5)
        nats_MN = nats_of(log_probs_MNV, targets_N)
        fitted = (
            fitted_mixture("ab", nats_MN, documents_N, **HOW)
            if pool == "mixture"
            else fitted_product("ab", log_probs_MNV, targets_N, documents_N, **HOW)
        )
        assert fitted.weight_intervals is not None
        low, high = fitted.weight_intervals["a"]
        assert low < fitted.weights["a"] < high
        widths.append(high - low)
    assert 0.35 < widths[1] / widths[0] < 0.7


def test_documents_are_resampled_and_not_targets() -> None:
    """Tokens that come again inside their documents are no news, and one document alone has no interval."""
    nats_MN, documents_N = random_nats(3, targets=400), np.arange(400) // 10
    once = fitted_mixture("abc", nats_MN, documents_N, **HOW)
    again = fitted_mixture("abc", np.tile(nats_MN, 3), np.tile(documents_N, 3), **HOW)
    assert once.weight_intervals is not None and again.weight_intervals is not None
    for name in "abc":
        assert again.weight_intervals[name] == pytest.approx(once.weight_intervals[name], abs=1e-6)
    assert (once.targets, again.targets, again.documents) == (400, 1200, 40)
    alone = fitted_mixture("abc", nats_MN, np.zeros(400, int), **HOW)
    assert alone.weight_intervals is None and alone.weights == once.weights and alone.temperature == 1.0


def test_twins_have_intervals_too() -> None:
    nats_N = random_nats(1, targets=200)[0]
    fitted = fitted_mixture("ab", np.stack([nats_N, nats_N]), np.arange(200) // 5, **HOW)
    assert fitted.weight_intervals is not None
    assert fitted.weight_intervals["a"] == pytest.approx((0.5, 0.5), abs=1e-3)


# from caches


def project_of_tune(tmp_path: Path) -> SimpleNamespace:
    """A project that holds the tune stream and its caches, and nothing else that a fit could read."""
    corpus = tiny.corpus(tmp_path / "corpus")
    key = tiny.cache_key(corpus, stream="tune")
    members = {
        f"{name}.{seed}": tiny.cached(tiny.model(name, corpus, seed=seed), key, tmp_path / f"{name}{seed}", name)
        for name, seed in (("llama", 0), ("gptj", 1))
    }
    caches = {(name, "tune"): member for name, member in members.items()}
    return SimpleNamespace(
        cached=lambda name, stream: caches[name, stream],
        corpus=replace(corpus, streams={"tune": corpus.streams["tune"]}),
        recipe=SimpleNamespace(seed=1, benchmarks=SimpleNamespace(confidence=0.95)),
    )


def pool_of(project: SimpleNamespace, rule: str) -> Pool:
    return Pool(
        members=("llama.0", "gptj.1"), given=(1.0, 1.0), rule=rule, exponent=0.5, weights="fitted", objective="causal"
    )


def test_weights_are_fitted_on_the_tune_stream_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = project_of_tune(tmp_path)
    stream = project.corpus.streams["tune"]
    tokens = torch.from_numpy(stream.tokens(0, len(stream)))
    members = tuple(project.cached(name, "tune") for name in ("llama.0", "gptj.1"))
    positions_N = members[0].covered_positions()
    log_probs_MNV = member_log_probs(Ensemble(members, (0.5, 0.5)), positions_N)
    nats_MN = nats_of(log_probs_MNV, tokens[positions_N])

    mixture = fit_pool(project, pool_of(project, "mixture"))
    assert list(mixture.weights.values()) == pytest.approx(fit_mixture(nats_MN.astype(np.float64)).tolist(), abs=1e-4)
    assert mixture.targets == len(positions_N) and mixture.documents == len(stream.document_offsets) - 1

    product = fit_pool(project, pool_of(project, "product"))
    weights_M = fit_product(log_probs_MNV, tokens[positions_N])
    assert product.weights["llama.0"] == pytest.approx(weights_M[0] / weights_M.sum(), abs=1e-4)
    assert product.temperature == pytest.approx(1 / weights_M.sum(), rel=1e-4)

    # no more is read than has room, from documents all over the stream, and always the same
    monkeypatch.setattr(fitting, "FIT_BYTES", 100 * 4 * 2 * project.corpus.vocab_size)
    small = fit_pool(project, pool_of(project, "product"))
    assert small.targets == 100 and small.documents > 5 and small == fit_pool(project, pool_of(project, "product"))
