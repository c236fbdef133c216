"""ShareBERT: equal to the original, counted, isolated, and alive away from this toolkit."""

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
    assert_sees,
    loaded_both_ways,
    moved,
    packed_row,
    run_away,
    saved_both_ways,
)
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from corpora.batch import PADDING_SEGMENT
from corpora.errors import InputRefused, RecipeError
from corpora.token_ids import TokenIds
from students.attention import attention_mask
from students.buildable import Buildable
from students.config import ModelConfig
from students.configuration_share_bert import (
    ShareBertConfig,
    columns_needed,
    matrix_shapes,
)
from students.modeling_share_bert import ShareBertForMaskedLM, ShareBertModel
from students.modeling_share_blocks import RootMeanSquareNorm, ShareBertLayer, SharedMatrices
from students.registry import build_model, forward_flops_per_token, parameter_count
from students.share_bert import ShareBert
from students.share_bert_names import (
    from_original,
    network_class,
    original_config,
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


def small_model(**changes: Any) -> Buildable:
    return moved(build_model(ModelConfig(**(SMALL | changes)), vocab_size=VOCAB_SIZE, token_ids=TokenIds(), seed=0))


def some_tokens(*shape: int) -> Tensor:
    return promises.some_tokens(*shape, vocab_size=VOCAB_SIZE)


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


# refusals


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
    assert_documents_apart(small_model(), packed_row(lengths, before, after), causal)


@every_form
@both_directions
def test_gradients_show_who_is_seen(form: str, causal: bool) -> None:
    assert_sees(small_model(**FORMS[form]), causal)


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
    segments_BT = torch.tensor([[0] * 5 + [1] * 9 + [2] * 4 + [PADDING_SEGMENT] * 2, [0] * 20])
    assert_near_in_bf16(small_model(**FORMS[form]), segments_BT, causal=False)


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
    """Those of the matrices too, which are no weights of the layers."""
    model = small_model(dropout=0.1, attention_dropout=0.1, **FORMS[form]).train()
    assert_equal_gradients_again(model, SMALL["num_layers"])


@both_directions
def test_a_body_is_one_graph(causal: bool) -> None:
    assert_one_graph(small_model(), causal)


# folders


@every_form
def test_a_saved_model_is_loaded_as_it_was(form: str, tmp_path: Path) -> None:
    model = small_model(norm_eps=1e-6, intermediate_size=40, **FORMS[form])
    segments_BT = torch.tensor([[0] * 15 + [1] * 25, [0] * 40])
    ours, theirs = loaded_both_ways(model, tmp_path, some_tokens(2, 40), segments_BT)
    assert ours.config == model.config
    for loaded in (ours, theirs):
        assert ShareBert.model_config(loaded.network.config) == ShareBert.model_config(model.network.config)


AWAY = """
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
    classifier, output = classified(folder)
    same(classifier.share_bert(ids, mask).pooler_output, "pooled")
    torch.testing.assert_close(output.logits, classifier.eval().classifier(given["pooled"]), atol=1e-6, rtol=0)
    output.loss.backward()
    assert classifier.share_bert.pooler.bias.grad.abs().sum() > 0
print("all", len(given["folders"]))
"""


def test_folders_work_where_this_toolkit_is_not(tmp_path: Path) -> None:
    """Auto classes load ours, transformers' and a body alone, in a process that cannot import the project."""
    model = small_model()
    folders = [*saved_both_ways(model, tmp_path), tmp_path / "body"]
    model.network.share_bert.save_pretrained(folders[-1])
    input_ids_BT, mask_BT = some_tokens(2, 12), torch.ones(2, 12, dtype=torch.int64)
    mask_BT[1, 9:] = 0
    with torch.no_grad():
        outputs = model.network.share_bert(input_ids_BT, mask_BT, output_hidden_states=True)
        logits_BTV = model.network(input_ids_BT, mask_BT).logits
    given = {"folders": list(map(str, folders)), "input_ids": input_ids_BT, "attention_mask": mask_BT}
    given |= {"logits": logits_BTV, "hidden": outputs.last_hidden_state, "pooled": outputs.pooler_output}
    given |= {"embedded": outputs.hidden_states[0]}
    assert run_away(AWAY, given, tmp_path) == "all 3"
