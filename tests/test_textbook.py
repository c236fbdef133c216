"""The textbook ELC-BERT that speed is measured against is ELC-BERT: the original's recorded answers prove it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from textbook_elc_bert import TextbookElcBert

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("variant", ["base", "zero", "normalized", "weighted_output"])
def test_golden_forward_and_gradient(variant: str) -> None:
    """The original's checkpoint names fit as they are; bounds as in test_students_ltg_bert.py."""
    with safe_open(GOLDEN / f"elc_bert_{variant}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        sizes = json.loads(file.metadata()["config"])
    model = TextbookElcBert(sizes, variant).eval()
    model.load_state_dict(
        {name.removeprefix("state."): tensor for name, tensor in tensors.items() if name.startswith("state.")}
    )
    padding_BT = tensors["padding"] == 1
    logits_BTV = model.classifier(model.features(tensors["input_ids"], padding_BT))
    loss = model(tensors["input_ids"], padding_BT, tensors["labels"])
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    gradient_norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert (logits_BTV - tensors["logits_masked"])[~padding_BT].abs().max() <= 1e-5
    assert (loss - tensors["loss"]).abs().item() <= 2e-6
    assert (gradient_norm / tensors["grad_norm"] - 1).abs().item() <= 1e-5
