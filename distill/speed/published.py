"""The published models in training on a GPU: tokens per second and the share of its matrix products, compiled and not.

Weights and tokens are random, rows hold parts of two documents as a corpus's do, and all else is as the recipe says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.speed_figures import Table
from benchmarks.speed_timing import Setting, Timing, interleaved
from distill.config import TrainConfig
from distill.distributed import Processes
from distill.recipe import load_recipe
from distill.speed.data import Shapes, random_corpus
from distill.speed.whole_step import OurTraining
from distill.throughput import matmul_rate
from students.config import ModelConfig
from students.registry import forward_flops_per_token

SIDES = {"eager": False, "compiled": True}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and how it is trained."""

    model: ModelConfig
    train: TrainConfig
    vocab_size: int
    rows: int  # of a step, all of them at once


def published() -> dict[str, Case]:
    """The models of the packaged recipes with rows that fill a GPU of 80 GB."""
    return {
        "Llama-360M": _packaged("teachers/llama_360m", rows=128),
        "GPT-J-705M": _packaged("teachers/gptj_705m", rows=128),
        "ELC-BERT base": _packaged("teachers/elc_bert_base", rows=256),
        "Baby-Llama 58M": _packaged("students/baby_llama_58m", rows=256),
    }


def models_table(cases: Mapping[str, Case], setting: Setting) -> Table:
    """Speed of each model on the device that training would choose; its sides take turns."""
    columns = ("model", "rows", "side", "ms", "tokens/s", "of matmul rate", "peak extra MiB")
    return Table("training steps of the published models", columns, [row for name in cases for row in _rows(name, cases[name], setting)])


def _rows(name: str, case: Case, setting: Setting) -> Iterator[tuple[str, ...]]:
    ...
