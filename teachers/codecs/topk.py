"""`topk`: the likeliest tokens and, at the stored temperatures, the mass of all others together.

A coarse but valid distribution: losses see the tail as one more token and leave its shape to the student. Axes: N
positions (n of them in a block), D features, V vocabulary, K kept tokens, C stored temperatures.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from students.head import Head
from teachers.codecs.codec import Codec
from teachers.codecs.logits import Block, fill, logit_blocks
from teachers.codecs.said import Said
from teachers.codecs.sparse import entropy, id_type, on_device, shared_fields, write_target
from teachers.config import CacheConfig
from teachers.signal import Expanded, SparseSignal


class TopKCodec(Codec):
    """Ids and fp16 log-probabilities of the `top_k` likeliest tokens, log tail mass and exact entropy.

    One set of log-probabilities serves all temperatures: log p / T is log p_T but for its normaliser, and that follows
    from the tail mass at T.
    """

    kind = "truncated"
    any_temperature = False
    needs_head = False
    settings = ("top_k", "temperatures")
    difference_unit = "nats"

    def __init__(self, config: CacheConfig, *, hidden_size: int, vocab_size: int) -> None:
        super().__init__(config, hidden_size=hidden_size, vocab_size=vocab_size)
        assert config.top_k > 0, config.top_k
        self.kept = min(config.top_k, vocab_size)  # K

    @property
    def record(self) -> np.dtype:
        """`ids` and `log_probs` at temperature 1, the likeliest first; `log_tail` (-inf where K = V) and `entropy` at
        each stored temperature; `target_log_prob`."""
        kept = [("ids", id_type(self.vocab_size), (self.kept,)), ("log_probs", "<f2", (self.kept,))]
        return np.dtype([*kept, ("log_tail", "<f4", (len(self.config.temperatures),)), *shared_fields(self.config)])

    def encode(self, said: Said, *, seed: int) -> np.ndarray:
        """Records of what is likeliest; nothing is drawn."""
        records_N = np.empty(len(said), self.record)
        for block in logit_blocks(said):
            self.write(records_N[block.rows], block)
        return records_N

    def write(self, records_n: np.ndarray, block: Block) -> list[Tensor]:
        """Write a block's records, and return each temperature's log-probabilities with -inf at the kept tokens."""
        write_target(records_n, block)
        log_probs_nK, ids_nK = block.logits_nV.log_softmax(-1).topk(self.kept)
        fill(records_n["ids"], ids_nK)
        # fp16 ends at -65504; a token below has no mass at any temperature that is of use
        fill(records_n["log_probs"], log_probs_nK.clamp(min=torch.finfo(torch.float16).min).half())
        tails = []
        for number, temperature in enumerate(self.config.temperatures):
            log_probs_nV = (block.logits_nV / temperature).log_softmax(-1)
            tail_nV = log_probs_nV.scatter(1, ids_nK, -torch.inf)
            # summed over the tail: 1 - kept mass would have no digits left where the tail is small
            fill(records_n["log_tail"][:, number], tail_nV.logsumexp(-1))
            fill(records_n["entropy"][:, number], entropy(log_probs_nV))
            tails.append(tail_nV)
        return tails

    def decode(
        self, records_N: np.ndarray, head: Head | None, positions_N: np.ndarray, *, device: torch.device, draw: int
    ) -> SparseSignal:
        """The kept tokens at each stored temperature, their mass and the tail's adding up to 1."""
        ids_NK = on_device(records_N["ids"], device).long()
        log_probs_NK = on_device(records_N["log_probs"], device).float()
        log_tail_NC, entropy_NC = (on_device(records_N[name], device) for name in ("log_tail", "entropy"))
        at = {}
        for number, temperature in enumerate(self.config.temperatures):
            log_tail_N = log_tail_NC[:, number]
            log_kept_N = (-torch.expm1(log_tail_N)).log()
            log_weights_NK = (log_probs_NK / temperature).log_softmax(-1) + log_kept_N[:, None]
            at[temperature] = Expanded(
                "truncated",
                log_weights_NK.exp(),
                log_weights_NK,
                ids_NK,
                log_tail_N if self.kept < self.vocab_size else None,
                entropy_NC[:, number],
            )
        return SparseSignal("truncated", at, on_device(records_N["target_log_prob"], device))
