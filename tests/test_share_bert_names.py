"""ShareBERT's published checkpoints: every name is known, and what does not fit is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from promises import moved
from test_students_share_bert import FORMS, every_form, read_golden
from torch import Tensor

from corpora.errors import InputRefused
from students.modeling_share_bert import ShareBertForMaskedLM, ShareBertForSequenceClassification, ShareBertModel
from students.share_bert import ShareBert
from students.share_bert_names import (
    FINAL_NORM,
    OUTPUT_BIAS,
    from_original,
    network_class,
    original_config,
    original_names,
)


def original_state(network: Any) -> dict[str, Tensor]:
    """A network of ours as the original would have stored it, with what it keeps unused."""
    state, names, config = network.state_dict(), original_names(network), network.config
    found = {original: state[name].clone() for name, original in names.items()}
    if config.encoder_ln_mode == "post-ln":
        found |= {f"{FINAL_NORM}.{vector}": torch.ones(config.hidden_size) for vector in ("weight", "bias")}
    return found | ({OUTPUT_BIAS: torch.ones(config.vocab_size)} if hasattr(network, "decoder") else {})


@every_form
def test_names_of_the_original_are_all_known(form: str) -> None:
    _, original, sizes = read_golden()
    config = original_config(sizes | FORMS[form], place="golden")
    for kind in (ShareBertForMaskedLM, ShareBertForSequenceClassification, ShareBertModel):
        network = kind(config)
        state = original_state(moved(network))
        assert network_class(state) is kind
        again = from_original(state, network, place="again")
        assert again.keys() == network.state_dict().keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())
        assert kind is ShareBertForSequenceClassification or {name.replace(".scale", ".weight") for name in state} <= {
            *original
        }
    assert form != "pre-ln" or original_state(ShareBertForMaskedLM(config)).keys() == original.keys()
    scales = [name for name in original_names(ShareBertModel(config)).values() if name.endswith(".scale")]
    assert len(scales) == (2 + 2 * config.num_hidden_layers + 1 if form == "rms_norm" else 0)


def test_a_checkpoint_that_does_not_fit_is_refused_with_every_tensor_named() -> None:
    _, original, sizes = read_golden()
    network = ShareBertForMaskedLM(original_config(sizes, place="golden"))
    query, decoder = "bert.encoder.layer.1.block.self.query_bias", "cls.predictions.decoder.weight"
    changes = {decoder: torch.zeros(400, 30), "cls.seq_relationship.weight": torch.zeros(2, 32), "y": torch.zeros(1)}
    kept = {name: tensor for name, tensor in (original | changes).items() if name not in (query, OUTPUT_BIAS)}
    with pytest.raises(InputRefused) as refused:
        from_original(kept, network, place="model.bin")
    line = str(refused.value)
    assert "\n" not in line and line.startswith("model.bin: ") and f"missing: {query}, {OUTPUT_BIAS};" in line
    assert "not known: cls.seq_relationship.weight, y;" in line
    assert f"of another shape: {decoder} (400, 30) for (400, 32)" in line


def test_a_configuration_of_the_original_is_read_as_it_is_meant() -> None:
    """It is a BERT's, of which the original reads neither the eps nor that the embeddings are tied."""
    _, _, sizes = read_golden()
    plain = original_config(sizes, place="golden")
    stored = {"layer_norm_type": "apex", "layer_norm_eps": 1e-12, "tie_word_embeddings": True, "model_type": "bert"}
    told = original_config(sizes | stored, place="config.json")
    assert ShareBert.model_config(told) == ShareBert.model_config(plain)
    assert (told.layer_norm_eps, told.layer_norm_type, told.model_type) == (1e-5, "pytorch", "share_bert")
    for changes, line in (
        ({"hidden_act": "relu"}, "hidden_act is 'relu', expected 'gelu'"),
        ({"sparse_mask_prediction": False}, "sparse_mask_prediction is False, expected True"),
        ({"layernorm_embedding": True}, "layernorm_embedding is True, expected False"),
        ({"encoder_ln_mode": "mid-ln"}, "encoder_ln_mode: found 'mid-ln', expected one of pre-ln, post-ln"),
        ({"layer_norm_type": "batch"}, "layer_norm_type: found 'batch', expected one of pytorch, rms_norm"),
        ({"vocab_size": 300}, "vocab_size: from 300 rows"),
    ):
        with pytest.raises(InputRefused) as refused:
            original_config(sizes | changes, place="config.json")
        assert str(refused.value).startswith("config.json: ") and line in str(refused.value)
