"""What the codecs that keep some tokens share: the fields that all their records have, and drawing by address.

Axes: N positions (n of them in a block), V vocabulary, K kept tokens, R draws, C stored temperatures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpora.addressed import uniforms
from teachers.codecs.logits import Block, fill, largest_difference, live_logits
from teachers.codecs.said import Said
from teachers.config import CacheConfig
from teachers.signal import SparseSignal


def shared_fields(config: CacheConfig) -> list[Any]:
    """Fields of every record: exact entropies, and the target's exact log-probability at temperature 1."""
    assert config.temperatures and min(config.temperatures) > 0, config.temperatures
    assert len(set(config.temperatures)) == len(config.temperatures), config.temperatures
    return [("entropy", "<f4", (len(config.temperatures),)), ("target_log_prob", "<f4")]


def id_type(vocab_size: int) -> str:
    """The smallest type of NumPy that holds every token id."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def write_target(records_n: np.ndarray, block: Block) -> None:
    """Write what NLLs and mixture weights are made of."""
    fill(records_n["target_log_prob"], block.logits_nV.log_softmax(-1).gather(1, block.targets_n[:, None])[:, 0])


def entropy(log_probs_nV: Tensor) -> Tensor:
    """In nats, [n]; every logit is finite, so nothing is 0 * -inf."""
    return -(log_probs_nV.exp() * log_probs_nV).sum(-1)


def draw_tokens(log_weights_nV: Tensor, positions_n: np.ndarray, count: int, *, key: int) -> Tensor:
    """`count` tokens for each position, i.i.d. with probabilities proportional to exp(log weight); int64 [n, R].

    Inverts the cumulative distribution at uniforms that are addressed by (key, position, number of the draw). A token
    with log weight -inf is never drawn.
    """
    # less the largest, so that weights far below 1 do not vanish
    weights_nV = (log_weights_nV - log_weights_nV.amax(-1, keepdim=True)).exp()
    # fp64: in fp32 a sum near 1 swallows tokens below 6e-8
    cumulative_nV = weights_nV.cumsum(-1, dtype=torch.float64)
    places_nR = positions_n[:, None] * count + np.arange(count)
    uniforms_nR = torch.from_numpy(uniforms(key, places_nR)).to(cumulative_nV.device)
    # the largest uniform is 1 - 2^-53, and its product with the total rounds to less than the total: there always is a
    # first sum above, and where a sum first exceeds something, a weight above 0 was added
    return torch.searchsorted(cumulative_nV, uniforms_nR * cumulative_nV[:, -1:], right=True)


def on_device(field_N: np.ndarray, device: torch.device) -> Tensor:
    """A field of some records as a tensor, in the type in which it is stored."""
    # a copy: the strides of a single record would be those of whole records, which torch refuses
    return torch.from_numpy(field_N.copy()).to(device, non_blocking=True)


def sparse_differences(signal: SparseSignal, said: Said) -> np.ndarray:
    """Largest difference in nats between a sparse signal and the live teacher, [N].

    Over the target's log-probability, and at each stored temperature the entropy, and where the signal has them the
    log-probabilities of likely kept tokens and of all others together.
    """
    differences = []
    for rows, logits_nV in live_logits(said):
        device = logits_nV.device
        live_n = logits_nV.log_softmax(-1).gather(1, said.targets_N[rows, None].to(device))[:, 0]
        found = [(signal.target_log_probs_N[rows].to(device) - live_n).abs()]
        for temperature in signal.at:
            recorded = signal.expand(rows, temperature)
            log_probs_nV = (logits_nV / temperature).log_softmax(-1)
            assert recorded.entropy_N is not None and recorded.ids_NK is not None
            found.append((recorded.entropy_N - entropy(log_probs_nV)).abs())
            if recorded.log_weights_NK is not None:
                recorded_nK, live_nK = recorded.log_weights_NK, log_probs_nV.gather(1, recorded.ids_NK)
                if recorded.log_outside_N is not None:
                    outside_n = log_probs_nV.scatter(1, recorded.ids_NK, -torch.inf).logsumexp(-1)
                    recorded_nK = torch.cat([recorded_nK, recorded.log_outside_N[:, None]], 1)
                    live_nK = torch.cat([live_nK, outside_n[:, None]], 1)
                found.append(largest_difference(recorded_nK, live_nK))
        differences.append(torch.stack(found).amax(0))
    return torch.cat(differences).cpu().numpy()


def share_redrawn(recorded_N: np.ndarray, afresh_N: np.ndarray) -> np.ndarray:
    """Share of each position's stored draws that are not those drawn afresh; fp32 [N]."""
    return (recorded_N != afresh_N).reshape(len(recorded_N), -1).mean(1, dtype=np.float32)
