"""ELC-BERT against the original implementation, its initial weights, and its life away from this toolkit."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from corpora.storage import new_folder
from corpora.token_ids import TokenIds
from students.config import ModelConfig
from students.elc_bert import ElcBert
from students.elc_bert_names import from_original, our_name
from students.modeling_elc_bert import distance_buckets, longest_distance
from students.registry import build_model
from students.run_folder import save_model

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = ["base", "zero", "normalized", "weighted_output"]
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def golden(variant: str) -> tuple[ElcBert, dict[str, Tensor]]:
    """The model of a golden file with its weights, and the file's tensors."""
    with safe_open(GOLDEN / f"elc_bert_{variant}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        sizes = json.loads(file.metadata()["config"])
    config = ModelConfig(
        architecture="elc_bert",
        variant=variant,
        num_layers=sizes["num_hidden_layers"],
        hidden_size=sizes["hidden_size"],
        num_heads=sizes["num_attention_heads"],
        intermediate_size=sizes["intermediate_size"],
        max_positions=sizes["max_position_embeddings"],
        position_buckets=sizes["position_bucket_size"],
        norm_eps=sizes["layer_norm_eps"],
        dropout=sizes["hidden_dropout_prob"],
        attention_dropout=sizes["attention_probs_dropout_prob"],
    )
    model = build_model(config, vocab_size=sizes["vocab_size"], token_ids=TokenIds(), seed=0)
    original = {name.removeprefix("state."): tensor for name, tensor in tensors.items() if name.startswith("state.")}
    model.network.load_state_dict(from_original(original))
    return model.eval(), tensors


@every_variant
def test_golden_forward_and_gradient(variant: str) -> None:
    """Equal to the original implementation, whose answers were recorded once (ltgoslo/elc-bert, fp32, no dropout).

    A failure means that the model no longer is ELC-BERT: look for the eps of a norm, the kind of GELU, the input of the
    feed-forward layer or the mix of layers. Bounds are not to be loosened; rounding moves logits by 1e-6.
    """
    model, tensors = golden(variant)
    unpadded_BT = tensors["padding"] == 0
    outputs = model.network(tensors["input_ids"], unpadded_BT, labels=tensors["labels"])
    outputs.loss.backward()
    gradient_norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert (outputs.logits - tensors["logits_masked"])[unpadded_BT].abs().max() <= 1e-5
    assert (outputs.loss - tensors["loss"]).abs().item() <= 2e-6
    assert (gradient_norm / tensors["grad_norm"] - 1).abs().item() <= 1e-5


@every_variant
def test_golden_features_and_head(variant: str) -> None:
    """The same numbers through the toolkit's door: padding is a segment, features meet the head."""
    model, tensors = golden(variant)
    segments_BT = -tensors["padding"].long()
    logits_BTV = model.head().logits(model.features(tensors["input_ids"], segments_BT, False))
    unpadded_BT = segments_BT == 0
    assert (logits_BTV - tensors["logits_masked"])[unpadded_BT].abs().max() <= 1e-5


def test_names_of_the_original_are_all_known() -> None:
    with pytest.raises(KeyError):
        our_name("embedding_of_something_else")
    model, tensors = golden("weighted_output")
    assert our_name("classifier.nonlinearity.5.weight") == "decoder.weight"
    named = {name.removeprefix("state.") for name in tensors if name.startswith("state.")}
    ours = {our_name(name) for name in named if not name.endswith("position_indices")}
    assert ours == set(model.network.state_dict())


@every_variant
def test_initial_weights(variant: str) -> None:
    """Truncated normals of std sqrt(2 / 5 D), feed-forward layers narrower with depth, mixes as the variant says."""
    size = 128
    config = ModelConfig(architecture="elc_bert", variant=variant, num_layers=3, hidden_size=size, num_heads=4)
    network = build_model(config, vocab_size=512, token_ids=TokenIds(), seed=0).network
    std = math.sqrt(2 / (5 * size))
    truncated = 0.8796  # standard deviation of a unit normal cut at two
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "layer_norm" in name:
            assert (parameter == 1).all(), name
        elif "prev_layer_weights" not in name:
            index = int(name.split(".")[2]) if ".mlp." in name else None
            expected = std * (1 if index is None else math.sqrt(1 / (2 * (1 + index))))
            assert parameter.std().item() == pytest.approx(truncated * expected, rel=0.03), name
            assert parameter.abs().max().item() <= 2 * expected * 1.0001, name
    for index, layer in enumerate(network.elc_bert.layers):
        assert layer.mix.prev_layer_weights.tolist() == [0.0] * index + [1.0 if variant == "base" else 0.0]
    assert hasattr(network.elc_bert, "output_mix") == (variant == "weighted_output")
    if variant == "weighted_output":
        assert network.elc_bert.output_mix.prev_layer_weights.tolist() == [0.0] * 4


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
    for variant, longest in (("base", 96), ("normalized", 96), ("zero", 512), ("weighted_output", 512)):
        config = golden(variant)[0].network.config
        assert (longest_distance(config, 64), longest_distance(config, 96)) == (64, longest)


@every_variant
def test_rows_beyond_max_positions_are_read(variant: str) -> None:
    model, _ = golden(variant)
    input_ids_BT = torch.randint(4, 160, (1, 96), generator=torch.Generator().manual_seed(0))
    assert model.features(input_ids_BT, torch.zeros_like(input_ids_BT), False).isfinite().all()


def test_hidden_states_and_tuples_for_transformers_users() -> None:
    model, tensors = golden("zero")
    outputs = model.network(tensors["input_ids"], output_hidden_states=True)
    assert len(outputs.hidden_states) == model.config.num_layers + 1
    logits_BTV, _ = model.network(tensors["input_ids"], output_hidden_states=True, return_dict=False)
    assert torch.equal(logits_BTV, outputs.logits)


AWAY = """
import sys
sys.modules |= dict.fromkeys(["corpora", "students", "teachers", "distill"])  # None: importing one fails
import torch
from transformers import AutoModel, AutoModelForMaskedLM
folder, answers = sys.argv[1:]
given = torch.load(answers)
model, loading = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
body = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert model.decoder.weight is model.get_input_embeddings().weight
logits = model(given["input_ids"], given["attention_mask"]).logits
hidden = body(given["input_ids"], given["attention_mask"]).last_hidden_state
torch.testing.assert_close(logits, given["logits"], atol=1e-6, rtol=0)
torch.testing.assert_close(model.transform(hidden), given["features"], atol=1e-6, rtol=0)
"""


def test_a_run_folder_works_where_this_toolkit_is_not(tmp_path: Path) -> None:
    """Auto classes load model and body from the folder alone, in a process that cannot import the project."""
    model, tensors = golden("weighted_output")
    with new_folder(tmp_path / "run", kind="model", fingerprint={}) as writer:
        save_model(writer, model)
    mask_BT = (tensors["padding"] == 0).long()
    features_BTD = model.network.transform(model.network.elc_bert(tensors["input_ids"], mask_BT).last_hidden_state)
    answers = {"input_ids": tensors["input_ids"], "attention_mask": mask_BT, "features": features_BTD.detach()}
    answers["logits"] = model.network(tensors["input_ids"], mask_BT).logits.detach()
    torch.save(answers, tmp_path / "answers.pt")
    (tmp_path / "away").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONSAFEPATH": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", AWAY, str(tmp_path / "run"), str(tmp_path / "answers.pt")],
        cwd=tmp_path / "away",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
