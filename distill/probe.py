"""A few minimal pairs while a run trains: numbers for a curve. Tables are made of finished models."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from benchmarks.choices import ChoiceTask
from benchmarks.config import BenchmarksConfig
from benchmarks.scorer import candidate_from_model
from distill.distributed import Processes
from distill.run import Run
from distill.scores import pair_tasks, score_tasks
from distill.shares import read_views
from students.language_model import LanguageModel


def probe(run: Run, model: LanguageModel, processes: Processes) -> dict[str, float]:
    """Accuracy on some pairs of each phenomenon, by objective; nothing where the recipe asks for none.

    The first process scores, the others go on: none of their numbers depends on it.
    """
    if not run.train.probe_pairs or not processes.is_first:
        return {}
    config = probe_config(run.benchmarks, run.train.probe_pairs)
    found = {}
    for objective in read_views(run.train):
        candidate = candidate_from_model(run.name, model, objective, shift=model.masked_shift)
        result = score_tasks(candidate, _tasks(config), run.corpus.tokenizer, config)
        if result is not None:
            found[f"{objective}/pairs"] = result.accuracy
    return found


def probe_config(config: BenchmarksConfig, pairs: int) -> BenchmarksConfig:
    """The recipe's own benchmarks with fewer pairs."""
    minimal_pairs, blimp = config.minimal_pairs, config.blimp
    return replace(
        config,
        minimal_pairs=replace(minimal_pairs, pairs=pairs) if minimal_pairs else None,
        blimp=replace(blimp, pairs=pairs) if blimp else None,
    )


@lru_cache(maxsize=2)
def _tasks(config: BenchmarksConfig) -> list[ChoiceTask]:
    return pair_tasks(config, seed=1)
