"""GPT-BERT alone: two ways to read with one set of weights, its gate and its averages, and text from its causal class.

That it equals the original is proved with the rest of its family, in test_students_ltg_bert.py.
"""

from __future__ import annotations

import pytest
import torch
from conftest import MemoryStream
from test_students_ltg_bert import PLAIN, VOCAB_SIZE, small_model, some_tokens
from torch.nn import functional

from corpora.batch import View, causal_view
from corpora.rows import make_batch
from corpora.token_ids import TokenIds
from students.buildable import Buildable
from students.config import ModelConfig
from students.gpt_bert import GptBert
from students.modeling_gpt_bert import GptBertForCausalLM
from students.registry import build_model

both_forms = pytest.mark.parametrize("form", ["gpt_bert", "gpt_bert_extra"])


def causal_class(model: Buildable) -> GptBertForCausalLM:
    network = GptBertForCausalLM(model.network.config)
    network.load_state_dict(model.network.state_dict())
    return network.eval()


@both_forms
def test_both_modes_are_one_set_of_weights(form: str) -> None:
    """Each mode moves every weight, and the modes agree where they see the same."""
    model = small_model(form, num_layers=1)
    input_ids_BT = some_tokens(3, 10)
    segments_BT = torch.zeros_like(input_ids_BT)
    moved: list[set[str]] = []
    outputs = []
    for causal in (True, False):
        model.zero_grad()
        features_BTD = model.features(input_ids_BT, segments_BT, causal)
        model.head().logits(features_BTD).square().sum().backward()
        moved.append({name for name, weight in model.network.named_parameters() if weight.grad.abs().max() > 0})
        outputs.append(features_BTD.detach())
    assert moved[0] == moved[1] == {name for name, _ in model.network.named_parameters()}
    causal_BTD, masked_BTD = outputs
    torch.testing.assert_close(causal_BTD[:, -1], masked_BTD[:, -1])  # the last position of one layer sees all
    assert not torch.allclose(causal_BTD[:, 0], masked_BTD[:, 0], atol=1e-2)


def test_a_masked_next_token_row_has_its_targets_one_before_the_masks() -> None:
    """Rows are aligned by their view; the model is asked for the output before the mask, and shifts nothing."""
    model, ids = small_model("gpt_bert_extra"), TokenIds()
    stream = MemoryStream([list(range(10, 30)), list(range(40, 52))])
    view = View(objective="masked", shift=1, mask_seed=3, fold=1, num_folds=3)
    batch = make_batch(stream, [(0, 16), (16, 33)], view, token_ids=ids, vocab_size=VOCAB_SIZE)
    rows_N, before_N = batch.has_target_BT.nonzero(as_tuple=True)
    inside = before_N + 1 < batch.input_ids_BT.shape[1]
    assert inside.sum() > 5 and (batch.input_ids_BT[rows_N[inside], before_N[inside] + 1] == ids.mask).all()
    assert batch.targets_BT[rows_N, before_N].tolist() == stream.all_tokens[batch.target_positions_N].tolist()
    features_BTD = model.features(batch.input_ids_BT, batch.segments_BT, False)
    assert torch.equal(model(batch), features_BTD[rows_N, before_N])


@both_forms
def test_the_causal_class_means_labels_as_transformers_does(form: str) -> None:
    """Its loss on the tokens themselves is the mean over the toolkit's own causal targets."""
    model = small_model(form)
    stream = MemoryStream([list(range(10, 30))])
    batch = make_batch(stream, [(0, 21)], causal_view(), token_ids=TokenIds(), vocab_size=VOCAB_SIZE)
    ours = functional.cross_entropy(model.head().logits(model(batch)), batch.targets_BT[batch.has_target_BT])
    outputs = causal_class(model)(batch.input_ids_BT, labels=batch.input_ids_BT)
    torch.testing.assert_close(outputs.loss, ours)
    loss, logits_BTV = causal_class(model)(batch.input_ids_BT, labels=batch.input_ids_BT, return_dict=False)
    assert torch.equal(loss, outputs.loss) and torch.equal(logits_BTV, outputs.logits)


@both_forms
def test_the_causal_class_writes_text(form: str) -> None:
    """Greedy text is the most likely token after token, also of a prompt that is padded on its left."""
    network = causal_class(small_model(form))
    prompts_BT = some_tokens(2, 5)
    mask_BT = torch.ones_like(prompts_BT)
    mask_BT[1, :2] = 0
    written_BT = network.generate(
        prompts_BT, attention_mask=mask_BT, max_new_tokens=6, do_sample=False, eos_token_id=VOCAB_SIZE + 1
    )
    for row, begins in ((0, 0), (1, 2)):
        text_1T = prompts_BT[row : row + 1, begins:]
        for _ in range(6):
            text_1T = torch.cat([text_1T, network(text_1T).logits[:, -1:].argmax(-1)], dim=1)
        assert written_BT[row, begins:].tolist() == text_1T[0].tolist()


def test_averages_begin_as_the_state_before() -> None:
    """An untrained model with averages is the plain one; moved, they change it."""
    sizes = {"architecture": "gpt_bert", "num_layers": 3, "hidden_size": 32, "num_heads": 4}
    plain, averaged = (
        build_model(ModelConfig(**(sizes | form)), vocab_size=VOCAB_SIZE, token_ids=TokenIds(), seed=2).eval()
        for form in (PLAIN, PLAIN | {"layer_average": True})
    )
    averaged.load_state_dict(plain.state_dict(), strict=False)
    input_ids_BT = some_tokens(2, 12)
    segments_BT = torch.zeros_like(input_ids_BT)
    expected_BTD = plain.features(input_ids_BT, segments_BT, False)
    torch.testing.assert_close(averaged.features(input_ids_BT, segments_BT, False), expected_BTD)
    with torch.no_grad():
        averaged.network.gpt_bert.layers[1].attention_average.weights[0] = 1.0
    assert not torch.allclose(averaged.features(input_ids_BT, segments_BT, False), expected_BTD, atol=1e-2)


def test_a_gate_that_is_open_everywhere_is_none() -> None:
    """The norm after the gate takes out what all features have in common: a constant one."""
    gated = small_model("gpt_bert", attention_gate=True, norm_eps=1e-12)
    plain = small_model("gpt_bert", norm_eps=1e-12)
    state = gated.network.state_dict()
    for name in list(state):
        if ".in_proj_vg." in name:
            values, gate = state.pop(name).chunk(2)
            gate.fill_(2.0 if name.endswith("bias") else 0.0)
            state[name.replace("in_proj_vg", "in_proj_v")] = values
    plain.network.load_state_dict(state)
    input_ids_BT = some_tokens(2, 12)
    segments_BT = torch.zeros_like(input_ids_BT)
    expected_BTD = plain.features(input_ids_BT, segments_BT, True)
    torch.testing.assert_close(gated.features(input_ids_BT, segments_BT, True), expected_BTD, atol=1e-4, rtol=0)


def test_the_default_width_is_ten_thirds() -> None:
    for size, width in ((768, 2560), (384, 1280), (32, 112)):
        config = ModelConfig(architecture="gpt_bert", num_layers=1, hidden_size=size, num_heads=4)
        network_config = GptBert.network_config(config, vocab_size=VOCAB_SIZE, token_ids=TokenIds())
        assert network_config.intermediate_size == width
