"""LV-BERT: equal to the original, counted, isolated, and alive away from this toolkit."""

from __future__ import annotations

import json
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
    assert_one_graph,
    loaded_both_ways,
    moved,
    packed_row,
    reached,
    run_away,
    saved_both_ways,
)
from safetensors import safe_open
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from corpora.batch import PADDING_SEGMENT
from corpora.errors import InputRefused, RecipeError
from corpora.token_ids import TokenIds
from students.attention import attention_mask
from students.buildable import Buildable
from students.config import ModelConfig
from students.configuration_lv_bert import PUBLISHED_LAYERS, LvBertConfig
from students.lv_bert import LvBert, generator_config
from students.lv_bert_names import (
    from_original,
    network_class,
)
from students.modeling_lv_bert import (
    LvBertForMaskedLM,
    LvBertForPreTraining,
    LvBertForSequenceClassification,
    LvBertModel,
    share_embeddings,
)
from students.modeling_lv_blocks import TAPS, DynamicConvolution, Sight, sight_of
from students.registry import build_model, forward_flops_per_token, parameter_count

GOLDEN = Path(__file__).parent / "golden" / "lv_bert_encoder.safetensors"
VOCAB_SIZE = 96
SMALL: dict[str, Any] = {
    "architecture": "lv_bert",
    "num_layers": 3,
    "hidden_size": 32,
    "num_heads": 4,
    "layers": "DSFFD",
    "embedding_size": 16,
}
both_directions = pytest.mark.parametrize("causal", [True, False])


def read_golden() -> tuple[dict[str, Tensor], dict[str, Tensor], LvBertConfig]:
    """Tensors of the golden file, the original's weights among them, and the sizes."""
    with safe_open(GOLDEN, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        config = LvBertConfig(**json.loads(file.metadata()["config"]))
    original = {name.removeprefix("state."): tensor for name, tensor in tensors.items() if name.startswith("state.")}
    return tensors, original, config


def small_model(**changes: Any) -> Buildable:
    return moved(build_model(ModelConfig(**(SMALL | changes)), vocab_size=VOCAB_SIZE, token_ids=TokenIds(), seed=0))


def some_tokens(*shape: int) -> Tensor:
    return promises.some_tokens(*shape, vocab_size=VOCAB_SIZE)


# the original


def test_golden_layers() -> None:
    """Equal to the original implementation, whose answers were recorded once (yuweihao/LV-BERT, fp32, no dropout).

    A failure means that the model no longer is what its name says: look for the eps of a norm, the kind of GELU, the
    order of the kernel's taps and heads, or padding that a convolution no longer sees. Bounds are not to be loosened;
    rounding moves states by 1e-6.
    """
    tensors, original, config = read_golden()
    network = network_class(original)(config)
    assert type(network) is LvBertModel
    network.load_state_dict(from_original(original, network, place="golden"))
    outputs = network.eval()(tensors["input_ids"], 1 - tensors["padding"], output_hidden_states=True)
    unpadded_BT = tensors["padding"] == 0
    expected = [tensors["embedding_output"], *tensors["all_layer_outputs"]]
    assert len(outputs.hidden_states) == len(expected)
    for found_BTD, expected_BTD in zip(outputs.hidden_states, expected, strict=True):
        assert (found_BTD - expected_BTD)[unpadded_BT].abs().max() <= 1e-5
    assert (outputs.last_hidden_state - tensors["sequence_output"])[unpadded_BT].abs().max() <= 1e-5


def test_states_are_kept_where_the_call_or_the_configuration_asks() -> None:
    tensors, _, config = read_golden()
    network = LvBertModel(config).eval()
    assert network(tensors["input_ids"]).hidden_states is None
    network.config.output_hidden_states = True
    hidden_BTD, states = network(tensors["input_ids"], return_dict=False)
    assert len(states) == 1 + len(config.layers) and torch.equal(states[-1], hidden_BTD)
    assert network(tensors["input_ids"], output_hidden_states=False).hidden_states is None


def test_a_dynamic_convolution_is_its_equations() -> None:
    """Position by position, with a mask that cuts windows short."""
    config = LvBertConfig(vocab_size=9, hidden_size=6, num_attention_heads=2, layers="D")
    layer = moved(DynamicConvolution(config).double())
    torch.nn.init.normal_(layer.depthwise_weight, generator=torch.Generator().manual_seed(0))
    length = 12
    hidden_TD = torch.randn(length, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen_TT = attention_mask(torch.tensor([[0] * 3 + [1] * 9]), True)[0, 0]
    value_TD = (hidden_TD @ layer.value.weight.T + layer.value.bias) * torch.sigmoid(
        hidden_TD @ layer.gate.weight.T + layer.gate.bias
    )
    expected_TD = torch.zeros_like(hidden_TD)
    for position in range(length):
        window = [
            value_TD[position + tap - 4]
            if 0 <= position + tap - 4 < length and seen_TT[position, position + tap - 4]
            else torch.zeros(6, dtype=torch.float64)
            for tap in range(TAPS)
        ]
        local_D = sum(layer.depthwise_weight[tap].flatten() * window[tap] for tap in range(TAPS))
        scores = layer.kernel.weight @ (layer.pointwise.weight @ local_D + layer.pointwise.bias) + layer.kernel.bias
        for head in range(2):
            kernel_K = scores[head * TAPS : (head + 1) * TAPS].softmax(0)
            channels = slice(3 * head, 3 * head + 3)
            expected_TD[position, channels] = sum(kernel_K[tap] * window[tap][channels] for tap in range(TAPS))
    found_1TD = layer.core(hidden_TD[None], sight_of(seen_TT[None, None]))
    torch.testing.assert_close(found_1TD[0], expected_TD, atol=1e-6, rtol=0)  # the softmax is fp32's


def test_heads_are_their_equations() -> None:
    """The exact GELU, and the norm's eps, where a vector of small variance shows it."""

    def gelu(values: Tensor) -> Tensor:
        return values * (1 + torch.erf(values / 2**0.5)) / 2

    generator, discriminator = small_model().network, moved(LvBertForPreTraining(small_model().network.config))
    hidden_BTD = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
    inner_BTD = gelu(discriminator.discriminator_predictions.dense(hidden_BTD))
    expected_BT = discriminator.discriminator_predictions.output(inner_BTD)[..., 0]
    torch.testing.assert_close(discriminator.discriminator_predictions(hidden_BTD), expected_BT, atol=1e-5, rtol=0)
    transform = generator.transform
    inner_BTE = gelu(transform.dense(hidden_BTD))
    normed_BTE = (inner_BTE - inner_BTE.mean(-1, keepdim=True)) / inner_BTE.std(-1, keepdim=True, correction=0)
    expected_BTE = normed_BTE * transform.layer_norm.weight + transform.layer_norm.bias
    torch.testing.assert_close(transform(hidden_BTD), expected_BTE, atol=1e-5, rtol=0)
    norms = [module for module in generator.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {LvBertConfig().layer_norm_eps} == {1e-12}


def test_a_classifier_reads_the_first_real_token() -> None:
    network = moved(LvBertForSequenceClassification(LvBertConfig(vocab_size=VOCAB_SIZE, layers="S", num_labels=3)))
    input_ids_BT, mask_BT = some_tokens(2, 7), torch.ones(2, 7, dtype=torch.int64)
    mask_BT[0, :3], mask_BT[1, 5:] = 0, 0
    hidden_BTD = network.lv_bert(input_ids_BT, mask_BT).last_hidden_state
    expected_BC = network.classifier(torch.stack([hidden_BTD[0, 3], hidden_BTD[1, 0]]))
    torch.testing.assert_close(network(input_ids_BT, mask_BT).logits, expected_BC)


# sizes and initial weights

PUBLISHED = [(256, 128, 4, 12_525_856), (384, 128, 6, 23_149_104), (768, 768, 12, 100_171_104)]


@pytest.mark.parametrize(("hidden_size", "embedding_size", "num_heads", "published"), PUBLISHED)
def test_parameters_are_the_published_ones(
    hidden_size: int, embedding_size: int, num_heads: int, published: int
) -> None:
    config = ModelConfig(
        architecture="lv_bert",
        num_layers=12,
        hidden_size=hidden_size,
        num_heads=num_heads,
        embedding_size=embedding_size,
    )
    with torch.device("meta"):
        model = LvBert(config, vocab_size=30_522, token_ids=TokenIds())
    assert sum(parameter.numel() for parameter in model.network.base_model.parameters()) == published
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(config, 30_522)


def test_generators_are_the_published_ones() -> None:
    found = []
    for (hidden_size, embedding_size, num_heads, _), width in zip(PUBLISHED, (0.25, 1 / 3, 0.33333), strict=True):
        discriminator = ModelConfig(
            architecture="lv_bert",
            num_layers=12,
            hidden_size=hidden_size,
            num_heads=num_heads,
            embedding_size=None if embedding_size == hidden_size else embedding_size,
        )
        config = generator_config(discriminator, width)
        found.append((config.hidden_size, config.num_heads, config.intermediate_size, config.embedding_size))
        assert (config.num_layers, config.layers) == (discriminator.num_layers, discriminator.layers)
    assert found == [(64, 1, 256, 128), (128, 2, 512, 128), (256, 4, 1024, 768)]


@pytest.mark.parametrize("layers", ["D", "S", "F", "DSF", PUBLISHED_LAYERS])
@pytest.mark.parametrize("embedding_size", [None, 16])
def test_counts_are_those_of_the_model(layers: str, embedding_size: int | None) -> None:
    model = small_model(layers=layers, num_layers=(len(layers) + 1) // 2, embedding_size=embedding_size)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(model.config, VOCAB_SIZE)
    input_ids_BT = some_tokens(2, 24)
    with FlopCounterMode(display=False) as body:
        features_BTE = model.features(input_ids_BT, torch.zeros_like(input_ids_BT), False)
    with FlopCounterMode(display=False) as head:
        model.head().logits(features_BTE)
    flops = forward_flops_per_token(model.config, VOCAB_SIZE, 24)
    assert (body.get_total_flops(), head.get_total_flops()) == (flops.body * 48, flops.head * 48)


def test_initial_weights() -> None:
    """Normals of std 0.02, and of 1/9 for the taps, cut at two of them; what TensorFlow had no word on is Glorot's."""
    config = ModelConfig(
        architecture="lv_bert", num_layers=2, hidden_size=128, num_heads=8, layers="DSF", embedding_size=64
    )
    network = build_model(config, vocab_size=512, token_ids=TokenIds(), seed=0).network
    discriminator = LvBertForPreTraining(network.config)
    glorot = {"embeddings_project.weight", "kernel.weight", "discriminator_predictions.output.weight"}
    found = set()
    for name, parameter in [*network.named_parameters(), *discriminator.named_parameters()]:
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "layer_norm" in name:
            assert (parameter == 1).all(), name
        elif kind := [ending for ending in glorot if name.endswith(ending)]:
            found.update(kind)
            limit = (6 / sum(parameter.shape)) ** 0.5
            assert 0.7 * limit < parameter.abs().max().item() <= limit, name
            assert parameter.std().item() == pytest.approx(limit / 3**0.5, rel=0.15), name
        else:
            std = 1 / TAPS if name.endswith("depthwise_weight") else 0.02
            assert parameter.std().item() == pytest.approx(0.8796 * std, rel=0.1), name  # of a normal cut at two
            assert parameter.abs().max().item() <= 2 * std * 1.0001, name
    assert found == glorot


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"layers": "DSXFF"}, "model.layers: found 'DSXFF', expected a string over D (dynamic convolution), S"),
        ({"layers": ""}, "model.layers: found ''"),
        (
            {"layers": "DSFD"},
            "model.layers: 'DSFD' has 4 letters, which is 2 layers of two, but the number of layers is 3",
        ),
        (
            {"layers": None},
            "model.layers: null is the published list of 12 layers, but num_layers is 3; write 6 letters",
        ),
        ({"embedding_size": 0}, "model.embedding_size: found 0, needs at least 1"),
        ({"hidden_size": 30}, "model.hidden_size: 30 is not divisible by num_heads 4"),
        ({"tie_word_embeddings": False}, "model.tie_word_embeddings: lv_bert is always tied"),
        ({"variant": "base"}, "model.variant: found base, but lv_bert has none"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError) as refused:
        small_model(**changes)
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_a_configuration_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="always its input embedding"):
        LvBertConfig(tie_word_embeddings=False)
    with pytest.raises(ValueError, match="the number of layers is 12"):
        LvBertConfig(layers="DSF", num_hidden_layers=12)
    with pytest.raises(InputRefused, match="type_vocab_size 3 is not supported"):
        LvBert.model_config(LvBertConfig(type_vocab_size=3))
    assert LvBertConfig().num_hidden_layers == 12 and LvBertConfig(layers="DSF").num_hidden_layers == 2


def test_a_row_longer_than_the_table_is_refused() -> None:
    model = small_model(max_positions=8)
    with pytest.raises(ValueError, match="rows of 9 tokens, the table has 8 positions"):
        model.features(some_tokens(1, 9), torch.zeros(1, 9, dtype=torch.int64), False)


# who sees whom


@both_directions
@given(
    layers=st.text("DSF", min_size=1, max_size=5),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
)
@settings(max_examples=20, deadline=None)
def test_other_documents_and_padding_change_nothing(
    causal: bool, layers: str, lengths: list[int], before: int, after: int
) -> None:
    model = small_model(layers=layers, num_layers=(len(layers) + 1) // 2)
    assert_documents_apart(model, packed_row(lengths, before, after), causal)


@both_directions
@pytest.mark.parametrize(("layers", "reach"), [("F", 0), ("D", 4), ("DD", 8), ("S", 99)])
def test_gradients_show_who_is_seen(layers: str, reach: int, causal: bool) -> None:
    at = 9
    reached_T = reached(small_model(layers=layers, num_layers=1), at=at, length=20, causal=causal)
    expected_T = torch.tensor([abs(at - t) <= reach and (t <= at or not causal) for t in range(20)])
    assert torch.equal(reached_T > 0, expected_T)


def test_padding_means_what_it_means_in_the_original_where_the_mask_is_transformers() -> None:
    """Attention alone does not see it; convolutions do, as far as they reach."""
    input_ids_BT = some_tokens(2, 12)
    mask_BT = torch.ones_like(input_ids_BT)
    mask_BT[:, 10:] = 0
    other_BT = torch.where(mask_BT == 1, input_ids_BT, input_ids_BT.flip(0))
    for layers, first_changed in (("SFS", 10), ("DFF", 6)):
        network = small_model(layers=layers, num_layers=2).network
        difference_BTV = network(input_ids_BT, mask_BT).logits - network(other_BT, mask_BT).logits
        changed_T = difference_BTV.abs().amax((0, 2)) > 1e-6
        assert not changed_T[:first_changed].any() and changed_T[first_changed:].all()


def test_a_row_of_padding_alone_is_finite() -> None:
    model = small_model()
    input_ids_BT = some_tokens(2, 7)
    model.network(input_ids_BT, torch.zeros_like(input_ids_BT)).logits.square().mean().backward()
    model.features(input_ids_BT, torch.full_like(input_ids_BT, PADDING_SEGMENT), True).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@both_directions
def test_head_on_features_is_the_forward_of_transformers(causal: bool) -> None:
    model = small_model()
    input_ids_BT = some_tokens(2, 11)
    segments_BT = torch.zeros_like(input_ids_BT)
    mask = attention_mask(segments_BT, True) if causal else torch.ones_like(input_ids_BT)
    labels_BT = torch.where(input_ids_BT % 3 == 0, input_ids_BT, -100)
    outputs = model.network(input_ids_BT, mask, labels=labels_BT)
    logits_BTV = model.head().logits(model.features(input_ids_BT, segments_BT, causal))
    torch.testing.assert_close(outputs.logits, logits_BTV, atol=1e-5, rtol=0)
    expected = -logits_BTV.log_softmax(-1).gather(-1, input_ids_BT[..., None])[..., 0][labels_BT >= 0].mean()
    torch.testing.assert_close(outputs.loss, expected)
    assert torch.equal(model.network(input_ids_BT, mask, return_dict=False)[0], outputs.logits)


def test_segments_of_electra_are_read() -> None:
    network = small_model().network
    input_ids_BT = some_tokens(1, 6)
    first, second = (
        network(input_ids_BT, token_type_ids=torch.full_like(input_ids_BT, kind)).logits for kind in (0, 1)
    )
    assert torch.equal(first, network(input_ids_BT).logits) and not torch.allclose(first, second)


# generator and discriminator


def test_a_discriminator_shares_its_generators_embeddings() -> None:
    discriminator_config = ModelConfig(**SMALL)
    generator = LvBertForMaskedLM(
        LvBert.network_config(generator_config(discriminator_config, 0.5), vocab_size=VOCAB_SIZE, token_ids=TokenIds())
    )
    config = LvBert.network_config(discriminator_config, vocab_size=VOCAB_SIZE, token_ids=TokenIds())
    discriminator = LvBertForPreTraining(config)
    share_embeddings(generator, discriminator)
    input_ids_BT = some_tokens(2, 9)
    outputs = discriminator(input_ids_BT, torch.ones_like(input_ids_BT), output_hidden_states=True)
    assert outputs.logits.shape == (2, 9) and len(outputs.hidden_states) == 1 + len(config.layers)
    outputs.logits.sum().backward()
    assert generator.decoder.weight is discriminator.get_input_embeddings().weight
    assert generator.decoder.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="give both the same"):
        share_embeddings(generator, LvBertForPreTraining(LvBertConfig(layers="F")))


# memory and speed


def test_every_dropout_drops_in_training_and_none_in_evaluation() -> None:
    model = small_model(layers="DSF", num_layers=2)
    input_ids_BT = some_tokens(2, 8)
    segments_BT = torch.zeros_like(input_ids_BT)
    before = torch.get_rng_state()
    evaluated_BTE = model.features(input_ids_BT, segments_BT, True)
    assert torch.equal(torch.get_rng_state(), before)
    dropouts = [module for module in model.train().modules() if isinstance(module, torch.nn.Dropout)]
    assert len(dropouts) == 1 + 3 + 1  # embeddings, branches, attention
    assert torch.equal(model.features(input_ids_BT, segments_BT, True), evaluated_BTE)
    for dropout in dropouts:
        dropout.p = 0.5
        assert not torch.allclose(model.features(input_ids_BT, segments_BT, True), evaluated_BTE)
        dropout.p = 0.0
    dropped = small_model(dropout=0.1, attention_dropout=0.3)
    assert {module.p for module in dropped.modules() if isinstance(module, torch.nn.Dropout)} == {0.1, 0.3}


@both_directions
def test_bf16_autocast_stays_near_fp32(causal: bool) -> None:
    segments_BT = torch.tensor([[0] * 5 + [1] * 9 + [2] * 4 + [PADDING_SEGMENT] * 2, [0] * 20])
    assert_near_in_bf16(small_model(), segments_BT, causal)


def test_activations_worked_out_again_give_equal_gradients() -> None:
    model = small_model(dropout=0.1, attention_dropout=0.1).train()
    assert_equal_gradients_again(model, len(SMALL["layers"]))


@both_directions
def test_a_body_is_one_graph(causal: bool) -> None:
    assert_one_graph(small_model(), causal)


def test_a_mask_of_ones_is_no_mask() -> None:
    """What the sublayers see of a row without padding is the same in all three forms."""
    layer = moved(DynamicConvolution(LvBertConfig(hidden_size=32, num_attention_heads=4)))
    torch.nn.init.normal_(layer.depthwise_weight)
    hidden_BTD = torch.randn(2, 11, 32)
    plain_BTD = layer(hidden_BTD, Sight(None, None))
    for mask in (torch.ones(2, 11), torch.ones(2, 1, 11, 11, dtype=torch.bool)):
        torch.testing.assert_close(layer(hidden_BTD, sight_of(mask)), plain_BTD)


# folders


def test_a_saved_model_is_loaded_as_it_was(tmp_path: Path) -> None:
    model = small_model(norm_eps=1e-6, intermediate_size=40, max_positions=64)
    segments_BT = torch.tensor([[0] * 15 + [1] * 25, [0] * 40])
    for loaded in loaded_both_ways(model, tmp_path, some_tokens(2, 40), segments_BT):
        assert loaded.config == model.config
        assert loaded.head().weight_VD is loaded.network.get_input_embeddings().weight


AWAY = """
def same(found, expected):
    torch.testing.assert_close(found, given[expected], atol=1e-6, rtol=0)
for folder in given["folders"]:
    body, missing = loaded("AutoModel", folder)
    assert not missing, missing
    outputs = body(ids, mask, output_hidden_states=True)
    same(outputs.last_hidden_state, "hidden")
    same(outputs.hidden_states[0], "embedded")
    if not folder.endswith("encoder"):
        model, missing = loaded("AutoModelForMaskedLM", folder)
        assert not missing and model.decoder.weight is model.get_input_embeddings().weight
        same(model(ids, mask).logits, "logits")
    classified(folder)
discriminator, missing = loaded("AutoModelForPreTraining", given["folders"][0])
assert missing == {"discriminator_predictions"} and discriminator(ids, mask).logits.shape == ids.shape
print("all", len(given["folders"]))
"""


def test_folders_work_where_this_toolkit_is_not(tmp_path: Path) -> None:
    """Auto classes load ours, transformers' and an encoder alone, in a process that cannot import the project."""
    model = small_model()
    folders = [*saved_both_ways(model, tmp_path), tmp_path / "encoder"]
    model.network.lv_bert.save_pretrained(folders[-1])
    input_ids_BT, mask_BT = some_tokens(2, 12), torch.ones(2, 12, dtype=torch.int64)
    mask_BT[1, 9:] = 0
    with torch.no_grad():
        outputs = model.network(input_ids_BT, mask_BT, output_hidden_states=True)
    given = {"folders": list(map(str, folders)), "input_ids": input_ids_BT, "attention_mask": mask_BT}
    given |= {"logits": outputs.logits, "hidden": outputs.hidden_states[-1], "embedded": outputs.hidden_states[0]}
    assert run_away(AWAY, given, tmp_path) == "all 3"
