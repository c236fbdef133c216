"""Published weights become networks that answer as the originals do, and what does not fit is refused by its name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import students
from corpora.errors import InputRefused
from students.configuration_lv_bert import LvBertConfig
from students.lv_bert_names import in_original_layout, original_names
from students.modeling_gpt_bert import GptBertForCausalLM, GptBertForMaskedLM
from students.modeling_lv_bert import LvBertForMaskedLM, LvBertForPreTraining, LvBertModel
from students.modeling_share_bert import ShareBertModel
from students.published import PUBLISHED

GOLDEN_FILES = Path(__file__).parent / "golden"
GOLDEN = sorted(path.stem for path in GOLDEN_FILES.glob("*.safetensors"))
MODES = [(name, mode) for name in GOLDEN for mode in ("masked", "causal") if mode == "masked" or "gpt_bert" in name]


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """What the original said, its weights, and its configuration."""
    with safe_open(GOLDEN_FILES / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(file.metadata()["config"])
    state = {key.removeprefix("state."): tensor for key, tensor in tensors.items() if key.startswith("state.")}
    return tensors, state, config


def refused(architecture: str, state: Any, config: Any, objective: Any = "masked", **named: Any) -> str:
    with pytest.raises(InputRefused) as caught:
        students.from_published(architecture, state, config, objective, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_golden_file_has_its_name() -> None:
    assert len(GOLDEN) == 9 and set(GOLDEN) < set(PUBLISHED)


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_golden_answers(name: str, mode: Any) -> None:
    """Equal to the originals, whose answers were recorded once (fp32, no dropout).

    A failure means that a configuration's key, a name of a tensor or its layout is no longer read as the original means
    it. The bound is not to be loosened; rounding moves values by 2e-6.
    """
    tensors, state, config = golden(name)
    network = students.from_published(name, state, config, mode)
    unpadded_BT = tensors["padding"] == 0
    outputs = network(input_ids=tensors["input_ids"], attention_mask=unpadded_BT.long())
    if name == "lv_bert_encoder":
        expected = [tensors["embedding_output"], *tensors["all_layer_outputs"]]
        for found_BTD, expected_BTD in zip(outputs.hidden_states, expected, strict=True):
            assert (found_BTD - expected_BTD)[unpadded_BT].abs().max() <= 1e-5
        assert torch.equal(outputs.last_hidden_state, outputs.hidden_states[-1])
    else:
        assert (outputs.logits - tensors[f"logits_{mode}"])[unpadded_BT].abs().max() <= 1e-5
    assert not network.training
    assert {(weight.dtype, weight.device.type) for weight in network.state_dict().values()} == {(torch.float32, "cpu")}


@pytest.mark.parametrize("name", ["elc_bert_zero", "gpt_bert_extra", "share_bert"])
def test_golden_gradients(name: str) -> None:
    """The network trains as the original would: the same loss, and the same gradient over all tensors."""
    tensors, state, config = golden(name)
    network = students.from_published(name, state, config)
    outputs = network(tensors["input_ids"], (tensors["padding"] == 0).long(), labels=tensors["labels"])
    outputs.loss.backward()
    gradients = [weight.grad.norm() for weight in network.parameters() if weight.grad is not None]
    assert abs(outputs.loss - tensors["loss"]).item() <= 2e-6
    assert abs(torch.stack(gradients).norm() / tensors["grad_norm"] - 1).item() <= 1e-5


def test_names_without_a_suffix() -> None:
    _, state, config = golden("elc_bert_base")
    network = students.from_published("elc_bert", state, config | {"variant": "base"})
    assert network.config.variant == "base"
    for name, form in (("gpt_bert", (False, False)), ("gpt_bert_extra", (True, True))):
        _, state, config = golden(name)
        read: Any = students.from_published("gpt_bert", state, config).config
        assert (read.attention_gate, read.layer_average) == form
    _, state, config = golden("lv_bert_encoder")
    assert type(students.from_published("lv_bert", state, config)) is LvBertModel


def test_gpt_berts_two_modes_are_two_classes() -> None:
    _, state, config = golden("gpt_bert")
    assert type(students.from_published("gpt_bert", state, config)) is GptBertForMaskedLM
    assert type(students.from_published("gpt_bert", state, config, "causal")) is GptBertForCausalLM


def test_the_network_is_its_own_and_whole() -> None:
    """It shares nothing with the state it was made from, its tied table is one, and nothing was drawn for it."""
    _, state, config = golden("ltg_bert")
    before = torch.get_rng_state()
    network: Any = students.from_published("ltg_bert", state, config)
    assert torch.equal(torch.get_rng_state(), before)
    assert network.decoder.weight is network.get_input_embeddings().weight
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for tensor in state.values():
        tensor.zero_()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())


def test_weights_of_half_precision_become_fp32() -> None:
    _, state, config = golden("ltg_bert")
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    network: Any = students.from_published("ltg_bert", half, config)
    table = network.decoder.weight
    assert table.dtype == torch.float32
    assert torch.equal(table, half["embedding.word_embedding.weight"].float())


def test_what_transformers_writes_beside_the_sizes_is_no_size() -> None:
    _, state, config = golden("ltg_bert")
    beside = {"architectures": ["LtgBertForMaskedLM"], "torch_dtype": "float32", "transformers_version": "4.26.0"}
    network = students.from_published("ltg_bert", state, config | beside | {"pad_token_id": 3})
    assert network.config.pad_token_id == 3


def test_a_pre_training_checkpoint_of_lv_bert_is_its_discriminator() -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "layers": "DS"}
    sizes |= {"embedding_size": 8, "max_position_embeddings": 20, "num_hidden_layers": 1}
    states = {}
    for network_class in (LvBertForPreTraining, LvBertForMaskedLM):
        network = network_class(LvBertConfig(**sizes))
        names = original_names(network)
        states[network_class] = {
            names[name]: in_original_layout(names[name], tensor) for name, tensor in network.state_dict().items()
        }
    whole = states[LvBertForPreTraining] | {"global_step": torch.tensor(1), "generator/encoder/x": torch.zeros(3)}
    assert type(students.from_published("lv_bert", whole, sizes)) is LvBertForPreTraining
    assert type(students.from_published("lv_bert", states[LvBertForMaskedLM], sizes)) is LvBertForMaskedLM


def test_a_classifier_of_share_bert_is_one() -> None:
    _, state, config = golden("share_bert")
    body = {name: tensor for name, tensor in state.items() if name.startswith("bert.")}
    head = {"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.arange(3.0)}
    network = students.from_published("share_bert", body | head, config | {"num_labels": 3})
    assert network(input_ids=torch.ones(2, 5, dtype=torch.int64)).logits.shape == (2, 3)
    assert type(students.from_published("share_bert", body, config)) is ShareBertModel


# bad input


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("elc_bert_zero", {"num_attention_heads": 5}, "hidden_size: 48 is not divisible by num_heads 5"),
        ("lv_bert_encoder", {"num_attention_heads": 5}, "hidden_size: 32 is not divisible by num_heads 5"),
        ("share_bert", {"num_attention_heads": 5}, "hidden_size: 32 is not divisible by num_heads 5"),
        ("gpt_bert", {"hidden_size": 0}, "hidden_size: found 0, expected a whole number above 0"),
        ("ltg_bert", {"vocab_size": "160"}, "vocab_size: found '160', expected a whole number above 0"),
        ("ltg_bert", {"vocab_size": True}, "vocab_size: found True"),
        ("ltg_bert", {"layer_norm_eps": float("nan")}, "layer_norm_eps: found nan, expected a number of at least 0"),
        ("ltg_bert", {"hidden_dropout_prob": 1.5}, "dropout: found 1.5"),
        ("ltg_bert", {"pad_token_id": -1}, "pad_token_id: found -1, expected a token id or null"),
        ("ltg_bert", {"position_bucket_size": 7}, "position_buckets: found 7"),
        ("lv_bert_encoder", {"layers": "DSX"}, "layers: found 'DSX'"),
        ("lv_bert_encoder", {"layers": "DS"}, "layers: 'DS' has 2 letters"),
        ("lv_bert_encoder", {"type_vocab_size": 3}, "type_vocab_size 3 is not supported"),
        ("share_bert", {"vocab_size": 100}, "take a vocabulary of at least"),
        ("share_bert", {"encoder_ln_mode": "post"}, "encoder_ln_mode: found 'post'"),
        ("share_bert", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("share_bert", {"useLN": "yes"}, "useLN: found 'yes', expected true or false"),
        (
            "elc_bert_zero",
            {"variant": "base"},
            "variant: found 'base', expected 'zero', as the architecture's name says",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(name: str, changes: dict[str, Any], line: str) -> None:
    _, state, config = golden(name)
    assert refused(name, state, config | changes).startswith(f"{name}: ")
    assert line in refused(name, state, config | changes)


def test_keys_that_are_unknown_or_missing_are_named() -> None:
    _, state, config = golden("ltg_bert")
    line = refused("ltg_bert", state, config | {"hiden_size": 48, "rope": 1})
    assert "unknown keys hiden_size, rope;" in line and "did you mean 'hidden_size'?" in line
    del config["hidden_size"], config["layer_norm_eps"]
    assert "configuration has no hidden_size, layer_norm_eps;" in refused("ltg_bert", state, config)
    assert "no hidden_size" in refused("ltg_bert", {}, config | {"hiden_size": 48})


def test_variants_architectures_and_objectives_that_are_not_known() -> None:
    _, state, config = golden("elc_bert_zero")
    line = refused("elc_bert_zeros", state, config)
    assert line.endswith("did you mean 'elc_bert_zero'?") and "weighted_output" in line
    assert "configuration has no variant" in refused("elc_bert", state, config)
    assert "variant: found 'one', expected one of base, zero" in refused("elc_bert", state, config | {"variant": "one"})
    line = refused("elc_bert_zero", state, config, "causal")
    assert "objective 'causal', expected masked, which is how elc_bert reads" in line
    _, state, config = golden("gpt_bert")
    assert "expected masked or causal" in refused("gpt_bert", state, config, "casual")


@pytest.mark.parametrize("name", GOLDEN)
def test_tensors_that_do_not_fit_are_all_named(name: str) -> None:
    _, state, config = golden(name)
    # a name that decides nothing about the form, and is stored once
    ends = ("dense/bias", "out_proj.bias", "query_bias")
    missing, misshapen = [key for key in sorted(state) if key.endswith(ends)][:2]
    wrong = {key: tensor for key, tensor in state.items() if key != missing}
    wrong |= {misshapen: torch.zeros(3), "extra.one": torch.zeros(1), "extra.two": torch.zeros(1)}
    line = refused(name, wrong, config, place="model.bin")
    assert line.startswith("model.bin: ") and f"missing: {missing};" in line
    assert "not known: extra.one, extra.two;" in line
    assert f"of another shape: {misshapen} (3,) for {tuple(state[misshapen].shape)};" in line


@pytest.mark.parametrize("name", GOLDEN)
def test_weights_that_are_no_numbers_are_all_named(name: str) -> None:
    _, state, config = golden(name)
    first, second = [key for key, tensor in state.items() if tensor.is_floating_point() and tensor.numel() > 1][:2]
    state[first].view(-1)[0], state[second].view(-1)[-1] = float("nan"), -torch.inf
    assert f"not finite: {first}, {second};" in refused(name, state, config)


def test_what_is_no_weight_is_named() -> None:
    _, state, config = golden("ltg_bert")
    bias = "classifier.nonlinearity.1.bias"
    assert f"no tensors: {bias};" in refused("ltg_bert", state | {bias: [0.0] * 48}, config)
    assert f"whole numbers: {bias};" in refused("ltg_bert", state | {bias: state[bias].long()}, config)


@pytest.mark.parametrize("name", ["lv_bert_encoder", "share_bert"])
def test_a_row_longer_than_the_table_of_positions_is_refused(name: str) -> None:
    _, state, config = golden(name)
    network = students.from_published(name, state, config)
    longest = config["max_position_embeddings"]
    network(input_ids=torch.ones(1, longest, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"input_ids: rows of {longest + 1} tokens, the table has {longest} positions"):
        network(input_ids=torch.ones(1, longest + 1, dtype=torch.int64))


def test_a_wrong_size_costs_no_memory() -> None:
    """Shapes are compared before anything is allocated: this would take 200 TB."""
    _, state, config = golden("ltg_bert")
    line = refused("ltg_bert", state, config | {"vocab_size": 10**12})
    assert "embedding.word_embedding.weight (160, 48) for (1000000000000, 48)" in line


def test_the_room_is_light_until_it_is_asked() -> None:
    code = (
        "import sys, students\ntry:\n    students.from_publishd\nexcept AttributeError as error:\n    print(error)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    root = Path(__file__).parent.parent
    finished = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "module 'students' has no attribute 'from_publishd'"
