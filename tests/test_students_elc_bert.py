"""ELC-BERT alone: its mixes of layers, what its variants share, and how far its positions reach.

That it equals the original is proved with the rest of its family, in test_students_ltg_bert.py.
"""

from __future__ import annotations

import pytest
import torch
from test_students_ltg_bert import golden, small_model, some_tokens
from torch import Tensor

from corpora.token_ids import TokenIds
from students.buildable import Buildable
from students.config import ModelConfig
from students.elc_bert import layer_weights
from students.modeling_ltg import distance_buckets
from students.registry import build_model

VARIANTS = ["base", "zero", "normalized", "weighted_output"]
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def features(model: Buildable) -> Tensor:
    input_ids_BT = some_tokens(2, 12)
    return model.features(input_ids_BT, torch.zeros_like(input_ids_BT), False)


@every_variant
def test_initial_mixes(variant: str) -> None:
    """All states alike, but in `base` the layer before weighs e times the others."""
    config = ModelConfig(architecture="elc_bert", variant=variant, num_layers=3, hidden_size=32, num_heads=4)
    network = build_model(config, vocab_size=96, token_ids=TokenIds(), seed=0).network
    for index, layer in enumerate(network.elc_bert.layers):
        assert layer.mix.prev_layer_weights.tolist() == [0.0] * index + [1.0 if variant == "base" else 0.0]
    assert hasattr(network.elc_bert, "output_mix") == (variant == "weighted_output")
    if variant == "weighted_output":
        assert network.elc_bert.output_mix.prev_layer_weights.tolist() == [0.0] * 4


@every_variant
def test_layer_weights_are_those_that_the_layers_use(variant: str) -> None:
    """By a state's own share in what a mix makes of one-hot states; states that a layer cannot read have none."""
    model = small_model(f"elc_bert_{variant}")
    weights = layer_weights(model)
    mixes = [layer.mix for layer in model.network.elc_bert.layers]
    mixes += [model.network.elc_bert.output_mix] if variant == "weighted_output" else []
    assert weights.shape == (len(mixes), 4) and len(mixes) == (4 if variant == "weighted_output" else 3)
    for row, (found, mix) in enumerate(zip(weights, mixes, strict=True)):
        torch.testing.assert_close(found[: row + 1], mix(tuple(torch.eye(row + 1))))
        assert (found[row + 1 :] == 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(mixes)))
    assert torch.equal(layer_weights(model.network), weights)
    with pytest.raises(AssertionError, match="without layer weights"):
        layer_weights(small_model("ltg_bert"))


def test_base_and_zero_agree_where_their_equations_do() -> None:
    """a + FFN(a) and a + FFN(x + a) are both a where the feed-forward layers give nothing, and differ elsewhere."""
    base, zero = small_model("elc_bert_base"), small_model("elc_bert_zero")
    zero.load_state_dict(base.state_dict())
    assert not torch.allclose(features(zero), features(base), atol=1e-2)
    with torch.no_grad():
        for model in (base, zero):
            for layer in model.network.elc_bert.layers:
                layer.mlp.out_proj.weight.zero_()
    assert torch.equal(features(zero), features(base))


def test_weighted_output_of_the_last_state_alone_is_zero() -> None:
    weighted, zero = small_model("elc_bert_weighted_output"), small_model("elc_bert_zero")
    weighted.load_state_dict(zero.state_dict(), strict=False)
    assert not torch.allclose(features(weighted), features(zero), atol=1e-2)
    with torch.no_grad():
        weighted.network.elc_bert.output_mix.prev_layer_weights.copy_(torch.tensor([0.0, 0.0, 0.0, 200.0]))
    torch.testing.assert_close(features(weighted), features(zero))


def test_normalized_is_zero_when_the_head_norms_its_only_layer_anyway() -> None:
    for num_layers, agree in ((1, True), (2, False)):
        normalized = small_model("elc_bert_normalized", num_layers=num_layers)
        zero = small_model("elc_bert_zero", num_layers=num_layers)
        zero.load_state_dict(normalized.state_dict())
        assert torch.allclose(features(normalized), features(zero), atol=1e-5) == agree


def test_buckets_are_the_papers() -> None:
    """Exact up to half the table, then logarithmic; a row longer than the table's moves the borders as it used to."""
    buckets = list(distance_buckets(600, 32, 512))
    assert buckets[:17] == list(range(17))
    assert [buckets[distance] for distance in (17, 20, 24, 32, 64, 128, 256, 511, 599)] == [
        17, 17, 18, 20, 23, 26, 29, 31, 31,
    ]  # fmt: skip
    assert sorted(buckets) == buckets
    for table_size, longest in ((4, 48), (8, 192), (16, 192)):  # where rounding lifts the last distance off the table
        assert max(distance_buckets(longest, table_size, longest)) == table_size - 1
    lengths = dict.fromkeys(("elc_bert_zero", "elc_bert_weighted_output", "ltg_bert", "gpt_bert"), 512)
    for form, longest in (lengths | {"elc_bert_base": 96, "elc_bert_normalized": 96}).items():
        config = small_model(form, max_positions=64).network.config
        assert (config.longest_distance(64), config.longest_distance(96)) == (64, longest)


def test_hidden_states_and_tuples_for_transformers_users() -> None:
    """The embedding's and every layer's; GPT-BERT's layers are two blocks each."""
    for form, num_states in (("elc_bert_zero", 5), ("ltg_bert", 5), ("gpt_bert", 9), ("gpt_bert_extra", 9)):
        model, tensors = golden(form)
        outputs = model.network(tensors["input_ids"], output_hidden_states=True)
        assert len(outputs.hidden_states) == num_states
        last_BTD = outputs.hidden_states[-1]
        if form != "gpt_bert_extra":  # whose output is an average of all
            torch.testing.assert_close(model.network.decoder(model.network.transform(last_BTD)), outputs.logits)
        logits_BTV, _ = model.network(tensors["input_ids"], output_hidden_states=True, return_dict=False)
        assert torch.equal(logits_BTV, outputs.logits)
        assert torch.equal(model.network(tensors["input_ids"]).logits, outputs.logits)
