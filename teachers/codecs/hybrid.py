"""`hybrid`: exact top-k, and for the tail a pool of draws of which a student hears other ones at each visit.

Unbiased for losses that are linear in the target, with less noise than draws alone (stratified sampling, the top-k
being strata of their own). A frozen draw would be a label that a student of many epochs learns by heart; a pool of a
few times the draws is heard in turn. Axes: N positions, D features, V vocabulary, K kept tokens, P draws of the pool,
R draws of a visit, C stored temperatures.
"""

from __future__ import annotations

import numpy as np
import torch

from corpora.addressed import address, hashes
from students.head import Head
from teachers.codecs.codec import Codec
from teachers.codecs.logits import fill, logit_blocks
from teachers.codecs.said import Said
from teachers.codecs.sparse import draw_tokens, id_type, on_device, share_redrawn
from teachers.codecs.topk import TopKCodec
from teachers.config import CacheConfig
from teachers.signal import Expanded, SparseSignal


class HybridCodec(Codec):
    """The record of `topk`, and `tail_pool` ids drawn from the tail at each stored temperature."""

    kind = "sampled"
    any_temperature = False
    needs_head = False
    settings = ("top_k", "tail_pool", "temperatures")
    difference_unit = "nats, or share of the tail's draws"

    def __init__(self, config: CacheConfig, *, hidden_size: int, vocab_size: int) -> None:
        super().__init__(config, hidden_size=hidden_size, vocab_size=vocab_size)
        assert config.tail_pool > 0, config.tail_pool
        self._top_k = TopKCodec(config, hidden_size=hidden_size, vocab_size=vocab_size)
        self._has_tail = self._top_k.kept < vocab_size

    @property
    def record(self) -> np.dtype:
        """The fields of `topk`, and `pool` [C, P] where there is a tail."""
        shape = (len(self.config.temperatures), self.config.tail_pool)
        pool = [("pool", id_type(self.vocab_size), shape)] if self._has_tail else []
        return np.dtype([*self._top_k.record.descr, *pool])

    def encode(self, said: Said, *, seed: int) -> np.ndarray:
        """Records with a pool drawn i.i.d. from p_T outside the top-k."""
        records_N = np.empty(len(said), self.record)
        keys = [address(seed, "tail", str(temperature)) for temperature in self.config.temperatures]
        for block in logit_blocks(said):
            records_n = records_N[block.rows]
            tails = self._top_k.write(records_n, block)
            if self._has_tail:
                for number, (tail_nV, key) in enumerate(zip(tails, keys, strict=True)):
                    drawn_nP = draw_tokens(tail_nV, block.positions_n, self.config.tail_pool, key=key)
                    fill(records_n["pool"][:, number], drawn_nP)
        return records_N

    def decode(
        self, records_N: np.ndarray, head: Head | None, positions_N: np.ndarray, *, device: torch.device, draw: int
    ) -> SparseSignal:
        """The kept tokens and `tail_draws` of the pool, which share the tail's mass; another visit hears other ones."""
        exact = self._top_k.decode(records_N, head, positions_N, device=device, draw=draw)
        places_NR = self._heard_places(positions_N, draw)
        at = {}
        for number, (temperature, kept) in enumerate(exact.at.items()):
            weights_NK, ids_NK = kept.weights_NK, kept.ids_NK
            if self._has_tail:
                assert ids_NK is not None and kept.log_outside_N is not None
                heard_NR = np.take_along_axis(records_N["pool"][:, number], places_NR, 1)
                each_N1 = kept.log_outside_N.exp()[:, None] / self.config.tail_draws
                weights_NK = torch.cat([weights_NK, each_N1.expand(heard_NR.shape)], 1)
                ids_NK = torch.cat([ids_NK, on_device(heard_NR, device).long()], 1)
            at[temperature] = Expanded("sampled", weights_NK, ids_NK=ids_NK, entropy_N=kept.entropy_N)
        return SparseSignal("sampled", at, exact.target_log_probs_N)

    def _heard_places(self, positions_N: np.ndarray, draw: int) -> np.ndarray:
        """Places in the pool that are heard at a visit, [N, R].

        Visits in a row hear the pool block by block, from a start that is drawn for each position and, so that no
        regular choice of visits meets the same block for ever, anew each time round.
        """
        pool, draws = self.config.tail_pool, self.config.tail_draws
        assert 0 < draws <= pool, (draws, pool)
        lap, turn = divmod(draw, -(-pool // draws))
        start_N = (hashes(address(0, "tail visits", lap), positions_N) % np.uint64(pool)).astype(np.int64)
        return (start_N[:, None] + turn * draws + np.arange(draws)) % pool

    def differences(self, records_N: np.ndarray, said: Said, *, seed: int) -> np.ndarray:
        """What `topk` says, or the share of the pool that is not what is drawn afresh, whichever is larger; [N]."""
        differences_N = self._top_k.differences(records_N, said, seed=seed)
        if not self._has_tail:
            return differences_N
        afresh_N = self.encode(said, seed=seed)
        return np.maximum(differences_N, share_redrawn(records_N["pool"], afresh_N["pool"]))
