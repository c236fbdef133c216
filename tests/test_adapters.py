"""A run may begin with weights that exist: the same weights, adapters that change nothing until they learn, and a
merged model that is what adapting was."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from corpora.batch import Batch, causal_view, masked_view
from corpora.errors import InputRefused, RecipeError
from corpora.storage import new_folder
from corpora.token_ids import TokenIds
from distill.config import TermConfig
from distill.fused import RowTerm
from distill.objective import Objective, Part
from students import adapters
from students.adapters import check_adapters, has_adapters, merged, start_from, with_adapters
from students.buildable import Buildable
from students.config import AdapterConfig, ModelConfig
from students.registry import ARCHITECTURES, build_model
from students.run_folder import load_model, save_model

VOCAB_SIZE = 96
SEGMENTS_BT = torch.tensor([[0] * 5 + [1] * 9 + [-1] * 2, [0] * 16])
CONFIG = AdapterConfig(rank=3, alpha=5.0)
LAYERS_IN_BLOCK = {"llama": 7, "gptj": 6, "elc_bert": 5}
HEAD_AND_EMBEDDING = {
    "llama": ("lm_head", "embed_tokens"),
    "gptj": ("lm_head", "wte"),
    "elc_bert": ("decoder", "word_embedding"),
}
every_architecture = pytest.mark.parametrize("architecture", LAYERS_IN_BLOCK)


def model_config(architecture: str, **changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "max_positions": 64}
    if architecture == "elc_bert":
        sizes["position_buckets"] = 8
    return ModelConfig(architecture=architecture, **(sizes | changes))  # type: ignore[arg-type]


def built(architecture: str, *, seed: int = 0, **changes: Any) -> Buildable:
    """A small model in evaluation mode, with every parameter moved so that zeros and ones hide nothing."""
    model = build_model(model_config(architecture, **changes), vocab_size=VOCAB_SIZE, token_ids=TokenIds(), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def learned(model: Buildable, config: AdapterConfig = CONFIG) -> Buildable:
    """The model with adapters that have learned something, whatever it is."""
    with_adapters(model, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def trained(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def some_tokens() -> Tensor:
    return torch.randint(4, VOCAB_SIZE, SEGMENTS_BT.shape, generator=torch.Generator().manual_seed(3))


def features(model: Buildable, causal: bool = True) -> Tensor:
    with torch.no_grad():
        return model.features(some_tokens(), SEGMENTS_BT, causal)


def logits(model: Buildable) -> Tensor:
    with torch.no_grad():
        return model.head().logits(features(model))


def saved(folder: Path, model: Buildable) -> Path:
    with new_folder(folder, kind="model", fingerprint={}) as writer:
        save_model(writer, model)
    return folder


def refused(error: type[Exception], action: Any, *arguments: Any) -> str:
    with pytest.raises(error) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@every_architecture
def test_adapters_change_nothing_until_they_learn(architecture: str) -> None:
    base, model = built(architecture), built(architecture)
    assert with_adapters(model, CONFIG, seed=1) is model
    for causal in (True, False):
        assert torch.equal(features(model, causal), features(base, causal))
    assert torch.equal(logits(model), logits(base))
    learned_BTD = features(learned(built(architecture)))
    assert not torch.allclose(learned_BTD, features(base), atol=1e-2)


@pytest.mark.parametrize("training", [True, False])
def test_adapters_train_or_listen_with_their_model(training: bool) -> None:
    model = with_adapters(built("llama").train(training), replace(CONFIG, dropout=0.5), seed=1)
    assert all(module.training == training for module in model.modules())
    assert all(module.training == training for module in merged(model).modules())


def test_adapters_have_their_dropout_in_training_alone() -> None:
    model = learned(built("llama"), replace(CONFIG, dropout=0.5))
    heard_BTD = features(model)
    assert torch.equal(features(model), heard_BTD)
    assert not torch.allclose(features(model.train()), heard_BTD, atol=1e-3)


@every_architecture
def test_all_linear_layers_of_the_blocks_are_adapted_and_nothing_else_is_trained(architecture: str) -> None:
    names = trained(with_adapters(built(architecture), CONFIG, seed=1))
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    adapted = {name.partition(".lora_")[0] for name in names}
    assert len(adapted) == 2 * LAYERS_IN_BLOCK[architecture]  # of two blocks
    assert all(".layers." in name or ".h." in name for name in adapted)


def test_targets_are_the_ends_of_names() -> None:
    def adapted(*targets: str) -> set[str]:
        names = trained(with_adapters(built("elc_bert"), replace(CONFIG, targets=list(targets)), seed=1))
        return {name.partition(".lora_")[0].removeprefix("network.") for name in names}

    assert adapted("mlp.out_proj") == {f"elc_bert.layers.{layer}.mlp.out_proj" for layer in (0, 1)}
    assert len(adapted("out_proj")) == 4
    assert adapted("layers.1.attention.in_proj_v", "transform.dense") == {
        "elc_bert.layers.1.attention.in_proj_v",
        "transform.dense",
    }


@every_architecture
def test_the_seed_alone_decides_the_adapters(architecture: str) -> None:
    def of(seed: int) -> dict[str, Tensor]:
        return trained(with_adapters(built(architecture), CONFIG, seed=seed))

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = of(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = of(1), of(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in first:
        assert torch.equal(first[name], other[name]) == (".lora_B." in name)  # B is zero, whatever the seed


def batch(architecture: str) -> Batch:
    """Rows whose targets are drawn, all of them."""
    view = masked_view(mask_seed=1, fold=0, num_folds=3) if architecture == "elc_bert" else causal_view()
    targets_BT = some_tokens().flip(1)
    positions_BT = torch.arange(targets_BT.numel()).view_as(targets_BT)
    return Batch(some_tokens(), targets_BT, positions_BT, torch.zeros_like(targets_BT), view)


@every_architecture
def test_the_objective_reaches_every_adapter_and_nothing_else(architecture: str) -> None:
    """The fused loss of a frozen head gives the gradients of the plain one, at adapters alone."""
    read = batch(architecture)
    term = RowTerm("cross_entropy", 0, TermConfig(loss="cross_entropy"), None, 1 / read.targets_BT.numel())
    fused, plain = learned(built(architecture)), learned(built(architecture))
    Objective(fused)([Part(read, (term,))])[0].backward()
    logits_NV = plain.head().logits(plain.target_features(read))
    functional.cross_entropy(logits_NV, read.targets_BT.flatten()).backward()
    for (name, parameter), expected in zip(fused.named_parameters(), plain.parameters(), strict=True):
        if ".lora_" not in name:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None and expected.grad is not None and expected.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, expected.grad, atol=1e-6, rtol=1e-4)


@every_architecture
def test_steps_teach_the_adapters_and_their_state_alone_brings_the_model_back(architecture: str) -> None:
    model = with_adapters(built(architecture), replace(CONFIG, dropout=0.1), seed=1).train()
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2, weight_decay=0.1)
    losses = []
    for step in range(12):
        torch.manual_seed(step)  # of dropout
        read = batch(architecture)
        logits_NV = model.head().logits(model.target_features(read))
        loss = functional.cross_entropy(logits_NV, read.targets_BT.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    now = dict(model.named_parameters())
    assert all(torch.equal(value, now[name]) for name, value in frozen.items())
    assert not torch.allclose(features(model.eval()), features(built(architecture)), atol=1e-2)

    resumed = with_adapters(built(architecture), replace(CONFIG, dropout=0.1), seed=2)
    with torch.no_grad():
        for name, parameter in trained(resumed).items():
            parameter.copy_(now[name])
    assert torch.equal(features(resumed), features(model))


@every_architecture
def test_merging_adds_the_product_to_each_weight(architecture: str) -> None:
    model = learned(built(architecture))
    plain = merged(model)
    expected, adapter = built(architecture).network.state_dict(), trained(model.network)
    for name in [name for name in adapter if ".lora_A." in name]:
        product = adapter[name.replace("lora_A", "lora_B")] @ adapter[name]
        expected[f"{name.partition('.lora_')[0]}.weight"] += CONFIG.alpha / CONFIG.rank * product
    found = plain.network.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    for causal in (True, False):
        torch.testing.assert_close(features(plain, causal), features(model, causal), atol=1e-5, rtol=1e-4)
    assert not has_adapters(plain) and len(trained(plain)) == len(list(plain.parameters()))
    assert merged(plain) is plain


@every_architecture
def test_a_run_goes_on_after_merging(architecture: str) -> None:
    model = learned(built(architecture))
    before, names = features(model), list(trained(model))
    merged(model)
    assert has_adapters(model) and list(trained(model)) == names
    assert torch.equal(features(model), before)


TIED = [("llama", True), ("llama", False), ("gptj", True), ("gptj", False), ("elc_bert", None)]


@pytest.mark.parametrize(("architecture", "tied"), TIED)
def test_a_merged_model_is_saved_and_loaded_as_any_other(architecture: str, tied: bool | None, tmp_path: Path) -> None:
    base, model = (built(architecture, tie_word_embeddings=tied) for _ in range(2))
    plain = merged(learned(model))
    shared = plain.head().weight_VD is plain.network.get_input_embeddings().weight
    assert shared == (tied is not False)
    assert torch.equal(plain.head().weight_VD, base.head().weight_VD)
    folder, other = saved(tmp_path / "merged", plain), saved(tmp_path / "base", base)
    loaded = load_model(folder)
    assert isinstance(loaded, Buildable) and loaded.config == base.config
    assert torch.equal(logits(loaded), logits(plain))
    for path in other.iterdir():  # but for the weights it is the base's folder
        if path.name not in ("model.safetensors", "manifest.json"):
            assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
    stored, originally = (safetensors.torch.load_file(place / "model.safetensors") for place in (folder, other))
    assert stored.keys() == originally.keys()
    if plain.causal_head:
        theirs = AutoModelForCausalLM.from_pretrained(folder)
        # GPT-J: eager attention there, a kernel here
        torch.testing.assert_close(theirs(some_tokens()).logits, plain.network(some_tokens()).logits)


AWAY = """
import sys
import torch
from transformers import AutoModelForMaskedLM
model, loading = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
given = torch.load(sys.argv[2])
torch.testing.assert_close(model(given["input_ids"]).logits, given["logits"], atol=1e-5, rtol=1e-5)
"""


def test_transformers_reads_a_merged_elc_bert(tmp_path: Path) -> None:
    model = learned(built("elc_bert"))
    folder = saved(tmp_path / "merged", merged(model))
    torch.save({"input_ids": some_tokens(), "logits": model.network(some_tokens()).logits.detach()}, tmp_path / "said")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    command = [sys.executable, "-c", AWAY, str(folder), str(tmp_path / "said")]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@every_architecture
def test_a_model_starts_from_either_kind_of_folder(architecture: str, tmp_path: Path) -> None:
    source = built(architecture, seed=4)
    source.network.save_pretrained(tmp_path / "theirs")
    for folder in (saved(tmp_path / "ours", source), tmp_path / "theirs"):
        model = built(architecture).train()
        assert start_from(model, folder) is None
        assert model.training and len(trained(model)) == len(list(model.parameters()))
        assert torch.equal(logits(model.eval()), logits(source))
        adapted = with_adapters(model, CONFIG, seed=1)
        assert torch.equal(logits(adapted), logits(source))


def test_a_start_may_say_the_same_sizes_in_other_words_and_have_another_dropout(tmp_path: Path) -> None:
    """A null of the recipe is the number that the folder has."""
    source = built("gptj", dropout=0.1, intermediate_size=64, rotary_dim=8, norm_eps=1e-5, tie_word_embeddings=True)
    model = built("gptj", seed=4)
    start_from(model, saved(tmp_path / "run", source))
    assert torch.equal(logits(model), logits(source))
    assert model.config.dropout == 0.0


@pytest.mark.parametrize(
    ("architecture", "changes", "told"),
    [
        ("llama", {"num_layers": 1}, "num_layers is 1 there and 2 here"),
        ("llama", {"num_kv_heads": 1}, "num_kv_heads is 1 there and 2 here"),
        ("llama", {"rope_theta": 500.0}, "rope_theta is 500.0 there and 10000.0 here"),
        ("gptj", {"rotary_dim": 4}, "rotary_dim is 4 there and 8 here"),
        ("gptj", {"tie_word_embeddings": False}, "tie_word_embeddings is False there and True here"),
        ("elc_bert", {"variant": "base"}, "variant is 'base' there and 'zero' here"),
        ("elc_bert", {"hidden_size": 32, "norm_eps": 1e-5}, "hidden_size is 32 there and 16 here"),
    ],
)
def test_a_start_of_other_sizes_is_refused_by_field(
    architecture: str, changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "run", built(architecture, **changes))
    model = built(architecture)
    before = logits(model)
    line = refused(InputRefused, start_from, model, folder)
    assert line.startswith(f"{folder}: ") and told in line
    assert all(name in line for name in changes)
    assert line.count(" there and ") == len(changes) + ("hidden_size" in changes)  # the width F follows the width D
    assert torch.equal(logits(model), before)


def test_another_architecture_or_vocabulary_is_no_start(tmp_path: Path) -> None:
    folder = saved(tmp_path / "llama", built("llama"))
    assert "architecture is 'llama' there and 'gptj' here" in refused(InputRefused, start_from, built("gptj"), folder)
    wider = build_model(model_config("llama"), vocab_size=VOCAB_SIZE + 1, token_ids=TokenIds(), seed=0)
    assert f"vocab_size is {VOCAB_SIZE} there and {VOCAB_SIZE + 1} here" in refused(
        InputRefused, start_from, wider, folder
    )
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    foreign = GPTNeoXConfig(max_position_embeddings=64, vocab_size=VOCAB_SIZE, **sizes)
    GPTNeoXForCausalLM(foreign).save_pretrained(tmp_path / "foreign")
    line = refused(InputRefused, start_from, built("llama"), tmp_path / "foreign")
    assert f"a GPTNeoXForCausalLM, which no ModelConfig describes, expected one of {', '.join(ARCHITECTURES)}" in line
    assert "neither a finished run nor" in refused(InputRefused, start_from, built("llama"), tmp_path)


@every_architecture
def test_targets_that_are_no_linear_layers_are_refused_with_those_there_are(architecture: str) -> None:
    for target in ("query", "proj", "", *HEAD_AND_EMBEDDING[architecture]):
        model, config = built(architecture), replace(CONFIG, targets=["out_proj", target][architecture == "llama" :])
        line = refused(RecipeError, lambda m, c: with_adapters(m, c, seed=1), model, config)
        assert line == refused(RecipeError, check_adapters, config, model_config(architecture))
        assert line.startswith(f"adapters.targets: found {target!r}, ")
        for there in ("self_attn.q_proj",) if architecture == "llama" else ("out_proj", "mlp."):
            assert there in line
        assert not has_adapters(model) and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rank": 0}, "adapters.rank: found 0"),
        ({"alpha": 0.0}, "adapters.alpha: found 0.0"),
        ({"alpha": float("inf")}, "adapters.alpha: found inf"),
        ({"dropout": 1.0}, "adapters.dropout: found 1.0"),
        ({"dropout": float("nan")}, "adapters.dropout: found nan"),
    ],
)
def test_numbers_out_of_bounds_are_refused(changes: dict[str, Any], told: str) -> None:
    config = replace(CONFIG, **changes)
    assert told in refused(RecipeError, check_adapters, config, model_config("llama"))
    assert told in refused(RecipeError, lambda m, c: with_adapters(m, c, seed=1), built("llama"), config)


def test_the_door_lets_good_adapters_in() -> None:
    for architecture in LAYERS_IN_BLOCK:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        check_adapters(AdapterConfig(), model_config(architecture))
        assert torch.equal(torch.get_rng_state(), before)


def test_nobody_waits_for_peft_who_does_not_adapt() -> None:
    tree = ast.parse(Path(adapters.__file__).read_text())
    imported = {
        name.partition(".")[0]
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert "torch" in imported and "peft" not in imported
