"""How a candidate is fine-tuned: every choice in which the challenge's years differ, as a field, and their presets.

Scores under different presets are different numbers. `cuvee` is our own way; it differs from `babylm2025` in what is
classified, in what selects the model, and in what stands between two texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from corpora.errors import RecipeError

Metric = Literal["accuracy", "f1", "f1_macro", "mcc"]
Criterion = Literal["accuracy", "f1", "loss"]
Layout = Literal["2023", "2024", "2024_lora", "2025"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in place of full fine-tuning (arXiv 2106.09685); the classifier is trained as a whole."""

    rank: int = 8  # rows of A, columns of B
    alpha: float = 16.0  # divided by the rank it is the weight of B A
    dropout: float = 0.1  # on what A reads
    # layers by the end of their names; empty: peft's own for the architecture, or all linear layers but the output
    # embedding where peft knows none
    targets: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One way to fine-tune a candidate on every task."""

    name: str = "cuvee"
    layout: Layout = "2025"  # of the folder with the tasks, and how their texts are put together
    seeds: tuple[int, ...] = (1, 2, 3)  # one run each; LV-BERT (arXiv 2106.11740) reports the median of ten

    lr: float = 3e-5  # peak
    batch_size: int = 32  # rows of a step
    epochs: int = 10  # at most
    weight_decay: float = 0.01  # AdamW's, of all weights
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's
    eps: float = 1e-8  # AdamW's
    schedule: Literal["cosine", "linear"] = "cosine"  # after the warm-up, down to min_lr_share of the peak
    min_lr_share: float = 0.1  # of the peak
    warmup_share: float = 0.06  # of what warmup_counts says
    # steps of the run; or rows that the run reads, taken for steps: the adapters of 2024, whose rate rises for 64 x 6 %
    # of the run and so never comes to its peak
    warmup_counts: Literal["steps", "rows"] = "steps"
    grad_clip: float | None = 1.0  # norm of all gradients; null: none
    drop_last: bool = False  # leave out an epoch's last rows where they do not fill a batch
    lora: LoraConfig | None = None  # null: all weights are trained

    max_length: int = 512  # tokens of a row, special ones included; the longer text is cut first
    # special tokens: the tokenizer's own; or those, and begin tokens before each text where it puts none in front of a
    # text or none between two
    frame: Literal["begin", "tokenizer"] = "begin"
    # which output is classified: of a causal model the last real token's, of a masked one the first's; or the first's
    # of both, though a causal model's first token has seen nothing
    position: Literal["by_objective", "first"] = "by_objective"
    # LayerNorm-linear-GELU-LayerNorm-dropout-linear; or as transformers has it: one linear layer for causal models,
    # linear-tanh-linear for masked ones
    head: Literal["gelu", "huggingface"] = "gelu"
    head_dropout: float = 0.1  # in the head
    head_eps: float = 1e-5  # of the head's norms

    # which rows choose the checkpoint: a part of the training rows, not trained on; or the very rows that are reported
    selection: Literal["carved", "reported"] = "carved"
    selection_share: float = 0.1  # of the training rows, where they are carved
    selection_seed: int = 0  # of that draw: the same rows for every run, so that their seeds can be compared
    select_by: Criterion = "accuracy"  # highest, or lowest loss; the first of equals
    evaluate_every: int | None = None  # steps; null: after each epoch
    patience: int | None = None  # looks without a gain after which a run ends; null: it never does
    min_gain: float = 0.0  # less than this is no gain to patience, though the better checkpoint is kept

    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast; weights and the head's softmax stay fp32
    micro_batch_tokens: int = 16_384  # in one pass, padding included; a step is put together from as many as it takes
    by_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # task: fields that differ there

    def for_task(self, task: str) -> FinetuneConfig:
        """The configuration of one task; `by_task` is resolved."""
        return replace(self, **(dict(self.by_task.get(task, {})) | {"by_task": {}}))


_MNLI_BY_ACCURACY = {"mnli": {"select_by": "accuracy"}, "mnli-mm": {"select_by": "accuracy"}}

# transformers' Trainer: AdamW without decay, a line down to 0, clipped at 1, all rows
_BABYLM2023 = FinetuneConfig(
    name="babylm2023",
    layout="2023",
    seeds=(12,),
    lr=5e-5,
    batch_size=64,
    weight_decay=0.0,
    schedule="linear",
    min_lr_share=0.0,
    warmup_share=0.0,
    max_length=128,
    frame="tokenizer",
    head="huggingface",
    selection="reported",
    select_by="f1",
    evaluate_every=200,
    patience=10,
    min_gain=0.001,
    by_task=_MNLI_BY_ACCURACY,
)
_BABYLM2024 = replace(_BABYLM2023, name="babylm2024", layout="2024", evaluate_every=None, patience=3)
_BABYLM2024_LORA = replace(
    _BABYLM2024,
    name="babylm2024_lora",
    layout="2024_lora",
    seeds=(42,),
    lr=3e-4,
    epochs=32,
    warmup_share=0.06,
    warmup_counts="rows",
    lora=LoraConfig(),
    select_by="loss",
    patience=None,
    by_task={},
)
_BABYLM2025 = FinetuneConfig(
    name="babylm2025",
    seeds=(42,),
    grad_clip=None,
    drop_last=True,
    frame="tokenizer",
    position="first",
    selection="reported",
    by_task={
        "boolq": {"batch_size": 16},
        "multirc": {"batch_size": 16},
        "wsc": {"epochs": 30},
        "mrpc": {"select_by": "f1"},
        "qqp": {"select_by": "f1"},
    },
)
_CUVEE = FinetuneConfig(by_task=_BABYLM2025.by_task)

# babylm2025 is also the strict tracks of 2026, whose code is the same
PRESETS: dict[str, FinetuneConfig] = {
    config.name: config for config in (_CUVEE, _BABYLM2023, _BABYLM2024, _BABYLM2024_LORA, _BABYLM2025)
}


def check_finetune(config: FinetuneConfig) -> None:
    """Raise RecipeError, in one line that begins with the field, for what cannot be run; `by_task` included."""
    known = {each.name for each in fields(FinetuneConfig)} - {"by_task", "name", "layout", "seeds"}
    for task, changes in config.by_task.items():
        if unknown := sorted(set(changes) - known):
            raise RecipeError(f"by_task.{task}.{unknown[0]}: no such field, expected one of {', '.join(sorted(known))}")
        _check_fields(config.for_task(task), f"by_task.{task}.")
    _check_fields(config, "")


def _check_fields(config: FinetuneConfig, place: str) -> None:
    bounds: tuple[tuple[str, bool, str], ...] = (
        ("seeds", len(config.seeds) > 0 and len(set(config.seeds)) == len(config.seeds), "different ones, at least 1"),
        ("lr", config.lr > 0, "more than 0"),
        ("batch_size", config.batch_size >= 1, "at least 1"),
        ("epochs", config.epochs >= 1, "at least 1"),
        ("weight_decay", config.weight_decay >= 0, "0 or more"),
        ("min_lr_share", 0 <= config.min_lr_share <= 1, "a share from 0 to 1"),
        ("warmup_share", 0 <= config.warmup_share < 1, "a share from 0 to below 1"),
        ("grad_clip", config.grad_clip is None or config.grad_clip > 0, "more than 0, or null"),
        ("max_length", config.max_length >= 8, "at least 8"),
        ("head_dropout", 0 <= config.head_dropout < 1, "a probability below 1"),
        ("selection_share", 0 < config.selection_share < 1, "a share between 0 and 1"),
        ("evaluate_every", config.evaluate_every is None or config.evaluate_every >= 1, "at least 1, or null"),
        ("patience", config.patience is None or config.patience >= 1, "at least 1, or null"),
        ("micro_batch_tokens", config.micro_batch_tokens >= 1, "at least 1"),
    )
    for name, holds, expected in bounds:
        if not holds:
            raise RecipeError(f"{place}{name}: found {getattr(config, name)}, needs {expected}")
    if (lora := config.lora) is not None and not (lora.rank >= 1 and lora.alpha > 0 and 0 <= lora.dropout < 1):
        raise RecipeError(
            f"{place}lora: found {lora}, needs a rank of at least 1, a positive alpha, and a dropout below 1"
        )
