"""ShareBERT: equal to the original, counted, isolated, and alive away from this toolkit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from corpora.batch import PADDING_SEGMENT
from corpora.errors import InputRefused, RecipeError
from corpora.storage import new_folder
from corpora.token_ids import TokenIds
from distill.sharding import transformer_blocks
from students.attention import attention_mask
from students.buildable import Buildable
from students.config import ModelConfig
from students.configuration_share_bert import (
    ShareBertConfig,
    columns_needed,
    largest_sizes,
    matrix_shapes,
    smallest_vocabulary,
)
from students.modeling_share_bert import ShareBertForMaskedLM, ShareBertForSequenceClassification, ShareBertModel
from students.modeling_share_blocks import RootMeanSquareNorm, ShareBertLayer, SharedMatrices
from students.registry import build_model, forward_flops_per_token, parameter_count
from students.run_folder import load_model, save_model
from students.share_bert import ShareBert
from students.share_bert_names import (
    FINAL_NORM,
    OUTPUT_BIAS,
    from_original,
    network_class,
    original_config,
    original_names,
)

GOLDEN = Path(__file__).parent / "golden" / "share_bert.safetensors"
VOCAB_SIZE = 400
SMALL: dict[str, Any] = {
    "architecture": "share_bert",
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "factor_size": 12,
    "max_positions": 48,
}
FORMS = {"pre-ln": {}, "post-ln": {"encoder_ln_mode": "post-ln"}, "rms_norm": {"layer_norm_type": "rms_norm"}}
every_form = pytest.mark.parametrize("form", FORMS)
both_directions = pytest.mark.parametrize("causal", [True, False])


def read_golden() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Tensors of the golden file, the original's weights among them, and the sizes."""
    with safe_open(GOLDEN, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        sizes = json.loads(file.metadata()["config"])
    original = {name.removeprefix("state."): tensor for name, tensor in tensors.items() if name.startswith("state.")}
    return tensors, original, sizes


def golden() -> tuple[Buildable, dict[str, Tensor]]:
    """The model of the golden file with its weights, and the file's tensors."""
    tensors, original, sizes = read_golden()
    config = ShareBert.model_config(original_config(sizes, place="golden"))
    model = build_model(config, vocab_size=sizes["vocab_size"], token_ids=TokenIds(), seed=0)
    model.network.load_state_dict(from_original(original, model.network, place="golden"))
    return model.eval(), tensors


def moved(network: torch.nn.Module) -> Any:
    """The same network in evaluation mode, every parameter moved so that zeros and ones hide nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def small_model(**changes: Any) -> Buildable:
    return moved(build_model(ModelConfig(**(SMALL | changes)), vocab_size=VOCAB_SIZE, token_ids=TokenIds(), seed=0))


def some_tokens(*shape: int) -> Tensor:
    return torch.randint(4, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(3))


# the original


def test_golden_forward_and_gradient() -> None:
    """Equal to the original implementation, whose answers were recorded once (jchenghu/sharebert, fp32, no dropout).

    A failure means that the model no longer is what its name says: look for the order of the carved matrices, the side
    they are multiplied from, the power of the head size, the eps of a norm or the kind of GELU. Bounds are not to be
    loosened; rounding moves logits by 1e-6.
    """
    tensors, original, sizes = read_golden()
    network = network_class(original)(original_config(sizes, place="golden"))
    assert type(network) is ShareBertForMaskedLM
    network.load_state_dict(from_original(original, network, place="golden"))
    unpadded_BT = tensors["padding"] == 0
    outputs = network.eval()(tensors["input_ids"], unpadded_BT.long(), labels=tensors["labels"])
    outputs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert gradients.pop("share_bert.pooler.bias") is None
    gradient_norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert (outputs.logits - tensors["logits_masked"])[unpadded_BT].abs().max() <= 1e-5
    assert (outputs.loss - tensors["loss"]).abs().item() <= 2e-6
    assert (gradient_norm / tensors["grad_norm"] - 1).abs().item() <= 1e-5
    pooled_BD = network.base_model(tensors["input_ids"], unpadded_BT.long()).pooler_output
    assert (pooled_BD - tensors["pooled"]).abs().max() <= 1e-5


def test_golden_features_and_head() -> None:
    """The same numbers through the toolkit's door: padding is a segment, features meet the head."""
    model, tensors = golden()
    segments_BT = -tensors["padding"].long()
    logits_BTV = model.head().logits(model.features(tensors["input_ids"], segments_BT, False))
    assert (logits_BTV - tensors["logits_masked"])[segments_BT == 0].abs().max() <= 1e-5


def carved_by_slices(virtual_VD: Tensor, hidden_size: int, width: int) -> dict[str, Tensor]:
    """As the original has it: columns from the right end, flattened, cut and reshaped."""
    rows, matrices, taken = len(virtual_VD), {}, 0
    for name, shape in (
        ("query", (hidden_size, hidden_size)),
        ("key", (hidden_size, hidden_size)),
        ("value", (hidden_size, hidden_size)),
        ("ffn_in", (hidden_size, width)),
        ("ffn_out", (width, hidden_size)),
        ("output", (hidden_size, hidden_size)),
        ("pooler", (hidden_size, hidden_size)),
    ):
        number = shape[0] * shape[1]
        columns = (number + rows - 1) // rows
        end = virtual_VD.shape[1] - taken
        matrices[name] = virtual_VD[:, end - columns : end].flatten()[:number].reshape(shape)
        taken += columns
    return matrices


@pytest.mark.parametrize(("vocab_size", "width"), [(VOCAB_SIZE, 64), (357, 50), (1024, 64), (5000, 32)])
def test_matrices_are_slices_of_the_virtual_embeddings(vocab_size: int, width: int) -> None:
    """The same numbers and the same gradients as from slices of the whole of U, with nothing copied."""
    network = ShareBertModel(
        ShareBertConfig(
            vocab_size=vocab_size, hidden_size=32, num_attention_heads=4, intermediate_size=width, factor_size=12
        )
    )
    table_VE, virtual = moved(network).embeddings.word_embeddings.weight, network.virtual_embeddings
    weights = [table_VE, virtual.weight, virtual.bias]
    sliced = carved_by_slices(functional.linear(*weights), 32, width)
    matrices = virtual(table_VE, pooler=True)._asdict()
    assert matrices.keys() == sliced.keys()
    generator = torch.Generator().manual_seed(0)
    directions = {name: torch.randn(matrix.shape, generator=generator) for name, matrix in sliced.items()}

    def gradients(found: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum((found[name] * directions[name]).sum() for name in found), weights)

    for name, matrix in sliced.items():
        assert matrices[name].is_contiguous() and matrices[name]._is_view()
        torch.testing.assert_close(matrices[name], matrix)
    for found, expected in zip(gradients(matrices), gradients(sliced), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    without = virtual(table_VE, pooler=False)
    assert without.pooler is None and torch.equal(without.output, matrices["output"])


@every_form
def test_a_layer_is_its_equations(form: str) -> None:
    """Head by head; norms stand before the sublayers or after their sums."""
    config = ShareBertConfig(
        vocab_size=VOCAB_SIZE, hidden_size=8, num_attention_heads=2, intermediate_size=10, **FORMS[form]
    )
    layer = moved(ShareBertLayer(config).apply(ShareBertModel(config)._init_weights).double())
    generator = torch.Generator().manual_seed(0)
    shapes = matrix_shapes(8, 10)
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    hidden_TD = torch.randn(5, 8, generator=generator, dtype=torch.float64)

    def normed(vectors_TD: Tensor, norm: Any) -> Tensor:
        if form == "rms_norm":
            return norm.weight * vectors_TD / (vectors_TD.square().mean(1, keepdim=True).sqrt() + 1e-5)
        centred_TD = vectors_TD - vectors_TD.mean(1, keepdim=True)
        return centred_TD / (centred_TD.square().mean(1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    def attended(x_TD: Tensor) -> Tensor:
        query, key, value = (x_TD @ drawn[name] + getattr(layer, f"{name}_bias") for name in ("query", "key", "value"))
        read = [
            (query[:, head] @ key[:, head].T / 4 ** (2 / 3)).softmax(1) @ value[:, head]
            for head in (slice(0, 4), slice(4, 8))
        ]
        return torch.cat(read, 1) @ drawn["output"] + layer.output_bias

    def fed(x_TD: Tensor) -> Tensor:
        inner = functional.gelu(x_TD @ drawn["ffn_in"] + layer.ffn_in_bias)
        return inner @ drawn["ffn_out"] + layer.ffn_out_bias

    if form == "post-ln":
        middle_TD = normed(hidden_TD + attended(hidden_TD), layer.attention_norm)
        expected_TD = normed(middle_TD + fed(middle_TD), layer.ffn_norm)
    else:
        middle_TD = hidden_TD + attended(normed(hidden_TD, layer.attention_norm))
        expected_TD = middle_TD + fed(normed(middle_TD, layer.ffn_norm))
    found_1TD = layer(hidden_TD[None], SharedMatrices(**drawn), None)
    torch.testing.assert_close(found_1TD[0], expected_TD, atol=1e-5, rtol=1e-5)  # norms and softmax are fp32's


# checkpoints


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


# sizes and initial weights

PUBLISHED = {"small": (128, 12, 4_983_040), "base": (384, 12, 13_847_296), "large": (768, 6, 27_008_512)}


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_the_published_ones(size: str) -> None:
    factor_size, num_layers, published = PUBLISHED[size]
    config = ModelConfig(
        architecture="share_bert",
        num_layers=num_layers,
        hidden_size=2048,
        num_heads=16,
        factor_size=factor_size,
        max_positions=128,
    )
    with torch.device("meta"):
        model = ShareBert(config, vocab_size=30_528, token_ids=TokenIds())
    assert sum(parameter.numel() for parameter in model.network.base_model.parameters()) == published
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(config, 30_528)
    head = parameter_count(config, 30_528) - published + 30_528  # with the bias that the original never adds
    assert round(head, -4) == 66_750_000
    network_config = model.network.config
    assert (network_config.intermediate_size, columns_needed(30_528, 2048, 4096)) == (4096, 1240)
    assert (
        size != "base"
        or network_config.to_dict()
        == ShareBertConfig(
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=TokenIds().pad,
            bos_token_id=TokenIds().begin,
            eos_token_id=TokenIds().end,
        ).to_dict()
    )


@every_form
def test_counts_are_those_of_the_model(form: str) -> None:
    model = small_model(**FORMS[form])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(model.config, VOCAB_SIZE)
    input_ids_BT = some_tokens(2, 24)
    with FlopCounterMode(display=False) as body:
        features_BTD = model.features(input_ids_BT, torch.zeros_like(input_ids_BT), False)
    with FlopCounterMode(display=False) as head:
        model.head().logits(features_BTD)
    network = model.network.base_model
    with FlopCounterMode(display=False) as carving:
        network.virtual_embeddings(network.get_input_embeddings().weight, pooler=False)
    flops = forward_flops_per_token(model.config, VOCAB_SIZE, 24)
    assert (body.get_total_flops() - carving.get_total_flops()) == flops.body * 48
    assert head.get_total_flops() == flops.head * 48


@every_form
def test_initial_weights(form: str) -> None:
    """Normals of std 0.02 and no bias; the seed alone decides them."""
    config = ModelConfig(**(SMALL | FORMS[form] | {"hidden_size": 128, "factor_size": 64}))
    first, again, other = (
        build_model(config, vocab_size=1600, token_ids=TokenIds(), seed=seed).network for seed in (0, 0, 1)
    )
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert not torch.equal(parameter, other.get_parameter(name)), name
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


@every_form
def test_every_weight_that_is_trained_is_reached_by_the_loss(form: str) -> None:
    """DDP waits for the others for ever; the pooler, which no language model's loss reaches, is not trained."""
    model = small_model(**FORMS[form])
    input_ids_BT = some_tokens(2, 12)
    model.head().logits(model.features(input_ids_BT, torch.zeros_like(input_ids_BT), False)).square().mean().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in model.named_parameters()} - reached == {"network.share_bert.pooler.bias"}
    for name in ("embeddings.word_embeddings", "embeddings.factor_linear", "virtual_embeddings"):
        assert model.network.share_bert.get_submodule(name).weight.grad.abs().sum() > 0


# the vocabulary's room


@given(hidden_size=st.integers(7, 300), width=st.integers(1, 900))
@settings(max_examples=50, deadline=None)
def test_the_smallest_vocabulary_is_the_smallest(hidden_size: int, width: int) -> None:
    rows = smallest_vocabulary(hidden_size, width)
    assert columns_needed(rows, hidden_size, width) <= hidden_size
    assert rows == 1 or columns_needed(rows - 1, hidden_size, width) > hidden_size


@given(vocab_size=st.integers(20, 3000), heads=st.sampled_from([1, 4, 16]), ratio=st.sampled_from([1, 2, 4]))
@settings(max_examples=50, deadline=None)
def test_the_largest_sizes_that_fit_are_the_largest(vocab_size: int, heads: int, ratio: int) -> None:
    asked = 320
    found = largest_sizes(vocab_size, asked, ratio * asked, heads)
    fitting = [d for d in range(heads, asked, heads) if columns_needed(vocab_size, d, ratio * d) <= d]
    assert found == ((max(fitting), ratio * max(fitting)) if fitting else None)


def test_a_vocabulary_that_is_too_small_is_refused_with_what_would_fit() -> None:
    """At the door where the recipe says its size, in the build where the tokenizer does; both offers are true."""
    published = ModelConfig(architecture="share_bert", num_layers=12, hidden_size=2048, num_heads=16, factor_size=128)
    for config, vocab_size in ((replace(published, vocab_size=16_000), 16_000), (published, 16_000)):
        with pytest.raises(RecipeError) as refused:
            build_model(config, vocab_size=vocab_size, token_ids=TokenIds(), seed=0)
        line = str(refused.value)
        assert line.startswith("model.vocab_size: from 16000 rows") and "\n" not in line
        assert "take 2365 columns, expected at most 2048" in line and "fewer layers need no less" in line
        smallest, size, width = smallest_vocabulary(2048, 4096), *largest_sizes(16_000, 2048, 4096, 16)
        assert f"at least {smallest}, or hidden_size {size} with intermediate_size {width} at most" in line
    ShareBert.check(replace(published, vocab_size=smallest))
    ShareBert.check(replace(published, vocab_size=16_000, hidden_size=size, intermediate_size=width))
    with pytest.raises(RecipeError, match="model.hidden_size: found 4, needs at least 7"):
        ShareBert.check(ModelConfig(**(SMALL | {"hidden_size": 4, "vocab_size": 400})))
    with pytest.raises(RecipeError, match=r"at least \d+ \(all layers"):  # no hidden size fits so few
        small_vocabulary = ModelConfig(**(SMALL | {"hidden_size": 8, "num_heads": 8, "vocab_size": 8}))
        ShareBert.check(small_vocabulary)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"hidden_size": 30}, "model.hidden_size: 30 is not divisible by num_heads 4"),
        ({"tie_word_embeddings": True}, "model.tie_word_embeddings: share_bert's output embedding is wider"),
        ({"factor_size": 0}, "model.factor_size: found 0, needs at least 1"),
        ({"embedding_size": 16}, "model.embedding_size: found 16, but share_bert has none"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError) as refused:
        small_model(**changes)
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_a_configuration_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="wider than its input embedding"):
        ShareBertConfig(tie_word_embeddings=True)
    with pytest.raises(InputRefused, match="type_vocab_size 3 is not supported"):
        ShareBert.model_config(ShareBertConfig(type_vocab_size=3))
    model = small_model(max_positions=8)
    with pytest.raises(ValueError, match="rows of 9 tokens, the table has 8 positions"):
        model.features(some_tokens(1, 9), torch.zeros(1, 9, dtype=torch.int64), False)


# who sees whom


@both_directions
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), before=st.integers(0, 3), after=st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_other_documents_and_padding_change_nothing(causal: bool, lengths: list[int], before: int, after: int) -> None:
    model = small_model()
    documents = [segment for segment, length in enumerate(lengths) for _ in range(length)]
    segments_1T = torch.tensor([[PADDING_SEGMENT] * before + documents + [PADDING_SEGMENT] * after])
    input_ids_1T = some_tokens(*segments_1T.shape)
    packed_1TD = model.features(input_ids_1T, segments_1T, causal)
    assert packed_1TD.isfinite().all()
    for segment in range(len(lengths)):
        chosen_T = segments_1T[0] == segment
        alone_1T = input_ids_1T[:, chosen_T]
        alone_1TD = model.features(alone_1T, torch.zeros_like(alone_1T), causal)
        torch.testing.assert_close(packed_1TD[0, chosen_T], alone_1TD[0], atol=1e-5, rtol=0)


@every_form
@both_directions
def test_gradients_show_who_is_seen(form: str, causal: bool) -> None:
    model, seen, at = small_model(**FORMS[form]), [], 4
    model.network.get_input_embeddings().register_forward_hook(lambda _module, _ids, output: seen.append(output))
    features_1TD = model.features(some_tokens(1, 9), torch.zeros(1, 9, dtype=torch.int64), causal)
    (gradient_1TE,) = torch.autograd.grad(features_1TD[0, at].square().sum(), seen[0])
    reached_T = gradient_1TE[0].abs().amax(-1)
    assert (reached_T[: at + 1] > 1e-7).all()
    assert (reached_T[at + 1 :] == 0).all() if causal else (reached_T[at + 1 :] > 1e-7).all()


def test_padding_is_not_seen_and_pooling_finds_the_first_real_token() -> None:
    network = small_model().network.base_model
    input_ids_BT = some_tokens(2, 12)
    whole = network(input_ids_BT[:, :9])
    for padding_side in ("right", "left"):
        padded = [input_ids_BT[:, :9], torch.zeros(2, 3, dtype=torch.int64)]
        mask = [torch.ones(2, 9, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)]
        padded, mask = (padded, mask) if padding_side == "right" else (padded[::-1], mask[::-1])
        mask_BT = torch.cat(mask, 1)
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        found = network(torch.cat(padded, 1), mask_BT, position_ids=positions_BT)
        torch.testing.assert_close(found.last_hidden_state[mask_BT == 1], whole.last_hidden_state.flatten(0, 1))
        torch.testing.assert_close(found.pooler_output, whole.pooler_output)


def test_a_row_of_padding_alone_is_finite() -> None:
    model = small_model()
    input_ids_BT = some_tokens(2, 7)
    model.network(input_ids_BT, torch.zeros_like(input_ids_BT)).logits.square().mean().backward()
    model.features(input_ids_BT, torch.full_like(input_ids_BT, PADDING_SEGMENT), True).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)


@both_directions
def test_head_on_features_is_the_forward_of_transformers(causal: bool) -> None:
    model = small_model()
    input_ids_BT = some_tokens(2, 11)
    segments_BT = torch.zeros_like(input_ids_BT)
    mask = attention_mask(segments_BT, True) if causal else torch.ones_like(input_ids_BT)
    labels_BT = torch.where(input_ids_BT % 3 == 0, input_ids_BT, -100)
    outputs = model.network(input_ids_BT, mask, labels=labels_BT, output_hidden_states=True)
    logits_BTV = model.head().logits(model.features(input_ids_BT, segments_BT, causal))
    torch.testing.assert_close(outputs.logits, logits_BTV, atol=1e-5, rtol=0)
    expected = -logits_BTV.log_softmax(-1).gather(-1, input_ids_BT[..., None])[..., 0][labels_BT >= 0].mean()
    torch.testing.assert_close(outputs.loss, expected)
    assert torch.equal(model.network(input_ids_BT, mask, return_dict=False)[0], outputs.logits)
    last_BTD = model.network.share_bert.final_norm(outputs.hidden_states[-1])
    assert len(outputs.hidden_states) == 1 + SMALL["num_layers"]
    torch.testing.assert_close(model.network.decoder(model.network.transform(last_BTD)), outputs.logits)


def test_segments_of_bert_are_read() -> None:
    network = small_model().network
    input_ids_BT = some_tokens(1, 6)
    first, second = (
        network(input_ids_BT, token_type_ids=torch.full_like(input_ids_BT, kind)).logits for kind in (0, 1)
    )
    assert torch.equal(first, network(input_ids_BT).logits) and not torch.allclose(first, second)


# memory and speed


def test_evaluation_draws_nothing_and_training_drops() -> None:
    model = small_model(dropout=0.1, attention_dropout=0.5)
    input_ids_BT = some_tokens(2, 8)
    segments_BT = torch.zeros_like(input_ids_BT)
    before = torch.get_rng_state()
    evaluated_BTD = model.features(input_ids_BT, segments_BT, True)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(model.train().features(input_ids_BT, segments_BT, True), evaluated_BTD)


@every_form
def test_bf16_autocast_stays_near_fp32(form: str) -> None:
    model = small_model(**FORMS[form])
    segments_BT = torch.tensor([[0] * 5 + [1] * 9 + [2] * 4 + [PADDING_SEGMENT] * 2, [0] * 20])
    input_ids_BT = some_tokens(*segments_BT.shape)
    exact_BTD = model.features(input_ids_BT, segments_BT, False)
    with torch.autocast("cpu", torch.bfloat16):
        rounded_BTD = model.features(input_ids_BT, segments_BT, False)
        model.head().logits(rounded_BTD).mean().backward()
    assert (rounded_BTD.float() - exact_BTD).norm() / exact_BTD.norm() < 0.05


def test_a_norm_of_bf16_stays_bf16_and_one_of_zeros_has_a_gradient() -> None:
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    norm = moved(RootMeanSquareNorm(64, 1e-5))
    torch.nn.init.ones_(norm.weight)
    found = norm.to(torch.bfloat16)(hidden.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    expected = hidden / hidden.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)
    zeros = torch.zeros(1, 64, requires_grad=True)
    norm.float()(zeros).sum().backward()
    assert zeros.grad is not None and zeros.grad.isfinite().all()


@every_form
def test_activations_worked_out_again_give_equal_gradients(form: str) -> None:
    """Also where dropout is drawn, and those of the matrices, which are no weights of the layers."""
    model = small_model(dropout=0.1, attention_dropout=0.1, **FORMS[form]).train()
    again = deepcopy(model)
    for block in transformer_blocks(again):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    input_ids_BT = some_tokens(2, 12)
    for trained in (model, again):
        torch.manual_seed(5)
        trained.features(input_ids_BT, torch.zeros_like(input_ids_BT), True).square().sum().backward()
    assert len(transformer_blocks(again)) == SMALL["num_layers"]
    expected = {name: parameter.grad for name, parameter in model.network.named_parameters()}
    for name, parameter in again.network.named_parameters():
        assert (expected[name] is None) == (parameter.grad is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, expected[name]), name


@both_directions
def test_a_body_is_one_graph(causal: bool) -> None:
    model = small_model()
    input_ids_BT = some_tokens(2, 12)
    segments_BT = torch.zeros_like(input_ids_BT)
    eager_BTD = model.features(input_ids_BT, segments_BT, causal)
    model.network.base_model.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model.features(input_ids_BT, segments_BT, causal), eager_BTD)


# folders


@every_form
def test_a_saved_model_is_loaded_as_it_was(form: str, tmp_path: Path) -> None:
    model = small_model(norm_eps=1e-6, intermediate_size=40, **FORMS[form])
    with new_folder(tmp_path / "run", kind="model", fingerprint={}) as writer:
        save_model(writer, model)
    model.network.save_pretrained(tmp_path / "theirs")
    input_ids_BT = some_tokens(2, 40)
    segments_BT = torch.tensor([[0] * 15 + [1] * 25, [0] * 40])
    for folder in ("run", "theirs"):
        loaded = load_model(tmp_path / folder)
        assert isinstance(loaded, ShareBert)
        assert folder == "theirs" or loaded.config == model.config
        assert ShareBert.model_config(loaded.network.config) == ShareBert.model_config(model.network.config)
        for causal in (True, False):
            expected_BTD = model.features(input_ids_BT, segments_BT, causal)
            assert torch.equal(loaded.features(input_ids_BT, segments_BT, causal), expected_BTD)


AWAY = """
import sys
sys.modules |= dict.fromkeys(["corpora", "students", "teachers", "distill"])  # None: importing one fails
import torch, transformers
given = torch.load(sys.argv[1])
ids, mask = given["input_ids"], given["attention_mask"]
def loaded(auto_class, folder, **settings):
    model, loading = getattr(transformers, auto_class).from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **settings
    )
    return model, {name.partition(".")[0] for name in loading["missing_keys"]}
def same(found, expected):
    torch.testing.assert_close(found, given[expected], atol=1e-6, rtol=0)
for folder in given["folders"]:
    body, missing = loaded("AutoModel", folder)
    assert not missing, missing
    outputs = body(ids, mask, output_hidden_states=True)
    same(outputs.last_hidden_state, "hidden")
    same(outputs.pooler_output, "pooled")
    same(outputs.hidden_states[0], "embedded")
    if not folder.endswith("body"):
        model, missing = loaded("AutoModelForMaskedLM", folder)
        assert not missing and model.decoder.weight.shape[1] != model.get_input_embeddings().weight.shape[1]
        same(model(ids, mask).logits, "logits")
    classifier, missing = loaded("AutoModelForSequenceClassification", folder, num_labels=3)
    assert missing == {"classifier"}, missing
    output = classifier(ids, mask, labels=torch.zeros(len(ids), dtype=torch.int64))
    assert output.logits.shape == (len(ids), 3) and output.loss.isfinite()
    same(classifier.share_bert(ids, mask).pooler_output, "pooled")
    torch.testing.assert_close(output.logits, classifier.eval().classifier(given["pooled"]), atol=1e-6, rtol=0)
    output.loss.backward()
    assert classifier.share_bert.pooler.bias.grad.abs().sum() > 0
print("all", len(given["folders"]))
"""


def test_folders_work_where_this_toolkit_is_not(tmp_path: Path) -> None:
    """Auto classes load ours, transformers' and a body alone, in a process that cannot import the project."""
    model = small_model()
    with new_folder(tmp_path / "ours", kind="model", fingerprint={}) as writer:
        save_model(writer, model)
    model.network.save_pretrained(tmp_path / "theirs")
    model.network.share_bert.save_pretrained(tmp_path / "body")
    input_ids_BT, mask_BT = some_tokens(2, 12), torch.ones(2, 12, dtype=torch.int64)
    mask_BT[1, 9:] = 0
    with torch.no_grad():
        outputs = model.network.share_bert(input_ids_BT, mask_BT, output_hidden_states=True)
        logits_BTV = model.network(input_ids_BT, mask_BT).logits
    given = {"folders": [str(tmp_path / name) for name in ("ours", "theirs", "body")], "logits": logits_BTV}
    given |= {"hidden": outputs.last_hidden_state, "pooled": outputs.pooler_output}
    given |= {"embedded": outputs.hidden_states[0], "input_ids": input_ids_BT, "attention_mask": mask_BT}
    torch.save(given, tmp_path / "given.pt")
    (tmp_path / "away").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONSAFEPATH": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", AWAY, str(tmp_path / "given.pt")],
        cwd=tmp_path / "away",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0 and finished.stdout.strip() == "all 3", finished.stderr
