"""`sampled`: tokens drawn from the teacher (random-sampling distillation, arXiv 2503.16870), kept for comparison.

Unbiased for losses that are linear in the target; but what is drawn is drawn for ever, and a student that passes many
times over it learns the noise. Axes: N positions, D features, R draws, C stored temperatures.
"""

from __future__ import annotations

import numpy as np
import torch

from corpora.addressed import address
from students.head import Head
from teachers.codecs.codec import Codec
from teachers.codecs.logits import fill, logit_blocks
from teachers.codecs.said import Said
from teachers.codecs.sparse import (
    draw_tokens,
    entropy,
    id_type,
    on_device,
    share_redrawn,
    shared_fields,
    write_target,
)
from teachers.config import CacheConfig
from teachers.signal import Expanded, SparseSignal


class SampledCodec(Codec):
    """`draws` ids drawn i.i.d. from p_T at each stored temperature, each of weight 1 / `draws`, and exact entropy."""

    kind = "sampled"
    any_temperature = False
    needs_head = False
    settings = ("draws", "temperatures")
    difference_unit = "share of the draws, or nats"

    def __init__(self, config: CacheConfig, *, hidden_size: int, vocab_size: int) -> None:
        super().__init__(config, hidden_size=hidden_size, vocab_size=vocab_size)
        assert config.draws > 0, config.draws

    @property
    def record(self) -> np.dtype:
        """`drawn` [C, R] (an id may come twice), `entropy` at each stored temperature, `target_log_prob`."""
        shape = (len(self.config.temperatures), self.config.draws)
        return np.dtype([("drawn", id_type(self.vocab_size), shape), *shared_fields(self.config)])

    def encode(self, said: Said, *, seed: int) -> np.ndarray:
        """Records of draws, each temperature's apart from the others'."""
        records_N = np.empty(len(said), self.record)
        keys = [address(seed, "sampled", str(temperature)) for temperature in self.config.temperatures]
        for block in logit_blocks(said):
            records_n = records_N[block.rows]
            write_target(records_n, block)
            for number, (temperature, key) in enumerate(zip(self.config.temperatures, keys, strict=True)):
                log_probs_nV = (block.logits_nV / temperature).log_softmax(-1)
                drawn_nR = draw_tokens(log_probs_nV, block.positions_n, self.config.draws, key=key)
                fill(records_n["drawn"][:, number], drawn_nR)
                fill(records_n["entropy"][:, number], entropy(log_probs_nV))
        return records_N

    def decode(
        self, records_N: np.ndarray, head: Head | None, positions_N: np.ndarray, *, device: torch.device, draw: int
    ) -> SparseSignal:
        """The same draws at every visit."""
        ids_NCR = on_device(records_N["drawn"], device).long()
        entropy_NC = on_device(records_N["entropy"], device)
        weights_NR = torch.full((len(records_N), self.config.draws), 1 / self.config.draws, device=device)
        at = {
            temperature: Expanded("sampled", weights_NR, ids_NK=ids_NCR[:, number], entropy_N=entropy_NC[:, number])
            for number, temperature in enumerate(self.config.temperatures)
        }
        return SparseSignal("sampled", at, on_device(records_N["target_log_prob"], device))

    def differences(self, records_N: np.ndarray, said: Said, *, seed: int) -> np.ndarray:
        """Share of the draws that are not what is drawn afresh, or difference of entropy or target in nats,
        whichever is larger; [N]."""
        differences_N = super().differences(records_N, said, seed=seed)
        afresh_N = self.encode(said, seed=seed)
        return np.maximum(differences_N, share_redrawn(records_N["drawn"], afresh_N["drawn"]))
