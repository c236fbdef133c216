"""The processes of a run: how many there are, what they agree on, and how their gradients meet."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn

from corpora.errors import RecipeError

T = TypeVar("T")

PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

# one process scores while the others wait, so a wait of hours is no fault
COLLECTIVE_TIMEOUT = timedelta(hours=6)


class Processes:
    """This process's place among all of them; with one process every exchange is free."""

    def __init__(self, expected: int | None = None) -> None:
        """Join the processes that the launcher started.

        Raises RecipeError when there are not as many as the launcher or the recipe says: `accelerate launch --cpu`,
        for one, starts a single process whatever it is asked for.
        """
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        self._accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",  # the recipe's precision is the only one, whatever the launcher was configured for
            kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
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

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.world_size > 1:
            self._accelerator.wait_for_everyone()

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all processes."""
        return self._accelerator.reduce(values, "sum") if self.world_size > 1 else values  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process; all get the same answer."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module on this device, its gradients averaged over the processes by DDP."""
        return self._accelerator.prepare_model(module)

    def backward(self, loss: Tensor) -> None:
        """Gradients of a sum over all processes: DDP's averaging is undone here and nowhere else."""
        # not by way of accelerate, which would divide by an accumulation that its environment may speak of
        (loss * self.world_size).backward()

    def gradients_later(self, module: nn.Module, later: bool) -> contextlib.AbstractContextManager[None]:
        """While `later`, gradients stay in this process: an accumulation is exchanged once."""
        return self._accelerator.no_sync(module) if later else contextlib.nullcontext()

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[bool]:
        """The first process works while the others wait; yields whether this is the first."""
        try:
            yield self.is_first
        finally:
            self.barrier()

    def own_share(self, items: list[T]) -> list[T]:
        """This process's part of items that all have in the same order, dealt out like cards."""
        return items[self.rank :: self.world_size]
