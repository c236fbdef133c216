"""What every target of a stream costs a model or a pool, in nats: the numbers behind cross-entropy and gain kept.

Axes: N targets of the stream, M members.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from corpora.addressed import permutation
from corpora.batch import Objective
from corpora.prepare import Corpus
from corpora.windows import plan_windows, window_batches
from students.language_model import LanguageModel
from teachers.cache import cached_view
from teachers.config import CacheConfig
from teachers.ensemble import CHUNK_BYTES, Ensemble, target_nats


def model_nats(
    model: LanguageModel, corpus: Corpus, stream_name: str, objective: Objective, config: CacheConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (int64) and nats (float32) of every target, in the windows and masks that caches are made with.

    A masked model is asked with every fold of the round in turn, so that each position is predicted once.
    """
    stream = corpus.streams[stream_name]
    windows = plan_windows(stream, config.window, objective=objective)
    view = cached_view(config, objective, shift=model.masked_shift)
    head, device = model.head(), next(model.parameters()).device
    rows = max(CHUNK_BYTES // (4 * corpus.vocab_size * config.window), 1)
    positions, nats = [], []
    for fold in range(view.num_folds):
        batches = window_batches(
            stream,
            windows,
            replace(view, fold=fold),
            rows=rows,
            token_ids=corpus.token_ids,
            vocab_size=corpus.vocab_size,
        )
        for batch in batches:
            with torch.inference_mode():
                log_probs_NV = head.logits(model.target_features(batch.to(device))).log_softmax(-1)
            targets_N = batch.targets_BT[batch.has_target_BT].to(device)
            nats.append(-log_probs_NV.gather(1, targets_N[:, None])[:, 0].cpu().numpy())
            positions.append(batch.target_positions_N.numpy())
    return np.concatenate(positions), np.concatenate(nats)


def pool_nats(ensemble: Ensemble, corpus: Corpus, stream_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions (int64) and nats (float32) of every target that the members' caches hold."""
    positions_N = ensemble.covered_positions()
    nats_N = target_nats(ensemble, positions_N, targets_at(corpus, stream_name, positions_N))
    return positions_N.numpy(), nats_N.float().numpy()


def member_nats(ensemble: Ensemble, corpus: Corpus, stream_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions (int64) and nats under each member alone (float64 [M, N]) of every target that all caches hold."""
    positions_N = ensemble.covered_positions()
    targets_N = targets_at(corpus, stream_name, positions_N)
    alone = [Ensemble((member,), (1.0,)) for member in ensemble.members]
    return positions_N.numpy(), np.stack([target_nats(one, positions_N, targets_N).numpy() for one in alone])


def sampled_positions(positions_N: Tensor, most: int, seed: int) -> Tensor:
    """At most so many of some positions, drawn without replacement by a seed; in order."""
    chosen = permutation(seed, len(positions_N))[:most]
    return positions_N[torch.from_numpy(np.sort(chosen))]


def targets_at(corpus: Corpus, stream_name: str, positions_N: Tensor) -> Tensor:
    """The tokens that stand at some positions of a stream; int64 [N]."""
    stream = corpus.streams[stream_name]
    return torch.from_numpy(stream.tokens(0, len(stream)))[positions_N]
