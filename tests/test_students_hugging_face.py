"""Any language model of transformers, born from a recipe: trained, saved, listened to, started from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_end_to_end import SMOKE, cuvee
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from corpora.batch import PADDING_SEGMENT
from corpora.errors import InputRefused, RecipeError
from corpora.token_ids import TokenIds
from students.adapters import start_from
from students.config import ModelConfig
from students.hugging_face import HuggingFace
from students.registry import build_model, check_model, forward_flops_per_token, parameter_count
from students.run_folder import load_model

VOCAB_SIZE = 90
SIZES: dict[str, Any] = {
    "architecture": "hugging_face",
    "num_layers": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 24,
    "max_positions": 32,
}
CONFIGS = {
    "gpt2": ModelConfig(**SIZES, model_type="gpt2", view="causal"),
    "gpt_neox": ModelConfig(**SIZES, model_type="gpt_neox", view="causal"),
    "opt": ModelConfig(**SIZES, model_type="opt", view="causal", embedding_size=8),
    "bert": ModelConfig(**SIZES, model_type="bert", view="masked", norm_eps=1e-6),
    "roberta": ModelConfig(**SIZES, model_type="roberta", view="masked", settings={"max_position_embeddings": 33}),
    "albert": ModelConfig(**SIZES, model_type="albert", view="masked", embedding_size=8, dropout=0.1),
    "modernbert": ModelConfig(**SIZES, model_type="modernbert", view="masked"),
}


def built(name: str, **changes: Any) -> HuggingFace:
    model = build_model(replace(CONFIGS[name], **changes), vocab_size=VOCAB_SIZE, token_ids=TokenIds(), seed=1)
    assert isinstance(model, HuggingFace)
    return model


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(4, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", CONFIGS)
def test_features_and_head_are_the_networks_own_logits(name: str) -> None:
    model = built(name).eval()
    input_ids_BT = tokens(2, 9)
    features_BTD = model.features(input_ids_BT, torch.zeros_like(input_ids_BT), model.causal_head)
    assert features_BTD.shape == (2, 9, model.config.feature_size)
    logits_BTV = model.network(input_ids=input_ids_BT, attention_mask=torch.ones_like(input_ids_BT)).logits
    torch.testing.assert_close(model.head().logits(features_BTD.flatten(0, 1)), logits_BTV.flatten(0, 1))


@pytest.mark.parametrize("name", CONFIGS)
def test_documents_of_a_row_are_read_apart(name: str) -> None:
    """As each is read alone, wherever it stands, beside padding; gradients stay in the document."""
    model = built(name).eval()
    input_ids_BT = tokens(2, 12)
    segments_BT = torch.tensor([[0] * 5 + [1] * 7, [0] * 3 + [1] * 4 + [2] * 2 + [PADDING_SEGMENT] * 3])
    features_BTD = model.features(input_ids_BT, segments_BT, model.causal_head)
    for row, start, stop in ((0, 0, 5), (0, 5, 12), (1, 0, 3), (1, 3, 7), (1, 7, 9)):
        alone_1T = input_ids_BT[row : row + 1, start:stop]
        alone_TD = model.features(alone_1T, torch.zeros_like(alone_1T), model.causal_head)[0]
        torch.testing.assert_close(features_BTD[row, start:stop], alone_TD)


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_are_known_before_it_is_built(name: str) -> None:
    model = built(name)
    assert parameter_count(CONFIGS[name], VOCAB_SIZE) == sum(p.numel() for p in model.network.parameters())
    flops = forward_flops_per_token(CONFIGS[name], VOCAB_SIZE, 16)
    assert flops.body > 0 and flops.head == 2 * VOCAB_SIZE * CONFIGS[name].feature_size


def test_fields_are_said_in_the_librarys_words() -> None:
    network = built("albert", attention_dropout=0.2, num_layers=3).network.config
    assert (network.hidden_dropout_prob, network.attention_probs_dropout_prob) == (0.1, 0.2)
    assert (network.num_hidden_layers, network.embedding_size, network.intermediate_size) == (3, 8, 24)
    network = built("gpt2", dropout=0.3, intermediate_size=None).network.config
    assert (network.resid_pdrop, network.embd_pdrop, network.attn_pdrop, network.n_inner) == (0.3, 0.3, 0.0, None)
    assert (network.pad_token_id, network.bos_token_id, network.eos_token_id) == (0, 1, 2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": None}, "model.model_type: missing, and hugging_face needs it"),
        ({"view": None}, "model.view: missing, and hugging_face needs it; expected causal or masked"),
        ({"model_type": "brt"}, "model.model_type: found 'brt', of which transformers has no masked language model"),
        ({"model_type": "gptj"}, "of which transformers has no masked language model"),
        ({"settings": {"layer_count": 3}}, "model.settings.layer_count: bert of transformers has no such field"),
        ({"settings": {"hidden_act": "bump"}}, "model.settings: transformers builds no bert of these sizes"),
        ({"settings": {"hidden_act": 3}}, "model.settings: transformers builds no bert of these sizes"),
        ({"settings": {"vocab_size": 20}}, "model.settings.vocab_size: is said by a field of model"),
        ({"num_kv_heads": 1}, "model.num_kv_heads: found 1, but bert has none; remove it"),
        (
            {"settings": {"max_position_embeddings": 20}},
            "bert reads 20 of 32 positions; set model.settings.max_position_embeddings to 32",
        ),
        (
            {"model_type": "gpt2", "view": "causal", "settings": {"n_layer": 3}},
            "model.settings.n_layer: is said by a field of model",
        ),
        ({"embedding_size": 8}, "model.embedding_size: found 8, but bert of transformers calls it by another name"),
        ({"rope_theta": 5.0}, "model.rope_theta: found 5.0, but hugging_face has none"),
        ({"num_heads": 3}, "model.hidden_size: 16 is not divisible by num_heads 3"),
        (
            {"model_type": "roberta"},
            "model.max_positions: roberta reads 31 of 32 positions; its first 1 are kept for padding, so set "
            "model.settings.max_position_embeddings to 33",
        ),
        (
            {"model_type": "albert"},
            "model.embedding_size: albert meets its output embedding with 128 features, not 16; set it to 128",
        ),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        check_model(replace(ModelConfig(**SIZES, model_type="bert", view="masked"), **changes))
    assert told in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_rows_may_be_very_short(length: int) -> None:
    model = built("bert", max_positions=length)
    ids_BT = tokens(1, length)
    assert model.features(ids_BT, torch.zeros_like(ids_BT), False).shape == (1, length, 16)
    nothing_BT = torch.full((2, length), PADDING_SEGMENT)
    assert model.features(tokens(2, length), nothing_BT, False).shape == (2, length, 16)


def test_heads_share_keys_and_values_as_the_recipe_says() -> None:
    """The library's own number of them is that of its published size."""
    sizes = SIZES | {"model_type": "qwen2", "view": "causal"}
    for said, expected in ((None, 2), (1, 1)):
        model = build_model(
            ModelConfig(**sizes, num_kv_heads=said), vocab_size=VOCAB_SIZE, token_ids=TokenIds(), seed=1
        )
        assert model.network.config.num_key_value_heads == expected


def test_what_no_output_depends_on_is_not_trained() -> None:
    """DDP would wait for it: BERT has a second bias where its head is its own."""
    model = built("bert", tie_word_embeddings=False)
    idle = {name for name, parameter in model.network.named_parameters() if not parameter.requires_grad}
    assert idle == {"cls.predictions.bias"}
    assert all(parameter.requires_grad for parameter in built("gpt2").network.parameters())


def test_fields_of_it_mean_nothing_elsewhere() -> None:
    with pytest.raises(RecipeError, match="model.model_type: found bert, but llama has none; remove it"):
        check_model(replace(tiny.model_config("llama"), model_type="bert"))


def test_rows_of_the_other_view_are_refused() -> None:
    input_ids_BT = tokens(1, 6)
    with pytest.raises(InputRefused, match="a masked model was asked to read causal rows"):
        built("bert").features(input_ids_BT, torch.tensor([[0, 0, 1, 1, 1, 1]]), True)


def overrides(folder: Path, role: str, name: str, kind: str, *more: str) -> list[str]:
    view = CONFIGS[kind].view
    sizes = "num_layers: 1, hidden_size: 16, num_heads: 2, intermediate_size: 24, max_positions: 64"
    model = f"{{architecture: hugging_face, model_type: {kind}, view: {view}, {sizes}, tie_word_embeddings: false}}"
    train = f"{{view: {view}, steps: 6, batch_size: 4, seq_len: 48, precision: fp32, lr: 1e-2}}"
    terms = ", terms: [{loss: cross_entropy}]" if role == "students" else ""
    own = f"{role}.{name}={{model: {model}, train: {train}{terms}{''.join(f', {field}' for field in more)}}}"
    return [f"run_dir={folder}", "teachers={}", "students={}", own]


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_it_is_trained_scored_and_loaded_by_the_library(kind: str, tmp_path: Path) -> None:
    """As a student of packed rows, from the shell; then as a start, with all of its weights or a fresh head."""
    run = tmp_path / "run"
    code, told = cuvee("run", SMOKE, *overrides(run, "students", "mine", kind))
    assert code == 0, told
    [folder] = (run / "students").glob("mine-*")
    loader = {"gpt2": AutoModelForCausalLM, "bert": AutoModelForMaskedLM}[kind]
    network = loader.from_pretrained(folder)
    code, told = cuvee("export", str(folder), str(tmp_path / "export"))
    assert code == 0, told
    model = load_model(folder)
    assert isinstance(model, HuggingFace)
    input_ids_BT = tokens(1, 8)
    torch.testing.assert_close(network(input_ids_BT).logits, model.eval().network(input_ids_BT).logits)

    again = build_model(model.config, vocab_size=model.vocab_size, token_ids=TokenIds(), seed=7)
    fresh = build_model(model.config, vocab_size=model.vocab_size, token_ids=TokenIds(), seed=7)
    start_from(again, folder)
    start_from(fresh, folder, fresh_head=True)
    drawn = build_model(model.config, vocab_size=model.vocab_size, token_ids=TokenIds(), seed=7)
    trained, kept, first = (m.network.state_dict() for m in (again, fresh, drawn))
    prefix = f"{network.base_model_prefix}."
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(trained[name], tensor), name
        assert torch.equal(kept[name], tensor if name.startswith(prefix) else first[name]), name
    assert not torch.equal(fresh.head().weight_VD, model.head().weight_VD)


def test_a_start_of_another_network_is_refused(tmp_path: Path) -> None:
    built("bert", intermediate_size=32).network.save_pretrained(tmp_path)
    with pytest.raises(InputRefused, match="another network than the recipe's .*intermediate"):
        start_from(built("bert"), tmp_path)
    with pytest.raises(InputRefused, match="num_attention_heads"):
        start_from(built("bert", intermediate_size=32, num_heads=4), tmp_path)
    with pytest.raises(InputRefused, match="a BertForMaskedLM instead of a AlbertForMaskedLM"):
        start_from(built("albert"), tmp_path)
    with pytest.raises(InputRefused, match="fresh_head, but the head of BertForMaskedLM is the table of words"):
        start_from(built("bert", intermediate_size=32), tmp_path, fresh_head=True)


def test_recipes_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    own = overrides(tmp_path, "teachers", "mine", "bert", "fresh_head: true")
    code, told = cuvee("plan", SMOKE, *own)
    assert code == 2 and "teachers.mine.fresh_head: without a start all weights are drawn anew" in "".join(told)
    code, told = cuvee(
        "plan", SMOKE, *overrides(tmp_path, "teachers", "mine", "bert"), "teachers.mine.train.view=causal"
    )
    assert code == 2 and "causal rows, but the model's view is masked, the only one that its head is for" in "".join(
        told
    )
