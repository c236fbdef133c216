"""`cuvee score --text` and `--stream`: which texts are asked of a candidate, and what they cost it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.config import EvaluationConfig
from benchmarks.score_store import ScoreStore
from benchmarks.scoring import Scorer
from benchmarks.stream import stream_result
from benchmarks.text_costs import TextCosts, stream_costs
from benchmarks.text_scores import text_costs, text_files, text_window
from corpora.errors import InputRefused, RecipeError
from corpora.prepare import Corpus, open_corpus
from corpora.storage import read_manifest
from corpora.stream import Stream

if TYPE_CHECKING:
    from corpora.batch import Objective
    from distill.candidates import Subject
    from students.language_model import LanguageModel
    from teachers.config import CacheConfig


@dataclass(frozen=True)
class OwnText:
    """The text that was held out from a run's training, and how its project reads it."""

    corpus: Corpus
    stream: Stream
    config: CacheConfig  # windows and masks


def asks_no_choice(config: EvaluationConfig) -> bool:
    """Whether texts, or words that children learn, are asked for and no benchmark is."""
    return bool(config.text or config.stream or config.aoa) and not (
        config.benchmarks or config.data or config.blimp or config.pairs or config.year
    )


def require_texts(config: EvaluationConfig, *, own_code: bool) -> None:
    """Refuse what can be seen before weights are read; raises RecipeError, and InputRefused for what is no text."""
    for option, value in {"--text": config.text, "--stream": config.stream}.items():
        if value is not None and own_code:
            raise RecipeError(f"{option}: the sandbox answers for whole sentences; leave it out, or --allow-code")
        if value is not None and config.backend == "hybrid":
            raise RecipeError(
                f"{option}: the sum of two modes is no cost of a token; choose --backend causal, masked or mntp"
            )
    if config.stream is not None and config.backend == "mntp":
        raise RecipeError("--stream: is read in the views of training; choose --backend causal or masked, or --text")
    if config.text is not None:
        text_files(Path(config.text))


def own_text(folder: Path, config: EvaluationConfig) -> OwnText | None:
    """The stream that is asked for; None where none is. Raises InputRefused where there is no corpus of a run."""
    if config.stream is None:
        return None
    from distill.lineage import TrainedRun

    run = TrainedRun(Path(os.path.abspath(folder)))
    if read_manifest(folder) is None or run.corpus is None:
        raise InputRefused(
            f"--stream {config.stream}: {folder} is no run with its corpus beside it; expected RUN_DIR/students/NAME "
            "or RUN_DIR/teachers/NAME; name a text with --text"
        )
    corpus = open_corpus(run.run_dir)
    return OwnText(corpus, corpus.streams[config.stream], run.recipe.cache)


def candidate_costs(
    subject: Subject,
    scorer: Scorer,
    identity: dict[str, Any],
    own: OwnText | None,
    config: EvaluationConfig,
    answers: Path | None,
    announce: Callable[[str], None],
) -> list[TextCosts]:
    """What the texts that are asked for cost a candidate; `identity`: what its scores depend on.

    Raises InputRefused, Diverged.
    """
    found = []
    if config.text is not None:
        announce(f"score: {config.text}")
        found.append(stored_text_costs(scorer, identity, Path(config.text), answers))
    if own is not None:
        announce(f"score: the {own.stream.name} stream, {len(own.stream):,} tokens")
        found.append(_stream_costs(subject.model, own, scorer.objective))
    return found


def stored_text_costs(scorer: Scorer, identity: dict[str, Any], path: Path, answers: Path | None) -> TextCosts:
    """`text_costs`, whose sums of documents are kept below `answers`: other numbers than the scores of single texts."""
    store = ScoreStore(answers, identity | {"text_window": text_window(scorer)}) if answers is not None else None
    return text_costs(scorer, path, store)


def _stream_costs(model: LanguageModel, own: OwnText, objective: Objective) -> TextCosts:
    from distill.evaluate import model_nats

    stream, window = own.stream, own.config.window
    positions_N, nats_N = model_nats(model, own.corpus, stream.name, objective, own.config)
    result = stream_result(
        objective, positions_N, nats_N, offsets_D1=stream.document_offsets, bytes_D=stream.document_bytes
    )
    masks = f" and masks of {own.config.num_folds} folds" if objective == "masked" else ""
    return stream_costs(stream, result, read=f"read in the project's windows of {window} tokens{masks}, in fp32")
