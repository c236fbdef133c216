"""LV-BERT's published checkpoints: every name and layout of TensorFlow is known, and what does not fit is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from promises import moved
from test_students_lv_bert import read_golden
from torch import Tensor

from corpora.errors import InputRefused
from students.configuration_lv_bert import LvBertConfig
from students.lv_bert_names import (
    discriminator_part,
    from_original,
    generator_part,
    in_original_layout,
    network_class,
    original_names,
)
from students.modeling_lv_bert import LvBertForMaskedLM, LvBertForPreTraining, LvBertModel, share_embeddings


def original_state(network: Any, **settings: Any) -> dict[str, Tensor]:
    """A network of ours as the original would have stored it."""
    state = network.state_dict()
    names = original_names(network, **settings)
    return {original: in_original_layout(original, state[name]).clone() for name, original in names.items()}


def test_names_and_layouts_of_the_original_are_all_known() -> None:
    _, original, config = read_golden()
    network = LvBertModel(config)
    assert original_names(network).keys() == network.state_dict().keys()
    network.load_state_dict(from_original(original, network, place="golden"))
    again = original_state(network)
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], original[name]) for name in original)
    optimiser = {
        "global_step": torch.tensor(3),
        "electra/embeddings_project/bias/adam_m": torch.zeros(config.hidden_size),
    }
    assert from_original(original | optimiser, network, place="golden").keys() == network.state_dict().keys()


def test_a_pre_training_checkpoint_is_a_discriminator_and_its_generator() -> None:
    discriminator = LvBertForPreTraining(
        LvBertConfig(vocab_size=60, hidden_size=64, num_attention_heads=2, layers="DSF")
    )
    config = LvBertConfig(vocab_size=60, hidden_size=32, num_attention_heads=2, intermediate_size=128, layers="DSF")
    generator = LvBertForMaskedLM(config)
    share_embeddings(moved(generator), moved(discriminator))
    state = original_state(generator, scope="generator") | original_state(discriminator)
    assert state["generator_predictions/output_bias"].shape == (60,)
    assert state["discriminator_predictions/dense_1/kernel"].shape == (64, 1)
    assert "generator/embeddings_project/kernel" in state and "generator/embeddings/word_embeddings" not in state
    parts = {"electra": discriminator_part(state), "generator": generator_part(state)}
    assert network_class(state) is network_class(parts["electra"]) is LvBertForPreTraining
    assert network_class(parts["generator"]) is LvBertForMaskedLM
    for network, scope in ((discriminator, "electra"), (generator, "generator")):
        again = from_original(parts[scope], network, place=scope, scope=scope)
        assert again.keys() == network.state_dict().keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(InputRefused, match="not known: generator/"):
        from_original(state, discriminator, place="both")


def test_a_checkpoint_that_does_not_fit_is_refused_with_every_tensor_named() -> None:
    _, original, config = read_golden()
    network = LvBertModel(config)
    depthwise = (
        "electra/encoder/layer_0/first_submodule/dynamic_convolution_layer/convolution/conv_attn_key/depthwise_kernel"
    )
    query = "electra/encoder/layer_0/second_submodule/attention/self/query/kernel"
    dense = "electra/encoder/layer_1/first_submodule/intermediate/dense/kernel"
    changes = {
        depthwise: torch.zeros(32, 9, 1),
        dense: torch.zeros(64, 32),
        "bert/x": torch.zeros(1),
        "y": torch.zeros(1),
    }
    with pytest.raises(InputRefused) as refused:
        from_original({n: t for n, t in (original | changes).items() if n != query}, network, place="model.ckpt")
    line = str(refused.value)
    assert "\n" not in line and line.startswith("model.ckpt: ") and f"missing: {query};" in line
    assert "not known: bert/x, y;" in line
    assert f"{depthwise} (32, 9, 1) for (9, 32, 1)" in line and f"{dense} (64, 32) for (32, 64)" in line
