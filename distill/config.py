"""What a recipe may say about training, the terms of the objective, and the project as a whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from benchmarks.config import BenchmarksConfig
from corpora.config import CorpusConfig, TokenizerConfig
from students.config import AdapterConfig, ModelConfig
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
class MuonConfig:
    """Muon for the matrices between the embedding and the head (Jordan et al., 2024); AdamW has the rest."""

    lr: float = 0.02  # peak learning rate of those matrices; it follows the schedule of `lr`, and so does their decay
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5  # iterations of Newton and Schulz
    # original: scaled by the matrix's shape; match_rms_adamw: to the size of AdamW's steps (arXiv 2502.16982)
    scale: Literal["original", "match_rms_adamw"] = "original"


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A part of a run whose rows differ; what is null is as the run has it."""

    share: float  # of the run's optimiser steps, relative to the other phases
    seq_len: int | None = None  # tokens in a row
    batch_size: int | None = None  # rows in a step, over all processes
    end_batch_size: int | None = None  # rows at the end of the phase, reached linearly
    views: dict[Literal["causal", "masked"], float] = field(default_factory=dict)  # shares of rows; empty: the run's
    num_folds: int | None = None  # masked rows: one of so many folds is hidden, with dynamic_masks; null: the cache's
    sources: list[str] = field(default_factory=list)  # curriculum: sources of the corpus that are read; empty: all


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Give one of `steps`, `epochs`, `words` and `minutes`, and `view` or `views`."""

    # rows
    view: Literal["causal", "masked"] | None = None  # objective of every row
    views: dict[Literal["causal", "masked"], float] = field(default_factory=dict)  # or: shares of the rows, any scale
    steps: int | None = None  # optimiser steps
    epochs: float | None = None  # passes over the train stream, instead of steps
    words: int | None = None  # words seen, repeats included, instead of steps
    minutes: float | None = None  # time to train for, instead of steps: timed at the start, then a number of steps
    batch_size: int = 32  # rows in a step, over all processes
    micro_batch_size: int | None = None  # rows in a forward pass of one process; null: as many as memory holds
    seq_len: int = 128  # tokens in a row
    phases: list[PhaseConfig] = field(default_factory=list)  # parts of the run, in order; empty: all steps are alike
    random_offsets: bool = True  # rows start at an offset drawn anew each epoch, as in BabyLlama
    isolated: bool = True  # attention stays inside documents
    dynamic_masks: bool = False  # masked views: new masks each round of folds, instead of the cache's for ever
    # optimiser
    optimizer: Literal["adamw", "muon", "lamb"] = "adamw"
    lr: float = 1e-3  # peak learning rate
    lr_schedule: Literal["cosine", "linear", "constant", "warmup_stable_decay", "polynomial", "exponential"] = "cosine"
    min_lr_share: float = 0.1  # the schedule ends at this share of the peak; constant: not used
    warmup_share: float = 0.05  # share of the steps over which the rate rises linearly (exponential: as the square)
    warmup_steps: int | None = None  # instead of a share
    decay_share: float = 0.2  # warmup_stable_decay: share of the steps over which the rate falls
    cooldown_share: float = 0.0  # share of the steps at the end over which the rate falls from there to 0, linearly
    lr_power: float = 1.0  # polynomial: exponent
    weight_decay: float = 0.1  # of what decays
    # what does not decay: "vectors" (biases, norms, mixing weights), "embeddings", or patterns of parameters' names
    no_decay: list[str] = field(default_factory=lambda: ["vectors"])
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW, LAMB
    eps: float = 1e-8  # AdamW, LAMB
    muon: MuonConfig = field(default_factory=MuonConfig)
    grad_clip: float = 1.0  # largest norm of the gradient
    # machine
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the machine computes it natively
    max_skipped_steps: int = 20  # fp16: steps in a row that may overflow and be left out (and 50 of the last 1,000)
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of several processes: whole copies of the model, or FSDP2's shards of it
    activation_checkpointing: bool = False  # activations are worked out again in the backward pass: less memory
    compile: bool = False  # by torch.compile
    # what is written
    checkpoint_every: int = 200  # steps
    log_every: int = 10  # steps
    snapshots: list[int] = field(default_factory=list)  # steps after which the weights are kept for good
    # or words seen: kept as chck_1M and so on. challenge: BabyLM's 1M to 10M and 20M to 100M, as far as the run goes;
    # challenge_1b: 200M to 1000M too
    word_snapshots: list[int] | Literal["challenge", "challenge_1b"] = field(default_factory=list)
    average: float | None = None  # decay a step of a moving average of the weights, which is kept too; null: none
    # tune stream
    evaluate_every: int | None = None  # steps between looks at the tune stream; null: none
    evaluate_tokens: int = 200_000  # of the tune stream that are looked at, from its beginning
    probe_pairs: int = 0  # minimal pairs of each phenomenon of the recipe's benchmarks that are scored then
    patience: int | None = None  # looks without a lower cross-entropy after which the run ends; null: it never does
    keep: Literal["last", "best"] = "last"  # the weights that the run leaves: the last, or those of the best look


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
    terms: list[TermConfig] = field(default_factory=list)  # cross_entropy with smoothing or z-loss; empty: plain
    start: str | None = None  # run folder or Hugging Face folder whose weights training begins with; null: drawn anew
    fresh_head: bool = False  # of the start the body alone is taken, and the language model's head is drawn anew
    adapters: AdapterConfig | None = None  # trained instead of the start's weights, and merged into what is saved
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
    start: str | None = None  # run folder or Hugging Face folder whose weights training begins with; null: drawn anew
    fresh_head: bool = False  # of the start the body alone is taken, and the language model's head is drawn anew
    adapters: AdapterConfig | None = None  # trained instead of the start's weights, and merged into what is saved
    controls: list[Control] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where curves go beside the JSON Lines log, which is always written."""

    wandb: bool = False  # offline when there is no key; a failing tracker never ends a run
    tensorboard: bool = False  # event files in the run folder
    project: str = "cuvee"
    line_every: float = 10.0  # seconds between lines where the output is not a terminal


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One project: corpus, tokenizer, teachers, caches, students and benchmarks."""

    # pydantic reads this here and hands it down to every nested dataclass; nothing is converted but 1 to 1.0
    __pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    run_dir: str  # where everything goes
    seed: int = 1
    processes: int | None = None  # processes that must take part; null: as many as the launcher started
    timeout: float = 600.0  # seconds that a process may be waited for before all end
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
