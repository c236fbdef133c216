"""The training of one classifier: steps, looks at the selecting rows, and the checkpoint that these chose.

rows -> batches -> micro-batches -> update -> look -> the best weights. The selecting rows are handed in: nothing here
knows where they come from, and predictions are made of token rows without labels.

Axes: B rows, T positions, N all rows, C labels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.finetune.classifier import Classifier
from benchmarks.finetune.config import FinetuneConfig
from benchmarks.finetune.metrics import all_scores
from benchmarks.finetune.schedule import learning_rate, steps_of_epoch, warmup_steps
from corpora.addressed import address, permutation
from corpora.batch import PADDING_SEGMENT
from corpora.errors import Diverged


@dataclass(frozen=True)
class LabelledRows:
    """Token ids and the label of each row."""

    tokens: Sequence[tuple[int, ...]]
    labels_N: np.ndarray  # int64

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Fit:
    """What a training did; the classifier holds the chosen weights."""

    steps: int  # that were taken
    chosen_step: int  # whose weights were chosen, counted from 1
    looks: tuple[tuple[int, float], ...]  # step, and the criterion over the selecting rows
    losses: tuple[float, ...]  # of each step, nats per row


def fit(
    classifier: Classifier,
    train: LabelledRows,
    *,
    selection: LabelledRows,
    config: FinetuneConfig,
    seed: int,
    place: str,
) -> Fit:
    """Train, and put back the weights that the selecting rows liked best; the last ones where nobody ever looked.

    `seed` decides order and dropout; torch's global generator is left as it was. Raises Diverged, beginning with
    `place`, when a loss, a gradient or a logit is not finite.
    """
    each_epoch = steps_of_epoch(len(train), config)
    steps = each_epoch * config.epochs
    warmup = warmup_steps(len(train), steps, config)
    every = config.evaluate_every or each_epoch
    optimizer = torch.optim.AdamW(
        classifier.trained.values(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    selector = _Selector(classifier, config)
    losses: list[float] = []
    order = np.arange(len(train))
    with torch.random.fork_rng(devices=_cuda_devices(classifier)):
        for step in range(steps):
            epoch, number = divmod(step, each_epoch)
            if number == 0:
                order = permutation(address(seed, "order", epoch), len(train))
            rows = order[number * config.batch_size : (number + 1) * config.batch_size]
            loss = _gradients(classifier, train, rows=rows, config=config, seed=seed, step=step)
            _update(
                classifier,
                optimizer,
                rate=learning_rate(step, steps, warmup, config),
                config=config,
                loss=loss,
                place=f"{place}: step {step + 1}",
            )
            losses.append(loss)
            if (step + 1) % every == 0:
                selector.look(step + 1, _criterion(classifier, selection, config=config, place=place))
                if selector.out_of_patience:
                    break
    selector.put_back()
    return Fit(len(losses), selector.chosen_step or len(losses), tuple(selector.looks), tuple(losses))


def predict(classifier: Classifier, tokens: Sequence[tuple[int, ...]], *, config: FinetuneConfig, place: str) -> Tensor:
    """Logits [N, C] of rows in their order, fp32 on the CPU; raises Diverged when one is not finite."""
    was_training = classifier.training
    classifier.eval()
    logits: dict[int, Tensor] = {}
    with torch.inference_mode():
        for part in micro_batches([len(row) for row in tokens], config.micro_batch_tokens):
            logits |= zip(part, _logits(classifier, [tokens[row] for row in part], config).cpu(), strict=True)
    classifier.train(was_training)
    logits_NC = torch.stack([logits[row] for row in range(len(tokens))])
    finite_N = logits_NC.isfinite().all(1)
    if not finite_N.all():
        row = int(finite_N.int().argmin())
        raise Diverged(
            f"{place}: logits {logits_NC[row].tolist()} for row {row + 1}; expected numbers; lower lr, or the "
            "candidate is invalid"
        )
    return logits_NC


def micro_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Row numbers to be read together, longest first: padded, at most `max_tokens` tokens, and at least one row."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    while order:
        together = max(max_tokens // lengths[order[0]], 1)
        yield order[:together]
        order = order[together:]


class _Selector:
    """Keeps the best weights so far, and counts how long nothing has been gained."""

    def __init__(self, classifier: Classifier, config: FinetuneConfig) -> None:
        self._trained, self._config = classifier.trained, config
        self._best: dict[str, Tensor] = {}
        self._best_value = math.inf if config.select_by == "loss" else -math.inf
        self._without_gain = 0  # looks
        self.chosen_step: int | None = None
        self.looks: list[tuple[int, float]] = []

    def look(self, step: int, value: float) -> None:
        """Hear what the selecting rows say after a step."""
        self.looks.append((step, value))
        gain = self._best_value - value if self._config.select_by == "loss" else value - self._best_value
        self._without_gain = 0 if gain > self._config.min_gain else self._without_gain + 1
        if gain > 0:
            self._best_value, self.chosen_step = value, step
            self._best = {name: weight.detach().clone() for name, weight in self._trained.items()}

    @property
    def out_of_patience(self) -> bool:
        """Whether it is time to stop."""
        return self._config.patience is not None and self._without_gain >= self._config.patience

    def put_back(self) -> None:
        """Fill the classifier with the best weights, where there was a look."""
        with torch.no_grad():
            for name, best in self._best.items():
                self._trained[name].copy_(best)


def _gradients(
    classifier: Classifier, train: LabelledRows, *, rows: np.ndarray, config: FinetuneConfig, seed: int, step: int
) -> float:
    """Gradients of the mean loss of some rows; returns that loss in nats."""
    classifier.train()
    loss = 0.0
    for number, part in enumerate(micro_batches([len(train.tokens[row]) for row in rows], config.micro_batch_tokens)):
        # dropout is drawn by address, so that it does not depend on what was drawn before
        torch.manual_seed(address(seed, "dropout", step, number) >> 1)
        logits_BC = _logits(classifier, [train.tokens[row] for row in rows[part]], config)
        labels_B = torch.from_numpy(train.labels_N[rows[part]]).to(logits_BC.device)
        share = functional.cross_entropy(logits_BC, labels_B, reduction="sum") / len(rows)
        share.backward()
        loss += share.item()
    return loss


def _update(
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    *,
    rate: float,
    config: FinetuneConfig,
    loss: float,
    place: str,
) -> None:
    """Change the weights by the gradients; raises Diverged when those or the loss are not finite."""
    # the norm is taken where nothing is clipped too: it tells a gradient that is not finite
    norm = torch.nn.utils.clip_grad_norm_(classifier.trained.values(), config.grad_clip or math.inf).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(
            f"{place}: the loss is {loss:g} and its gradient's norm {norm:g}, both must be finite; lower lr, or the "
            "candidate is invalid"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _criterion(classifier: Classifier, selection: LabelledRows, *, config: FinetuneConfig, place: str) -> float:
    """The value that chooses, over the selecting rows."""
    logits_NC = predict(classifier, selection.tokens, config=config, place=place)
    if config.select_by == "loss":
        return functional.cross_entropy(logits_NC, torch.from_numpy(selection.labels_N)).item()
    return all_scores(selection.labels_N, logits_NC.argmax(1).numpy(), logits_NC.shape[1])[config.select_by]


def _logits(classifier: Classifier, rows: Sequence[tuple[int, ...]], config: FinetuneConfig) -> Tensor:
    """Logits [B, C] of a micro-batch, padded on the right with token 0, which nobody attends to or classifies."""
    device = next(classifier.parameters()).device
    longest = max(map(len, rows))
    ids_BT = torch.tensor([row + (0,) * (longest - len(row)) for row in rows])
    lengths_B1 = torch.tensor([[len(row)] for row in rows])
    segments_BT = torch.where(torch.arange(longest)[None, :] < lengths_B1, 0, PADDING_SEGMENT)
    with _autocast(config, device):
        return classifier(ids_BT.to(device), segments_BT.to(device))


def _autocast(config: FinetuneConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else contextlib.nullcontext()


def _cuda_devices(classifier: Classifier) -> list[torch.device]:
    device = next(classifier.parameters()).device
    return [device] if device.type == "cuda" else []
