"""LTG-BERT and its family: equal to the originals, counted, isolated, and alive away from this toolkit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import promises
import pytest
import torch
from promises import (
    assert_documents_apart,
    assert_equal_gradients_again,
    assert_one_graph,
    assert_sees,
    loaded_both_ways,
    moved,
    run_away,
)
from safetensors import safe_open
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from corpora.batch import PADDING_SEGMENT
from corpora.errors import InputRefused, RecipeError
from corpora.storage import new_folder
from corpora.token_ids import TokenIds
from students.buildable import Buildable
from students.config import ModelConfig
from students.ltg_names import from_original, gpt_bert_form, original_names
from students.registry import ARCHITECTURES, build_model, forward_flops_per_token, parameter_count
from students.run_folder import save_model

GOLDEN_FILES = Path(__file__).parent / "golden"
PLAIN = {"attention_gate": False, "layer_average": False}
# golden file, or name of a form: fields of ModelConfig
FORMS: dict[str, dict[str, Any]] = {
    "ltg_bert": {"architecture": "ltg_bert"},
    **{
        f"elc_bert_{variant}": {"architecture": "elc_bert", "variant": variant}
        for variant in ("base", "zero", "normalized", "weighted_output")
    },
    "gpt_bert": {"architecture": "gpt_bert", **PLAIN},
    "gpt_bert_extra": {"architecture": "gpt_bert"},
}
VOCAB_SIZE = 96
every_form = pytest.mark.parametrize("form", FORMS)
every_architecture = pytest.mark.parametrize("form", ["ltg_bert", "elc_bert_weighted_output", "gpt_bert_extra"])


def read_golden(form: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Tensors of a golden file, the original's weights among them, and the sizes."""
    with safe_open(GOLDEN_FILES / f"{form}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        sizes = json.loads(file.metadata()["config"])
    original = {name.removeprefix("state."): tensor for name, tensor in tensors.items() if name.startswith("state.")}
    return tensors, original, sizes


def golden(form: str) -> tuple[Buildable, dict[str, Tensor]]:
    """The model of a golden file with its weights, and the file's tensors."""
    tensors, original, sizes = read_golden(form)
    architecture = ARCHITECTURES[FORMS[form]["architecture"]]
    own = {name: value for name, value in FORMS[form].items() if name != "architecture"}
    config = architecture.model_config(architecture.config_class(**sizes, **own))
    model = build_model(config, vocab_size=sizes["vocab_size"], token_ids=TokenIds(), seed=0)
    model.network.load_state_dict(from_original(original, model.network, place=form))
    return model.eval(), tensors


def small_model(form: str, **changes: Any) -> Buildable:
    """A small model in evaluation mode, moved away from its initial weights."""
    sizes: dict[str, Any] = {"num_layers": 3, "hidden_size": 32, "num_heads": 4, "position_buckets": 8}
    config = ModelConfig(**(FORMS[form] | sizes | changes))
    return moved(build_model(config, vocab_size=VOCAB_SIZE, token_ids=TokenIds(), seed=0))


def some_tokens(*shape: int) -> Tensor:
    return promises.some_tokens(*shape, vocab_size=VOCAB_SIZE)


# the originals


@every_form
def test_golden_forward_and_gradient(form: str) -> None:
    """Equal to the original implementation, whose answers were recorded once (github.com/ltgoslo, fp32, no dropout).

    A failure means that the model no longer is what its name says: look for the eps of a norm, the kind of GELU, the
    input of the feed-forward layer, the place of a norm or the mix of layers. Bounds are not to be loosened; rounding
    moves logits by 1e-6.
    """
    model, tensors = golden(form)
    unpadded_BT = tensors["padding"] == 0
    outputs = model.network(tensors["input_ids"], unpadded_BT, labels=tensors["labels"])
    outputs.loss.backward()
    gradient_norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert (outputs.logits - tensors["logits_masked"])[unpadded_BT].abs().max() <= 1e-5
    assert (outputs.loss - tensors["loss"]).abs().item() <= 2e-6
    assert (gradient_norm / tensors["grad_norm"] - 1).abs().item() <= 1e-5


@every_form
def test_golden_features_and_head(form: str) -> None:
    """The same numbers through the toolkit's door: padding is a segment, features meet the head; in both directions."""
    model, tensors = golden(form)
    segments_BT = -tensors["padding"].long()
    directions = {"logits_masked": False, "logits_causal": True}
    for name in directions.keys() & tensors.keys():
        logits_BTV = model.head().logits(model.features(tensors["input_ids"], segments_BT, directions[name]))
        assert (logits_BTV - tensors[name])[segments_BT == 0].abs().max() <= 1e-5
    assert ("logits_causal" in tensors) == form.startswith("gpt_bert")


@every_form
def test_names_of_the_original_are_all_known(form: str) -> None:
    model, _ = golden(form)
    _, original, _ = read_golden(form)
    names = original_names(model.network)
    assert sorted(names.values()) == sorted(name for name in original if not name.endswith("position_indices"))
    assert names["decoder.weight"] == "classifier.nonlinearity.5.weight"
    if form.startswith("gpt_bert"):
        own = {name: value for name, value in FORMS[form].items() if name != "architecture"}
        assert gpt_bert_form(original) == {"attention_gate": True, "layer_average": True} | own


def test_a_checkpoint_that_does_not_fit_is_refused_with_every_tensor_named() -> None:
    model, _ = golden("gpt_bert_extra")
    _, original, _ = read_golden("gpt_bert_extra")
    attention, average = "transformer.attention_layers.0.out_proj.bias", "transformer.dwa_modules.alphas.3"

    def refused(**changes: Tensor | None) -> str:
        state = {name: tensor for name, tensor in (original | changes).items() if tensor is not None}
        with pytest.raises(InputRefused) as caught:
            from_original(state, model.network, place="checkpoint.bin")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    line = refused(**{attention: None, average: torch.zeros(9), "encoder.x": torch.zeros(1), "y": torch.zeros(1)})
    assert line.startswith("checkpoint.bin: ") and f"missing: {attention}" in line
    assert "not known: encoder.x, y" in line and f"of another shape: {average} (9,) for (5,)" in line
    table = original["embedding.word_embedding.weight"]
    assert "stored twice" in refused(**{"classifier.nonlinearity.5.weight": table + 1})
    indices = original["transformer.attention_layers.2.position_indices"]
    for other in (indices.flip(0), indices[:, :3], torch.zeros(0), torch.tensor(3)):
        line = refused(**{"transformer.attention_layers.2.position_indices": other})
        assert "attention_layers.2.position_indices: other buckets of positions than position_bucket_size 8" in line


def test_one_copy_of_the_tied_table_is_enough() -> None:
    model, _ = golden("ltg_bert")
    _, original, _ = read_golden("ltg_bert")
    whole = from_original(original, model.network, place="both")
    for left_out in ("embedding.word_embedding.weight", "classifier.nonlinearity.5.weight"):
        state = {name: tensor for name, tensor in original.items() if name != left_out}
        found = from_original(state, model.network, place="one")
        assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)


# sizes and initial weights

PUBLISHED = [  # form, vocabulary, hidden size, heads, parameters
    ("ltg_bert", 16384, 768, 12, 98_229_760),
    ("ltg_bert", 6144, 384, 6, 23_799_552),
    ("ltg_bert", 16384, 384, 6, 27_741_952),
    ("ltg_bert", 16384, 192, 3, 8_533_888),
    *((f"elc_bert_{variant}", 16384, 768, 12, 98_229_838) for variant in ("base", "zero", "normalized")),
    ("elc_bert_weighted_output", 16384, 768, 12, 98_229_851),
    ("elc_bert_zero", 6144, 384, 6, 23_799_630),
    ("elc_bert_weighted_output", 6144, 384, 6, 23_799_643),
    ("gpt_bert_extra", 16384, 768, 12, 119_454_532),
    ("gpt_bert_extra", 8192, 384, 6, 29_892_164),
    ("gpt_bert", 16384, 768, 12, 112_367_104),
    ("gpt_bert", 8192, 384, 6, 28_117_760),
]


@pytest.mark.parametrize(("form", "vocab_size", "hidden_size", "num_heads", "published"), PUBLISHED)
def test_parameters_are_the_published_ones(
    form: str, vocab_size: int, hidden_size: int, num_heads: int, published: int
) -> None:
    config = ModelConfig(num_layers=12, hidden_size=hidden_size, num_heads=num_heads, **FORMS[form])
    with torch.device("meta"):
        model = ARCHITECTURES[config.architecture](config, vocab_size=vocab_size, token_ids=TokenIds())
    assert sum(parameter.numel() for parameter in model.parameters()) == published
    assert parameter_count(config, vocab_size) == published


@every_form
def test_flops_are_those_that_torch_counts(form: str) -> None:
    model, length = small_model(form), 24
    input_ids_BT = some_tokens(64, length)
    with FlopCounterMode(display=False) as counted:
        model.features(input_ids_BT, torch.zeros_like(input_ids_BT), False)
    flops = forward_flops_per_token(model.config, VOCAB_SIZE, length)
    # relative positions are projected once for all rows, which the closed form leaves out
    assert counted.get_total_flops() / (flops.body * 64 * length) == pytest.approx(1.0, abs=0.01)


@every_architecture
def test_initial_weights(form: str) -> None:
    """Truncated normals of std sqrt(2 / 5 D), feed-forward layers narrower with depth, averages of the state before."""
    size = 128
    config = ModelConfig(num_layers=3, hidden_size=size, num_heads=4, **FORMS[form])
    network = build_model(config, vocab_size=512, token_ids=TokenIds(), seed=0).network
    std = math.sqrt(2 / (5 * size))
    truncated = 0.8796  # standard deviation of a unit normal cut at two
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "layer_norm" in name:
            assert (parameter == 1).all(), name
        elif "_average." in name:
            assert parameter.tolist() == [0.0] * (len(parameter) - 1) + [1.0], name
        elif "prev_layer_weights" not in name:  # ELC-BERT's own test has these
            index = int(name.split(".")[2]) if ".mlp." in name else None
            expected = std * (1 if index is None else math.sqrt(1 / (2 * (1 + index))))
            assert parameter.std().item() == pytest.approx(truncated * expected, rel=0.03), name
            assert parameter.abs().max().item() <= 2 * expected * 1.0001, name


@every_architecture
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"hidden_size": 30}, "model.hidden_size: 30 is not divisible by num_heads 4"),
        ({"tie_word_embeddings": False}, "is always tied"),
        ({"position_buckets": 7}, "model.position_buckets: found 7"),
        ({"max_positions": 5}, "model.position_buckets: found 8"),
        ({"rotary_dim": 8}, "model.rotary_dim: found 8, but"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(form: str, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError) as refused:
        small_model(form, **changes)
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_fields_of_another_architecture_are_refused() -> None:
    for form, changes in (
        ("ltg_bert", {"variant": "base"}),
        ("ltg_bert", {"layer_average": False}),
        ("elc_bert_zero", {"attention_gate": False}),
        ("gpt_bert", {"variant": "base"}),
        ("gpt_bert", {"layers": "SF"}),
    ):
        with pytest.raises(RecipeError, match=f"model.{next(iter(changes))}: found .*, but {form[:8]} has none"):
            small_model(form, **changes)


# who sees whom


@every_form
@pytest.mark.parametrize("causal", [True, False])
def test_other_documents_and_padding_change_nothing(form: str, causal: bool) -> None:
    segments_BT = torch.tensor([[0] * 5 + [1] * 9 + [2] * 4 + [PADDING_SEGMENT] * 2, [PADDING_SEGMENT] * 3 + [0] * 17])
    # features are of the order of 1, and rounding moves them by 1e-5
    assert_documents_apart(small_model(form), segments_BT, causal, atol=1e-4)


@every_form
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_show_who_is_seen(form: str, causal: bool) -> None:
    assert_sees(small_model(form), causal)


# memory and speed


@every_form
def test_activations_worked_out_again_give_equal_gradients(form: str) -> None:
    """ELC-BERT and GPT-BERT hand their earlier states over as they were."""
    model = small_model(form, dropout=0.1, attention_dropout=0.1).train()
    assert_equal_gradients_again(model, model.config.num_layers)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@every_architecture
def test_a_body_is_one_graph(form: str) -> None:
    assert_one_graph(small_model(form, num_layers=2), causal=True)


# folders


@every_architecture
def test_a_saved_model_is_loaded_as_it_was(form: str, tmp_path: Path) -> None:
    model = small_model(form, norm_eps=1e-6, intermediate_size=40, max_positions=64)
    input_ids_BT = some_tokens(2, 70)  # longer than the table of buckets is laid out for
    for loaded in loaded_both_ways(model, tmp_path, input_ids_BT, torch.zeros_like(input_ids_BT)):
        assert loaded.config == model.config
        assert loaded.head().weight_VD is loaded.network.get_input_embeddings().weight


AWAY = """
for folder, answers in given["folders"].items():
    heads = {"AutoModelForMaskedLM": "masked"} | ({"AutoModelForCausalLM": "causal"} if "causal" in answers else {})
    for auto_class, mode in heads.items():
        model, missing = loaded(auto_class, folder)
        assert not missing, missing
        assert model.decoder.weight is model.get_input_embeddings().weight
        found = model(ids, mask).logits[mask == 1]
        torch.testing.assert_close(found, answers[mode][mask == 1], atol=1e-5, rtol=0)
    body, missing = loaded("AutoModel", folder)
    assert not missing, missing
    features = model.transform(body(ids, mask).last_hidden_state)
    torch.testing.assert_close(features[mask == 1], answers["features"][mask == 1], atol=1e-5, rtol=0)
    classifier, output = classified(folder)
    alone = classifier(ids[:1, mask[0] == 1]).logits
    torch.testing.assert_close(output.logits[:1], alone, atol=1e-5, rtol=0)
print("all", len(given["folders"]))
"""


def test_folders_work_where_this_toolkit_is_not(tmp_path: Path) -> None:
    """Auto classes load every architecture from a folder alone, ours or transformers', without the project."""
    tensors, _, _ = read_golden("ltg_bert")
    input_ids_BT, mask_BT = tensors["input_ids"], (tensors["padding"] == 0).long()
    folders: dict[str, dict[str, Tensor]] = {}
    for form, ours in (("ltg_bert", False), ("elc_bert_weighted_output", True), ("gpt_bert_extra", False)):
        model, _ = golden(form)
        if ours:
            with new_folder(tmp_path / form, kind="model", fingerprint={}) as writer:
                save_model(writer, model)
        else:
            model.network.save_pretrained(tmp_path / form)
        with torch.no_grad():
            features_BTD = model.features(input_ids_BT, mask_BT - 1, False)
            answers = {"features": features_BTD, "masked": model.head().logits(features_BTD)}
            if FORMS[form]["architecture"] == "gpt_bert":
                answers["causal"] = model.head().logits(model.features(input_ids_BT, mask_BT - 1, True))
        folders[str(tmp_path / form)] = answers
    given = {"folders": folders, "input_ids": input_ids_BT, "attention_mask": mask_BT}
    assert run_away(AWAY, given, tmp_path) == "all 3"
