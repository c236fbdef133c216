"""The processes of a run: how many there are, what they agree on, how their gradients meet, and which of them is lost.

Exchanges (sums, gradients) must come within `timeout` seconds. Waits for work that takes hours go by way of the
launcher's store, where every process says once in a while that it lives and how far it has come.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from corpora.errors import RecipeError
from distill.sharding import clip_grad_norm, shard
from distill.watch import GRACE, REMEDY, Watch, first_line, translated

T = TypeVar("T")

PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class Processes:
    """This process's place among all of them; with one process every exchange is free."""

    def __init__(self, expected: int | None = None, timeout: float = 600.0) -> None:
        """Join the processes that the launcher started; an exchange that takes `timeout` seconds ends them all.

        Raises RecipeError when there are not as many as the launcher or the recipe says: `accelerate launch --cpu`,
        for one, starts a single process whatever it is asked for.
        """
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        on_gpu = torch.cuda.is_available()
        # NCCL's own watchdog aborts without a name: ours speaks first
        limit = timedelta(seconds=timeout + (2 * GRACE if on_gpu else 0.0))
        with translated(lambda error: f"processes: they did not all come together ({first_line(error)}){REMEDY}"):
            self._accelerator = Accelerator(
                cpu=not on_gpu,
                # the recipe's precision is the only one, whatever the launcher was configured for
                mixed_precision="no",
                kwargs_handlers=[InitProcessGroupKwargs(timeout=limit)],
            )
        self.world_size: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self.device: torch.device = self._accelerator.device
        for wanted, verb in ((launched, "launched"), (launched if expected is None else expected, "asked for")):
            if self.world_size != wanted:
                raise RecipeError(
                    f"processes: {self.world_size} take part, {wanted} were {verb}; start them with "
                    f"torchrun --nproc_per_node {wanted} -m distill run RECIPE (on CPUs with ACCELERATE_USE_CPU=true)"
                )
        if self._accelerator.distributed_type not in PLAIN:
            raise RecipeError(
                f"processes: the launcher asks for {self._accelerator.distributed_type.value}, expected plain data "
                "parallelism; start them with torchrun, or clear the configuration of accelerate"
            )
        self._watch = Watch(self.rank, self.world_size, timeout) if self.world_size > 1 else None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def alone(self) -> Processes:
        """This process in its place, whose exchanges are with itself: it may fail, and no other waits for it."""
        alone = copy.copy(self)
        alone._watch = None
        return alone

    def arrive(self, step: int, place: str = "") -> None:
        """Say that this process begins a step, counted from 1, of the run `place`; it costs nothing."""
        if self._watch is not None:
            self._watch.own.step, self._watch.own.place = step, place

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Around all that processes do together: an exchange that fails inside names the process that is lost.

        Raises ProcessLost. What else ends the block is told to the other processes before it goes on upwards.
        """
        if self._watch is None:
            yield
            return
        try:
            with translated(self._watch.explain):
                yield
        except BaseException as error:
            self._watch.leave(f"{type(error).__name__}: {first_line(error)}")
            raise

    def barrier(self) -> None:
        """Wait for all, for hours if need be, as long as they live; raises ProcessLost."""
        if self._watch is not None:
            self._watch.meet()

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[bool]:
        """The first process works while the others wait; yields whether this is the first.

        When it fails the others are not let go: they end with it.
        """
        yield self.is_first
        self.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all processes."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, values: Tensor) -> Tensor:
        """Elementwise largest of a tensor over all processes."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process; all get the same answer."""
        return bool(self.largest(torch.tensor(float(flag), device=self.device)) > 0)

    def gather(self, value: T) -> list[T]:
        """What every process gives, in the order of their ranks; small values that can be pickled."""
        if self._watch is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self._watch.exchange():
            dist.all_gather_object(values, value)
        return values

    def wrap(self, module: nn.Module, parallel: Literal["ddp", "fsdp"] = "ddp") -> nn.Module:
        """The module on this device, its gradients averaged over the processes: whole copies of it, or FSDP2's shards.

        FSDP2 puts other parameters in place of the module's: make the optimiser afterwards. Raises RecipeError when
        one process is to share a model with itself.
        """
        if parallel == "ddp":
            wrapped = self._accelerator.prepare_model(module)
            if isinstance(wrapped, DistributedDataParallel):
                # buffers are constants here, angles of positions, that all have from the start: sending them again is
                # an exchange in every step, inside the forward pass, where memory may run out in one process alone
                wrapped.broadcast_buffers = False
            return wrapped
        if self.world_size < 2:
            raise RecipeError(
                "train.parallel: fsdp divides a model among processes, found 1, needs at least 2; start them with "
                "torchrun --nproc_per_node N -m distill run RECIPE, or set it to ddp"
            )
        return shard(module.to(self.device), self.device)

    def backward(self, loss: Tensor) -> None:
        """Gradients of a sum over all processes: the averaging of DDP and FSDP2 is undone here and nowhere else."""
        # not by way of accelerate, which would divide by an accumulation that its environment may speak of
        total = loss * self.world_size
        if self._watch is None:
            total.backward()
            return
        with self._watch.waiting():
            total.backward()

    def clip_grad_norm(self, module: nn.Module, max_norm: float) -> float:
        """Scale the gradients to at most this norm; returns the norm before, the same in every process."""
        if self._watch is None:
            return clip_grad_norm(module.parameters(), max_norm)
        with self._watch.waiting():
            return clip_grad_norm(module.parameters(), max_norm)

    @contextlib.contextmanager
    def gradients_later(self, module: nn.Module, later: bool) -> Iterator[None]:
        """While `later`, gradients stay in this process: an accumulation is exchanged once."""
        if not isinstance(module, FSDPModule):
            with self._accelerator.no_sync(module) if later else contextlib.nullcontext():
                yield
            return
        module.set_requires_gradient_sync(not later)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)

    def own_share(self, items: list[T]) -> list[T]:
        """This process's part of items that all have in the same order, dealt out like cards."""
        return items[self.rank :: self.world_size]

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        if self._watch is None:
            return values
        reduced = values.clone()
        with self._watch.exchange():
            dist.all_reduce(reduced, operation)
        return reduced
