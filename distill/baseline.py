"""The baseline to beat beside a candidate: n-grams of a project's own text, asked the same under the same protocol.

They are counted once in the train stream and kept in the project, RUN_DIR/ngrams, where its own report looks for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.choices import ChoiceTask
from benchmarks.config import EvaluationConfig
from benchmarks.evaluation import Evaluation, evaluate
from benchmarks.evaluation_folder import write_evaluation
from benchmarks.ngram_baseline import ngram_candidate, ngram_identity, ngram_stream_result, stored_ngrams
from benchmarks.protocol import Protocol
from benchmarks.score_store import ScoreStore
from benchmarks.scoring import Scorer, Team, scoring_identity
from benchmarks.scoring_tokenizer import ScoringTokenizer, own_tokenizer
from benchmarks.text_costs import BY_TOKEN, TextCosts, stream_costs, with_costs
from corpora.errors import Damaged, InputRefused
from corpora.prepare import Corpus, open_corpus
from corpora.storage import canonical_json, digest, read_manifest
from distill.texts import OwnText, stored_text_costs

if TYPE_CHECKING:
    from benchmarks.ngram import NgramModel

ORDER = 5  # tokens of the longest n-gram; the same for all projects, so that their baselines compare
LEFT_OUT = "none"  # of --ngrams
REMEDY = "name a project whose text is counted with --ngrams RUN_DIR"


@dataclass(frozen=True)
class Baseline:
    """What the n-grams got; without an evaluation, why there are none."""

    evaluation: Evaluation | None
    said: str
    tokenizer: str = ""  # digest

    def beside(self, evaluation: Evaluation, tokenizer: ScoringTokenizer | None) -> Evaluation:
        """A candidate's evaluation with the baseline in it; `tokenizer`: the candidate's, where it is known."""
        beaten = self.evaluation
        if beaten is not None and (tokenizer is None or tokenizer.digest != self.tokenizer):
            beaten = replace(beaten, scores=tuple(score for score in beaten.scores if score.metric not in BY_TOKEN))
        return replace(evaluation, baseline=beaten, remarks=(*evaluation.remarks, self.said))


@dataclass(frozen=True)
class _Counts:
    """The n-grams of a project."""

    run_dir: Path
    corpus: Corpus
    model: NgramModel

    @property
    def name(self) -> str:
        return f"{self.run_dir.name}:{ORDER}-gram"


def score_baseline(
    folder: Path,
    tasks: Mapping[str, Sequence[ChoiceTask]],
    own: OwnText | None,
    config: EvaluationConfig,
    protocol: Protocol,
    out: Path | None,
    team: Team,
    announce: Callable[[str], None],
) -> Baseline:
    """Score the n-grams that stand beside a candidate's folder on what it is asked; with `out`, keep their verdicts.

    Where the project is not named but found beside the candidate, what stands in the way is told in the report.
    Raises InputRefused, Damaged and NoRoom for a project that is named.
    """
    counts = _counts(folder, config.ngrams, team, announce)
    if isinstance(counts, str):
        return Baseline(None, counts)
    announce(f"score: {counts.name}, the baseline")
    tokenizer = own_tokenizer(counts.corpus.tokenizer.to_json())
    weights = digest(canonical_json(ngram_identity(counts.corpus.identity("train"), ORDER)).encode())
    identity = scoring_identity(weights, tokenizer, protocol, backend="causal", precision="fp32")
    answers = out / "answers" if out is not None else None
    store = ScoreStore(answers, identity) if answers is not None else None
    candidate = ngram_candidate(counts.model, counts.name)
    scorer = Scorer(counts.name, (candidate,), tokenizer, protocol, config.max_tokens, store, team)
    try:
        costs = _costs(scorer, identity, counts, own, config, answers)
        evaluation = evaluate(scorer, tasks, replace(config, canaries=False), backend="causal")
    except InputRefused as error:
        raise InputRefused(f"{counts.name} (the baseline; --ngrams {LEFT_OUT} leaves it out): {error}") from error
    evaluation = with_costs(evaluation, costs, config)
    if out is not None and team.rank == 0:
        write_evaluation(out, evaluation, identity)
    said = (
        f"{counts.name}: the baseline to beat, {ORDER}-grams of the train stream of {counts.run_dir} (interpolated "
        "modified Kneser-Ney), asked the same under the same protocol."
    )
    return Baseline(evaluation, said, tokenizer.digest)


def _counts(folder: Path, ngrams: str | None, team: Team, announce: Callable[[str], None]) -> _Counts | str:
    """The n-grams that stand beside a candidate, or a line that says why there are none."""
    if ngrams == LEFT_OUT:
        return f"No n-gram baseline stands here: it was left out (--ngrams {LEFT_OUT})."
    if ngrams is not None:
        return _stored(Path(ngrams), team, announce)
    nothing = "No n-gram baseline stands here:"
    if read_manifest(folder) is None:
        return f"{nothing} {folder.name} is no run of this toolkit; {REMEDY}."
    from distill.lineage import TrainedRun

    run = TrainedRun(Path(os.path.abspath(folder)))
    try:
        if run.corpus is None:
            return f"{nothing} {run.run_dir} does not hold the corpus that {folder.name} was trained on; {REMEDY}."
        return _stored(run.run_dir, team, announce)
    except (InputRefused, Damaged) as error:
        return f"{nothing} {error}."
    except OSError as error:  # somebody else's project, which cannot be written to
        return f"{nothing} {error.filename}: {error.strerror}; {REMEDY}."


def _stored(run_dir: Path, team: Team, announce: Callable[[str], None]) -> _Counts:
    """The n-grams of a project, counted by the first process where they are not there."""
    if read_manifest(run_dir / "corpus") is None:
        raise InputRefused(
            f"--ngrams {run_dir}: holds no prepared corpus; expected the run_dir of a project, which `cuvee prepare` "
            f"fills; name another one, or {LEFT_OUT}"
        )
    corpus, folder = open_corpus(run_dir), run_dir / "ngrams" / f"{ORDER}-grams"
    try:
        if team.rank == 0:
            if read_manifest(folder) is None:
                announce(f"score: counting the {ORDER}-grams of {run_dir}")
            stored_ngrams(corpus, folder, order=ORDER)
    finally:  # the others must not wait for one that failed
        team.barrier()
    return _Counts(Path(os.path.abspath(run_dir)), corpus, stored_ngrams(corpus, folder, order=ORDER))


def _costs(
    scorer: Scorer,
    identity: dict[str, Any],
    counts: _Counts,
    own: OwnText | None,
    config: EvaluationConfig,
    answers: Path | None,
) -> list[TextCosts]:
    """What the texts that are asked for cost the n-grams; a stream of other tokens than theirs is none of them."""
    found = [stored_text_costs(scorer, identity, Path(config.text), answers)] if config.text is not None else []
    if own is not None and own.corpus.tokenizer.digest == counts.corpus.tokenizer.digest:
        result = ngram_stream_result(counts.model, own.stream)
        found.append(stream_costs(own.stream, result, read="read whole"))
    return found
