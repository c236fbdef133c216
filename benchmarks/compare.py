"""Which of two systems is better, on what, and how sure that is: paired tests of who won which items.

Both systems answered the same items, so only the items that one of them wins alone tell them apart. With one seed each
the question is about two runs: exact McNemar on one paradigm, a paired permutation test of a mean over several. With
several seeds each it is about two recipes, and seeds are a second source of variation beside items: min F' by
`paired.paired_estimate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from benchmarks.paired import (
    PairedEstimate,
    cohens_g,
    holm,
    mcnemar_p_value,
    odds_ratio,
    odds_ratio_interval,
    paired_estimate,
    sign_flip_p_value,
)
from benchmarks.stats import Interval
from corpora.errors import InputRefused, RecipeError, suggestion

Level = Literal["overall", "phenomenon", "paradigm"]
Test = Literal["mcnemar", "permutation", "min_f"]
Verdict = Literal["A better", "B better", "cannot be told apart"]

LEVELS: tuple[Level, ...] = ("overall", "phenomenon", "paradigm")
MOST_RESAMPLES = 200_000  # of a mean over all 67 paradigms, 100 MB at a time
_SAME_ITEMS = "score both on the same items"


@dataclass(frozen=True)
class Verdicts:
    """One system on one set of items: for each seed, by paradigm UID, whether each item was won, bool [items]."""

    system: str
    seeds: tuple[Mapping[str, np.ndarray], ...]  # at least one
    groups: Mapping[str, str]  # UID -> phenomenon (BLiMP's linguistics_term), for rows of groups; may be empty
    items: str  # digest of the items, equal for all systems
    ties: tuple[Mapping[str, int], ...] = ()  # for each seed, by UID: items lost because scores tied; empty: not known
    protocol: str = ""  # name of the one under which all seeds were scored; empty: not known

    def wins(self, uid: str) -> np.ndarray:
        """Of one paradigm, bool [seeds, items]."""
        return np.stack([seed[uid] for seed in self.seeds])


@dataclass(frozen=True, kw_only=True)
class Row:
    """A and B on one paradigm, or on the mean over several. Accuracies and differences run from 0 to 1.

    Discordant items are summed over the paradigms; with several seeds they are the mean over all pairs of a seed of A
    and a seed of B.
    """

    name: str  # UID, phenomenon, or "macro average"
    level: Level
    paradigms: int
    items: int
    accuracy_a: float  # mean over paradigms, and over seeds
    accuracy_b: float
    difference: float  # A - B
    interval: Interval | None  # of the difference, for this row alone; None: too few seeds
    a_only: float  # items that A wins and B loses
    b_only: float
    odds_ratio: float | None  # a_only / b_only; infinite where only A wins items alone, None where neither does
    odds_ratio_interval: Interval | None  # exact, for one seed each
    cohens_g: float | None  # share of A among the discordant items - 1/2
    seed_share: float | None  # share of the difference's variance that comes from seeds; None with one seed each
    ties_a: int | None  # over all seeds; they count as lost
    ties_b: int | None
    test: Test | None  # None: too few seeds to test anything
    p_value: float | None = None
    adjusted_p_value: float | None = None  # by Holm, over the rows of this level of the whole comparison
    verdict: Verdict = "cannot be told apart"
    detectable: float | None = None  # smallest true difference that would have been shown; None: told apart, or none


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two systems side by side; rows overall, then by phenomenon, then by paradigm."""

    a: str
    b: str
    seeds_a: int
    seeds_b: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every pair that was asked for, on the same items."""

    pairs: tuple[Pair, ...]
    items: str  # digest
    alpha: float  # chance of any false positive among the rows of one level
    confidence: float  # of every interval
    resamples: int  # of permutation tests
    seed: int


def compare(
    systems: Sequence[Verdicts],
    *,
    baseline: str | None,
    alpha: float = 0.05,
    resamples: int,
    confidence: float,
    seed: int,
    all_pairs: bool = False,
) -> Comparison:
    """Compare every system (A) with the baseline (B), by default the first one; or each with all before it.

    A row is `A better` or `B better` when its p, adjusted by Holm over all rows of its level in all pairs, is at most
    `alpha`. A system of one seed cannot be tested against one of several: how it varies over seeds is not known.

    `resamples` are as many as are asked for, or more where Holm needs them for any verdict at all.

    Raises InputRefused when the systems were scored on different items, naming the first UID that differs, or under
    different protocols, and RecipeError when the question makes no sense: one system, two of one name, an unknown
    baseline.
    """
    _require_levels(alpha=alpha, confidence=confidence)
    pairs = _pairs(systems, baseline, all_pairs=all_pairs)
    for system in systems:
        _require_same_items(system, systems[0])
        _require_same_protocol(system, systems[0])
    questions = _questions(systems[0])
    resamples = max(resamples, _resamples_for_holm(questions, len(pairs), alpha))
    tested = [
        _row(name, level, uids, a, b, resamples=resamples, confidence=confidence, seed=seed)
        for a, b in pairs
        for name, level, uids in questions
    ]
    rows = _judged(tested, alpha)
    of_pair = len(rows) // len(pairs)
    return Comparison(
        pairs=tuple(
            Pair(
                a=a.system,
                b=b.system,
                seeds_a=len(a.seeds),
                seeds_b=len(b.seeds),
                rows=tuple(rows[number * of_pair : (number + 1) * of_pair]),
            )
            for number, (a, b) in enumerate(pairs)
        ),
        items=systems[0].items,
        alpha=alpha,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def _questions(system: Verdicts) -> list[tuple[str, Level, list[str]]]:
    """(name, level, UIDs) of every row, in the order of the table."""
    uids = list(system.seeds[0])
    phenomena: dict[str, list[str]] = {}
    for uid in uids:
        if phenomenon := system.groups.get(uid):
            phenomena.setdefault(phenomenon, []).append(uid)
    return [
        ("macro average", "overall", uids),
        *((phenomenon, "phenomenon", members) for phenomenon, members in phenomena.items()),
        *((uid, "paradigm", [uid]) for uid in uids),
    ]


def _resamples_for_holm(questions: Sequence[tuple[str, Level, list[str]]], pairs: int, alpha: float) -> int:
    """With which the smallest p that a permutation test can give is half of what its largest family asks for."""
    families = [[uids for _, level, uids in questions if level == wanted] for wanted in LEVELS]
    rows = max((len(family) for family in families if max(map(len, family), default=0) > 1), default=0)
    return min(MOST_RESAMPLES, math.ceil(2 * rows * pairs / alpha))


def _row(
    name: str,
    level: Level,
    uids: Sequence[str],
    a: Verdicts,
    b: Verdicts,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[Row, PairedEstimate | None]:
    """A row without its adjusted p and verdict, and the estimate behind it; None: too few seeds."""
    wins_a, wins_b = ([system.wins(uid) for uid in uids] for system in (a, b))
    a_only, b_only = _won_alone(wins_a, wins_b), _won_alone(wins_b, wins_a)
    test = _test(len(a.seeds), len(b.seeds), len(uids))
    estimate = paired_estimate(wins_a, wins_b) if test else None
    p_value = None
    if test == "mcnemar":
        p_value = mcnemar_p_value(round(a_only), round(b_only))
    elif test == "permutation":
        runs = [wins_SN[0] for wins_SN in wins_a], [wins_SN[0] for wins_SN in wins_b]
        p_value = sign_flip_p_value(*runs, resamples=resamples, seed=seed)
    elif estimate:
        p_value = estimate.p_value()
    one_seed = len(a.seeds) == len(b.seeds) == 1
    accuracy_a, accuracy_b = (float(np.mean([wins_SN.mean() for wins_SN in wins])) for wins in (wins_a, wins_b))
    row = Row(
        name=name,
        level=level,
        paradigms=len(uids),
        items=sum(wins_SN.shape[1] for wins_SN in wins_a),
        accuracy_a=accuracy_a,
        accuracy_b=accuracy_b,
        difference=accuracy_a - accuracy_b,
        interval=estimate.interval(confidence) if estimate else None,
        a_only=a_only,
        b_only=b_only,
        odds_ratio=odds_ratio(a_only, b_only),
        odds_ratio_interval=(
            odds_ratio_interval(round(a_only), round(b_only), confidence=confidence) if one_seed else None
        ),
        cohens_g=cohens_g(a_only, b_only),
        seed_share=estimate.seed_variance / estimate.variance if estimate and not one_seed else None,
        ties_a=_ties(a, uids),
        ties_b=_ties(b, uids),
        test=test,
        p_value=p_value,
    )
    return row, estimate


def _judged(tested: Sequence[tuple[Row, PairedEstimate | None]], alpha: float) -> list[Row]:
    """The rows with p adjusted in their families, verdicts, and what could have been detected."""
    rows = [row for row, _ in tested]
    for level in LEVELS:
        family = {
            index: (row, estimate, row.p_value)
            for index, (row, estimate) in enumerate(tested)
            if row.level == level and estimate is not None and row.p_value is not None
        }
        adjusted = holm([p_value for _, _, p_value in family.values()])
        # one more row would be told apart as soon as its p were at most alpha / (the number of those that are not)
        undecided = sum(p_value > alpha for p_value in adjusted)
        for (index, (row, estimate, _)), p_value in zip(family.items(), adjusted, strict=True):
            apart: Verdict = "A better" if row.difference > 0 else "B better"
            rows[index] = replace(
                row,
                adjusted_p_value=p_value,
                verdict=apart if p_value <= alpha else "cannot be told apart",
                detectable=None if p_value <= alpha else estimate.detectable(alpha / undecided),
            )
    return rows


def _test(seeds_a: int, seeds_b: int, paradigms: int) -> Test | None:
    if seeds_a == seeds_b == 1:
        return "mcnemar" if paradigms == 1 else "permutation"
    return "min_f" if min(seeds_a, seeds_b) > 1 else None


def _won_alone(wins: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Items won while the other system loses them: their number, or its mean over all pairs of seeds."""
    return sum(
        float(wins_SN.mean(0) @ (1 - others_SN.mean(0))) for wins_SN, others_SN in zip(wins, others, strict=True)
    )


def _ties(system: Verdicts, uids: Sequence[str]) -> int | None:
    return sum(seed[uid] for seed in system.ties for uid in uids) if system.ties else None


def _pairs(systems: Sequence[Verdicts], baseline: str | None, *, all_pairs: bool) -> list[tuple[Verdicts, Verdicts]]:
    """(A, B) of every pair that is asked for."""
    by_name = {system.system: system for system in systems}
    if len(by_name) < len(systems):
        names = [system.system for system in systems]
        twice = next(name for name in names if names.count(name) > 1)
        raise RecipeError(f"compare: two systems are called {twice!r}; expected different names; rename one")
    if len(systems) < 2:
        raise RecipeError(f"compare: {len(systems)} system(s); expected at least two; name another")
    if all_pairs:
        if baseline is not None:
            raise RecipeError(f"compare: baseline {baseline!r} and all pairs; expected one of the two; leave one out")
        return [(later, earlier) for earlier, later in combinations(systems, 2)]
    wanted = systems[0].system if baseline is None else baseline
    if wanted not in by_name:
        raise RecipeError(
            f"compare: baseline {wanted!r} is no system; expected one of {', '.join(by_name)}"
            f"{suggestion(wanted, by_name)}; name one of them"
        )
    return [(system, by_name[wanted]) for system in systems if system.system != wanted]


def _require_same_protocol(system: Verdicts, first: Verdicts) -> None:
    """Refuse scores that are other numbers under the same name; what is not known is not judged."""
    if system.protocol and first.protocol and system.protocol != first.protocol:
        raise InputRefused(
            f"{system.system}: scored under {system.protocol}; expected {first.protocol}, as {first.system} was; score "
            "both under one protocol"
        )


def _require_levels(**levels: float) -> None:
    for name, value in levels.items():
        if not 0 < value < 1:
            raise RecipeError(f"compare: {name} is {value}; expected a number between 0 and 1; mend it")


def _require_same_items(system: Verdicts, first: Verdicts) -> None:
    """Refuse a system whose seeds were not all judged on the first system's items."""
    assert system.seeds and len(system.ties) in (0, len(system.seeds)), f"{system.system}: seeds and ties do not fit"
    items = {uid: len(wins) for uid, wins in first.seeds[0].items()}
    if not items:
        raise InputRefused(f"{system.system}: no paradigm; expected at least one; score it first")
    for number, seed in enumerate(system.seeds, start=1):
        place = f"{system.system}, seed {number} of {len(system.seeds)}"
        for uid in [*items, *(uid for uid in seed if uid not in items)]:
            found, expected = len(seed.get(uid, ())), items.get(uid, 0)
            if found == expected == 0:
                raise InputRefused(f"{place}: {uid} has no item; expected at least one; score it again")
            if found != expected:
                raise InputRefused(
                    f"{place}: {uid} has {found} items; expected {expected or 'no such paradigm'}, as {first.system} "
                    f"has; {_SAME_ITEMS}"
                )
            if seed[uid].dtype != bool or seed[uid].ndim != 1:
                raise InputRefused(f"{place}: {uid} holds {seed[uid].dtype}; expected true or false; score it again")
    for uid in items:
        found, expected = (verdicts.groups.get(uid, "") for verdicts in (system, first))
        if found != expected:
            raise InputRefused(
                f"{system.system}: {uid} belongs to {found or 'no phenomenon'}; expected {expected or 'none'}, as "
                f"{first.system} has; {_SAME_ITEMS}"
            )
    if system.items != first.items:
        raise InputRefused(
            f"{system.system}: items of digest {system.items}; expected {first.items}, as {first.system} has; "
            f"{_SAME_ITEMS}"
        )
