"""A whole training step of ours on random tokens: rows, segments and targets from the corpus's files, forward, loss,
backward, the norm of the gradient and clipping, the rate, fused AdamW. Nothing is logged, looked at or saved.
"""

from __future__ import annotations

from pathlib import Path

from corpora.batch import Objective
from corpora.prepare import Corpus
from distill.config import TrackingConfig, TrainConfig
from distill.distributed import Processes
from distill.learner import Learner
from distill.learning_rate import learning_rate
from distill.phases import plan_run
from distill.plan_cache import target_shares
from distill.run import Run
from distill.speed.data import SEED
from distill.speed.steps import CROSS_ENTROPY
from students.config import ModelConfig
from students.registry import forward_flops_per_token
from teachers.config import CacheConfig

CACHE = CacheConfig()  # whose folds masked rows have


class OurTraining:
    """A run of ours, a step at a time, as the one loop does it; only what the loop writes is left out."""

    def __init__(
        self,
        model: ModelConfig,
        config: TrainConfig,
        *,
        corpus: Corpus,
        processes: Processes,
        cache: CacheConfig = CACHE,
    ) -> None:
        """A model of random weights that learns from text alone."""
        self.config, self.corpus = config, corpus
        self.learner = Learner(_run(model, config, corpus, cache), processes)
        self.plan = plan_run(config, corpus.streams["train"], seed=SEED)
        self.losses: list[float] = []  # nats per target, of every step so far; of several views their mean

    def step(self) -> None:
        """The next step; after the last one the run begins anew with the weights that it has."""
        number = len(self.losses) % self.plan.steps
        means = self.learner.gradients(number, self.plan, values=False)
        self.learner.update(number, means, learning_rate(number, self.plan.steps, self.config))
        self.losses.append(sum(means.values()) / len(means))


def comparable(rows: int, seq_len: int, *, steps: int, precision: str, view: Objective = "causal") -> TrainConfig:
    """Settings that both sides have: a constant rate, and rows that are one document each."""
    return TrainConfig(
        view=view,
        steps=steps,
        batch_size=rows,
        seq_len=seq_len,
        random_offsets=False,
        precision=precision,  # type: ignore[arg-type]
        lr_schedule="constant",
        warmup_share=0.0,
    )


def flops_per_token(model: ModelConfig, config: TrainConfig, *, vocab_size: int) -> float:
    """Operations of a training step for each token that it reads: three forward passes, logits of targets alone."""
    forward = forward_flops_per_token(model, vocab_size, config.seq_len)
    targets = sum(share for _, share in target_shares(config, CACHE.num_folds).values())
    return 3 * (forward.body + targets * forward.head)


def _run(model: ModelConfig, config: TrainConfig, corpus: Corpus, cache: CacheConfig) -> Run:
    return Run(
        name="speed",
        folder=Path("speed"),  # only named in errors: nothing is written
        model=model,
        train=config,
        terms=(CROSS_ENTROPY,),
        corpus=corpus,
        cache=cache,
        seed=SEED,
        fingerprint={},
        tracking=TrackingConfig(),
    )
