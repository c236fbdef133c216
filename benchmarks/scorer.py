"""What the benchmarks judge: a name, an objective, and a function from token rows to log-probabilities.

A student, a teacher and an ensemble are all candidates; nothing below this file knows which one it scores.

Axes: B rows, T positions in a row, D features, V vocabulary, N wanted output positions, row by row, K targets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmarks.networks import only_wanted, reads_trees, tree_features
from corpora.batch import Objective
from corpora.errors import Diverged
from students.language_model import LanguageModel

# (input_ids_BT int64, segments_BT int64, wanted_BT bool) -> log_probs_NV fp32, where N = wanted_BT.sum().
# Real tokens stand in segment 0, padding in PADDING_SEGMENT; the inputs are on the CPU, the answer is where it likes.
LogProbs = Callable[[Tensor, Tensor, Tensor], Tensor]
# (input_ids_BT int64, positions_BT int64, sees_BTT bool, wanted_BT bool) -> the same: of causal models that can be told
# which tokens each one sees
TreeLogProbs = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# (input_ids_BT int64, segments_BT int64, wanted_BT bool, targets_N int64) -> log_probs_N fp32, on the CPU: of causal
# candidates that know what one token costs without a whole distribution
TokenLogProbs = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Precision = Literal["fp32", "bf16"]  # of a network's weights and features
CPU_CAUSAL_TOKENS = 1024  # of a vocabulary of 16,384, the logits of as many positions are 64 MiB: caches hold no more


@dataclass(frozen=True)
class Candidate:
    """Something that can be scored.

    `objective` says what output t predicts: token t + 1 from the tokens up to t (`causal`), or token t + `shift` from
    all other tokens, where the input holds a mask token (`masked`; a shift of 1 is masked next-token prediction, arXiv
    2410.24159). `max_positions`: longest row it reads, in tokens; None: any. `best_tokens`: of a forward pass of short
    rows; more would make it slower; None: as many as memory holds. `tree_log_probs`: reads rows that begin alike as one
    tree; `token_log_probs`: answers for one token at each wanted output; None: it cannot.
    """

    name: str
    objective: Objective
    log_probs: LogProbs
    max_positions: int | None = None
    shift: Literal[0, 1] = 0
    best_tokens: int | None = None
    tree_log_probs: TreeLogProbs | None = None
    token_log_probs: TokenLogProbs | None = None

    @property
    def lookback(self) -> int:
        """How many positions before a token the output stands that predicts it."""
        return 1 if self.objective == "causal" else self.shift


def candidate_from_model(
    name: str,
    model: LanguageModel,
    objective: Objective,
    *,
    shift: Literal[0, 1] = 0,
    precision: Precision = "fp32",
) -> Candidate:
    """A model as a candidate, in evaluation mode while it answers; only wanted rows meet the head.

    In bf16 a copy of the network answers, whose weights and features have that type; log-probabilities are fp32.
    """
    answering = model if precision == "fp32" else _in_bf16(model)
    device = next(model.parameters()).device

    def answer(features: Callable[[], Tensor], wanted_BT: Tensor) -> Tensor:
        was_training = answering.training
        if was_training:
            answering.eval()
        try:
            with torch.inference_mode():
                # fp32: bf16 log-softmax makes ties of sentences that differ
                return answering.head().logits(features()[wanted_BT]).float().log_softmax(-1)
        finally:
            if was_training:
                answering.train()

    def log_probs(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        read, wanted_BT = (input_ids_BT.to(device), segments_BT.to(device)), wanted_BT.to(device)
        with only_wanted(answering, wanted_BT):
            return answer(lambda: answering.features(*read, objective == "causal"), wanted_BT)

    def tree_log_probs(input_ids_BT: Tensor, positions_BT: Tensor, sees_BTT: Tensor, wanted_BT: Tensor) -> Tensor:
        read = (each.to(device) for each in (input_ids_BT, positions_BT, sees_BTT))
        return answer(lambda: tree_features(answering, *read), wanted_BT.to(device))

    on_cpu = device.type == "cpu"
    return Candidate(
        name,
        objective,
        log_probs,
        model.config.max_positions,
        shift,
        best_tokens=CPU_CAUSAL_TOKENS if on_cpu and objective == "causal" else None,
        tree_log_probs=tree_log_probs if objective == "causal" and reads_trees(model) else None,
    )


def _in_bf16(model: LanguageModel) -> LanguageModel:
    """A copy whose weights are rounded; rotary angles stay fp32, as in training: of 400 positions they would be off."""
    rounded = copy.deepcopy(model).bfloat16()
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            owner, _, own_name = name.rpartition(".")
            setattr(rounded.get_submodule(owner), own_name, buffer.clone())
    return rounded


def target_log_probs(
    candidate: Candidate, log_probs_NV: Tensor, targets_K: Tensor, outputs_K: Tensor | None = None
) -> Tensor:
    """Log-probabilities [K] (fp32, on the CPU) that a candidate's answer gives to targets.

    Target k is looked up in row `outputs_K[k]` of the answer; without it, each has its own in order. Raises Diverged
    when a log-probability of a target is above 0: then it is no log-probability.
    """
    outputs_K = torch.arange(len(targets_K)) if outputs_K is None else outputs_K
    assert log_probs_NV.shape[0] == int(outputs_K.max()) + 1, (log_probs_NV.shape, outputs_K.max())
    device = log_probs_NV.device
    picked_K = log_probs_NV[outputs_K.to(device), targets_K.to(device)].float().cpu()
    if (picked_K > 1e-4).any():
        raise Diverged(
            f"{candidate.name}: log-probability {picked_K.max().item():.4g} of a token; expected at most 0; "
            "the candidate must normalise its logits"
        )
    return picked_K
