"""What a report holds: the rows of the one table of a run, and what must stand beside them to be judged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from benchmarks.choices import ChoiceResults
from benchmarks.stats import GainKept, Interval, bootstrap_mean
from corpora.batch import Objective
from corpora.errors import Diverged

Role = Literal["baseline", "teacher", "pool", "student", "control"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate in one view. A value is None where it was not measured or does not apply."""

    name: str
    role: Role
    view: Objective
    parameters: int  # of the model; a pool has those of its members together, n-grams their counts
    test_cross_entropy: float | None = None  # nats per target
    tune_cross_entropy: float | None = None  # nats per target: settings are chosen on it, tables report the test stream
    bits_per_byte: float | None = None  # causal only
    accuracy: float | None = None  # on minimal pairs, macro over phenomena, 0 to 1
    accuracy_interval: Interval | None = None
    ties: int | None = None  # pairs of equal score, which count as lost
    gain_kept: GainKept | None = None  # of students and their rival controls; its value is None where it is undefined
    tokens_per_second: float | None = None  # of training
    seconds: float | None = None  # of training


@dataclass(frozen=True, kw_only=True)
class Phenomenon:
    """One task of the minimal pairs: accuracies (0 to 1) and their intervals by candidate name."""

    uid: str
    field: str
    term: str
    pairs: int
    accuracy: Mapping[str, float]
    intervals: Mapping[str, Interval]
    ties: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One teacher of an ensemble; cross-entropies in nats per target."""

    name: str
    weight: float
    weight_interval: Interval | None = None  # of a fitted weight, over documents
    tune_cross_entropy: float | None = None
    test_cross_entropy: float | None = None
    tune_without: float | None = None  # cross-entropy of the pool of all others
    test_without: float | None = None
    calibration_error: float | None = None  # expected, of the likeliest token's probability, 0 to 1


@dataclass(frozen=True, kw_only=True)
class Pair:
    """How far two members differ, over the targets at which an ensemble's distributions are compared."""

    first: str
    second: str
    jensen_shannon: float  # divergence, nats
    agreement: float  # share of targets with the same likeliest token, 0 to 1


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """A pool: how its members are blended, what each and the blend cost on the same targets, and how they differ.

    What compares whole distributions is None, and `pairs` empty, where caches do not hold them.
    """

    name: str
    view: Objective | None  # None: its members read different views, and meet by position
    pool: str  # mixture, product or power with its exponent
    weights: str  # given, or fitted on the tune stream
    members: tuple[Member, ...]
    fitted_targets: int | None = None  # of the tune stream, that fitted weights were found on
    inverse_temperature: float | None = None  # of a fitted product: sharper than its members' mean above 1
    inverse_temperature_interval: Interval | None = None
    tune_cross_entropy: float | None = None
    test_cross_entropy: float | None = None
    tune_oracle: float | None = None  # cross-entropy of the best member at each target
    test_oracle: float | None = None
    compared_targets: int | None = None  # of the test stream, at which distributions are compared
    calibration_error: float | None = None
    mixture_entropy: float | None = None  # of the members' mixture, nats
    member_entropy: float | None = None  # mean of the members', nats
    mutual_information: float | None = None  # the difference of the two
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run shows. `metadata`: recipe, versions, hardware, corpus counts, as plain JSON values by section.

    `protocol`: one line for each choice behind a score (begin token, normalisation, which tokens count, chance level).
    Building a report with a number that is not finite raises Diverged: an undefined value is None.
    """

    title: str
    rows: tuple[Row, ...]
    phenomena: tuple[Phenomenon, ...] = ()
    ensembles: tuple[Ensemble, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    protocol: tuple[str, ...] = ()
    confidence: float = 0.95  # of every interval

    def __post_init__(self) -> None:
        require_finite(asdict(self), "report")


def phenomena_table(
    results: list[ChoiceResults], *, confidence: float, resamples: int, seed: int
) -> tuple[Phenomenon, ...]:
    """The per-phenomenon table of candidates, of different names, that were all scored on the same tasks."""
    how = {"confidence": confidence, "resamples": resamples, "seed": seed}
    assert len({result.candidate for result in results}) == len(results), "two candidates of one name"
    table = []
    for of_task in zip(*(result.tasks for result in results), strict=True):
        task = of_task[0].task
        assert all(other.task == task for other in of_task), f"{task.uid}: candidates were scored on different pairs"
        by_name = {result.candidate: scored for result, scored in zip(results, of_task, strict=True)}
        table.append(
            Phenomenon(
                uid=task.uid,
                field=task.field,
                term=task.term,
                pairs=len(task.items),
                accuracy={name: scored.accuracy for name, scored in by_name.items()},
                intervals={name: bootstrap_mean(scored.wins, **how) for name, scored in by_name.items()},
                ties={name: scored.ties for name, scored in by_name.items()},
            )
        )
    return tuple(table)


def scoring_protocol(*objectives: Objective) -> tuple[str, ...]:
    """What `likelihood` does with a sentence, in words: the lines a report prints beside its scores."""
    counted = {
        "causal": "Causal models: sum of log p(token | tokens before).",
        "masked": "Masked models: pseudo-log-likelihood `original`, one masked copy for each token (arXiv 1910.14659).",
    }
    return (
        *(counted[objective] for objective in objectives),
        "Each sentence stands alone after one begin token, which is read and never scored; no end token is added.",
        "Scores are sums over all tokens, without normalisation by length, at temperature 1.",
        "A pair is won when the acceptable sentence scores strictly higher; a tie is not a win; chance is 50 %.",
        "Accuracy is the mean over phenomena; its interval resamples the pairs within each phenomenon.",
    )


def require_finite(value: Any, path: str) -> None:
    """Raise Diverged, naming the leaf, when a number inside a JSON-like value is NaN or infinite."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            require_finite(child, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, child in enumerate(value):
            require_finite(child, f"{path}.{number}")
    elif not isinstance(value, str | bytes | int | None) and hasattr(value, "__float__") and not math.isfinite(value):
        raise Diverged(f"{path}: {value}; expected a finite number or none; the candidate behind it is invalid")
