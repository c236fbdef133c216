"""The model that a run trains and everything that changes with it: objective, optimiser, average, loss scaler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.checkpoint import checkpoint

from corpora.addressed import address
from corpora.errors import Diverged
from distill.averaging import MovingAverage
from distill.distributed import Processes
from distill.learning_rate import set_learning_rate
from distill.losses import FEATURE_LOSSES
from distill.micro_batch import (
    fewer_rows_next_time,
    halved,
    in_short,
    is_out_of_memory,
    kept_limit,
    limit_named,
    memory_named,
    one_row_is_too_much,
    smallest,
)
from distill.objective import Objective, feature_projections
from distill.optim import make_optimizer
from distill.phases import RunPlan
from distill.precision import Scaler, autocast, resolve_precision
from distill.run import Run
from distill.sharding import full_state, is_sharded, own_part, shard, transformer_blocks
from distill.step_data import StepData, step_data
from students.adapters import start_from, with_adapters
from students.buildable import Buildable
from students.registry import build_model


class Learner:
    """Gradients and updates of one run, in one process of several."""

    def __init__(self, run: Run, processes: Processes) -> None:
        """A model with the weights of the run's seed."""
        config = run.train
        self._run, self._processes = run, processes
        self.precision = resolve_precision(config.precision, processes.device.type)
        self.model = self._new_model().to(processes.device)
        if config.compile:  # without the loss, whose rows are another number in each step
            self.model.network.base_model.compile()
        heard = {t.number: t.ensemble for t in run.terms if t.config.loss in FEATURE_LOSSES and t.ensemble is not None}
        projections = feature_projections(run.model.feature_size, heard, address(run.seed, "projections"))
        self.objective = Objective(self.model, projections.to(processes.device))
        self.average = MovingAverage(self.model, config.average) if config.average is not None else None
        if config.activation_checkpointing:
            for block in transformer_blocks(self.model):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        # before the optimiser: FSDP2 puts shards in the place of weights
        self.module = processes.wrap(self.objective, parallel=config.parallel).train()
        if self.average is not None and is_sharded(self.module):
            shard(self.average.model, processes.device)
        self.optimizer = make_optimizer(self.objective, config)
        self.scaler = Scaler(self.precision, processes.device, config.max_skipped_steps)
        self._limit = kept_limit(run, processes)  # rows, where memory ran out at an earlier start
        self.micro_batch = smallest(config.micro_batch_size, self._limit)  # rows; None: all of the process's

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside weights and the optimiser's state."""
        return {"micro_batch": self.micro_batch, "scaler": self.scaler.state}

    @property
    def facts(self) -> dict[str, int]:
        """In fp16 the steps that were left out so far, because it overflowed in them."""
        return {"skipped_steps": self.scaler.skipped_in_all} if self.precision == "fp16" else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` was; of a run that begins it is empty. Rows that had no room since stay fewer."""
        before: int | None = state["micro_batch"] if state else self._run.train.micro_batch_size
        if state:
            self.micro_batch = smallest(before, self._limit)
            self.scaler.restore(state["scaler"])
        if self._limit is not None and (before is None or before > self._limit) and self._processes.is_first:
            print(limit_named(self._run, self._limit, before), flush=True)

    def gradients(self, step: int, plan: RunPlan, *, values: bool = True) -> dict[str, float]:
        """Gradients of a step; returns each term's mean in nats per target, over all processes.

        Without `values` divergences are 0: a teacher that says what is not finite shows in the gradient all the same.
        Where the recipe leaves the micro-batch open it is halved until memory holds it. Raises NoRoom when one row is
        too much; and when the recipe gives the micro-batch or other processes are already waiting, with half of it kept
        for the next start.
        """
        if self._must_agree(step, plan):
            self._settle_micro_batch(step, plan)
        if self._run.train.micro_batch_size is not None or self._processes.world_size > 1:
            rows = self._rows_at_once(step, plan)
            with fewer_rows_next_time(self._run, self._processes.rank, place=self._where(step), rows=rows):
                return self._backward(step, self._data(step, plan, self._processes), self._processes, values=values)
        while True:
            try:
                return self._backward(step, self._data(step, plan, self._processes), self._processes, values=values)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(step, plan, in_short(error))

    def update(self, step: int, means: dict[str, float], rate: float) -> float:
        """Change the weights by the gradients; returns their norm before clipping.

        Raises Diverged when a loss or the norm is not finite; in fp16 a gradient that overflowed leaves the step out.
        Raises NoRoom when memory runs out: the update may be half done then, and nothing may go on from it.
        """
        config = self._run.train
        # the first update makes the optimiser's state
        remedy = "free memory, divide the state among processes with train.parallel: fsdp, or train a smaller model"
        with memory_named(f"{self._where(step)}: the update, of which nothing is saved", remedy):
            self.scaler.unscale(self.optimizer)
            norm = self._processes.clip_grad_norm(self.module, config.grad_clip)
            overflowed = self.precision == "fp16" and not math.isfinite(norm)
            self._require_finite(step, means if overflowed else means | {"the gradient's norm": norm})
            set_learning_rate(self.optimizer, rate)
            self.scaler.step(self.optimizer, not overflowed, place=self._where(step))
            self.optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update(self.model, step + 1)
        return norm

    def whole(self, model: Buildable) -> Buildable | None:
        """The model, or its average, with all weights, in the first process; where it is sharded all call together."""
        if not is_sharded(model):
            return model
        state = full_state(model)
        if not self._processes.is_first:
            return None
        gathered = self._new_model()
        gathered.load_state_dict(state)
        return gathered

    def _new_model(self) -> Buildable:
        run = self._run
        model = build_model(
            run.model,
            vocab_size=run.corpus.vocab_size,
            token_ids=run.corpus.token_ids,
            seed=address(run.seed, "init"),
        )
        if run.start is not None:
            start_from(model, run.start, fresh_head=run.fresh_head)
        if run.adapters is not None:
            with_adapters(model, run.adapters, seed=address(run.seed, "adapters"))
        return model

    def _data(self, step: int, plan: RunPlan, processes: Processes) -> StepData:
        run = self._run
        # all rows of the step are there at once, however many of them are read at a time
        remedy = "lower train.batch_size or train.seq_len, which makes it another run"
        with memory_named(f"{self._where(step)}: its rows and what teachers say of them", remedy):
            return step_data(
                step,
                plan,
                corpus=run.corpus,
                config=run.train,
                cache=run.cache,
                terms=run.terms,
                processes=processes,
                micro_batch_size=self.micro_batch,
                precision=self.precision,
                masked_shift=run.masked_shift,
            )

    def _backward(self, step: int, data: StepData, processes: Processes, *, values: bool) -> dict[str, float]:
        """Gradients of the step's rows, and each term's mean; of a process that tries alone they stay with it."""
        run = self._run
        # not by way of DDP, whose copies of a module that has failed and of one that has not would do different things
        module = self.module if processes is self._processes else self.objective
        sums: dict[str, Tensor] = dict.fromkeys(data.counts, torch.zeros((), device=processes.device))
        for number, parts in enumerate(data.micro_batches):
            # dropout is drawn by address too, so that nothing random has to be saved
            torch.manual_seed(address(run.seed, "dropout", step, processes.rank, number) >> 1)
            later = number < len(data.micro_batches) - 1
            with processes.gradients_later(module, later):
                with autocast(self.precision, processes.device):
                    loss, term_sums = module(parts, values)
                processes.backward(self.scaler.scale(loss))
            for name, value in term_sums.items():
                sums[name] = sums[name] + value
        totals = processes.sum(torch.stack(list(sums.values()))).tolist()
        # a term without targets has said nothing, which is not 0
        return {name: total / count for total, (name, count) in zip(totals, data.counts.items(), strict=True) if count}

    def _require_finite(self, step: int, found: dict[str, float]) -> None:
        if not all(map(math.isfinite, found.values())):
            listed = ", ".join(f"{name} is {value:g}" for name, value in found.items())
            raise Diverged(
                f"{self._where(step)}: {listed}, all must be finite; lower train.lr, or look at the teachers"
            )

    # the micro-batch

    def _must_agree(self, step: int, plan: RunPlan) -> bool:
        """Whether several processes meet rows of a new size, which all must hold before any waits for another."""
        begins = step == plan.phase(step).first or self.micro_batch is None
        open_ = self._run.train.micro_batch_size is None and self._run.train.parallel == "ddp"
        return self._processes.world_size > 1 and open_ and begins

    def _settle_micro_batch(self, step: int, plan: RunPlan) -> None:
        """Try the step's rows without exchanging anything, until they fit into the memory of every process."""
        alone = self._processes.alone()
        while True:
            said = None  # in words: the error itself would keep alive what its frames hold
            try:
                self._backward(step, self._data(step, plan, alone), alone, values=True)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                said = in_short(error)
            self.objective.zero_grad(set_to_none=True)
            if not self._processes.any(said is not None):
                self.micro_batch = self.micro_batch or self._rows_at_once(step, plan)
                return
            self._halve(step, plan, said or "another process has no memory for it")

    def _rows_at_once(self, step: int, plan: RunPlan) -> int:
        all_rows = -(-len(plan.rows(step)) // self._processes.world_size)
        return min(self.micro_batch or all_rows, all_rows)

    def _halve(self, step: int, plan: RunPlan, said: str) -> None:
        self.objective.zero_grad(set_to_none=True)
        rows = halved(self._rows_at_once(step, plan))
        if not rows:
            raise one_row_is_too_much(self._where(step), said)
        if self._processes.is_first:
            print(f"memory: {self._where(step)} goes on with micro-batches of {rows} rows", flush=True)
        self.micro_batch = rows

    # weights

    def require_finite_weights(self, step: int) -> None:
        """Raise Diverged, in all processes, when a weight is not finite after so many steps: it is not to be kept."""
        weights = [own_part(parameter.detach()) for parameter in self.objective.parameters()]
        if self._processes.any(not math.isfinite(get_total_norm(weights))):
            raise Diverged(
                f"{self._where(step - 1)}: weights are not finite; lower train.lr, or look at the teachers (these "
                "weights are not kept)"
            )

    def _where(self, step: int) -> str:
        return f"{self._run.folder}: step {step + 1}"
