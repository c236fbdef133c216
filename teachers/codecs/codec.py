"""The one interface of codecs: how a cache stores what a teacher says about one position, and reads it back.

Axes: N positions, D features, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch

from students.head import Head
from teachers.codecs.logits import dense_differences
from teachers.codecs.said import Said
from teachers.codecs.sparse import sparse_differences
from teachers.config import CacheConfig
from teachers.signal import DenseSignal, Kind, MemberSignal, SparseSignal


class Codec(ABC):
    """A record of fixed size for each position; equal inputs give equal bytes."""

    kind: ClassVar[Kind]  # of the signals that records become
    any_temperature: ClassVar[bool]  # whether they serve every temperature, or those of the recipe alone
    needs_head: ClassVar[bool]  # whether the head is needed to read them back
    settings: ClassVar[tuple[str, ...]]  # fields of CacheConfig that its bytes depend on, for the fingerprint
    difference_unit: ClassVar[str]  # what the numbers of `differences` are

    def __init__(self, config: CacheConfig, *, hidden_size: int, vocab_size: int) -> None:
        self.config = config
        self.hidden_size = hidden_size
        self.vocab_size = vocab_size

    @property
    @abstractmethod
    def record(self) -> np.dtype:
        """The structured type of one position's record."""

    @abstractmethod
    def encode(self, said: Said, *, seed: int) -> np.ndarray:
        """Records [N] of what a teacher says.

        Draws are addressed by (seed, position), so neither order nor batches mean anything.
        """

    @abstractmethod
    def decode(
        self, records_N: np.ndarray, head: Head | None, positions_N: np.ndarray, *, device: torch.device, draw: int
    ) -> MemberSignal:
        """The signal of some records on a device. `draw` numbers the visit: where a codec keeps more than a student
        hears at once, another number hears other parts of it."""

    def differences(self, records_N: np.ndarray, said: Said, *, seed: int) -> np.ndarray:
        """How far each record is from what the teacher says now; fp32 [N].

        The largest difference of a position, in `difference_unit`. Log-probabilities count where a token has at least
        1e-4, in the record or live, and at the target in any case; of sparse records the tail and the entropy, too. Not
        finite where the record is not.
        """
        device = said.head.weight_VD.device
        signal = self.decode(records_N, said.head, said.positions_N, device=device, draw=0)
        if isinstance(signal, DenseSignal):
            return dense_differences(signal, said)
        assert isinstance(signal, SparseSignal)
        return sparse_differences(signal, said)
