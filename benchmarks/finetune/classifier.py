"""A language model with a classifier on one of its outputs.

The classifier reads features: what meets the output embedding. Of a masked model that is behind the transform of its
head, where the challenge's pipelines read the last hidden state before it.

Axes: B rows, T positions, D features, C labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.finetune.config import FinetuneConfig, LoraConfig
from corpora.addressed import address
from corpora.batch import PADDING_SEGMENT, Objective
from corpora.errors import InputRefused
from students.language_model import LanguageModel

_HUGGINGFACE_STD = 0.02  # of the weights of transformers' classifiers


class Classifier(nn.Module):
    """Logits of labels for rows of tokens; `model` and `head` are trained together, or its adapters and the head."""

    def __init__(
        self, model: LanguageModel, objective: Objective, config: FinetuneConfig, *, num_labels: int, seed: int
    ) -> None:
        """Takes the model over, which is changed by training. `seed` alone decides the new weights.

        torch's global generator is left as it was. Raises InputRefused where adapters find no layer.
        """
        super().__init__()
        self.model, self.causal = model, objective == "causal"
        self.last = self.causal and config.position == "by_objective"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(address(seed, "classifier") >> 1)
            self.head = _head(config, model.config.feature_size, num_labels, causal=self.causal)
            if config.lora is not None:
                _inject_adapters(model, config.lora)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The weights that training changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def forward(self, input_ids_BT: Tensor, segments_BT: Tensor) -> Tensor:
        """Logits [B, C], fp32. Real tokens stand in one segment, padding at the end in PADDING_SEGMENT."""
        features_BTD = self.model.features(input_ids_BT, segments_BT, self.causal)
        positions_B = classified_positions(segments_BT, last=self.last)
        classified_BD = features_BTD[torch.arange(len(positions_B), device=positions_B.device), positions_B]
        # fp32: the loss of a few labels is decided by small differences
        with torch.autocast(classified_BD.device.type, enabled=False):
            return self.head(classified_BD.float())


def classified_positions(segments_BT: Tensor, *, last: bool) -> Tensor:
    """Index in each row of its last real token, or of its first one, int64 [B].

    The last one is the largest index that is real, on whichever side the padding stands: counting the real tokens, or
    looking for the first padded one, is right on one side alone.
    """
    indices_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    real_BT = segments_BT != PADDING_SEGMENT
    assert bool(real_BT.any(1).all()), "a row without a token has nothing to classify"
    if last:
        return torch.where(real_BT, indices_T, -1).amax(1)
    return torch.where(real_BT, indices_T, segments_BT.shape[1]).amin(1)


def _head(config: FinetuneConfig, size: int, num_labels: int, *, causal: bool) -> nn.Module:
    dropout = config.head_dropout
    if config.head == "gelu":
        return nn.Sequential(
            nn.LayerNorm(size, config.head_eps, elementwise_affine=False),
            nn.Linear(size, size),
            nn.GELU(),
            nn.LayerNorm(size, config.head_eps, elementwise_affine=False),
            nn.Dropout(dropout),
            nn.Linear(size, num_labels),
        )
    if causal:
        return _as_transformers(nn.Linear(size, num_labels, bias=False))
    return _as_transformers(
        nn.Sequential(
            nn.Dropout(dropout), nn.Linear(size, size), nn.Tanh(), nn.Dropout(dropout), nn.Linear(size, num_labels)
        )
    )


def _as_transformers(head: nn.Module) -> nn.Module:
    """The same layers with the initial weights that transformers gives them."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=_HUGGINGFACE_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return head


def _inject_adapters(model: LanguageModel, config: LoraConfig) -> None:
    """Freeze the network and adapt its layers in place; raises InputRefused when there is none to adapt.

    Not `students.adapters`, which knows the architectures of the toolkit alone: a candidate may be any.
    """
    # here, because it takes seconds, which every command would wait for
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    kind = model.network.config.model_type
    targets = config.targets or TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind) or "all-linear"
    lora = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # said to be whole, and divided as it is
        lora_dropout=config.dropout,
        target_modules=targets,
        bias="none",
    )
    try:
        inject_adapter_in_model(lora, model.network)
    except ValueError as error:
        told = " ".join(str(error).split())[:200]
        raise InputRefused(
            f"lora.targets: found {targets}, expected layers of a {kind} ({told}); name them by the end of their names"
        ) from error
