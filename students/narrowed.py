"""A model whose output embedding is wider than the tokenizer: what no text can hold is left out.

Published embeddings are often padded to a round number of rows (Pythia's has 50,304 for 50,277 tokens). Without the
rows beyond the tokenizer, the softmax shares out their mass over the tokens that there are.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from students.head import Head
from students.language_model import LanguageModel


class Narrowed(LanguageModel):
    """Another model, with the first `vocab_size` rows of its output embedding alone."""

    def __init__(self, model: LanguageModel, vocab_size: int) -> None:
        super().__init__()
        assert len(model.head().weight_VD) > vocab_size, "there is nothing to leave out"
        self.model = model
        self.network, self.config = model.network, model.config
        self._vocab_size = vocab_size

    @property
    def masked_shift(self) -> Literal[0, 1]:
        """The model's own."""
        return self.model.masked_shift

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        """The model's own."""
        return self.model.features(input_ids_BT, segments_BT, causal)

    def head(self) -> Head:
        """The model's own, as far as the tokenizer goes."""
        head = self.model.head()
        bias_V = None if head.bias_V is None else head.bias_V[: self._vocab_size]
        return head._replace(weight_VD=head.weight_VD[: self._vocab_size], bias_V=bias_V)
