"""The rules of a track: words, epochs, and the models that helped to train the submission."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.submission.layout import Limit, Track, Year
from benchmarks.submission.submitted_run import SubmittedRun, Text

NOT_VERIFIED = "The year's rule on auxiliary models was not verified; what it says here is second-hand."


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a rule was kept; `verified` says whether the rule itself was read at its source."""

    verdict: Literal["kept", "broken", "cannot be judged"]
    reason: str
    rule: str
    source: str
    verified: bool
    remark: str  # NOT_VERIFIED, or empty


def corpus_words(texts: Iterable[Text]) -> int | None:
    """Words of texts, equal ones counted once; None when one does not say what it is."""
    words: dict[str, int] = {}
    for text in texts:
        if text.words is None or text.digest is None:
            return None
        words[text.digest] = text.words
    return sum(words.values())


def limits(run: SubmittedRun, track: Track) -> dict[str, tuple[float | None, Limit]]:
    """What a run has of everything that is limited (None: not known), and the limit."""
    return {
        "corpus_words": (corpus_words(run.corpus), track.corpus_words),
        "words_seen": (run.words_seen, track.words_seen),
        "epochs": (run.epochs, track.epochs),
    }


def auxiliary_verdict(run: SubmittedRun, year: Year) -> Verdict:
    """The year's rule on auxiliary models, applied to the teachers of a run of a track that the year has."""
    rule = year.auxiliary_models
    limit = year.tracks[run.track].corpus_words.at_most
    assert limit is not None, "every track limits its corpus"
    unknown = [teacher.name for teacher in run.teachers if not teacher.data or corpus_words(teacher.data) is None]
    if not run.teachers:
        verdict, reason = "kept", "no auxiliary model"
    elif unknown or corpus_words(run.corpus) is None:
        verdict, reason = "cannot be judged", f"the text of {', '.join(unknown) or 'the submission'} is not known"
    else:
        verdict, reason = JUDGES[rule.kind](run, limit)
    return Verdict(
        verdict=verdict,
        reason=reason,
        rule=rule.text,
        source=rule.source,
        verified=rule.verified,
        remark="" if rule.verified else NOT_VERIFIED,
    )


def _same_corpus(run: SubmittedRun, limit: int) -> tuple[Literal["kept", "broken"], str]:
    """Teachers read nothing but the text of the submission."""
    own = {text.digest for text in run.corpus}
    others = [teacher.name for teacher in run.teachers if {text.digest for text in teacher.data} - own]
    if others:
        return "broken", f"{', '.join(others)} read other text than the submission"
    return "kept", "all teachers read the submission's own text"


def _closed_budget(run: SubmittedRun, limit: int) -> tuple[Literal["kept", "broken"], str]:
    """The text of the submission and of all its teachers, each counted once, stays within the track's words."""
    words = corpus_words([*run.corpus, *(text for teacher in run.teachers for text in teacher.data)])
    assert words is not None, "unknown text is not judged"
    return "kept" if words <= limit else "broken", f"{words:,} words of text with those of teachers, of {limit:,}"


JUDGES: dict[str, Callable[[SubmittedRun, int], tuple[Literal["kept", "broken"], str]]] = {
    "same_corpus": _same_corpus,
    "closed_budget": _closed_budget,
}
