"""What a run gets out of its machine: tokens per second, its share of the rate of matrix products, and memory."""

from __future__ import annotations

import mmap
from types import SimpleNamespace

import pytest
import torch

from distill import throughput
from distill.throughput import Meter, comparable_rate, matmul_rate, resident_bytes

CPU = torch.device("cpu")


def test_the_meter_looks_back_half_a_minute() -> None:
    meter = Meter(flops_per_token=6.0, rate=24_000.0)
    assert meter.tokens_per_second == 0
    meter.add(100_000, 100.0)
    assert meter.tokens_per_second == 1000 and meter.share == 6.0 * 1000 / 24_000
    for _ in range(3):
        meter.add(1000, 10.0)
    assert meter.tokens_per_second == pytest.approx(100), "what is older is forgotten"
    meter.add(4000, 10.0)
    assert meter.tokens_per_second == pytest.approx(6000 / 30)
    assert Meter(rate=1.0).share is None and Meter(flops_per_token=1.0).share is None


def test_a_share_that_cannot_be_is_told_once_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(flops_per_token=10.0, rate=1000.0)
    meter.add(105, 1.0)
    assert meter.share == 1.05, "noise"
    for _ in range(2):
        meter.add(500, 1.0)
        assert meter.share is None
    assert capsys.readouterr().err == (
        "throughput: the model has 302% of the rate of matrix products, which was measured while the machine did "
        "something else; the share is left out\n"
    )
    meter.add(1, 1000.0)
    assert meter.share is None, "the rate is as wrong as it was"


@pytest.mark.parametrize(
    ("precision", "device", "supported", "there"),
    [
        ("fp16", "cpu", False, False),
        ("fp16", "cpu", True, True),
        ("bf16", "cpu", False, False),
        ("bf16", "cpu", True, True),
        ("fp32", "cpu", False, True),
        ("fp16", "cuda", False, True),
    ],
)
def test_products_that_a_cpu_does_not_have_are_no_rate(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, supported: bool, there: bool
) -> None:
    """Products in a loop take what their shape takes: an fp16 run had 294 % of them."""
    monkeypatch.setattr(throughput, "matmul_rate", lambda precision, device: 7.0)
    answers = dict.fromkeys(("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"), lambda: supported)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**answers))
    assert comparable_rate(precision, torch.device(device)) == (7.0 if there else None)


def test_the_rate_is_measured_once_and_counts_a_product_as_two(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []

    def seconds(square: torch.Tensor, product: torch.Tensor, products: int) -> float:
        assert square.dtype == torch.bfloat16 and square.shape == (1024, 1024)
        rounds.append(products)
        return products * 0.004

    matmul_rate.cache_clear()
    state = torch.get_rng_state()
    with monkeypatch.context() as patch:
        patch.setattr(throughput, "_seconds", seconds)
        assert matmul_rate("bf16", CPU) == pytest.approx(2 * 1024**3 / 0.004)
        measured = len(rounds)
        matmul_rate("bf16", CPU)
    matmul_rate.cache_clear()
    assert len(rounds) == measured and rounds[-1] * 0.004 >= 0.2
    assert torch.equal(torch.get_rng_state(), state)


def test_the_products_that_are_timed_are_made() -> None:
    square, product = torch.randn(8, 8), torch.zeros(8, 8)
    assert throughput._seconds(square, product, 2) > 0
    assert torch.allclose(product, square @ square)
    assert matmul_rate("fp32", CPU) > 1e6


def test_resident_memory_grows_with_what_is_held() -> None:
    """Pages of its own: a block of the heap may be one that was freed before, and kept."""
    before = resident_bytes()
    with mmap.mmap(-1, 2**27) as held:
        for _ in range(128):
            held.write(b"\1" * 2**20)
        assert 2**26 < resident_bytes() - before < 2**28
