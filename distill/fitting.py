"""Fits the weights of a pool's members on the tune stream, and on nothing else.

Axes: M members, N targets, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from corpora.addressed import address
from distill.evaluate import member_nats, sampled_positions, targets_at
from distill.project import Pool, Project
from teachers.ensemble import CHUNK_BYTES, Ensemble
from teachers.pools import normalised
from teachers.signal import Signal, row_chunks
from teachers.weights import FIT_BYTES, FittedWeights, fitted_mixture, fitted_product


def fit_pool(project: Project, pool: Pool) -> FittedWeights:
    """The weights that cost a mixture or a product of the pool's members least on the tune stream.

    A mixture is fitted on all targets, of which it needs one number each. A product needs whole distributions: it is
    fitted on as many targets, drawn from all documents, as `FIT_BYTES` hold. Raises InputRefused when no member is
    better than a guess.
    """
    members = tuple(project.cached(name, "tune") for name in pool.members)
    ensemble = Ensemble(members, normalised([1.0] * len(members)))
    stream, seed = project.corpus.streams["tune"], project.recipe.seed
    how: dict[str, Any] = {
        "confidence": project.recipe.benchmarks.confidence,
        "seed": address(seed, "weights", "documents"),
    }
    if pool.rule == "mixture":
        positions, nats_MN = member_nats(ensemble, project.corpus, "tune")
        return fitted_mixture(pool.members, nats_MN, stream.document_of(positions), **how)
    most = FIT_BYTES // (4 * len(members) * project.corpus.vocab_size)
    positions_N = sampled_positions(ensemble.covered_positions(), most, address(seed, "weights", "targets"))
    targets_N = targets_at(project.corpus, "tune", positions_N)
    documents_N = stream.document_of(positions_N.numpy())
    return fitted_product(pool.members, member_log_probs(ensemble, positions_N), targets_N, documents_N, **how)


def member_log_probs(ensemble: Ensemble, positions_N: Tensor) -> Tensor:
    """What each member's cache says at some positions, fp32 [M, N, V]."""
    members = ensemble.caches
    log_probs_MNV = torch.empty(len(members), len(positions_N), members[0].vocab_size)
    for rows in row_chunks(len(positions_N), members[0].vocab_size, CHUNK_BYTES):
        for place, member in enumerate(members):
            alone = Signal((member.signal(positions_N[rows]),), (1.0,))
            log_probs_MNV[place, rows] = alone.pooled_log_probs(slice(None))
    return log_probs_MNV
