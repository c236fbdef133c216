"""What a recipe may say about training, the terms of the objective, and the project as a whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from benchmarks.config import BenchmarksConfig
from corpora.config import CorpusConfig, TokenizerConfig
from students.config import ModelConfig
from teachers.config import CacheConfig

DivergenceName = Literal[
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "total_variation",
    "skew_forward_kl",
    "skew_reverse_kl",
    "logit_mse",
]
LossName = Literal["cross_entropy", DivergenceName, "feature_mse", "feature_cosine"]
Control = Literal["no_teacher_equal_steps", "no_teacher_equal_flops", "best_single_teacher"]


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
    snapshots: list[int] = field(default_factory=list)  # steps after which the weights are kept for good
    average: float | None = None  # decay a step of a moving average of the weights, which is kept too; null: none


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the weight of a term changes from the first step of a run to the last."""

    shape: Literal["constant", "linear", "warmup_stable_decay"] = "constant"
    start: float = 1.0  # linear: share of the weight at the first step
    end: float = 0.0  # linear, warmup_stable_decay: share of the weight at the last step
    warmup_share: float = 0.0  # warmup_stable_decay: share of the steps over which the weight rises from 0
    decay_share: float = 0.2  # warmup_stable_decay: share of the steps over which it falls to `end`


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """One term of the objective: a loss, its weight, and for distillation the teachers it listens to."""

    loss: LossName
    weight: float = 1.0  # relative to the other terms of the same view
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)  # how the weight changes in the run
    view: Literal["causal", "masked"] | None = None  # the rows it is for; null: all
    temperature: float = 1.0  # divides every member's and the student's logits; the term is multiplied by its square
    members: dict[str, float] = field(default_factory=dict)  # teacher: weight; weights are normalised
    # mean of probabilities, normalised mean of log-probabilities, or the power mean between them
    pool: Literal["mixture", "product", "power"] = "mixture"
    exponent: float = 0.5  # of the power mean: 0 is the product, 1 the mixture
    weights: Literal["given", "fitted"] = "given"  # fitted on the tune stream: a mixture by EM, a product by L-BFGS
    across_views: bool = False  # members that read different views are pooled into one distribution
    label_smoothing: float = 0.0  # cross_entropy: share of the target spread over the vocabulary
    z_loss: float = 0.0  # cross_entropy: weight of log(Z)^2
    beta: float = 0.5  # jensen_shannon: share of the teacher in the middle
    skew: float = 0.1  # skew losses: share of the other side that is mixed in
    legacy_batchmean: bool = (
        False  # summed over positions, averaged over rows, as BabyLlama's code did (docs/losses.md)
    )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A member of the ensemble: a model to train, the folder of one that exists, or weights of another one's run."""

    model: ModelConfig | None = None
    train: TrainConfig | None = None
    seeds: int = 1  # runs that differ in their seed alone: members NAME-1, NAME-2, ..., all of them called NAME
    path: str | None = None  # run folder or Hugging Face folder with the same tokenizer
    of: str | None = None  # teacher of this recipe from whose run this one is taken, as `steps` or `average` says
    steps: list[int] = field(default_factory=list)  # its weights after this step; of several, their mean
    average: bool = False  # the moving average of its weights
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
