"""What a report says of each ensemble: fitted weights with their intervals, and diagnostics, which are kept once made.

Axes: M members.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass

from benchmarks import report_data
from benchmarks.report_data import Member, Pair
from benchmarks.stats import Interval
from corpora.addressed import address
from corpora.storage import new_folder, read_manifest
from distill.evaluate import sampled_positions, targets_at
from distill.project import Pool, Project
from teachers.diagnostics import Costs, Disagreement, costs, disagreement
from teachers.ensemble import Ensemble
from teachers.pools import normalised

COMPARED = 4_096  # test targets at which whole distributions are compared


@dataclass(frozen=True)
class Diagnosis:
    """The diagnostics of one ensemble."""

    tune: Costs
    test: Costs
    disagreement: Disagreement | None  # on test targets; None where caches do not hold whole distributions


def ensemble_tables(project: Project, announce: Callable[[str], None]) -> tuple[report_data.Ensemble, ...]:
    """Every pool of several members, as the report shows it."""
    pools = [pool for pool in project.pools() if len(pool.members) > 1]
    return tuple(_table(project, pool, diagnosis(project, pool, announce)) for pool in pools)


def diagnosis(project: Project, pool: Pool, announce: Callable[[str], None]) -> Diagnosis:
    """Diagnostics of a pool, worked out from the caches when they are not there."""
    weights = project.resolved_weights(pool)
    fingerprint = {
        "tune": {name: project.cache_key(name, "tune").fingerprint() for name in pool.members},
        "test": {name: project.cache_key(name, "test").fingerprint() for name in pool.members},
        "pool": pool.described_rule,
        "weights": weights,
        "temperature": project.resolved_temperature(pool),
        "seed": project.recipe.seed,
    }
    folder = project.folder / "diagnostics" / pool.folder_name(fingerprint)
    if read_manifest(folder) is None:
        announce(f"diagnostics: {pool.name}")
        made = _made(project, pool)
        with new_folder(folder, kind="diagnostics", fingerprint=fingerprint) as writer:
            writer.facts |= asdict(made)
    manifest = read_manifest(folder)
    assert manifest is not None
    facts = manifest.require("diagnostics", fingerprint).facts
    apart = facts["disagreement"]
    return Diagnosis(Costs(**facts["tune"]), Costs(**facts["test"]), None if apart is None else Disagreement(**apart))


def _made(project: Project, pool: Pool) -> Diagnosis:
    tune, test = (_with_all_members(project, pool, stream) for stream in ("tune", "test"))
    tune_N, test_N = tune.covered_positions(), test.covered_positions()
    some_N = sampled_positions(test_N, COMPARED, address(project.recipe.seed, "diagnostics"))
    return Diagnosis(
        costs(tune, tune_N, targets_at(project.corpus, "tune", tune_N)),
        costs(test, test_N, targets_at(project.corpus, "test", test_N)),
        disagreement(test, some_N, targets_at(project.corpus, "test", some_N)),
    )


def _with_all_members(project: Project, pool: Pool, stream: str) -> Ensemble:
    """The pool over the caches of one stream, members included that a fit gave no weight."""
    weights = project.resolved_weights(pool)
    return Ensemble(
        tuple(project.cached(name, stream) for name in pool.members),
        normalised([weights[name] for name in pool.members]),
        pool.rule,
        pool.exponent,
        project.resolved_temperature(pool),
    )


def _table(project: Project, pool: Pool, found: Diagnosis) -> report_data.Ensemble:
    fitted, apart = project.fitted_weights(pool), found.disagreement
    weights = project.resolved_weights(pool)
    total = sum(weights.values())
    sure = fitted.weight_intervals if fitted and fitted.weight_intervals else {}
    tempered = fitted.inverse_temperature_interval if fitted else None
    members = [
        Member(
            name=name,
            weight=weights[name] / total,
            weight_interval=Interval(*sure[name]) if name in sure else None,
            tune_cross_entropy=found.tune.members_M[place],
            test_cross_entropy=found.test.members_M[place],
            tune_without=found.tune.without_M[place],
            test_without=found.test.without_M[place],
            calibration_error=apart.member_calibration_M[place] if apart else None,
        )
        for place, name in enumerate(pool.members)
    ]
    return report_data.Ensemble(
        name=pool.name,
        view=pool.objective,
        pool=pool.described_rule,
        weights=pool.weights,
        members=tuple(members),
        fitted_targets=fitted.targets if fitted else None,
        inverse_temperature=1 / fitted.temperature if fitted and pool.rule == "product" else None,
        inverse_temperature_interval=Interval(*tempered) if tempered else None,
        tune_cross_entropy=found.tune.pool,
        test_cross_entropy=found.test.pool,
        tune_oracle=found.tune.oracle,
        test_oracle=found.test.oracle,
        compared_targets=apart.targets if apart else None,
        calibration_error=apart.pool_calibration if apart else None,
        mixture_entropy=apart.mixture_entropy if apart else None,
        member_entropy=apart.member_entropy if apart else None,
        mutual_information=apart.mutual_information if apart else None,
        pairs=_pairs(pool, apart) if apart else (),
    )


def _pairs(pool: Pool, apart: Disagreement) -> tuple[Pair, ...]:
    return tuple(
        Pair(
            first=pool.members[one],
            second=pool.members[other],
            jensen_shannon=apart.jensen_shannon_MM[one][other],
            agreement=apart.agreement_MM[one][other],
        )
        for one, other in itertools.combinations(range(len(pool.members)), 2)
    )
