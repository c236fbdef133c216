"""The parts of LTG-BERT's blocks that are worked out by hand on CPUs are what they say in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from students import modeling_ltg_fast
from students.modeling_ltg import relative_places
from students.modeling_ltg_fast import Dropout, gated_gelu, random_words, relative_attention, weighted_sum

CPU = torch.device("cpu")
# relative to the largest number: what another order of sums may cost
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 0.03}
HEADS, SIZE = 3, 8  # of a head
BATCHES = [(2, 40), (1, 2), (20, 17)]  # rows and tokens; one token more than a block, more rows than are interleaved


def values_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradient in each input of a sum that weighs every number of it otherwise."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)]


def require_alike(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """By hand, and as it is said in fp64, up to rounding."""
    by_hand = values_and_gradients(function, *inputs)
    monkeypatch.setattr(modeling_ltg_fast, "_by_hand", lambda tensor: False)
    exact = values_and_gradients(function, *(tensor.double() for tensor in inputs))
    monkeypatch.undo()
    for found, expected in zip(by_hand, exact, strict=True):
        assert found.shape == expected.shape and found.dtype == inputs[0].dtype
        assert (found - expected).abs().max() <= TOLERANCES[found.dtype] * expected.abs().max()


def attention_inputs(rows: int, length: int, dtype: torch.dtype) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Projections of tokens and positions, and the attention over them; tokens may see only some others."""
    reach, where = relative_places(length, 8, 32, CPU)
    shapes = [(rows, length, 2 * HEADS * SIZE), (rows, length, HEADS * SIZE), (2 * reach + 1, 2 * HEADS * SIZE)]
    mask_B1TT = torch.zeros(rows, 1, length, length).masked_fill(torch.rand(rows, 1, length, length) < 0.3, -torch.inf)
    mask_B1TT.diagonal(dim1=-2, dim2=-1).zero_()  # no row of a softmax is empty

    def attention(query_key: Tensor, value: Tensor, relative: Tensor, dropout: float = 0.0) -> Tensor:
        settings = {"num_heads": HEADS, "dropout": dropout}
        return relative_attention(query_key, value, relative, where, mask_B1TT.to(query_key.dtype), **settings)

    return [torch.randn(shape, dtype=dtype) for shape in shapes], attention


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(("rows", "length"), BATCHES)
@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_attention(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int, length: int, at_once: int) -> None:
    """In blocks of two heads, and all together."""
    torch.manual_seed(rows)
    monkeypatch.setattr(modeling_ltg_fast, "AT_ONCE", at_once)
    inputs, attention = attention_inputs(rows, length, dtype)
    require_alike(monkeypatch, attention, *inputs)


def test_attention_without_gradients_is_the_same() -> None:
    """No probabilities are kept then."""
    torch.manual_seed(0)
    inputs, attention = attention_inputs(3, 12, torch.float32)
    with torch.no_grad():
        alone = attention(*inputs)
    assert torch.equal(alone, attention(*(tensor.requires_grad_() for tensor in inputs)))


def test_gradient_of_attention_with_dropout() -> None:
    """Differences of values agree with it, for draws that stay the same."""
    inputs, attention = attention_inputs(2, 6, torch.float64)

    def seeded(*tensors: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attention(*tensors, dropout=0.4)

    torch.manual_seed(0)
    assert torch.autograd.gradcheck(seeded, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_of_attention_keeps_the_mean(dtype: torch.dtype) -> None:
    """What is dropped is drawn anew for each probability; on average nothing changes, for values of 1 the output is
    the share that was kept."""
    torch.manual_seed(0)
    (query_key, value, relative), attention = attention_inputs(40, 32, dtype)
    shares = attention(query_key, torch.ones_like(value), relative, dropout=0.25).float()
    assert shares.mean() == pytest.approx(1.0, abs=0.01)
    assert shares.std() > 0.1


@pytest.mark.parametrize("shape", [(3, 5, 12), (700, 2)])
def test_gated_gelu(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    """Far on both sides of zero too."""
    torch.manual_seed(0)
    require_alike(monkeypatch, gated_gelu, 5 * torch.randn(shape, dtype=torch.bfloat16))


def test_gated_gelu_rounds_once() -> None:
    """Of every number between -8 and 8 the nearest to the exact value, where torch's own may be the next to it."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    gate = bits[bits.abs() <= 8]
    with torch.no_grad():
        gated = gated_gelu(torch.cat([torch.ones_like(gate), gate])[None])[0]
    assert torch.equal(gated, functional.gelu(gate.double(), approximate="tanh").to(torch.bfloat16))


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_weighted_sum(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Weights of any sign; one state alone."""
    torch.manual_seed(0)
    states = [torch.randn(2, 3, 4, dtype=dtype) for _ in range(5)]
    for count in (1, 5):
        inputs = (torch.randn(count).to(dtype), *states[:count])
        require_alike(monkeypatch, lambda weights, *tensors: weighted_sum(weights, tensors), *inputs)


def test_weighted_sum_of_two_types() -> None:
    """A state that autocast has not touched is summed with those that it has."""
    states = [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bfloat16)]
    assert torch.equal(weighted_sum(torch.tensor([2.0, 3.0]), states), torch.full((2, 3), 5.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout(dtype: torch.dtype) -> None:
    """Zeros at the rate that was asked for, the same in value and gradient; the rest is scaled."""
    torch.manual_seed(0)
    ones = torch.ones(200, 500, dtype=dtype, requires_grad=True)
    dropped = Dropout(0.1).train()(ones)
    (gradient,) = torch.autograd.grad(dropped.sum(), ones)
    assert torch.equal(gradient, dropped)
    assert (dropped == 0).double().mean().item() == pytest.approx(0.1, abs=0.004)
    assert dropped.max().item() == pytest.approx(1 / 0.9, rel=0.005)
    assert torch.equal(Dropout(0.1).eval()(ones), ones)
    torch.manual_seed(0)
    assert torch.equal(Dropout(0.1).train()(ones), dropped)


def test_whatever_does_not_fit_is_worked_out_as_it_is_said() -> None:
    """Two types beside each other, a dropout of everything, traces and functorch."""
    torch.manual_seed(0)
    (query_key, value, relative), attention = attention_inputs(2, 5, torch.float64)
    mixed = attention(query_key.float(), value, relative.float())
    torch.testing.assert_close(mixed, attention(query_key, value, relative), atol=1e-4, rtol=0)
    assert Dropout(1.0).train()(torch.ones(70_000)).count_nonzero() == 0
    traced = torch.jit.trace(gated_gelu, (torch.randn(3, 8),), check_trace=False)
    both = torch.randn(3, 8)
    torch.testing.assert_close(traced(both), gated_gelu(both))
    slope = torch.func.grad(lambda states: weighted_sum(torch.ones(1), [states]).sum())(torch.ones(2, 3))
    assert torch.equal(slope, torch.ones(2, 3))


def test_random_words_are_uniform_and_independent() -> None:
    """Every bit is set half of the time; neighbours, and words of another call, do not tell of each other.

    A million words: a correlation of independent ones is within 0.005 but in one of a million cases.
    """
    torch.manual_seed(0)
    words = random_words(1_000_001).double()
    bits = words.long()[:, None] >> torch.arange(16) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 0.0025
    assert words.std().item() == pytest.approx(65536 / 12**0.5, rel=0.005)
    others = [words.roll(lag) for lag in (1, 2, 3, 64, 128, 256, 384, 512, 65536)] + [random_words(1_000_001).double()]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([words, other]))[0, 1].item()) < 0.005
    torch.manual_seed(0)
    assert torch.equal(random_words(1_000_001).double(), words)
