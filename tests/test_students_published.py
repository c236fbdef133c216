"""The causal models of transformers at their published sizes: GPT-2, and GPT-J with a kernel that it comes without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import promises
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from promises import (
    assert_documents_apart,
    assert_equal_gradients_again,
    assert_near_in_bf16,
    assert_sees,
    loaded_both_ways,
    moved,
    packed_row,
)
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, GPTJForCausalLM
from transformers.models.gptj.modeling_gptj import GPTJAttention

from corpora.errors import InputRefused, RecipeError
from corpora.token_ids import TokenIds
from distill.sharding import transformer_blocks
from students.attention import SDPA, additive_mask, attention_mask, positions_in_segments
from students.buildable import Buildable
from students.config import ModelConfig
from students.gpt2 import Gpt2
from students.gptj import SdpaAttention
from students.registry import ARCHITECTURES, build_model, forward_flops_per_token, parameter_count

VOCAB_SIZE = 96
SMALL: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_positions": 48}
both_directions = pytest.mark.parametrize("causal", [True, False])
both_gpts = pytest.mark.parametrize("architecture", ["gpt2", "gptj"])
# three documents with a padded end; one document and left padding; nothing but padding
SEGMENTS_BT = torch.tensor([[0] * 5 + [1] * 9 + [2] * 4 + [-1] * 2, [-1] * 3 + [0] * 17, [-1] * 20])


def small_model(architecture: str, **changes: Any) -> Buildable:
    """A small model in evaluation mode, moved away from its initial weights."""
    config = ModelConfig(architecture=architecture, **(SMALL | changes))  # type: ignore[arg-type]
    return moved(build_model(config, vocab_size=VOCAB_SIZE, token_ids=TokenIds(), seed=0))


def some_tokens(*shape: int) -> Tensor:
    return promises.some_tokens(*shape, vocab_size=VOCAB_SIZE)


# sizes

PUBLISHED: dict[
    str, tuple[str, int, int, int, dict[str, Any], int]
] = {  # layers, hidden size, heads, others, parameters
    "llama-360m": ("llama", 24, 1024, 8, {"intermediate_size": 3072}, 359_973_888),
    "baby-llama-58m": ("llama", 16, 512, 8, {"intermediate_size": 1024}, 58_343_936),
    "llama-16m": ("llama", 8, 256, 8, {"intermediate_size": 1024}, 16_584_960),
    "llama-95m": ("llama", 10, 768, 12, {"intermediate_size": 2048}, 95_371_008),
    "llama-97m": ("llama", 12, 768, 12, {"intermediate_size": 2048, "tie_word_embeddings": True}, 97_241_856),
    "llama-97m, untied": ("llama", 12, 768, 12, {"intermediate_size": 2048}, 109_529_856),
    "babyllama-2-345m": ("llama", 32, 960, 15, {"intermediate_size": 2560, "num_kv_heads": 5}, 345_355_200),
    "gpt2-705m": ("gpt2", 24, 1536, 16, {}, 704_928_768),
    "gpt2-97m": ("gpt2", 12, 768, 12, {}, 97_540_608),
    "gptj-705m": ("gptj", 24, 1536, 16, {}, 704_330_368),
    "gptj-705m, untied": ("gptj", 24, 1536, 16, {"tie_word_embeddings": False}, 728_906_368),
    "gptj-97m": ("gptj", 12, 768, 12, {}, 97_304_704),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    architecture, num_layers, hidden_size, num_heads, others, published = PUBLISHED[name]
    config = ModelConfig(
        architecture=architecture,  # type: ignore[arg-type]
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        max_positions=256,
        **others,
    )
    with torch.device("meta"):
        model = ARCHITECTURES[architecture](config, vocab_size=16_000, token_ids=TokenIds())
    assert sum(parameter.numel() for parameter in model.parameters()) == published
    assert parameter_count(config, 16_000) == published


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "intermediate_size": 40, "max_positions": 30}])
def test_counts_of_gpt2_are_those_of_the_model(changes: dict[str, Any]) -> None:
    model = small_model("gpt2", **changes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(model.config, VOCAB_SIZE)
    input_ids_BT = some_tokens(4, 24)
    # the counter knows plain products, not the CPU's own attention kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as body:
        features_BTD = model.features(input_ids_BT, torch.zeros_like(input_ids_BT), False)
    with FlopCounterMode(display=False) as head:
        model.head().logits(features_BTD)
    flops = forward_flops_per_token(model.config, VOCAB_SIZE, 24)
    assert (body.get_total_flops(), head.get_total_flops()) == (flops.body * 96, flops.head * 96)


def test_initial_weights_of_gpt2() -> None:
    """Normals of std 0.02, narrower by sqrt(2 L) where a sublayer meets the residual stream."""
    config = ModelConfig(architecture="gpt2", num_layers=8, hidden_size=64, num_heads=4)
    network = build_model(config, vocab_size=2000, token_ids=TokenIds(), seed=0).network
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "ln_" in name:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name


@both_gpts
def test_a_configuration_is_told_and_read_back(architecture: str) -> None:
    model = small_model(
        architecture, dropout=0.1, attention_dropout=0.2, norm_eps=1e-6, intermediate_size=40, tie_word_embeddings=False
    )
    told = type(model).model_config(model.network.config)
    assert told == ModelConfig(**(vars(model.config) | ({"rotary_dim": 8} if architecture == "gptj" else {})))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"activation_function": "relu"}, "gpt2 with activation_function 'relu' is not supported, only 'gelu_new'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "gpt2 with scale_attn_by_inverse_layer_idx True"),
        ({"embd_pdrop": 0.3}, "gpt2 with embd_pdrop 0.3 is not supported, only 0.1"),
    ],
)
def test_a_gpt2_that_no_model_config_says_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(InputRefused) as refused:
        Gpt2.model_config(GPT2Config(**changes))
    assert line in str(refused.value)


@pytest.mark.parametrize("changes", [{"num_kv_heads": 2}, {"rope_theta": 3.0}, {"rotary_dim": 4}, {"variant": "base"}])
def test_fields_that_mean_nothing_to_gpt2_are_refused(changes: dict[str, Any]) -> None:
    [(name, value)] = changes.items()
    with pytest.raises(RecipeError, match=f"model.{name}: found {value}, but gpt2 has none; remove it"):
        small_model("gpt2", **changes)


# who sees whom


@both_gpts
@both_directions
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), before=st.integers(0, 3), after=st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_other_documents_and_padding_change_nothing(
    architecture: str, causal: bool, lengths: list[int], before: int, after: int
) -> None:
    assert_documents_apart(small_model(architecture), packed_row(lengths, before, after), causal)


@both_gpts
@both_directions
def test_gradients_show_who_is_seen(architecture: str, causal: bool) -> None:
    assert_sees(small_model(architecture), causal)


@both_gpts
def test_head_on_features_is_the_forward_of_transformers(architecture: str) -> None:
    model = small_model(architecture)
    input_ids_BT = some_tokens(2, 11)
    ours_BTV = model.head().logits(model.features(input_ids_BT, torch.zeros_like(input_ids_BT), True))
    for mask in (None, torch.ones_like(input_ids_BT)):
        outputs = model.network(input_ids_BT, attention_mask=mask, labels=input_ids_BT)
        torch.testing.assert_close(outputs.logits, ours_BTV, atol=1e-5, rtol=0)
    expected = functional.cross_entropy(ours_BTV[:, :-1].flatten(0, 1), input_ids_BT[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss, expected)


@both_gpts
def test_a_document_longer_than_the_table_is_refused_and_a_longer_row_is_read(architecture: str) -> None:
    model = small_model(architecture, max_positions=8)
    input_ids_BT = some_tokens(1, 12)
    segments_BT = torch.tensor([[0] * 8 + [1] * 4])
    alone_BTD = model.features(input_ids_BT[:, 8:], segments_BT[:, 8:], True)
    torch.testing.assert_close(model.features(input_ids_BT, segments_BT, True)[:, 8:], alone_BTD, atol=1e-5, rtol=0)
    for segments in (torch.zeros_like(segments_BT), torch.tensor([[0] * 3 + [1] * 9])):
        length = int(segments.eq(segments[0, -1]).sum())
        with pytest.raises(ValueError, match=f"a document of {length} tokens, the table has 8 positions; shorten"):
            model.features(input_ids_BT, segments, True)


# GPT-J's kernel


def plain_gptj(model: Buildable) -> GPTJForCausalLM:
    """transformers' own network with the weights of ours: attention written out."""
    described = model.network.config.to_dict()
    network = GPTJForCausalLM._from_config(GPTJConfig(**described), attn_implementation="eager")
    network.load_state_dict(model.network.state_dict())
    assert {type(block.attn) for block in network.transformer.h} == {GPTJAttention}
    return network.eval()


@both_directions
@pytest.mark.parametrize("one_document", [True, False])
def test_the_kernel_is_equal_to_what_is_written_out(causal: bool, one_document: bool) -> None:
    """Features within 1e-5, and every gradient, in rows of one document and in packed and padded ones."""
    model = small_model("gptj")
    assert {type(block.attn) for block in model.network.transformer.h} == {SdpaAttention}
    plain = plain_gptj(model)
    input_ids_BT = some_tokens(*SEGMENTS_BT.shape)
    segments_BT = torch.zeros_like(SEGMENTS_BT) if one_document else SEGMENTS_BT
    ours_BTD = model.features(input_ids_BT, segments_BT, causal)
    written_out_BTD = plain.transformer(
        input_ids_BT,
        attention_mask=additive_mask(attention_mask(segments_BT, causal)),
        position_ids=positions_in_segments(segments_BT),
        use_cache=False,
    ).last_hidden_state
    assert (ours_BTD - written_out_BTD).abs().max() <= 1e-5
    for features_BTD in (ours_BTD, written_out_BTD):
        features_BTD.sin().mean().backward()
    for (name, ours), theirs in zip(model.network.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_no_scores_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is what is used, without a mask where rows are whole documents."""
    called, kernel = [], functional.scaled_dot_product_attention

    def noting(*heads: Tensor, **settings: Any) -> Tensor:
        called.append((settings["attn_mask"], settings["is_causal"]))
        return kernel(*heads, **settings)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", noting)
    model = small_model("gptj")
    input_ids_BT = some_tokens(*SEGMENTS_BT.shape)
    model.features(input_ids_BT, torch.zeros_like(input_ids_BT), True)
    assert called == [(None, True)] * SMALL["num_layers"]
    model.features(input_ids_BT, SEGMENTS_BT, True)
    assert [(mask.dtype, causal) for mask, causal in called[SMALL["num_layers"] :]] == [(torch.bool, False)] * SMALL[
        "num_layers"
    ]


def test_words_are_generated_as_by_the_plain_network() -> None:
    """With a cache of keys and values, and in a batch that is padded on the left."""
    model = small_model("gptj")
    plain = plain_gptj(model)
    input_ids_BT, mask_BT = some_tokens(2, 7), torch.ones(2, 7, dtype=torch.int64)
    mask_BT[1, :3] = 0
    settings = {"attention_mask": mask_BT, "max_new_tokens": 8, "do_sample": False, "use_cache": True}
    assert torch.equal(model.network.generate(input_ids_BT, **settings), plain.generate(input_ids_BT, **settings))


def test_attention_drops_probabilities_in_training() -> None:
    model = small_model("gptj", attention_dropout=0.5)
    input_ids_BT = some_tokens(2, 8)
    segments_BT = torch.zeros_like(input_ids_BT)
    before = torch.get_rng_state()
    evaluated_BTD = model.features(input_ids_BT, segments_BT, True)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.features(input_ids_BT, segments_BT, True), evaluated_BTD)
    assert not torch.allclose(model.train().features(input_ids_BT, segments_BT, True), evaluated_BTD)


# memory and speed


@both_gpts
@both_directions
def test_bf16_autocast_stays_near_fp32(architecture: str, causal: bool) -> None:
    assert_near_in_bf16(small_model(architecture), SEGMENTS_BT, causal)


@both_gpts
def test_activations_worked_out_again_give_equal_gradients(architecture: str) -> None:
    model = small_model(architecture, dropout=0.1, attention_dropout=0.1).train()
    assert_equal_gradients_again(model, SMALL["num_layers"])


@both_gpts
def test_blocks_are_one_graph(architecture: str) -> None:
    model = small_model(architecture)
    input_ids_BT = some_tokens(*SEGMENTS_BT.shape)
    eager_BTD = model.features(input_ids_BT, SEGMENTS_BT, True)
    for block in transformer_blocks(model):
        block.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model.features(input_ids_BT, SEGMENTS_BT, True), eager_BTD)


# folders


@both_gpts
def test_a_folder_is_a_plain_model_elsewhere(architecture: str, tmp_path: Path) -> None:
    """transformers' class reads ours and its own saving, with no trace of the kernel; so does this toolkit."""
    model = small_model(architecture)
    input_ids_BT = some_tokens(*SEGMENTS_BT.shape)
    both = loaded_both_ways(model, tmp_path, input_ids_BT, SEGMENTS_BT)
    for folder, loaded in zip(("ours", "theirs"), both, strict=True):
        assert loaded.head().weight_VD is loaded.network.get_input_embeddings().weight
        assert SDPA not in (tmp_path / folder / "config.json").read_text()
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert type(theirs) is type(model.network)
        assert theirs.config.architectures == [type(model.network).__name__]
        if architecture == "gptj":
            assert {type(block.attn) for block in theirs.transformer.h} == {GPTJAttention}
        found_BTV, expected_BTV = (network(input_ids_BT[:2]).logits for network in (theirs, model.network))
        torch.testing.assert_close(found_BTV, expected_BTV, atol=1e-5, rtol=0)
