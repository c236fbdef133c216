"""Models on disk: what is loaded is what was saved, here and by transformers, and what is no model is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from test_students import (
    SEGMENTS_BT,
    SHAPES,
    TOKEN_IDS,
    VOCAB_SIZE,
    every_architecture,
    moved_model,
    small_model,
    some_tokens,
)
from transformers import AutoModelForCausalLM

from corpora.errors import Damaged, InputRefused
from corpora.storage import new_folder
from students.buildable import Buildable
from students.config import ModelConfig
from students.run_folder import load_model, save_model


def saved(folder: Path, model: Buildable) -> Path:
    with new_folder(folder, kind="model", fingerprint={}) as writer:
        save_model(writer, model)
    return folder


def assert_same_logits(loaded: Buildable, model: Buildable) -> None:
    input_ids_BT = some_tokens(*SEGMENTS_BT.shape)
    for causal in (True, False):
        ours_BTV = model.head().logits(model.features(input_ids_BT, SEGMENTS_BT, causal))
        assert torch.equal(loaded.head().logits(loaded.features(input_ids_BT, SEGMENTS_BT, causal)), ours_BTV)


@pytest.mark.parametrize("config", SHAPES)
def test_a_saved_model_is_loaded_as_it_was(config: ModelConfig, tmp_path: Path) -> None:
    model = moved_model(config)
    loaded = load_model(saved(tmp_path / "run", model))
    assert (loaded.config, loaded.vocab_size, loaded.token_ids) == (model.config, VOCAB_SIZE, TOKEN_IDS)
    assert not loaded.training
    assert_same_logits(loaded, model)
    again = saved(tmp_path / "again", loaded)
    for path in sorted(again.iterdir()):
        assert path.read_bytes() == (tmp_path / "run" / path.name).read_bytes(), path.name


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    for architecture, name in (("gptj", "lm_head.weight"), ("elc_bert", "decoder.weight")):
        folder = saved(tmp_path / architecture, small_model(architecture))
        assert name not in safetensors.torch.load_file(folder / "model.safetensors")
        loaded = load_model(folder)
        assert loaded.head().weight_VD is loaded.network.get_input_embeddings().weight


@pytest.mark.parametrize("architecture", ["llama", "gptj", "gpt2"])
def test_transformers_reads_the_run_folder(architecture: str, tmp_path: Path) -> None:
    model = small_model(architecture)
    folder = saved(tmp_path / "run", model)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    input_ids_BT = some_tokens(2, 11)
    # attention is worked out by other operations there
    torch.testing.assert_close(theirs(input_ids_BT).logits, model.network(input_ids_BT).logits, atol=1e-5, rtol=0)
    assert theirs.generation_config.eos_token_id == TOKEN_IDS.end
    described = json.loads((folder / "config.json").read_text())
    assert described["torch_dtype"] == "float32"
    assert described.get("rope_theta") == (500.0 if architecture == "llama" else None)


@every_architecture
def test_a_plain_hugging_face_folder_is_a_model_too(architecture: str, tmp_path: Path) -> None:
    model = small_model(architecture)
    model.network.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.architecture == architecture
    assert_same_logits(loaded, model)


@every_architecture
def test_a_model_in_several_files_is_one(architecture: str, tmp_path: Path) -> None:
    model = small_model(architecture)
    model.network.save_pretrained(tmp_path, max_shard_size="8KB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 1 and not (tmp_path / "model.safetensors").exists()
    assert_same_logits(load_model(tmp_path), model)
    parts[0].unlink()
    with pytest.raises(InputRefused, match=f"{parts[0].name} missing, of the {len(parts)} files"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputRefused, match="weight_map does not say"):
        load_model(tmp_path)


def test_a_config_of_transformers_4_keeps_its_rotary_base(tmp_path: Path) -> None:
    small_model("llama").network.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    del described["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(described | {"rope_theta": 500.0}))
    assert load_model(tmp_path).config.rope_theta == 500.0


def test_folders_that_are_no_model_are_refused_in_one_line(tmp_path: Path) -> None:
    model = small_model("llama")

    def refused(folder: Path, error: type[Exception] = InputRefused) -> str:
        with pytest.raises(error) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "neither a finished run nor" in refused(tmp_path)
    unfinished = saved(tmp_path / "unfinished", model)
    (unfinished / "manifest.json").unlink()
    assert "never finished" in refused(unfinished)

    damaged = saved(tmp_path / "damaged", model)
    stored = bytearray((damaged / "model.safetensors").read_bytes())
    stored[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(stored)
    assert "digest" in refused(damaged, Damaged)

    plain = tmp_path / "plain"
    model.network.save_pretrained(plain)
    described = json.loads((plain / "config.json").read_text())
    for changes, clause in (
        ({"model_type": "gpt_neox"}, "architectures is LlamaForCausalLM, expected GPTNeoXForCausalLM"),
        ({"attention_bias": True}, "no weights for model.layers.0.self_attn.k_proj.bias"),
        ({"num_hidden_layers": 1}, "model.layers.1"),
        ({"vocab_size": 90}, "lm_head.weight has shape (400, 32)"),
    ):
        (plain / "config.json").write_text(json.dumps(described | changes))
        assert clause in refused(plain)
    (plain / "config.json").write_text("[]")
    assert "expected an object" in refused(plain)
    with new_folder(tmp_path / "cache", kind="cache", fingerprint={}):
        pass
    assert "a cache without" in refused(tmp_path / "cache")
