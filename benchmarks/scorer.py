"""What the benchmarks judge: a name, an objective, and a function from token rows to log-probabilities.

A student, a teacher and an ensemble are all candidates; nothing below this file knows which one it scores.

Axes: B rows, T positions in a row, D features, V vocabulary, N wanted output positions, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from corpora.batch import Objective
from corpora.errors import Diverged
from students.language_model import LanguageModel

# (input_ids_BT int64, segments_BT int64, wanted_BT bool) -> log_probs_NV fp32, where N = wanted_BT.sum().
# Real tokens stand in segment 0, padding in PADDING_SEGMENT; the inputs are on the CPU, the answer is where it likes.
LogProbs = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Candidate:
    """Something that can be scored.

    `objective` says what output t predicts: token t + 1 from the tokens up to t (`causal`), or token t + `shift` from
    all other tokens, where the input holds a mask token (`masked`; a shift of 1 is masked next-token prediction, arXiv
    2410.24159). `max_positions`: longest row it reads, in tokens; None: any.
    """

    name: str
    objective: Objective
    log_probs: LogProbs
    max_positions: int | None = None
    shift: Literal[0, 1] = 0

    @property
    def lookback(self) -> int:
        """How many positions before a token the output stands that predicts it."""
        return 1 if self.objective == "causal" else self.shift


def candidate_from_model(
    name: str, model: LanguageModel, objective: Objective, *, shift: Literal[0, 1] = 0
) -> Candidate:
    """A model as a candidate, in evaluation mode while it answers; only wanted rows meet the head."""

    def log_probs(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                features_BTD = model.features(input_ids_BT.to(device), segments_BT.to(device), objective == "causal")
                # fp32: bf16 log-softmax makes ties of sentences that differ
                return model.head().logits(features_BTD[wanted_BT.to(device)]).float().log_softmax(-1)
        finally:
            model.train(was_training)

    return Candidate(name, objective, log_probs, model.config.max_positions, shift)


def target_log_probs(
    candidate: Candidate, input_ids_BT: Tensor, segments_BT: Tensor, targets_N: Tensor, wanted_BT: Tensor
) -> Tensor:
    """Log-probabilities [N] (fp32, on the CPU) that a candidate gives to the targets of the wanted positions.

    Raises Diverged when a log-probability of a target is above 0: then it is no log-probability.
    """
    log_probs_NV = candidate.log_probs(input_ids_BT, segments_BT, wanted_BT)
    assert log_probs_NV.shape[0] == len(targets_N), (log_probs_NV.shape, len(targets_N))
    picked_N = log_probs_NV.gather(1, targets_N.to(log_probs_NV.device)[:, None])[:, 0].float().cpu()
    if (picked_N > 1e-4).any():
        raise Diverged(
            f"{candidate.name}: log-probability {picked_N.max().item():.4g} of a token; expected at most 0; "
            "the candidate must normalise its logits"
        )
    return picked_N
