"""A training run: what it depends on, and the folders of weights that it leaves.

    RUN/                          the last weights, tokenizer and metrics log
    RUN/snapshots/step-00000300   the weights after a step, kept for good
    RUN/snapshots/chck_1M         the weights after so many words, named as the BabyLM challenge does
    RUN/snapshots/best-00000200   the weights that were best on the tune stream, until better ones are found
    RUN/snapshots/average         the moving average of the weights

Each of them is a run folder of its own: a teacher, a candidate, a model of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.config import BenchmarksConfig
from corpora.addressed import address
from corpora.errors import InputRefused
from corpora.prepare import Corpus
from corpora.storage import file_digest, new_folder, read_manifest
from distill.config import TrackingConfig, TrainConfig
from distill.shares import read_views, word_snapshots
from distill.step_data import Term
from distill.tracking import METRICS
from students.adapters import merged
from students.buildable import Buildable
from students.config import AdapterConfig, ModelConfig
from students.registry import check_model
from students.run_folder import save_model
from teachers.config import CacheConfig


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that one training run depends on."""

    name: str
    folder: Path
    model: ModelConfig
    train: TrainConfig
    terms: tuple[Term, ...]
    corpus: Corpus
    cache: CacheConfig  # says which masks masked rows have
    seed: int
    fingerprint: dict[str, Any]  # of all that affects the weights
    tracking: TrackingConfig
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)  # of which a probe scores a few pairs
    start: Path | None = None  # folder of the weights that training begins with; None: drawn anew
    fresh_head: bool = False  # of those the body alone is taken
    adapters: AdapterConfig | None = None  # trained instead of those weights

    @property
    def masked_shift(self) -> int:
        """How its masked rows are aligned."""
        return check_model(self.model).masked_shift_of(self.model)


def rows_seed(seed: int) -> int:
    """Of a run's seed the part that decides which rows it reads in which order."""
    return address(seed, "data")


def snapshot_folder(run_folder: Path, step: int) -> Path:
    """Where a run keeps the weights after a step."""
    return run_folder / "snapshots" / f"step-{step:08d}"


def word_snapshot_folder(run_folder: Path, words: int) -> Path:
    """Where a run keeps the weights after so many words, named as the BabyLM challenge names its checkpoints."""
    million, rest = divmod(words, 1_000_000)
    return run_folder / "snapshots" / (f"chck_{words}" if rest else f"chck_{million}M")


def best_folder(run_folder: Path, step: int) -> Path:
    """Where a run keeps the weights of its best look at the tune stream."""
    return run_folder / "snapshots" / f"best-{step:08d}"


def best_folders(run_folder: Path) -> set[Path]:
    """All of them that there are."""
    return set((run_folder / "snapshots").glob("best-*"))


def average_folder(run_folder: Path) -> Path:
    """Where a run keeps the moving average of its weights."""
    return run_folder / "snapshots" / "average"


def snapshot_fingerprint(run: Run, step: int) -> dict[str, Any]:
    """What the weights after a step depend on."""
    return run.fingerprint | {"after_step": step}


def average_fingerprint(run: Run) -> dict[str, Any]:
    """What the moving average depends on."""
    return run.fingerprint | {"average": run.train.average}


def save_run(
    run: Run,
    folder: Path,
    model: Buildable,
    *,
    fingerprint: dict[str, Any],
    steps: int,
    words: int,
    precision: str,
    more: Mapping[str, Any] = MappingProxyType({}),
    with_log: bool = False,
    reached: tuple[int, int] | None = None,
) -> None:
    """Commit weights of a run: model, config, tokenizer and the facts of `steps`; the manifest comes last.

    `more`: other facts of the run. `with_log` lists the metrics log, which already lies in the folder. `reached`: the
    steps and words that the run came to, which may be more than those of the weights it leaves. Raises NoRoom when they
    do not fit.
    """
    plain = merged(model)
    with new_folder(folder, kind="run", fingerprint=fingerprint) as writer:
        save_model(writer, plain)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            writer.write(name, (run.corpus.tokenizer_folder / name).read_bytes())
        if with_log:
            metrics = folder / METRICS
            writer.adopt(METRICS, {"size": metrics.stat().st_size, "digest": file_digest(metrics)})
        writer.facts |= {
            "name": run.name,
            "views": read_views(run.train),
            "steps": steps,
            "words": words,
            "parameters": sum(parameter.numel() for parameter in plain.parameters()),
            "tokenizer": run.corpus.tokenizer.digest,
            "precision": precision,
            **more,
        }
        if reached is not None:
            writer.facts["reached_steps"], writer.facts["reached_words"] = reached


def require_kept(run: Run, *, done: int, words: int, finished: bool = False) -> None:
    """Raise InputRefused when a run is past weights that the recipe asks for and did not keep them.

    `done`: steps that it has done. `words`: words that it has seen. A run that is finished has its average too.
    """
    asked = {
        snapshot_folder(run.folder, step): snapshot_fingerprint(run, step)
        for step in run.train.snapshots
        if step <= done
    }
    if finished and run.train.average is not None:
        asked[average_folder(run.folder)] = average_fingerprint(run)
    for number in word_snapshots(run.train):
        if number <= words:
            folder = word_snapshot_folder(run.folder, number)
            kept = read_manifest(folder)
            asked[folder] = snapshot_fingerprint(run, kept.facts["steps"]) if kept else {}
    for folder, fingerprint in asked.items():
        manifest = read_manifest(folder)
        if manifest is None:
            raise InputRefused(
                f"{folder}: missing: the run is past these weights and was not asked to keep them; delete {run.folder} "
                "and run the same command again, or ask for others"
            )
        manifest.require("run", fingerprint)
