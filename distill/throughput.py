"""What a run gets out of its machine: tokens per second, its share of the best matrix products, and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

# rows and columns of the measured product: a GPU is only filled by a large one
MATMUL_SIZES = {"cpu": 1024, "cuda": 8192}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MEASURED = 0.2  # seconds
_WINDOW = 30.0  # seconds over which a rate is averaged
_NOISE = 1.1  # a share above this is none: the rate was measured while the machine was busy
_STATM = Path("/proc/self/statm")  # Linux: sizes of this process, in pages


@cache
def matmul_rate(precision: str, device: torch.device) -> float:
    """Operations in a second of square matrix products: the most that this device does in `precision`.

    Measured by products that take a fifth of a second, once in a process. torch's global generator is left as it was.
    """
    size = MATMUL_SIZES[device.type]
    generator = torch.Generator(device).manual_seed(0)
    # normal numbers: on constants a GPU needs less power, and runs faster than a model ever will
    square = torch.randn(size, size, dtype=DTYPES[precision], device=device, generator=generator)
    product = torch.empty_like(square)
    _seconds(square, product, 1)  # the first product also wakes the libraries
    products = 1
    while (seconds := _seconds(square, product, products)) < _MEASURED:
        # as many as will do, with a margin; the first guesses are from products too short to be timed well
        products = min(8 * products, 1 + int(1.2 * products * _MEASURED / seconds))
    return products * 2 * size**3 / seconds


def comparable_rate(precision: str, device: torch.device) -> float | None:
    """The rate that a model's products in `precision` are compared with; None where there is none.

    A CPU without products of its own in a type of 16 bits has loops for each shape and order of the factors: in fp16 on
    one core they do from 1 to 19 thousand million operations in a second. What square products get says nothing of
    others then.
    """
    return matmul_rate(precision, device) if _multiplies(precision, device) else None


class Meter:
    """Tokens per second over the last half minute, and the share of the machine's rate that the model's products had.

    The share is known as model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B): only the operations that the
    model needs are counted, not those that are done again to save memory.
    """

    def __init__(self, *, flops_per_token: float | None = None, rate: float | None = None) -> None:
        """`flops_per_token`: operations of a training step; `rate`: operations in a second of all devices together."""
        self._flops_per_token, self._rate = flops_per_token, rate
        self._added: deque[tuple[int, float]] = deque()

    def add(self, tokens: int, seconds: float) -> None:
        """Count `tokens` that were read in `seconds`; what is older than the window is forgotten."""
        self._added.append((tokens, seconds))
        while sum(seconds for _, seconds in self._added) - self._added[0][1] >= _WINDOW:
            self._added.popleft()
        if self.share is not None and self.share > _NOISE:
            print(
                f"throughput: the model has {self.share:.0%} of the rate of matrix products, which was measured while "
                "the machine did something else; the share is left out",
                file=sys.stderr,
                flush=True,
            )
            self._rate = None

    @property
    def tokens_per_second(self) -> float:
        """Over the window; 0 before anything was added."""
        seconds = sum(seconds for _, seconds in self._added)
        return sum(tokens for tokens, _ in self._added) / max(seconds, 1e-9)

    @property
    def share(self) -> float | None:
        """Of the rate; None where the operations or the rate are not known, or the rate was found to be wrong."""
        if self._flops_per_token is None or self._rate is None:
            return None
        return self._flops_per_token * self.tokens_per_second / self._rate


def resident_bytes() -> int:
    """Memory that this process has now; where the system does not say (macOS), the most that it has had."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def forget_cuda_peak(device: torch.device) -> None:
    """Let `cuda_peak_bytes` count from now on: the measured products are none of a run's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def cuda_peak_bytes(device: torch.device) -> int | None:
    """The most that torch's tensors have taken of a GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _multiplies(precision: str, device: torch.device) -> bool:
    """Whether a device has products of its own in `precision`, one kernel for all shapes."""
    if device.type != "cpu" or precision == "fp32":
        return True
    supported = {"bf16": "_is_mkldnn_bf16_supported", "fp16": "_is_mkldnn_fp16_supported"}[precision]
    return bool(getattr(torch.ops.mkldnn, supported)())


def _seconds(square: Tensor, product: Tensor, products: int) -> float:
    start = time.perf_counter()
    for _ in range(products):
        torch.mm(square, square, out=product)
    product[0, 0].item()  # waits for the device
    return time.perf_counter() - start
