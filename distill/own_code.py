"""`cuvee score FOLDER --allow-code`: a stranger's own code answers from a sandbox, and is judged as everybody is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.choices import ChoiceTask
from benchmarks.config import EvaluationConfig
from benchmarks.evaluation import Evaluation, evaluate
from benchmarks.evaluation_folder import write_evaluation
from benchmarks.evaluation_report import print_evaluation
from benchmarks.protocol import Protocol
from benchmarks.scoring import Alone
from benchmarks.strangers.files import folder_digest
from benchmarks.strangers.sandboxed import SandboxedScorer
from corpora.errors import InputRefused, RecipeError
from distill.baseline import score_baseline


@dataclass(frozen=True)
class Limits:
    """Of a stranger's code."""

    seconds: float  # wall clock of each benchmark
    memory_bytes: int


def score_with_code(
    folder: Path,
    tasks: Mapping[str, Sequence[ChoiceTask]],
    config: EvaluationConfig,
    protocol: Protocol,
    *,
    out: Path | None,
    limits: Limits,
) -> Evaluation:
    """Score a folder by its own code, and print the table. Raises RecipeError, InputRefused, Diverged."""
    if config.backend not in ("causal", "masked", "mntp"):
        raise RecipeError("--allow-code: what the code predicts is not known; say --backend causal, masked or mntp")
    if not folder.is_dir():
        raise InputRefused(f"{folder}: no such folder; expected a Hugging Face folder; check its name")
    scorer = SandboxedScorer(
        folder.name, folder, config.backend, protocol, config.max_tokens, limits.seconds, limits.memory_bytes
    )
    evaluation = evaluate(scorer, tasks, config, backend=config.backend, announce=print)
    baseline = score_baseline(folder, tasks, None, config, protocol, out, Alone(), print)
    evaluation = baseline.beside(evaluation, None)
    print_evaluation(evaluation)
    if out is not None:
        # its tokenizer is read in the sandbox alone
        identity = {"own_code": folder_digest(folder), "protocol": asdict(protocol), "backend": config.backend}
        print(f"score: written to {write_evaluation(out, evaluation, identity)}")
    return evaluation
