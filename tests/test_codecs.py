"""What each codec stores and gives back, against the distributions it was made from.

Axes: N positions, D features, V vocabulary, K kept tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.config import TermConfig
from distill.fused import RowTerm, weighted_loss
from students.head import Head
from teachers.codecs import CODECS
from teachers.codecs import sparse as sparse_module
from teachers.codecs.codec import Codec
from teachers.codecs.logits import BLOCK
from teachers.codecs.said import Said
from teachers.config import CacheConfig
from teachers.signal import DenseSignal, Expanded, FeatureSignal, LogitSignal, MemberSignal, Signal, SparseSignal

V, D = 48, 8
CPU = torch.device("cpu")
TEMPERATURES = (1.0, 2.0)
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias_V": torch.linspace(-2, 2, V)},
    "softcap": {"softcap": 5.0},
    "scale": {"scale": 0.5, "bias_V": torch.linspace(1, -1, V), "softcap": 8.0},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "features bf16": {"dtype": "bf16"},
    "features int8": {"dtype": "int8"},
    "features fp32": {"dtype": "fp32"},
    "hybrid": {},
    "topk": {},
    "sampled": {},
    "full": {},
}
SPARSE = ("hybrid", "topk", "sampled")


class Teacher(Said):
    """What a teacher says about some positions, and its exact log-probabilities."""

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """Its log-probabilities in fp64, [N, V]."""
        head = self.head._replace(weight_VD=self.head.weight_VD.double())
        return (head.logits(self.features_ND.double()) / temperature).log_softmax(-1)


def teacher(head: str = "bias", *, positions: int = 40, seed: int = 0) -> Teacher:
    """A teacher with logits of about 2.5."""
    draw = torch.Generator().manual_seed(seed)
    weight_VD = torch.randn(V, D, generator=draw) * 2.5 / D**0.5
    return Teacher(
        torch.randn(positions, D, generator=draw),
        Head(weight_VD, **HEADS[head]),
        torch.randint(V, (positions,), generator=draw),
        1000 + np.random.default_rng(seed).permutation(positions),
    )


def make(name: str, **changes: Any) -> Codec:
    """A codec by its name in SETTINGS, with small settings."""
    fields: dict[str, Any] = {"top_k": 6, "tail_pool": 12, "tail_draws": 4, "draws": 10, "temperatures": TEMPERATURES}
    config = CacheConfig(codec=name.split()[0], **(fields | SETTINGS[name] | changes))  # type: ignore[arg-type]
    return CODECS[config.codec](config, hidden_size=D, vocab_size=V)


def encode(codec: Codec, said: Said, *, seed: int = 3) -> np.ndarray:
    return codec.encode(said, seed=seed)


def decode(codec: Codec, records_N: np.ndarray, said: Teacher, *, draw: int = 0) -> MemberSignal:
    head = said.head if codec.needs_head else None
    return codec.decode(records_N, head, said.positions_N, device=CPU, draw=draw)


def heard(codec: Codec, said: Teacher, *, draw: int = 0) -> SparseSignal:
    """What a student hears of a sparse codec's fresh records."""
    signal = decode(codec, encode(codec, said), said, draw=draw)
    assert isinstance(signal, SparseSignal)
    return signal


def dense(codec: Codec, said: Teacher) -> DenseSignal:
    """What a student hears of a dense codec's fresh records."""
    signal = decode(codec, encode(codec, said), said)
    assert isinstance(signal, DenseSignal)
    return signal


def differences(codec: Codec, records_N: np.ndarray, said: Teacher, *, seed: int = 3) -> np.ndarray:
    return codec.differences(records_N, said, seed=seed)


def densified(expanded: Expanded) -> Tensor:
    """Weight of every token, fp64 [N, V]."""
    assert expanded.ids_NK is not None
    weights_NK = expanded.weights_NK.double()
    return weights_NK.new_zeros(len(weights_NK), V).scatter_add(1, expanded.ids_NK, weights_NK)


def half_rounding(log_probs_NK: Tensor) -> Tensor:
    """The most by which fp16 rounds."""
    return log_probs_NK.abs() * 2.0**-11 + 2.0**-25


def forward_kl(signal: MemberSignal, said: Teacher, temperature: float) -> tuple[Tensor, Tensor]:
    """A student's loss of each row and the gradient in its features, as training has them."""
    student = teacher(positions=len(said.targets_N), seed=77)
    features_ND = student.features_ND.requires_grad_()
    config = TermConfig(loss="forward_kl", members={"a": 1.0}, temperature=temperature)
    term = RowTerm("causal/forward_kl", 0, config, Signal((signal,), (1.0,)), 1.0)
    loss, losses_XN = weighted_loss(features_ND, said.targets_N, student.head, [term])
    loss.backward()
    assert features_ND.grad is not None
    return losses_XN[0], features_ND.grad


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("features bf16", 2048),
        ("features int8", 1028),
        ("features fp32", 4096),
        ("full", 32_000),
        ("hybrid", 268),
        ("topk", 140),
        ("sampled", 108),
    ],
)
def test_record_sizes(name: str, size: int) -> None:
    """Bytes of a position with the default settings at V = 16,000 and D = 1,024."""
    config = CacheConfig(codec=name.split()[0], **SETTINGS[name])  # type: ignore[arg-type]
    assert CODECS[config.codec](config, hidden_size=1024, vocab_size=16_000).record.itemsize == size


@pytest.mark.parametrize("name", SETTINGS)
def test_bytes_depend_on_the_position_alone(name: str) -> None:
    codec, said = make(name), teacher(positions=2 * BLOCK + 11)
    whole_N = encode(codec, said)
    assert whole_N.dtype == codec.record and len(whole_N) == len(said.targets_N)
    assert encode(codec, said).tobytes() == whole_N.tobytes()
    order = np.random.default_rng(5).permutation(len(whole_N))
    for size in (1, 7, BLOCK + 1, len(order)):
        for rows in np.split(order, range(size, len(order), size))[:20]:
            assert encode(codec, said.at(rows)).tobytes() == whole_N[rows].tobytes()


@pytest.mark.parametrize("name", SETTINGS)
def test_bytes_depend_on_the_named_settings_alone(name: str) -> None:
    """What a codec does not name, the fingerprint does not see."""
    said, codec = teacher(), make(name)
    changes = {
        "dtype": "fp32",
        "top_k": 5,
        "tail_pool": 8,
        "tail_draws": 3,
        "draws": 9,
        "temperatures": (1.0, 3.0),
    }
    records_N = encode(codec, said)
    for field, value in changes.items():
        if getattr(codec.config, field) != value:
            same = encode(make(name, **{field: value}), said).tobytes() == records_N.tobytes()
            assert same == (field not in codec.settings), field


@pytest.mark.parametrize("name", ["hybrid", "sampled"])
def test_another_seed_draws_other_tokens(name: str) -> None:
    codec, said = make(name), teacher()
    assert encode(codec, said, seed=4).tobytes() != encode(codec, said, seed=3).tobytes()


@pytest.mark.parametrize("head", HEADS)
def test_features_are_exact_up_to_their_type(head: str) -> None:
    said = teacher(head)
    errors = {}
    for dtype in ("fp32", "bf16", "int8"):
        signal = dense(make(f"features {dtype}"), said)
        assert isinstance(signal, FeatureSignal)
        delta_ND = (signal.features_ND.float() - said.features_ND).abs()
        largest_N1 = said.features_ND.abs().amax(1, keepdim=True)
        bound_ND = {
            "fp32": torch.zeros_like(delta_ND),
            "bf16": said.features_ND.abs() * 2.0**-8,
            "int8": (largest_N1 / 254 * (1 + 1e-5)).expand(delta_ND.shape),
        }[dtype]
        assert (delta_ND <= bound_ND).all()
        errors[dtype] = (signal.logits(slice(None)).log_softmax(-1) - said.log_probs()).abs().mean()
    assert errors["fp32"] < 1e-5 < errors["bf16"] < errors["int8"] < 0.05


def test_a_vector_of_zeros_survives_int8() -> None:
    said = replace(teacher(), features_ND=torch.zeros(40, D))
    signal = dense(make("features int8"), said)
    assert isinstance(signal, FeatureSignal) and (signal.features_ND == 0).all()


@pytest.mark.parametrize("head", HEADS)
def test_full_is_exact_up_to_half_precision(head: str) -> None:
    said = teacher(head)
    logits_NV = dense(make("full"), said).logits(slice(None))
    shifted_NV = said.log_probs() - said.log_probs().amax(-1, keepdim=True)
    assert ((logits_NV - shifted_NV).abs() <= half_rounding(shifted_NV) + 1e-5).all()
    assert (logits_NV.amax(-1) == 0).all()


@pytest.mark.parametrize(("name", "field"), [("full", "logits"), ("topk", "log_probs")])
def test_logits_beyond_half_precision_stay_finite(name: str, field: str) -> None:
    said = teacher("plain")
    said = replace(said, features_ND=said.features_ND * 1e5)
    records_N = encode(make(name, top_k=V), said)
    assert np.isfinite(records_N[field]).all() and records_N[field].min() == -65504
    signal = decode(make(name, top_k=V), records_N, said)
    for temperature in TEMPERATURES:
        losses_N, gradient_ND = forward_kl(signal, said, temperature)
        assert losses_N.isfinite().all() and gradient_ND.isfinite().all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", SPARSE)
def test_entropy_and_target_are_exact(name: str, head: str) -> None:
    said = teacher(head)
    signal = heard(make(name), said)
    target_N = said.log_probs().gather(1, said.targets_N[:, None])[:, 0]
    torch.testing.assert_close(signal.target_log_probs_N, target_N.float(), atol=1e-5, rtol=0)
    for temperature in TEMPERATURES:
        log_probs_NV = said.log_probs(temperature)
        entropy_N = -(log_probs_NV.exp() * log_probs_NV).sum(-1)
        found_N = signal.at[temperature].entropy_N
        torch.testing.assert_close(found_N, entropy_N.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", HEADS)
def test_topk_keeps_the_likeliest_and_the_mass_of_the_others(head: str) -> None:
    said = teacher(head)
    signal = heard(make("topk"), said)
    for temperature in TEMPERATURES:
        found, log_probs_NV = signal.at[temperature], said.log_probs(temperature)
        assert found.ids_NK is not None and found.log_weights_NK is not None and found.log_outside_N is not None
        kept_NK = log_probs_NV.topk(6).values
        torch.testing.assert_close(log_probs_NV.gather(1, found.ids_NK), kept_NK, atol=1e-5, rtol=0)
        # rounded once itself, and once by way of the normaliser
        bound_N1 = 2 * half_rounding(said.log_probs().gather(1, found.ids_NK)).amax(1, keepdim=True) / temperature
        assert ((found.log_weights_NK - kept_NK).abs() <= bound_N1 + 1e-5).all()
        outside_N = log_probs_NV.scatter(1, found.ids_NK, -torch.inf).logsumexp(-1)
        torch.testing.assert_close(found.log_outside_N, outside_N.float(), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.weights_NK, found.log_weights_NK.exp())
        mass_N = found.weights_NK.double().sum(-1) + found.log_outside_N.double().exp()
        torch.testing.assert_close(mass_N, torch.ones_like(mass_N), atol=1e-6, rtol=0)


def test_a_tail_far_below_the_top_keeps_its_mass_and_its_shape() -> None:
    """e^-150 of the mass: 1 - kept mass is 0 in any precision, and exp(log p) in fp32."""
    said = teacher(positions=300)
    said = replace(said, head=said.head._replace(bias_V=torch.tensor([150.0] * 6 + [0.0] * (V - 6))))
    log_probs_NV = said.log_probs()
    log_tail_N = log_probs_NV[:, 6:].logsumexp(-1)
    assert log_tail_N.max() < -110
    outside_N = heard(make("topk"), said).at[1.0].log_outside_N
    torch.testing.assert_close(outside_N, log_tail_N.float(), atol=1e-4, rtol=0)
    pool_NP = torch.from_numpy(encode(make("hybrid", tail_pool=100), said)["pool"][:, 0].astype(np.int64))
    count_V = torch.bincount(pool_NP.flatten(), minlength=V)
    expected_NV = (log_probs_NV[:, 6:] - log_tail_N[:, None]).exp()
    error_V = (100 * expected_NV * (1 - expected_NV)).sum(0).sqrt()
    assert (count_V[:6] == 0).all()
    assert ((count_V[6:] - 100 * expected_NV.sum(0)) / error_V).abs().max() < 4


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["topk", "hybrid"])
@pytest.mark.parametrize("top_k", [V, V + 9])
def test_all_tokens_kept_is_dense(name: str, head: str, temperature: float, top_k: int) -> None:
    """The loss and its gradient are those of the stored numbers as logits, and the teacher's up to their rounding."""
    said, codec = teacher(head), make(name, top_k=top_k)
    records_N = encode(codec, said)
    signal = heard(codec, said)
    found = signal.at[temperature]
    assert found.log_outside_N is None and found.weights_NK.shape == (40, V)
    losses_N, gradient_ND = forward_kl(signal, said, temperature)
    stored_NV = np.empty((40, V), np.float16)
    np.put_along_axis(stored_NV, records_N["ids"].astype(np.int64), records_N["log_probs"], 1)
    stored_N, stored_ND = forward_kl(LogitSignal(torch.from_numpy(stored_NV)), said, temperature)
    exact_N, exact_ND = forward_kl(FeatureSignal(said.features_ND, said.head), said, temperature)
    torch.testing.assert_close(gradient_ND, stored_ND, atol=1e-5, rtol=1e-5)
    if name == "topk":  # `hybrid` has the entropy before rounding
        torch.testing.assert_close(losses_N, stored_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses_N, exact_N, atol=5e-3 * temperature**2, rtol=0)
    assert (gradient_ND - exact_ND).norm() < 2e-3 * exact_ND.norm()


@pytest.mark.parametrize("name", ["hybrid", "sampled"])
@pytest.mark.parametrize("seed", range(3))
def test_draws_are_unbiased(name: str, seed: int) -> None:
    """Weights over many positions that share one distribution, and over the visits that hear each draw once."""
    positions, visits, codec = 3000, 3, make(name)
    one = teacher("scale", positions=1, seed=seed)  # no token so rare that its count is not about normal
    said = replace(
        one,
        features_ND=one.features_ND.expand(positions, D),
        targets_N=one.targets_N.expand(positions),
        positions_N=np.arange(positions),
    )
    records_N = encode(codec, said, seed=seed)
    for temperature in TEMPERATURES:
        total_V = torch.zeros(V, dtype=torch.float64)
        for draw in range(visits):
            signal = decode(codec, records_N, said, draw=draw)
            assert isinstance(signal, SparseSignal)
            total_V += densified(signal.at[temperature]).mean(0)
        mean_V, probs_V = total_V / visits, one.log_probs(temperature)[0].exp()
        drawn_V = torch.ones(V, dtype=torch.bool)
        if name == "hybrid":
            kept_K = one.log_probs()[0].topk(6).indices
            drawn_V[kept_K] = False
            torch.testing.assert_close(mean_V[kept_K], probs_V[kept_K], rtol=8e-3, atol=0)  # of fp16
        share_V = probs_V / probs_V[drawn_V].sum()
        draws = positions * (visits * 4 if name == "hybrid" else 10)
        error_V = probs_V[drawn_V].sum() * (share_V * (1 - share_V) / draws).sqrt()
        z_V = ((mean_V - probs_V) / error_V)[drawn_V]
        # of 48 normal numbers, one beyond 4 comes once in 330 times; together their squares are about their number
        assert z_V.abs().max() < 4 and 0.5 < z_V.square().mean() < 2


@pytest.mark.parametrize("name", ["hybrid", "sampled"])
def test_draws_of_a_position_are_its_own(name: str) -> None:
    """Among positions that share a distribution, and among temperatures and draws, no draw is heard twice over."""
    one, count = teacher(positions=1), 400
    said = replace(
        one,
        features_ND=torch.zeros(count, D),
        head=Head(torch.zeros(V, D)),  # all tokens are equally likely at every temperature
        targets_N=one.targets_N.expand(count),
        positions_N=np.arange(count),
    )
    drawn_NCR = encode(make(name), said)["pool" if name == "hybrid" else "drawn"]
    flat = drawn_NCR.reshape(count, -1).astype(np.float64)
    agreement = [(flat[:, first] == flat[:, second]).mean() for first in range(20) for second in range(first)]
    neighbours = [(flat[1:, column] == flat[:-1, column]).mean() for column in range(20)]
    chance = 1 / (V - 6 if name == "hybrid" else V)
    error = math.sqrt(chance / count)
    assert max(agreement) < chance + 5 * error and max(neighbours) < chance + 5 * error


def test_hybrid_weights_add_up_to_one() -> None:
    said = teacher()
    for draw in range(4):
        for expanded in heard(make("hybrid"), said, draw=draw).at.values():
            assert expanded.ids_NK is not None and expanded.ids_NK.shape == (40, 6 + 4)
            mass_N = densified(expanded).sum(-1)
            torch.testing.assert_close(mass_N, torch.ones_like(mass_N), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("pool", "draws"), [(12, 4), (10, 4), (5, 5), (7, 1)])
def test_visits_hear_the_pool_in_turn(pool: int, draws: int) -> None:
    """Visits in a row hear other draws until the pool is used up, and all of it before the next time round."""
    codec, said = make("hybrid", tail_pool=pool, tail_draws=draws), teacher()
    records_N = encode(codec, said)
    records_N["pool"] = np.arange(pool)  # each draw can be told from the others
    turns = math.ceil(pool / draws)

    def heard_at(draw: int) -> np.ndarray:
        signal = decode(codec, records_N, said, draw=draw)
        assert isinstance(signal, SparseSignal)
        ids_NK = signal.at[2.0].ids_NK
        assert ids_NK is not None
        return ids_NK[:, 6:].numpy()

    for lap in range(3):
        visits = [heard_at(lap * turns + turn) for turn in range(turns)]
        assert all(set(row) == set(range(pool)) for row in np.concatenate(visits, 1).tolist())
        disjoint = np.concatenate(visits[: pool // draws], 1)
        assert all(len(set(row)) == len(row) for row in disjoint.tolist())
    np.testing.assert_array_equal(heard_at(2), heard_at(2))
    if draws < pool:  # where a position starts is its own, and another one the next time round
        starts = np.stack([heard_at(lap * turns)[:, 0] for lap in range(8)])
        assert len(np.unique(starts)) == pool
        assert (starts != starts[0]).any(0).mean() > 0.9 and (starts != starts[:, :1]).any()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
@pytest.mark.parametrize("name", ["hybrid", "sampled"])
def test_draws_at_the_edge_of_the_uniforms(name: str, uniform: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and the largest uniform draw the first and the last token that has a weight."""
    monkeypatch.setattr(sparse_module, "uniforms", lambda key, places: np.full(places.shape, uniform))
    said = teacher("plain", positions=200)
    bias_V = torch.zeros(V)
    bias_V[[0, 1, 2, V - 3, V - 2, V - 1]] = 30.0  # the likeliest stand at both ends
    said = replace(said, head=said.head._replace(bias_V=bias_V))
    drawn_NCR = encode(make(name), said)["pool" if name == "hybrid" else "drawn"]
    ends = (3, V - 4) if name == "hybrid" else (0, V - 1)
    assert (drawn_NCR == ends[0 if uniform == 0.0 else 1]).all()


def test_ids_beyond_sixteen_bits() -> None:
    vocab_size = 70_000
    weight_VD = torch.zeros(vocab_size, 2)
    weight_VD[-3:] = 50.0
    for name, field in (("topk", "ids"), ("sampled", "drawn")):
        codec = CODECS[name](CacheConfig(top_k=3, draws=4), hidden_size=2, vocab_size=vocab_size)
        records_N = codec.encode(Said(torch.ones(2, 2), Head(weight_VD), torch.tensor([1, 2]), np.arange(2)), seed=1)
        assert records_N[field].min() >= vocab_size - 3
        signal = codec.decode(records_N, None, np.arange(2), device=CPU, draw=0)
        assert isinstance(signal, SparseSignal)
        ids_NK = signal.at[1.0].ids_NK
        assert ids_NK is not None and int(ids_NK.min()) >= vocab_size - 3


@pytest.mark.parametrize("name", ["hybrid", "sampled"])
def test_two_members_draws_side_by_side_are_those_of_their_mixture(name: str) -> None:
    """Tokens that each heard keep their weights, and the targets are known exactly."""
    first, second = teacher(seed=1), teacher(seed=2)
    signals = (heard(make(name), first), heard(make(name), second))
    pool = Signal(signals, (0.25, 0.75))
    expanded = pool.expand(slice(None), 2.0)
    mixed_NV = 0.25 * densified(signals[0].at[2.0]) + 0.75 * densified(signals[1].at[2.0])
    torch.testing.assert_close(densified(expanded), mixed_NV)
    target_N = pool.target_log_probs(first.targets_N)
    known = [signal.target_log_probs_N.double().exp() for signal in signals]
    torch.testing.assert_close(target_N, (0.25 * known[0] + 0.75 * known[1]).log().float())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", SETTINGS)
def test_fresh_records_differ_by_their_rounding(name: str, head: str) -> None:
    codec, said = make(name), teacher(head, positions=BLOCK + 9)
    bound = {"features fp32": 1e-5, "features bf16": 0.05, "features int8": 0.15, "sampled": 1e-5}.get(name, 0.02)
    found_N = differences(codec, encode(codec, said), said)
    assert found_N.shape == (BLOCK + 9,) and found_N.max() < bound
    assert codec.difference_unit


@pytest.mark.parametrize("name", SETTINGS)
def test_differences_show_another_teacher(name: str) -> None:
    codec, said, other = make(name), teacher(), teacher(seed=9)
    found_N = differences(codec, encode(codec, other), said)
    assert found_N.min() > 0.1


def test_all_tokens_kept_has_no_draws_to_compare() -> None:
    codec, said = make("hybrid", top_k=V), teacher()
    assert differences(codec, encode(codec, said), said).max() < 0.02


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *[(name, field) for name in SPARSE for field in ("target_log_prob", "entropy")],
        *[(name, field) for name in ("topk", "hybrid") for field in ("ids", "log_probs", "log_tail")],
        ("hybrid", "pool"),
        ("sampled", "drawn"),
        ("full", "logits"),
        ("features bf16", "features"),
        ("features int8", "features"),
        ("features int8", "scale"),
        ("features fp32", "features"),
    ],
)
def test_differences_name_the_tampered_record(name: str, field: str) -> None:
    """Whatever field of a record is replaced, that record and no other is far off."""
    codec, said = make(name), teacher()
    records_N = encode(codec, said)
    changed = records_N[field][7:8]
    records_N[field][7:8] = (changed + 1) % V if changed.dtype.kind == "u" and field != "features" else changed / 2
    found_N = differences(codec, records_N, said)
    assert found_N[7] > 0.15 and np.delete(found_N, 7).max() < 0.15


@pytest.mark.parametrize("name", ["features fp32", "full", "topk", "hybrid", "sampled"])
def test_a_record_that_is_not_a_number_is_not_passed_over(name: str) -> None:
    codec, said = make(name), teacher()
    records_N = encode(codec, said)
    for field in records_N.dtype.names or ():
        if records_N[field].dtype.kind == "f":
            bad_N = records_N.copy()
            bad_N[field][3] = np.nan
            found_N = differences(codec, bad_N, said)
            assert not np.isfinite(found_N[3]) and np.isfinite(np.delete(found_N, 3)).all()
