"""The loss engine against naive PyTorch: cross-entropy and forward KL from two cached feature teachers, with gradients
in the student's features and head. As a program it prints the memory that one side takes.

Axes: N target rows, D features, V vocabulary.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from corpora.batch import Batch, causal_view
from corpora.errors import InputRefused
from distill.config import TermConfig
from distill.fused import LEAST_ROWS, RowTerm, weighted_loss
from distill.precision import autocast
from students.head import Head
from teachers.ensemble import Ensemble
from teachers.signal import FeatureSignal, Signal

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Gradients = tuple[Tensor, Tensor, Tensor]  # loss [], gradient in features [N, D] and in the head's weight [V, D]


@dataclass(frozen=True, kw_only=True)
class LossCase:
    """Sizes and arithmetic of one comparison."""

    pool: str
    precision: str
    rows: int = 4_096
    vocab_size: int = 16_000
    hidden_size: int = 512
    teacher_sizes: tuple[int, ...] = (1_024, 1_536)


class _Held:
    """A teacher whose features are in memory: the batch's target positions are their rows."""

    def __init__(self, name: str, features_ND: Tensor, head: Head) -> None:
        self.name, self.features_ND, self.head = name, features_ND, head

    @property
    def hidden_size(self) -> int:
        return self.features_ND.shape[1]

    def answer(self, batch: Batch, device: torch.device, *, draw: int, dtype: torch.dtype) -> FeatureSignal:
        first, last = batch.target_positions_BT[0, [0, -1]].tolist()
        return FeatureSignal(self.features_ND[first : last + 1], self.head)

    def heard(self, batch: Batch, *, draw: int) -> None:
        return None


class LossProblem:
    """Features, targets, head and teachers of a case, at random."""

    def __init__(self, case: LossCase, device: torch.device) -> None:
        torch.manual_seed(1)
        self.case, self.device = case, device
        # heads are held in the type of matrix products, features as the cache stores them
        self.held = torch.bfloat16 if case.precision == "bf16" else torch.float32
        vocab_size = case.vocab_size
        self.features_ND = torch.randn(case.rows, case.hidden_size, device=device)
        self.weight_VD = torch.empty(vocab_size, case.hidden_size, device=device).normal_(std=0.1).requires_grad_()
        self.targets_N = torch.randint(vocab_size, (case.rows,), device=device)
        self.teachers = tuple(
            _Held(
                f"teacher {size}",
                torch.randn(case.rows, size, dtype=torch.bfloat16, device=device),
                Head(torch.empty(vocab_size, size, dtype=self.held, device=device).normal_(std=2.5 / size**0.5)),
            )
            for size in case.teacher_sizes
        )
        self.ensemble = Ensemble(self.teachers, (1 / len(self.teachers),) * len(self.teachers), case.pool)

    def signal(self, rows: slice = slice(None)) -> Signal:
        """What the ensemble says about some rows, as a step asks it."""
        numbers_1N = torch.arange(self.case.rows)[rows][None]
        batch = Batch(
            numbers_1N, self.targets_N[rows][None].cpu(), numbers_1N, torch.zeros_like(numbers_1N), causal_view()
        )
        return self.ensemble.signal(batch, self.device, dtype=self.held)

    def engine(self, rows: slice = slice(None)) -> Gradients:
        """Loss and gradients by the loss engine."""
        features_ND, targets_N = self.features_ND[rows].detach().requires_grad_(), self.targets_N[rows]
        share = 0.5 / len(targets_N)
        terms = (
            RowTerm("cross_entropy", 0, TermConfig(loss="cross_entropy"), None, share),
            RowTerm("forward_kl", 1, TermConfig(loss="forward_kl"), self.signal(rows), share),
        )
        with autocast(self.case.precision, self.device):
            loss, _ = weighted_loss(features_ND, targets_N, Head(self.weight_VD), terms)
        grad_features_ND, grad_weight_VD = torch.autograd.grad(loss, [features_ND, self.weight_VD])
        return loss.detach(), grad_features_ND, grad_weight_VD

    def naive(self, rows: slice = slice(None)) -> Gradients:
        """Loss and gradients as one writes them first: whole logits of student and teachers, torch's own losses."""
        features_ND, targets_N = self.features_ND[rows].detach().requires_grad_(), self.targets_N[rows]
        with autocast(self.case.precision, self.device):
            logits_NV = functional.linear(features_ND, self.weight_VD).float()
            with torch.no_grad():
                teachers = [
                    functional.linear(teacher.features_ND[rows].to(self.held), teacher.head.weight_VD)
                    for teacher in self.teachers
                ]
                if self.case.pool == "product":
                    probs_NV = functional.softmax(torch.stack(teachers).mean(0), dim=-1)
                else:
                    probs_NV = torch.stack([functional.softmax(logits, dim=-1) for logits in teachers]).mean(0)
            divergence = functional.kl_div(functional.log_softmax(logits_NV, dim=-1), probs_NV, reduction="batchmean")
            loss = 0.5 * functional.cross_entropy(logits_NV, targets_N) + 0.5 * divergence
        grad_features_ND, grad_weight_VD = torch.autograd.grad(loss, [features_ND, self.weight_VD])
        return loss.detach(), grad_features_ND, grad_weight_VD

    def kept_bytes(self, side: str) -> int:
        """What a side keeps from one step to the next beside its inputs: of a product the members' heads, joined."""
        joined = self.signal(slice(0, 1)).joined if side == "engine" else None
        return 0 if joined is None else joined.head.weight_VD.nbytes


SIDES: dict[str, Callable[..., Gradients]] = {"engine": LossProblem.engine, "naive": LossProblem.naive}


def peak_extra_bytes(case: LossCase, side: str, device: torch.device) -> int:
    """Largest memory that one side takes beyond its inputs, results and what it keeps between steps included.

    On CUDA that of torch's allocator. On the CPU that of a process of its own, as the system counts it: nothing that
    was freed before can be taken again unseen. Raises InputRefused where the system does not tell (Linux does).
    """
    if device.type == "cuda":
        problem = LossProblem(case, device)
        _warm_up(problem, side)
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        SIDES[side](problem)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before + problem.kept_bytes(side)
    if not os.access(CLEAR_REFS, os.W_OK):
        raise InputRefused(f"{CLEAR_REFS}: missing, and peaks of memory are counted by it; use Linux or a GPU")
    # each large block is mapped alone and given back at once, so that the resident size is what is in use
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    request = json.dumps({"case": asdict(case), "side": side, "threads": torch.get_num_threads()})
    command = [sys.executable, "-m", "distill.speed.loss", request]
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(finished.stdout)


def _peak_in_this_process(case: LossCase, side: str) -> int:
    problem = LossProblem(case, torch.device("cpu"))
    _warm_up(problem, side)
    _forget_peak()
    held = _status_bytes("VmRSS")
    SIDES[side](problem)
    peak = _status_bytes("VmHWM")
    return peak - held + problem.kept_bytes(side)


def _warm_up(problem: LossProblem, side: str) -> None:
    """A few rows load the code, set up the threads of the libraries, and make what is kept between steps."""
    SIDES[side](problem, slice(0, min(LEAST_ROWS, problem.case.rows // 4)))


def _forget_peak() -> None:
    """Let the system's peak of this process's memory start anew (5 says so, see proc(5))."""
    descriptor = os.open(CLEAR_REFS, os.O_WRONLY)
    try:
        os.write(descriptor, b"5")
    finally:
        os.close(descriptor)


def _status_bytes(name: str) -> int:
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print what one side takes, in bytes; `peak_extra_bytes` starts this."""
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    case = LossCase(**request["case"] | {"teacher_sizes": tuple(request["case"]["teacher_sizes"])})
    print(_peak_in_this_process(case, request["side"]))


if __name__ == "__main__":
    main()
