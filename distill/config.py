"""What a recipe may say about training, the terms of the objective, and the project as a whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from benchmarks.config import BenchmarksConfig
from corpora.config import CorpusConfig, TokenizerConfig
from students.config import ModelConfig
from teachers.config import CacheConfig

Control = Literal["no_teacher_equal_steps"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Give `steps` or `epochs`, and `view` or `views`."""

    view: Literal["causal", "masked"] | None = None  # objective of every row
    views: dict[Literal["causal", "masked"], float] = field(default_factory=dict)  # or: shares of the rows, any scale
    steps: int | None = None  # optimiser steps
    epochs: float | None = None  # passes over the train stream, instead of steps
    batch_size: int = 32  # rows in a step, over all processes
    micro_batch_size: int | None = None  # rows in a forward pass of one process; null: all of the process's rows
    seq_len: int = 128  # tokens in a row
    random_offsets: bool = True  # rows start at an offset drawn anew each epoch, as in BabyLlama
    dynamic_masks: bool = False  # masked views: new masks each round of folds, instead of the cache's for ever
    lr: float = 1e-3  # peak learning rate
    min_lr_share: float = 0.1  # the cosine ends at this share of the peak
    warmup_share: float = 0.05  # share of the steps over which the rate rises linearly
    weight_decay: float = 0.1  # AdamW, on matrices only
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW
    eps: float = 1e-8  # AdamW
    grad_clip: float = 1.0  # largest norm of the gradient
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 autocast where the machine computes it natively
    checkpoint_every: int = 200  # steps
    log_every: int = 10  # steps


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """One term of the objective: a loss, its weight, and for distillation the teachers it listens to."""

    loss: Literal["cross_entropy", "forward_kl"]
    weight: float = 1.0  # relative to the other terms of the same view
    view: Literal["causal", "masked"] | None = None  # the rows it is for; null: all
    temperature: float = 1.0  # divides both sides' logits; the term is multiplied by its square
    members: dict[str, float] = field(default_factory=dict)  # teacher: weight; weights are normalised
    pool: Literal["mixture", "product"] = "mixture"  # mean of probabilities, or normalised mean of log-probabilities
    weights: Literal["given", "fitted"] = "given"  # fitted: by EM on the tune stream (mixture only)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A member of the ensemble: a model to train, or the folder of one that exists."""

    model: ModelConfig | None = None
    train: TrainConfig | None = None
    path: str | None = None  # run folder or Hugging Face folder with the same tokenizer
    view: Literal["causal", "masked"] | None = None  # how it is listened to; null: as it was trained


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """A model that learns from text and teachers, and the controls trained beside it."""

    model: ModelConfig
    train: TrainConfig
    terms: list[TermConfig]
    controls: list[Control] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where curves go beside the JSON Lines log, which is always written."""

    wandb: bool = False  # offline when there is no key; a failing tracker never ends a run
    project: str = "cuvee"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One project: corpus, tokenizer, teachers, caches, students and benchmarks."""

    # pydantic reads this here and hands it down to every nested dataclass; nothing is converted but 1 to 1.0
    __pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    run_dir: str  # where everything goes
    seed: int = 1
    processes: int | None = None  # processes that must take part; null: as many as the launcher started
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    teachers: dict[str, TeacherConfig] = field(default_factory=dict)
    cache: CacheConfig = field(default_factory=CacheConfig)
    students: dict[str, StudentConfig] = field(default_factory=dict)
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def as_plain(value: Any) -> Any:
    """A config as plain JSON values, for fingerprints and the resolved recipe."""
    return json.loads(json.dumps(asdict(value)))
