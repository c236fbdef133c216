"""The steps whose speed is compared, forward and backward without the optimiser: ours, as training does them, from
rows to gradients, and the alternatives: transformers' own model and loss, and teachers that are run in every step.

Axes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from corpora.prepare import Corpus
from distill.config import TermConfig, TrainConfig
from distill.distributed import Processes
from distill.objective import Objective
from distill.phases import plan_run
from distill.precision import autocast
from distill.speed.data import Shapes, cached_stand_in, random_model
from distill.step_data import StepData, Term, step_data
from students.attention import SDPA
from teachers.cache import CachedTeacher
from teachers.config import CacheConfig
from teachers.ensemble import Ensemble

CROSS_ENTROPY = Term(TermConfig(loss="cross_entropy"), None)
ALPHA = 0.5  # share of the teachers, as in BabyLlama
Step = Callable[[], Tensor]  # does one step and returns what it differentiates, detached


class Steps:
    """The student, its rows and its teachers; each method makes a step that reads the same rows as the others'."""

    def __init__(self, shapes: Shapes, corpus: Corpus, folder: Path, precision: str) -> None:
        """Caches that are needed are made below `folder`."""
        self.processes = Processes()
        self.device = self.processes.device
        self.precision = precision
        self._shapes, self._corpus, self._folder = shapes, corpus, folder
        self._model = random_model(shapes.student, shapes.vocab_size).to(self.device).train()
        self._objective = Objective(self._model)
        self._cache = CacheConfig(window=shapes.seq_len, precision="bf16" if precision == "bf16" else "fp32")
        self._config = TrainConfig(
            view="causal", epochs=1.0, batch_size=shapes.rows, seq_len=shapes.seq_len, random_offsets=False
        )
        self._plan = plan_run(self._config, corpus.streams["train"], seed=1)

    def ours(self, terms: Sequence[Term] = (CROSS_ENTROPY,)) -> Step:
        """Our step: batch, teachers' signals, objective."""
        numbers = itertools.count()

        def step() -> Tensor:
            data = self._data(next(numbers) % self._plan.steps, terms)
            total = torch.zeros((), device=self.device)
            for parts in data.micro_batches:
                with autocast(self.precision, self.device):
                    # as in most steps of a run, of which one in ten is logged
                    loss, _ = self._objective(parts, values=False)
                self.processes.backward(loss)
                total += loss.detach()
            self._objective.zero_grad(set_to_none=True)
            return total

        return step

    def cached(self, codec: str, pool: str) -> Step:
        """Our step with cross-entropy and both teachers' caches."""
        members = {name: self._cached_teacher(name, codec) for name in self._shapes.teachers}
        weights = dict.fromkeys(members, 1.0)
        config = TermConfig(loss="forward_kl", weight=ALPHA, members=weights, pool=pool)  # type: ignore[arg-type]
        text = TermConfig(loss="cross_entropy", weight=1 - ALPHA)
        return self.ours([Term(text, None, 0), Term(config, Ensemble.of(members, weights, pool), 1)])

    def transformers(self) -> Step:
        """The same weights and rows through `LlamaForCausalLM(labels=...)`."""

        def loss_of(input_ids_BT: Tensor) -> Tensor:
            return self._theirs(input_ids=input_ids_BT, labels=input_ids_BT).loss

        return self._alternative(loss_of)

    def live(self, *, hold_bf16: bool = False) -> Step:
        """BabyLlama's step: both teachers are run on the rows, whole, beside transformers' model and loss.

        With `hold_bf16` their weights are held in that type, which saves autocast the conversion in every step.
        """
        networks = self._live_bf16 if hold_bf16 else self._live
        return self._alternative(lambda input_ids_BT: baby_llama_loss(self._theirs, networks, input_ids_BT))

    @cached_property
    def _theirs(self) -> PreTrainedModel:
        """The student as transformers runs it."""
        return _plain(copy.deepcopy(self._model.network))

    @cached_property
    def _live(self) -> Sequence[nn.Module]:
        models = [random_model(config, self._shapes.vocab_size) for config in self._shapes.teachers.values()]
        return [_plain(model.eval().requires_grad_(False).to(self.device).network) for model in models]

    @cached_property
    def _live_bf16(self) -> Sequence[nn.Module]:
        return [copy.deepcopy(network).to(torch.bfloat16) for network in self._live]

    def _cached_teacher(self, name: str, codec: str) -> CachedTeacher:
        cache = replace(self._cache, codec=codec)  # type: ignore[arg-type]
        folder = self._folder / "caches" / codec / name
        return cached_stand_in(name, self._shapes.teachers[name], self._corpus, "train", cache, folder, self.device)

    def _alternative(self, loss_of: Callable[[Tensor], Tensor]) -> Step:
        """A step of another loss, on the rows that ours read, made into a batch as ours are."""
        numbers = itertools.count()

        def step() -> Tensor:
            data = self._data(next(numbers) % self._plan.steps, [CROSS_ENTROPY])
            [[part]] = data.micro_batches
            with autocast(self.precision, self.device):
                loss = loss_of(part.batch.input_ids_BT)
            loss.backward()
            self._theirs.zero_grad(set_to_none=True)
            return loss.detach()

        return step

    def _data(self, number: int, terms: Sequence[Term]) -> StepData:
        return step_data(
            number,
            self._plan,
            corpus=self._corpus,
            config=self._config,
            cache=self._cache,
            terms=terms,
            processes=self.processes,
            precision=self.precision,
        )


def _plain(network: PreTrainedModel) -> PreTrainedModel:
    """A network with transformers' own attention instead of ours."""
    if network.config._attn_implementation == SDPA:
        network.set_attn_implementation("sdpa")
    return network


def baby_llama_loss(
    student: nn.Module, teachers: Sequence[nn.Module], input_ids_BT: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """The loss of BabyLlama's trainer (arXiv 2308.02019, its published code): mean of the teachers' logits, KLDivLoss.

    The temperature is 1 here and in our steps, where the published one is 2: what it costs is the same on both sides.
    """
    outputs = student(input_ids=input_ids_BT, labels=input_ids_BT)
    with torch.no_grad():
        logits_BTV = torch.stack([teacher(input_ids=input_ids_BT).logits for teacher in teachers]).mean(0)
    divergence = functional.kl_div(
        functional.log_softmax(outputs.logits / temperature, dim=-1),
        functional.softmax(logits_BTV / temperature, dim=-1),
        reduction="batchmean",
    )
    return (1 - ALPHA) * outputs.loss + ALPHA * temperature**2 * divergence
