"""Every loss, through the engine, against its formula, its numerical gradient and what must hold of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distill import fused
from distill.config import ScheduleConfig, TermConfig
from distill.fused import RowTerm, weighted_loss
from distill.losses import DIVERGENCES, FEATURE_LOSSES
from distill.objective import Objective, feature_projections
from distill.schedule import scheduled_share
from students.head import Head
from teachers.codecs import CODECS
from teachers.codecs.said import Said
from teachers.config import CacheConfig
from teachers.ensemble import Ensemble
from teachers.signal import FeatureSignal, MemberSignal, Signal

ROWS, TYPES, WIDTH, TEACHER_WIDTH = 7, 12, 5, 6
TEMPERATURES = (1.0, 2.0)
CACHE = CacheConfig(dtype="fp32", top_k=4, tail_pool=8, tail_draws=4, draws=6, temperatures=TEMPERATURES)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows at a time, so that every test meets several chunks and a shorter last one."""
    monkeypatch.setattr(fused, "CHUNK_BYTES", {"cpu": 3 * 4 * TYPES})
    monkeypatch.setattr(fused, "LEAST_ROWS", 1)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


TARGETS = torch.tensor([0, 3, 11, 3, 7, 1, 2])


def student(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Features, output embedding and bias, float64, that want gradients."""
    tensors = normal(ROWS, WIDTH, seed=seed), normal(TYPES, WIDTH, seed=seed + 1), normal(TYPES, seed=seed + 2)
    return tuple(tensor.requires_grad_() for tensor in tensors)  # type: ignore[return-value]


def teacher_tensors(seed: int) -> tuple[Tensor, Head]:
    dtype = torch.float32
    head = Head(normal(TYPES, TEACHER_WIDTH, seed=seed + 1, dtype=dtype), normal(TYPES, seed=seed + 2, dtype=dtype))
    return normal(ROWS, TEACHER_WIDTH, seed=seed, dtype=dtype), head


def teacher(seed: int = 10, codec: str = "features", **changes: object) -> MemberSignal:
    """What a codec makes of a random teacher."""
    features_ND, head = teacher_tensors(seed)
    built = CODECS[codec](replace(CACHE, codec=codec, **changes), hidden_size=TEACHER_WIDTH, vocab_size=TYPES)
    positions_N = np.arange(ROWS)
    records_N = built.encode(Said(features_ND, head, TARGETS, positions_N), seed=3)
    return built.decode(records_N, head, positions_N, device=CPU, draw=0)


def row_term(signal: Signal | None, weight: float = 0.3, **fields: object) -> RowTerm:
    config = TermConfig(**({"loss": "cross_entropy"} | fields))  # type: ignore[arg-type]
    return RowTerm("term", 0, config, signal, weight)


def loss_of(tensors: tuple[Tensor, Tensor, Tensor], *terms: RowTerm, **head: float) -> tuple[Tensor, Tensor]:
    features_ND, weight_VD, bias_V = tensors
    return weighted_loss(features_ND, TARGETS, Head(weight_VD, bias_V, **head), terms)  # type: ignore[arg-type]


def probs_of(member: MemberSignal, temperature: float) -> Tensor:
    """A teacher's distribution at a temperature over the whole vocabulary, float64: sampled weights by token."""
    expanded = Signal((member,), (1.0,)).expand(slice(None), temperature)
    weights = expanded.weights_NK.double()
    if expanded.ids_NK is None:
        return weights
    return torch.zeros(ROWS, TYPES, dtype=torch.float64).scatter_add(1, expanded.ids_NK.long(), weights)


# values


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def formulas(term: TermConfig) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    beta, skew = term.beta, term.skew
    return {
        "forward_kl": kl,
        "reverse_kl": lambda p, q: kl(q, p),
        "jensen_shannon": lambda p, q: (
            beta * kl(p, beta * p + (1 - beta) * q) + (1 - beta) * kl(q, beta * p + (1 - beta) * q)
        ),
        "total_variation": lambda p, q: 0.5 * (p - q).abs().sum(-1),
        "skew_forward_kl": lambda p, q: kl(p, skew * p + (1 - skew) * q),
        "skew_reverse_kl": lambda p, q: kl(q, (1 - skew) * p + skew * q),
        "logit_mse": lambda p, q: (q.log() - p.log()).var(-1, correction=0),
    }


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("loss", DIVERGENCES)
def test_a_divergence_is_its_formula_times_the_squared_temperature(loss: str, temperature: float) -> None:
    tensors, member = student(), teacher()
    term = row_term(Signal((member,), (1.0,)), loss=loss, temperature=temperature, beta=0.3, skew=0.2)
    total, losses_XN = loss_of(tensors, term)
    features_ND, weight_VD, bias_V = (tensor.detach() for tensor in tensors)
    q = ((features_ND @ weight_VD.T + bias_V) / temperature).softmax(-1)
    expected_N = formulas(term.config)[loss](probs_of(member, temperature), q) * temperature**2
    assert (losses_XN[0] - expected_N).abs().max() < 1e-5
    assert float(total.detach()) == pytest.approx(float(expected_N.sum()) * 0.3, rel=1e-5)


def test_label_smoothing_and_z_loss_are_those_of_pytorch_and_palm_and_the_curve_shows_neither() -> None:
    tensors = student()
    plain_total, plain = loss_of(tensors, row_term(None, 1.0))
    total, losses = loss_of(tensors, row_term(None, 1.0, label_smoothing=0.2, z_loss=0.1))
    features_ND, weight_VD, bias_V = tensors
    logits = features_ND @ weight_VD.T + bias_V
    expected = functional.cross_entropy(logits, TARGETS, label_smoothing=0.2, reduction="sum")
    expected = expected + 0.1 * (logits.logsumexp(-1) ** 2).sum()
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.equal(losses, plain) and float(plain_total.detach()) == pytest.approx(float(plain.sum()), rel=1e-6)


# gradients


def terms_to_check() -> list[tuple[str, str]]:
    """Every loss with every codec whose kind it accepts."""
    return [
        (loss, codec) for loss, known in DIVERGENCES.items() for codec in CODECS if CODECS[codec].kind in known.accepts
    ]


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("loss", "codec"), terms_to_check())
def test_gradcheck(loss: str, codec: str, temperature: float, masked: bool) -> None:
    heard_N = torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool() if masked else None
    signal = Signal((teacher(codec=codec),), (1.0,), heard_N=heard_N)
    terms = (
        row_term(None, 0.5),
        row_term(signal, 0.3, loss=loss, temperature=temperature, beta=0.3, skew=0.2),
    )
    assert torch.autograd.gradcheck(lambda *tensors: loss_of(tensors, *terms)[0], student())


@pytest.mark.parametrize("head", [{"softcap": 3.0}, {"scale": 0.5}, {"softcap": 2.0, "scale": 1.5}])
@pytest.mark.parametrize("fields", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.05}])
def test_gradcheck_of_cross_entropy_and_of_every_kind_of_head(head: dict, fields: dict) -> None:
    signal = Signal((teacher(), teacher(20)), (0.4, 0.6), "power", 0.5)
    terms = (row_term(None, 0.5, **fields), row_term(signal, 0.3, loss="jensen_shannon", temperature=2.0))
    assert torch.autograd.gradcheck(lambda *tensors: loss_of(tensors, *terms, **head)[0], student())


def test_frozen_parts_get_no_gradient_and_the_others_the_same() -> None:
    terms = (row_term(None), row_term(Signal((teacher(),), (1.0,)), loss="forward_kl"))
    whole = student()
    loss_of(whole, *terms)[0].backward()
    for frozen in range(3):
        tensors = student()
        tensors[frozen].requires_grad_(False)
        loss_of(tensors, *terms)[0].backward()
        for number, (tensor, expected) in enumerate(zip(tensors, whole, strict=True)):
            assert (tensor.grad is None) if number == frozen else torch.equal(tensor.grad, expected.grad)


def test_evaluation_without_gradients_does_no_gradient_work(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = [row_term(None)]
    terms += [row_term(Signal((teacher(),), (1.0,)), loss=loss) for loss in DIVERGENCES]
    expected = loss_of(student(), *terms)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("gradient work")

    monkeypatch.setattr(fused, "_Gradients", refuse)
    monkeypatch.setattr(fused._Softmax, "gradient", refuse)
    monkeypatch.setattr(
        fused, "DIVERGENCES", {name: replace(known, slope=refuse) for name, known in DIVERGENCES.items()}
    )
    with torch.no_grad():
        found = loss_of(student(), *terms)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


# what must hold


@pytest.mark.parametrize(("loss", "codec"), terms_to_check())
def test_without_values_the_gradient_is_the_same(loss: str, codec: str) -> None:
    tensors = student()
    signal = None if loss == "cross_entropy" else Signal((teacher(codec=codec),), (1.0,))
    terms = row_term(None, 0.2, z_loss=0.1), row_term(signal, 0.5, loss=loss)
    head = Head(*tensors[1:])
    loss_with, losses_XN = weighted_loss(tensors[0], TARGETS, head, terms)
    loss_without, without_XN = weighted_loss(tensors[0], TARGETS, head, terms, values=False)
    for one, other in zip(
        torch.autograd.grad(loss_with, tensors), torch.autograd.grad(loss_without, tensors), strict=True
    ):
        assert torch.equal(one, other)
    assert torch.equal(losses_XN[0], without_XN[0])  # cross-entropy costs nothing
    assert losses_XN[1].all() and (signal is None) == bool(without_XN[1].any())


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("codec", ["features", "full", "topk"])
@pytest.mark.parametrize("loss", DIVERGENCES)
def test_a_teacher_has_nothing_to_teach_itself(loss: str, codec: str, temperature: float) -> None:
    if CODECS[codec].kind not in DIVERGENCES[loss].accepts:
        return
    features_ND, head = teacher_tensors(10)
    assert head.bias_V is not None
    tensors = [tensor.double().requires_grad_() for tensor in (features_ND, head.weight_VD, head.bias_V)]
    signal = Signal((teacher(codec=codec),), (1.0,))
    total, losses_XN = loss_of(tuple(tensors), row_term(signal, loss=loss, temperature=temperature))  # type: ignore[arg-type]
    total.backward()
    # fp16 logits and log-probabilities are off by 2^-11 of their size
    tolerance = {"features": 1e-5, "full": 5e-3, "topk": 5e-3}[codec]
    assert losses_XN.abs().max() < tolerance
    if loss != "total_variation":  # |x| has no gradient at 0
        assert all(tensor.grad.abs().max() < 10 * tolerance for tensor in tensors)


@pytest.mark.parametrize("loss", [name for name, known in DIVERGENCES.items() if "truncated" in known.accepts])
def test_all_tokens_kept_are_dense_and_fewer_see_less(loss: str) -> None:
    """Merging events never makes a divergence larger (data processing)."""

    def losses_and_gradient(codec: str, **changes: object) -> tuple[Tensor, Tensor]:
        tensors = student()
        total, losses_XN = loss_of(tensors, row_term(Signal((teacher(codec=codec, **changes),), (1.0,)), loss=loss))
        total.backward()
        return losses_XN[0], tensors[1].grad

    dense, dense_gradient = losses_and_gradient("features")
    whole, whole_gradient = losses_and_gradient("topk", top_k=TYPES)
    coarse, _ = losses_and_gradient("topk", top_k=3)
    assert (whole - dense).abs().max() < 5e-3 and (whole_gradient - dense_gradient).abs().max() < 5e-3
    assert (coarse < dense + 1e-6).all() and (coarse > -1e-6).all() and coarse.sum() < 0.95 * dense.sum()


def test_draws_teach_what_the_distribution_teaches_on_average() -> None:
    """The gradient of forward KL from draws is an unbiased estimate of the exact one."""
    features_ND, head = teacher_tensors(10)
    built = CODECS["sampled"](replace(CACHE, codec="sampled"), hidden_size=TEACHER_WIDTH, vocab_size=TYPES)
    weight_gradients = []
    for repeat in range(400):
        positions_N = np.arange(ROWS) + repeat * ROWS
        records_N = built.encode(Said(features_ND, head, TARGETS, positions_N), seed=3)
        drawn = built.decode(records_N, head, positions_N, device=CPU, draw=0)
        tensors = student()
        loss_of(tensors, row_term(Signal((drawn,), (1.0,)), loss="forward_kl"))[0].backward()
        weight_gradients.append(tensors[1].grad)
    tensors = student()
    loss_of(tensors, row_term(Signal((teacher(),), (1.0,)), loss="forward_kl"))[0].backward()
    draws = torch.stack(weight_gradients)
    errors = (draws.mean(0) - tensors[1].grad) / (draws.std(0) / len(draws) ** 0.5)
    assert errors.abs().max() < 4.5 and errors.square().mean() < 1.6


def test_rows_that_are_not_heard_say_nothing() -> None:
    heard_N = torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool()
    tensors, others = student(), student()
    loss_of(tensors, row_term(Signal((teacher(),), (1.0,), heard_N=heard_N), loss="reverse_kl"))[0].backward()
    garbled = teacher()
    assert isinstance(garbled, FeatureSignal)
    garbled = replace(garbled, features_ND=torch.where(heard_N[:, None], garbled.features_ND, 9.0))
    loss_of(others, row_term(Signal((garbled,), (1.0,), heard_N=heard_N), loss="reverse_kl"))[0].backward()
    assert all(torch.equal(tensor.grad, other.grad) for tensor, other in zip(tensors, others, strict=True))
    assert not tensors[0].grad[~heard_N].any()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_product_of_features_is_one_matrix_product(temperature: float) -> None:
    answers = (teacher(10), teacher(20))
    apart = Signal(answers, (0.3, 0.7), "product")
    ensemble = Ensemble((), (0.3, 0.7), "product")
    together = replace(apart, joined=ensemble._joined(answers, torch.float32))
    assert together.joined is not None and together.joined.features_ND.shape[1] == 2 * TEACHER_WIDTH
    for log_weights in (True, False):
        found = together.expand(slice(1, 6), temperature, log_weights=log_weights)
        expected = apart.expand(slice(1, 6), temperature)
        assert (found.weights_NK - expected.weights_NK).abs().max() < 1e-6
        assert (found.entropy_N - expected.entropy_N).abs().max() < 1e-5
    capped = replace(answers[0], head=answers[0].head._replace(softcap=5.0))  # type: ignore[arg-type]
    assert ensemble._joined((capped, answers[1]), torch.float32) is None, "a soft-cap is not linear"


def test_legacy_batchmean_is_the_loss_of_babyllama() -> None:
    """KLDivLoss(reduction="batchmean") of [B, S, V] divides by B alone: S times the mean over positions."""
    batch, length, temperature, alpha = 3, 4, 2.0, 0.5
    logits, taught = normal(batch, length, TYPES, seed=4), normal(batch, length, TYPES, seed=5)
    legacy = functional.kl_div(
        (logits / temperature).log_softmax(-1), (taught / temperature).softmax(-1), reduction="batchmean"
    )
    legacy = legacy * temperature**2 * (1 - alpha)
    head = Head(torch.eye(TYPES, dtype=torch.float64))
    member = FeatureSignal(taught.flatten(0, 1), head)
    # what step_data gives with legacy_batchmean: weight / rows, and not weight / targets
    term = row_term(Signal((member,), (1.0,)), (1 - alpha) / batch, loss="forward_kl", temperature=temperature)
    total, _ = weighted_loss(logits.flatten(0, 1), torch.zeros(batch * length, dtype=torch.long), head, (term,))
    assert float(total) == pytest.approx(float(legacy), rel=1e-6)


# features


def test_feature_losses_are_their_formulas_and_train_the_projection() -> None:
    member = teacher()
    assert isinstance(member, FeatureSignal)

    class Pool:
        members = (type("Teacher", (), {"hidden_size": TEACHER_WIDTH})(),)

    projections = feature_projections(WIDTH, {1: Pool()}, seed=5)  # type: ignore[dict-item]
    again = feature_projections(WIDTH, {1: Pool()}, seed=5)  # type: ignore[dict-item]
    objective = Objective(torch.nn.Identity(), projections)  # type: ignore[arg-type]
    features_ND = normal(ROWS, WIDTH, seed=1, dtype=torch.float32).requires_grad_()
    [projection] = projections.values()
    assert torch.equal(projection.weight, next(iter(again.values())).weight)
    projected = features_ND @ projection.weight.T
    expected = {
        "feature_mse": (projected - member.features_ND).pow(2).mean(1),
        "feature_cosine": 1 - (functional.normalize(projected) * functional.normalize(member.features_ND)).sum(1),
    }
    for loss, values_N in expected.items():
        term = replace(row_term(Signal((member,), (1.0,)), loss=loss), number=1)
        found_N = objective._feature_loss(features_ND, term)
        assert (found_N - values_N).abs().max() < 1e-6
        gradient = torch.autograd.grad(found_N.sum(), [features_ND, projection.weight])
        assert all(part.abs().sum() > 0 for part in gradient)


@pytest.mark.parametrize("loss", FEATURE_LOSSES)
def test_gradcheck_of_feature_losses(loss: str) -> None:
    members = teacher(10), teacher(20)

    class Pool:
        members = tuple(type("Teacher", (), {"hidden_size": TEACHER_WIDTH})() for _ in range(2))

    projections = feature_projections(WIDTH, {0: Pool()}, seed=5).double()  # type: ignore[dict-item]
    objective = Objective(torch.nn.Identity(), projections)  # type: ignore[arg-type]
    term = row_term(Signal(members, (0.25, 0.75)), loss=loss)
    features_ND = normal(ROWS, WIDTH, seed=7).requires_grad_()
    weights = [parameter.detach().clone().requires_grad_() for parameter in projections.parameters()]

    def losses_N(features_ND: Tensor, *weights: Tensor) -> Tensor:
        for projection, weight in zip(projections.values(), weights, strict=True):
            del projection.weight  # a parameter would be a copy, outside the graph
            projection.weight = weight
        return objective._feature_loss(features_ND, term)

    assert len(weights) == 2
    assert torch.autograd.gradcheck(losses_N, (features_ND, *weights))


# precision


@pytest.mark.parametrize("pool", ["mixture", "product"])
def test_gradients_in_bf16_are_those_in_fp32_within_its_rounding(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, types, width = 64, 300, 16
    monkeypatch.setattr(fused, "CHUNK_BYTES", {"cpu": 10 * 4 * types})  # the head's gradient is added up of 7 parts
    features_ND, weight_VD = (normal(size, width, seed=size, dtype=torch.float32) for size in (rows, types))
    targets_N = torch.arange(rows) * 3
    members = tuple(
        FeatureSignal(normal(rows, width, seed=seed), Head(normal(types, width, seed=seed + 1) * 0.5))
        for seed in (30, 40)
    )

    def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        heard = tuple(
            FeatureSignal(one.features_ND.to(dtype), one.head._replace(weight_VD=one.head.weight_VD.to(dtype)))
            for one in members
        )
        signal = Signal(heard, (0.5, 0.5), pool)
        terms = row_term(None, 1 / rows), row_term(signal, 1 / rows, loss="forward_kl", temperature=2.0)
        leaves = features_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss, _ = weighted_loss(leaves[0], targets_N, Head(leaves[1]), terms)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    exact, rounded = gradients(torch.float32), gradients(torch.bfloat16)
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.float32
        # bf16 keeps 8 bits: each number is off by up to 2 ** -9, and sums of many by less
        assert 0 < (one - other).norm() < 2**-7 * one.norm()


# schedules


def test_schedules() -> None:
    constant, linear = ScheduleConfig(), ScheduleConfig(shape="linear", start=1.0, end=0.2)
    stable = ScheduleConfig(shape="warmup_stable_decay", warmup_share=0.1, decay_share=0.2, end=0.5)
    assert [scheduled_share(step, 10, constant) for step in (0, 5, 9)] == [1, 1, 1]
    shares = [scheduled_share(step, 11, linear) for step in range(11)]
    assert shares[0] == 1.0 and shares[5] == pytest.approx(0.6) and shares[10] == pytest.approx(0.2)
    shares = [scheduled_share(step, 100, stable) for step in range(100)]
    assert 0 < shares[0] < shares[9] < 1 and shares[10:80] == [1.0] * 70
    assert shares[80] == pytest.approx(1 - 0.5 / 20) and shares[99] == pytest.approx(0.5)
    for shape in ("constant", "linear", "warmup_stable_decay"):
        assert scheduled_share(0, 1, ScheduleConfig(shape=shape, decay_share=0.0)) == 1.0
