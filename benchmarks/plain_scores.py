"""Minicons' algorithm in plain words, measured where its environment is missing.

Texts are padded together in the order in which they come. Of a causal model, logits of every position are kept; of a
masked one, all masked copies of all texts go through it at once, and logits of every position of every copy are made.

Axes: B texts or copies, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.request import Request
from corpora.batch import Objective

PlainScores = Callable[[Sequence[Request], int], list[float]]


def plain_scores(objective: Objective, folder: Path) -> PlainScores:
    """Mean log-probability of the tokens of texts without context, so many texts at once, by a Hugging Face folder."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    loader = AutoModelForCausalLM if objective == "causal" else AutoModelForMaskedLM
    network, tokenizer = loader.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    of_batch = _causal if objective == "causal" else _masked

    def scores(requests: Sequence[Request], batch: int) -> list[float]:
        found: list[float] = []
        with torch.no_grad():
            for first in range(0, len(requests), batch):
                texts = [request.text for request in requests[first : first + batch]]
                read = tokenizer(texts, padding=True, return_tensors="pt")
                found += of_batch(network, read["input_ids"], read["attention_mask"], tokenizer)
        return found

    return scores


def _causal(network: torch.nn.Module, ids_BT: Tensor, real_BT: Tensor, tokenizer: Any) -> list[float]:
    logits_BTV = network(input_ids=ids_BT, attention_mask=real_BT).logits
    found = []
    for ids_T, real_T, logits_TV in zip(ids_BT, real_BT, logits_BTV, strict=True):
        length = int(real_T.sum())
        log_probs_TV = logits_TV - logits_TV.logsumexp(1).unsqueeze(1)
        found.append(log_probs_TV[torch.arange(length - 1), ids_T[1:length]].mean().item())
    return found


def _masked(network: torch.nn.Module, ids_BT: Tensor, real_BT: Tensor, tokenizer: Any) -> list[float]:
    special = torch.tensor([getattr(tokenizer, f"{role}_token_id") for role in ("pad", "cls", "sep")])
    copies, masks, targets, places, lengths = [], [], [], [], []
    for ids_T, real_T in zip(ids_BT, real_BT, strict=True):
        positions = (~torch.isin(ids_T, special)).nonzero()[:, 0]
        masked_BT = ids_T.repeat(len(positions), 1)
        masked_BT[torch.arange(len(positions)), positions] = tokenizer.mask_token_id
        copies.append(masked_BT)
        masks.append(real_T.expand(len(positions), -1))
        targets.append(ids_T[positions])
        places.append(positions)
        lengths.append(len(positions))
    logits_BTV = network(input_ids=torch.cat(copies), attention_mask=torch.cat(masks)).logits
    logits_BV = logits_BTV[torch.arange(len(logits_BTV)), torch.cat(places)]
    log_probs_BV = logits_BV - logits_BV.logsumexp(1).unsqueeze(1)
    picked_B = log_probs_BV[torch.arange(len(logits_BV)), torch.cat(targets)]
    return [part.mean().item() for part in picked_B.split(lengths)]
