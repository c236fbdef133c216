"""Every architecture keeps the contracts of the room: features, head, isolation, counts, and what its fields say."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from corpora.batch import PADDING_SEGMENT, Batch, causal_view, masked_view
from corpora.errors import RecipeError
from corpora.token_ids import TokenIds
from students.attention import (
    _written_out,
    additive_mask,
    attention_mask,
    one_segment_per_row,
    positions_in_segments,
)
from students.buildable import Buildable
from students.config import ModelConfig
from students.registry import (
    ARCHITECTURES,
    activations_per_token,
    build_model,
    forward_flops_per_token,
    parameter_count,
)

VOCAB_SIZE = 400
TOKEN_IDS = TokenIds()
SMALL = {
    "llama": ModelConfig(
        architecture="llama", num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, rope_theta=500.0
    ),
    "gptj": ModelConfig(architecture="gptj", num_layers=2, hidden_size=32, num_heads=4, rotary_dim=4),
    "gpt2": ModelConfig(architecture="gpt2", num_layers=2, hidden_size=32, num_heads=4, max_positions=64),
    "elc_bert": ModelConfig(architecture="elc_bert", num_layers=3, hidden_size=32, num_heads=4, position_buckets=8),
    "ltg_bert": ModelConfig(architecture="ltg_bert", num_layers=2, hidden_size=32, num_heads=4, position_buckets=8),
    "gpt_bert": ModelConfig(architecture="gpt_bert", num_layers=2, hidden_size=32, num_heads=4, position_buckets=8),
    "lv_bert": ModelConfig(
        architecture="lv_bert", num_layers=2, hidden_size=32, num_heads=4, layers="DSF", embedding_size=16
    ),
    "share_bert": ModelConfig(architecture="share_bert", num_layers=2, hidden_size=32, num_heads=4, factor_size=12),
}
assert SMALL.keys() == ARCHITECTURES.keys()
every_architecture = pytest.mark.parametrize("architecture", SMALL)
both_directions = pytest.mark.parametrize("causal", [True, False])
# three documents with a padded end; one document and left padding; nothing but padding
SEGMENTS_BT = torch.tensor([[0] * 5 + [1] * 9 + [2] * 4 + [-1] * 2, [-1] * 3 + [0] * 17, [-1] * 20])


def small_model(architecture: str, *, seed: int = 0, **changes: object) -> Buildable:
    """A small model in evaluation mode, with every parameter moved so that zeros and ones hide nothing."""
    return moved_model(replace(SMALL[architecture], **changes), seed)


def moved_model(config: ModelConfig, seed: int = 0) -> Buildable:
    model = build_model(config, vocab_size=VOCAB_SIZE, token_ids=TOKEN_IDS, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def some_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(4, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(3))


@every_architecture
@both_directions
def test_a_document_reads_the_same_alone_and_in_a_packed_padded_row(architecture: str, causal: bool) -> None:
    model = small_model(architecture)
    input_ids_BT = some_tokens(*SEGMENTS_BT.shape)
    packed_BTD = model.features(input_ids_BT, SEGMENTS_BT, causal)
    assert packed_BTD.isfinite().all()
    for row in range(len(SEGMENTS_BT)):
        for segment in SEGMENTS_BT[row].unique().tolist():
            if segment == PADDING_SEGMENT:
                continue
            chosen = SEGMENTS_BT[row] == segment
            alone_1T = input_ids_BT[row : row + 1, chosen]
            alone_BTD = model.features(alone_1T, torch.zeros_like(alone_1T), causal)
            torch.testing.assert_close(packed_BTD[row, chosen], alone_BTD[0], atol=2e-5, rtol=0)


@every_architecture
@both_directions
def test_gradients_show_who_is_seen(architecture: str, causal: bool) -> None:
    """The features of one position depend on itself, on what stands before it, and on what follows unless causal."""
    model = small_model(architecture)
    seen = []
    model.network.get_input_embeddings().register_forward_hook(lambda _module, _ids, output: seen.append(output))
    at = 4
    features_BTD = model.features(some_tokens(1, 9), torch.zeros(1, 9, dtype=torch.int64), causal)
    (gradient_BTD,) = torch.autograd.grad(features_BTD[0, at].square().sum(), seen[0])
    reached_T = gradient_BTD[0].abs().amax(-1) > 1e-7
    assert reached_T[: at + 1].all()
    assert reached_T[at + 1 :].all() if not causal else (gradient_BTD[0, at + 1 :] == 0).all()


@every_architecture
def test_padding_gives_finite_gradients(architecture: str) -> None:
    model = small_model(architecture)
    model.features(some_tokens(*SEGMENTS_BT.shape), SEGMENTS_BT, True).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_architecture
def test_head_on_features_is_the_forward_of_transformers(architecture: str) -> None:
    model = small_model(architecture)
    input_ids_BT = some_tokens(2, 11)
    ours_BTV = model.head().logits(model.features(input_ids_BT, torch.zeros_like(input_ids_BT), model.causal_head))
    theirs_BTV = model.network(input_ids_BT, attention_mask=torch.ones_like(input_ids_BT)).logits
    torch.testing.assert_close(ours_BTV, theirs_BTV, atol=1e-5, rtol=0)


@every_architecture
def test_only_rows_with_targets_leave_the_model(architecture: str) -> None:
    model = small_model(architecture)
    input_ids_BT = some_tokens(2, 6)
    targets_BT = torch.full((2, 6), -100)
    targets_BT[0, 2] = targets_BT[1, 5] = 7
    for view in (causal_view(), masked_view(mask_seed=1, fold=0, num_folds=3)):
        batch = Batch(input_ids_BT, targets_BT, targets_BT.clamp(min=-1), torch.zeros_like(input_ids_BT), view)
        features_BTD = model.features(input_ids_BT, batch.segments_BT, view.objective == "causal")
        torch.testing.assert_close(model(batch), torch.stack([features_BTD[0, 2], features_BTD[1, 5]]))


@every_architecture
def test_evaluation_draws_nothing_and_training_drops(architecture: str) -> None:
    model = small_model(architecture, attention_dropout=0.5)
    input_ids_BT = some_tokens(2, 8)
    segments_BT = torch.zeros_like(input_ids_BT)
    before = torch.get_rng_state()
    evaluated_BTD = model.features(input_ids_BT, segments_BT, True)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(model.train().features(input_ids_BT, segments_BT, True), evaluated_BTD)


@every_architecture
@both_directions
def test_bf16_autocast_stays_near_fp32(architecture: str, causal: bool) -> None:
    model = small_model(architecture)
    input_ids_BT = some_tokens(*SEGMENTS_BT.shape)
    exact_BTD = model.features(input_ids_BT, SEGMENTS_BT, causal)
    with torch.autocast("cpu", torch.bfloat16):
        rounded_BTD = model.features(input_ids_BT, SEGMENTS_BT, causal)
        model.head().logits(rounded_BTD).mean().backward()
    error = (rounded_BTD.float() - exact_BTD).norm() / exact_BTD.norm()
    assert error < 0.05


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "segments"])
def test_attention_written_out_is_the_kernels_within_rounding(masked: bool) -> None:
    """Values and gradients, with heads that share keys; bf16 rounds to 8 bits."""
    generator = torch.Generator().manual_seed(2)
    rows, length = SEGMENTS_BT.shape
    shapes = {"query": (rows, 4, length, 16), "key": (rows, 2, length, 16), "value": (rows, 2, length, 16)}
    heads = {name: torch.randn(shape, generator=generator, requires_grad=True) for name, shape in shapes.items()}
    mask_B1TT = attention_mask(SEGMENTS_BT, True) if masked else None
    weights = torch.randn(rows, length, 4, 16, generator=generator)

    def value_and_gradients(output_BTHE: torch.Tensor) -> list[torch.Tensor]:
        return [output_BTHE.detach(), *torch.autograd.grad((output_BTHE * weights).sum(), list(heads.values()))]

    exact = functional.scaled_dot_product_attention(
        *heads.values(), attn_mask=mask_B1TT, is_causal=not masked, enable_gqa=True
    ).transpose(1, 2)
    found = _written_out(*heads.values(), mask_B1TT)
    assert found.dtype == torch.bfloat16
    for ours, theirs in zip(value_and_gradients(found), value_and_gradients(exact), strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 0.01


@every_architecture
def test_the_seed_alone_decides_the_weights(architecture: str) -> None:
    def built(seed: int) -> dict[str, torch.Tensor]:
        return build_model(SMALL[architecture], vocab_size=VOCAB_SIZE, token_ids=TOKEN_IDS, seed=seed).state_dict()

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = built(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second, other = built(1), built(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


SHAPES = [
    *SMALL.values(),
    replace(SMALL["llama"], tie_word_embeddings=True, num_kv_heads=None, intermediate_size=40),
    replace(SMALL["gptj"], tie_word_embeddings=False, intermediate_size=40),
    replace(SMALL["gpt2"], tie_word_embeddings=False, intermediate_size=40),
    *(replace(SMALL["elc_bert"], variant=variant) for variant in ("base", "normalized", "weighted_output")),
    replace(SMALL["gpt_bert"], attention_gate=False),
    replace(SMALL["gpt_bert"], layer_average=False, intermediate_size=40),
    replace(SMALL["lv_bert"], layers="SDFF", embedding_size=None, intermediate_size=40),
    replace(SMALL["share_bert"], encoder_ln_mode="post-ln", layer_norm_type="rms_norm", intermediate_size=40),
]


@pytest.mark.parametrize("config", SHAPES)
def test_parameter_count_is_that_of_the_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = ARCHITECTURES[config.architecture](config, vocab_size=VOCAB_SIZE, token_ids=TOKEN_IDS)
    assert parameter_count(config, VOCAB_SIZE) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("architecture", "num_layers", "hidden_size", "num_heads", "vocab_size", "options", "published"),
    [
        ("llama", 24, 1024, 8, 16000, {"intermediate_size": 3072}, 359_973_888),
        ("llama", 16, 512, 8, 16000, {"intermediate_size": 1024}, 58_343_936),
        ("llama", 32, 960, 15, 16000, {"intermediate_size": 2560, "num_kv_heads": 5}, 345_355_200),
        ("gptj", 24, 1536, 16, 16000, {}, 704_330_368),
        ("gptj", 24, 1536, 16, 16000, {"tie_word_embeddings": False}, 728_906_368),
        ("elc_bert", 12, 768, 12, 16384, {}, 98_229_838),
        ("elc_bert", 12, 768, 12, 16384, {"variant": "base"}, 98_229_838),
        ("elc_bert", 12, 768, 12, 16384, {"variant": "weighted_output"}, 98_229_851),
        ("elc_bert", 12, 384, 6, 6144, {}, 23_799_630),
    ],
)
def test_parameter_count_is_the_published_one(
    architecture: str, num_layers: int, hidden_size: int, num_heads: int, vocab_size: int, options: dict, published: int
) -> None:
    config = ModelConfig(
        architecture=architecture, num_layers=num_layers, hidden_size=hidden_size, num_heads=num_heads, **options
    )
    assert parameter_count(config, vocab_size) == published


@every_architecture
def test_forward_flops_are_those_that_torch_counts(architecture: str) -> None:
    model = small_model(architecture)
    input_ids_BT = some_tokens(4, 24)
    segments_BT = SEGMENTS_BT.new_zeros(4, 24)
    # the counter knows plain products, not the CPU's own attention kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as body:
        features_BTD = model.features(input_ids_BT, segments_BT, False)
    with FlopCounterMode(display=False) as head:
        model.head().logits(features_BTD)
    flops = forward_flops_per_token(SMALL[architecture], VOCAB_SIZE, 24)
    assert head.get_total_flops() == flops.head * 4 * 24
    # what is done once for all rows of a batch is left out: the LTG family projects its relative positions, ShareBERT
    # carves its matrices
    once = {"elc_bert": 0.1, "ltg_bert": 0.1, "gpt_bert": 0.1, "share_bert": 0.4}
    counted = body.get_total_flops() / (flops.body * 4 * 24)
    assert 1 - 1e-3 < counted < 1 + once.get(architecture, 1e-3)


@pytest.mark.parametrize(
    ("architecture", "changes", "line"),
    [
        ("llama", {"hidden_size": 30}, "model.hidden_size: 30 is not divisible by num_heads 4"),
        ("llama", {"hidden_size": 36, "num_kv_heads": None}, "model.num_heads: heads of 9 dimensions"),
        ("llama", {"num_kv_heads": 3}, "model.num_kv_heads: 3 does not divide num_heads 4"),
        ("llama", {"dropout": 0.1}, "model.dropout: found 0.1, but llama has none"),
        ("gptj", {"rotary_dim": 5}, "model.rotary_dim: found 5"),
        ("gptj", {"rotary_dim": 16}, "head size 8"),
        ("gptj", {"attention_dropout": 1.0}, "model.attention_dropout: found 1.0"),
        ("elc_bert", {"tie_word_embeddings": False}, "model.tie_word_embeddings"),
        ("elc_bert", {"position_buckets": 7}, "model.position_buckets: found 7"),
        ("elc_bert", {"num_layers": 0}, "model.num_layers: found 0"),
        ("elc_bert", {"vocab_size": 95}, "model.vocab_size: found 95, the tokenizer has 400"),
        ("elc_bert", {"architecture": "bert"}, "model.architecture: found 'bert'"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(architecture: str, changes: dict, line: str) -> None:
    with pytest.raises(RecipeError) as refused:
        build_model(replace(SMALL[architecture], **changes), vocab_size=VOCAB_SIZE, token_ids=TOKEN_IDS, seed=0)
    assert line in str(refused.value) and "\n" not in str(refused.value)


def kept_bytes(config: ModelConfig, shape: tuple[int, int]) -> int:
    """Memory of what autograd keeps for the backward pass of a training step in fp32, weights apart."""
    model = build_model(config, vocab_size=800, token_ids=TOKEN_IDS, seed=0).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no memory is used twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    segments_BT = torch.zeros(shape, dtype=torch.int64)
    segments_BT[:, shape[1] // 2 :] = 1
    with saved_tensors_hooks(note, lambda tensor: tensor):
        model.features(some_tokens(*shape), segments_BT, model.causal_head)
    return sum(storage.nbytes() for storage in kept.values())


@every_architecture
def test_activations_are_about_those_that_autograd_keeps(architecture: str) -> None:
    """Of the layers that one model has more than another."""
    rows, length, taller = 4, 64, {"num_layers": 4}
    config = replace(SMALL[architecture], num_layers=2, hidden_size=64, num_heads=2, attention_dropout=0.1)
    if architecture == "lv_bert":
        taller = {"num_layers": 3, "layers": "DSFDSF"}
    configs = config, replace(config, **taller)  # type: ignore[arg-type]
    low, high = (kept_bytes(config, (rows, length)) for config in configs)
    # numbers of 4 bytes instead of 2
    expected_low, expected_high = (2 * sum(activations_per_token(config, length).blocks) for config in configs)
    assert 1 / 1.6 < (high - low) / (rows * length * (expected_high - expected_low)) < 1.6


# a value of each field of ModelConfig that no model of SMALL has
OTHER_VALUES: dict[str, object] = {
    "num_layers": 4,
    "hidden_size": 24,
    "num_heads": 2,
    "num_kv_heads": 1,
    "intermediate_size": 40,
    "max_positions": 96,
    "tie_word_embeddings": False,
    "dropout": 0.25,
    "attention_dropout": 0.125,
    "norm_eps": 1e-3,
    "rope_theta": 700.0,
    "rotary_dim": 2,
    "variant": "weighted_output",
    "position_buckets": 16,
    "attention_gate": False,
    "layer_average": False,
    "layers": "FFF",
    "embedding_size": 20,
    "factor_size": 20,
    "encoder_ln_mode": "post-ln",
    "layer_norm_type": "rms_norm",
    "masked_shift": 1,
    "model_type": "bert",
    "view": "masked",
    "settings": {"x": 1},
}
# where it takes another one
OTHERS_OF: dict[tuple[str, str], dict[str, object]] = {
    ("lv_bert", "num_layers"): {"num_layers": 4, "layers": "DSFDSFD"},
    ("llama", "tie_word_embeddings"): {"tie_word_embeddings": True},
    ("share_bert", "tie_word_embeddings"): {"tie_word_embeddings": True},
    ("gpt_bert", "masked_shift"): {"masked_shift": 0},
}
CAN_BE_TIED_OR_NOT = ("llama", "gptj", "gpt2")


@every_architecture
@pytest.mark.parametrize("name", OTHER_VALUES)
def test_a_field_changes_what_is_built_or_is_refused(name: str, architecture: str) -> None:
    """No recipe says of a model what is not so; what it can say survives in a folder."""
    owner, config = ARCHITECTURES[architecture], SMALL[architecture]
    changed = replace(config, **OTHERS_OF.get((architecture, name), {name: OTHER_VALUES[name]}))  # type: ignore[arg-type]
    fixed = name == "tie_word_embeddings" and architecture not in CAN_BE_TIED_OR_NOT
    if fixed or name in owner.unused_fields:
        with pytest.raises(RecipeError, match=f"^model.{name}: "):
            owner.check(changed)
        return
    owner.check(changed)
    before, after = (owner.network_config(one, vocab_size=VOCAB_SIZE, token_ids=TOKEN_IDS) for one in (config, changed))
    assert after.to_dict() != before.to_dict()
    again = owner.network_config(owner.model_config(after), vocab_size=VOCAB_SIZE, token_ids=TOKEN_IDS)
    assert again.to_dict() == after.to_dict()


def test_no_field_is_forgotten() -> None:
    """Of the two others the registry knows one, and `build_model` compares the other with the tokenizer's."""
    assert {"architecture", "vocab_size", *OTHER_VALUES} == {field.name for field in fields(ModelConfig)}


def test_initial_weights_of_the_causal_models() -> None:
    for architecture in ("llama", "gptj"):
        model = build_model(SMALL[architecture], vocab_size=2000, token_ids=TOKEN_IDS, seed=0)
        for name, parameter in model.network.named_parameters():
            if parameter.dim() == 2:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5), padding=st.integers(0, 4), causal=st.booleans())
@settings(max_examples=40, deadline=None)
def test_masks_and_positions_follow_their_definition(lengths: list[int], padding: int, causal: bool) -> None:
    segments = [number for number, length in enumerate(lengths) for _ in range(length)] + [PADDING_SEGMENT] * padding
    segments_1T = torch.tensor([segments])
    mask_B1TT = attention_mask(segments_1T, causal)
    assert mask_B1TT.shape == (1, 1, len(segments), len(segments))
    for query, query_segment in enumerate(segments):
        for key, key_segment in enumerate(segments):
            seen = query_segment == key_segment and (key <= query or not causal)
            assert mask_B1TT[0, 0, query, key] == seen
            assert additive_mask(mask_B1TT)[0, 0, query, key] == (0 if seen else -torch.inf)
    expected = [index for length in [*lengths, padding] for index in range(length)]
    assert positions_in_segments(segments_1T)[0].tolist() == expected
    assert one_segment_per_row(segments_1T) == (len(lengths) == 1 and padding == 0)
