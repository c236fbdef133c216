"""Every number of a recipe lies where it means something: the bounds of each field, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from benchmarks.config import BenchmarksConfig, BlimpConfig, MinimalPairsConfig
from corpora.config import CorpusConfig, SplitConfig, TokenizerConfig
from distill.config import (
    MuonConfig,
    PhaseConfig,
    Recipe,
    ScheduleConfig,
    TeacherConfig,
    TermConfig,
    TrackingConfig,
    TrainConfig,
)
from distill.members import MAX_SEEDS
from students.config import ModelConfig
from teachers.config import CacheConfig

Problem = tuple[tuple[str | int, ...], str]  # keys of the recipe, and what is wrong there
Bound = tuple[str, Callable[[float], bool]]


def at_least(low: float) -> Bound:
    return f"at least {low}", lambda value: value >= low


def above(low: float) -> Bound:
    return f"more than {low}", lambda value: value > low


share: Bound = "a share from 0 to 1", lambda value: 0 <= value <= 1
below_one: Bound = "at least 0 and less than 1", lambda value: 0 <= value < 1
inside: Bound = "more than 0 and less than 1", lambda value: 0 < value < 1

BOUNDS: dict[type, dict[str, Bound]] = {
    Recipe: {
        "seed": ("from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63),
        "processes": at_least(1),
        "timeout": above(0),
    },
    CorpusConfig: {"words": at_least(1), "budget": at_least(0), "max_document_words": at_least(1)},
    SplitConfig: {"tune": inside, "test": inside},
    TokenizerConfig: {"vocab_size": at_least(260), "min_frequency": at_least(1)},  # 256 bytes and 4 special tokens
    ModelConfig: {"norm_eps": above(0), "rope_theta": above(0)},  # its architecture checks the sizes
    TrainConfig: {
        **dict.fromkeys(("steps", "words", "batch_size", "micro_batch_size", "checkpoint_every"), at_least(1)),
        **dict.fromkeys(("log_every", "evaluate_every", "evaluate_tokens", "patience"), at_least(1)),
        **dict.fromkeys(("snapshots", "word_snapshots", "max_skipped_steps"), at_least(1)),
        **dict.fromkeys(("epochs", "minutes", "lr", "eps", "grad_clip", "lr_power"), above(0)),
        **dict.fromkeys(("min_lr_share", "warmup_share", "decay_share", "cooldown_share"), share),
        **dict.fromkeys(("views", "weight_decay", "warmup_steps", "probe_pairs"), at_least(0)),
        **dict.fromkeys(("betas", "average"), below_one),
        "seq_len": at_least(2),
    },
    MuonConfig: {"lr": above(0), "momentum": below_one, "ns_steps": ("from 1 to 99", lambda value: 1 <= value <= 99)},
    PhaseConfig: {
        "share": above(0),
        "seq_len": at_least(2),
        **dict.fromkeys(("batch_size", "end_batch_size"), at_least(1)),
        "num_folds": at_least(2),
        "views": at_least(0),
    },
    TrackingConfig: {"line_every": at_least(0)},
    TeacherConfig: {
        "seeds": (f"from 1 to {MAX_SEEDS}", lambda value: 1 <= value <= MAX_SEEDS),
        "steps": at_least(1),
    },
    TermConfig: {
        **dict.fromkeys(("weight", "members", "z_loss"), at_least(0)),
        "temperature": above(0),
        "exponent": share,
        "beta": inside,
        **dict.fromkeys(("label_smoothing", "skew"), below_one),
    },
    ScheduleConfig: {
        **dict.fromkeys(("start", "end"), at_least(0)),
        **dict.fromkeys(("warmup_share", "decay_share"), share),
    },
    CacheConfig: {
        **dict.fromkeys(("num_folds", "mean_span", "shard_positions", "rows", "rounds"), at_least(1)),
        **dict.fromkeys(("top_k", "tail_pool", "tail_draws", "draws"), at_least(1)),
        "temperatures": above(0),
        **dict.fromkeys(("keep_share", "random_share"), share),
        "window": at_least(2),
        "mask_seed": ("from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63),
    },
    MinimalPairsConfig: {"pairs": at_least(1)},
    BlimpConfig: {"pairs": at_least(1)},
    BenchmarksConfig: {
        "max_tokens": at_least(2),
        "resamples": at_least(1),
        "confidence": inside,
        "ngram_order": ("from 1 to 9", lambda value: 1 <= value <= 9),
    },
}


def numbers_in_bounds(recipe: Recipe) -> Iterator[Problem]:
    """Every number lies where it means something."""
    for keys, config in _configs(recipe, ()):
        for name, (expected, fits) in BOUNDS.get(type(config), {}).items():
            for key, number in _numbers(getattr(config, name)):
                if not fits(number):
                    yield (*keys, name, *key), f"expected {expected}, found {number}"


def _configs(value: Any, keys: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every dataclass in a tree of them, with its keys."""
    if is_dataclass(value):
        yield keys, value
        children: Any = ((field.name, getattr(value, field.name)) for field in fields(value))
    else:
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _configs(child, (*keys, key))


def _numbers(value: Any) -> Iterator[tuple[tuple[str | int, ...], float]]:
    """The numbers of a field that is a number, null, a word, or a mapping or list of numbers."""
    if isinstance(value, dict):
        yield from (((key,), number) for key, number in value.items())
    elif isinstance(value, tuple | list):
        yield from (((index,), number) for index, number in enumerate(value))
    elif value is not None and not isinstance(value, str):
        yield (), value
