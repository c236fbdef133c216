"""Foreign models teach: what their caches say is what transformers says, and what cannot be right is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from corpora.batch import Batch, causal_view, masked_view
from corpora.errors import Damaged, InputRefused
from corpora.prepare import Corpus
from corpora.windows import plan_windows, window_batches
from students.narrowed import Narrowed
from students.pretrained import Pretrained
from students.run_folder import load_model

SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
ROWS = {"max_position_embeddings": 64, "initializer_range": 0.4}  # a range in which logits differ
GROUPED = {**SMALL, **ROWS, "num_key_value_heads": 1, "head_dim": 8}
GPT2: dict[str, Any] = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64, "initializer_range": 0.4}
CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    # its features are projected down before they meet the embedding
    "opt": ("OPT", {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 8, "max_position_embeddings": 64, "init_std": 0.4}),
    "gpt_neox": ("GPTNeoX", {**SMALL, **ROWS}),
    "gemma2": ("Gemma2", {**GROUPED, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}),
    "cohere": ("Cohere", {**SMALL, **ROWS, "logit_scale": 0.25}),
    "granite": ("Granite", {**SMALL, **ROWS, "logits_scaling": 4.0}),
    # of ours, in a variant that ModelConfig cannot say
    "llama": ("Llama", {**SMALL, **ROWS, "attention_bias": True}),
}
MASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {**SMALL, **ROWS}),
    "roberta": ("Roberta", {**SMALL, **ROWS, "max_position_embeddings": 65}),
    "distilbert": (
        "DistilBert",
        {"n_layers": 2, "dim": 16, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64},
    ),
    "albert": ("Albert", {**SMALL, **ROWS, "embedding_size": 8}),
    # its bias stands beside the embedding
    "esm": ("Esm", {**SMALL, **ROWS, "max_position_embeddings": 65, "position_embedding_type": "absolute"}),
}
KINDS = [*CAUSAL, *MASKED]


def network(kind: str, vocab_size: int, **changes: Any) -> PreTrainedModel:
    """A small random model with the toolkit's special tokens, as sure of itself as a trained one."""
    name, sizes = (CAUSAL | MASKED)[kind]
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
    config = getattr(transformers, f"{name}Config")(vocab_size=vocab_size, **(sizes | ids | changes))
    loader = AutoModelForCausalLM if kind in CAUSAL else AutoModelForMaskedLM
    torch.manual_seed(0)
    built = loader.from_config(config).eval()
    head = built.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(2.5 / head.weight.shape[1] ** 0.5 / head.weight.std())
        for name, parameter in built.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5)
    return built


def saved(folder: Path, built: PreTrainedModel) -> Path:
    built.save_pretrained(folder)
    return folder


def own_logits(folder: Path, kind: str, batch: Batch) -> Tensor:
    """What transformers alone makes of the rows, at the positions that have a target."""
    loader = AutoModelForCausalLM if kind in CAUSAL else AutoModelForMaskedLM
    seen = (batch.segments_BT >= 0).long()
    with torch.no_grad():
        logits_BTV = loader.from_pretrained(folder).eval()(input_ids=batch.input_ids_BT, attention_mask=seen).logits
    return logits_BTV[batch.has_target_BT]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_says_what_the_model_says(corpus: Corpus, tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path / kind, network(kind, corpus.vocab_size))
    model = load_model(folder)
    assert isinstance(model, Pretrained) and model.config.max_positions == 64
    objective = model.objective
    assert objective == ("causal" if kind in CAUSAL else "masked")
    cached = tiny.cached(model, tiny.cache_key(corpus, stream="test", objective=objective), tmp_path / "cache")
    stream = corpus.streams["test"]
    windows = plan_windows(stream, tiny.WINDOW, objective=objective)
    view = causal_view() if objective == "causal" else masked_view(mask_seed=tiny.CACHE.mask_seed, fold=1, num_folds=3)
    largest = 0.0
    batches = window_batches(stream, windows, view, rows=16, token_ids=corpus.token_ids, vocab_size=corpus.vocab_size)
    for batch in batches:
        own_NV = own_logits(folder, kind, batch).log_softmax(-1)
        told_NV = cached.signal(batch.target_positions_N).logits(slice(None)).log_softmax(-1)  # type: ignore[attr-defined]
        largest = max(largest, float((told_NV - own_NV).abs().max()))
        assert own_NV.std() > 0.3, "logits that are all alike would prove nothing"
    assert largest < 1e-3


def test_only_one_position_of_a_row_meets_the_head(corpus: Corpus, tmp_path: Path) -> None:
    model = load_model(saved(tmp_path, network("gpt_neox", corpus.vocab_size)))
    met = []
    head = model.network.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: met.append(tuple(output.shape)))
    ids_BT = torch.full((3, 10), 7)
    assert model.features(ids_BT, torch.zeros_like(ids_BT), True).shape == (3, 10, 16)
    assert met == [(3, 1, corpus.vocab_size)]
    assert not head._forward_pre_hooks, "nothing is left behind"


@pytest.mark.parametrize("kind", ["gpt_neox", "roberta"])
def test_rows_that_cannot_be_read_rightly_are_refused(corpus: Corpus, tmp_path: Path, kind: str) -> None:
    model = load_model(saved(tmp_path, network(kind, corpus.vocab_size)))
    causal = kind in CAUSAL

    def refused(segments: list[int], causal: bool = causal) -> str:
        segments_BT = torch.tensor([segments])
        with pytest.raises(InputRefused) as caught:
            model.features(torch.full_like(segments_BT, 5), segments_BT, causal)
        return str(caught.value)

    assert "rows of several documents" in refused([0, 0, 1, 1])
    assert "rows of several documents" in refused([-1, 0, 0, 0])  # padded at the beginning
    assert "a row of 65 tokens, the model reads at most 64" in refused([0] * 65)
    other = "masked" if causal else "causal"
    assert f"was asked to read {other} rows" in refused([0, 0], not causal)
    model.features(torch.full((1, 64), 5), torch.zeros(1, 64, dtype=torch.long), causal)  # the longest row


class DoesMore(transformers.GPT2LMHeadModel):
    """Its logits are more than a product."""

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        output = super().forward(*arguments, **keywords)
        output.logits = output.logits + output.logits.square().mean(-1, keepdim=True) * torch.arange(320) / 320
        return output


class ReadsPadding(transformers.BertForMaskedLM):
    """Padding is text to it."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return super().forward(input_ids=input_ids)


def test_what_cannot_be_proved_is_refused() -> None:
    does_more = DoesMore(transformers.GPT2Config(vocab_size=320, **GPT2))
    reads_padding = ReadsPadding(transformers.BertConfig(vocab_size=320, **MASKED["bert"][1]))
    with pytest.raises(InputRefused, match="here: .* of DoesMore differ from its own by .* its head does more"):
        Pretrained(does_more.eval(), "causal", "here")
    with pytest.raises(InputRefused, match="here: what ReadsPadding says about a row changes with the padding"):
        Pretrained(reads_padding.eval(), "masked", "here")


def test_a_bidirectional_model_is_no_causal_one(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=320, is_decoder=False, **SMALL, **ROWS)
    torch.manual_seed(0)
    folder = saved(tmp_path, transformers.BertLMHeadModel(config))
    with pytest.raises(InputRefused, match="BertLMHeadModel reads tokens that come later"):
        load_model(folder)


def described(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_folders_without_a_language_model_are_refused_in_one_line(tmp_path: Path) -> None:
    def refused(folder: Path, error: type[Exception] = InputRefused) -> str:
        with pytest.raises(error) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    headless = saved(tmp_path / "headless", network("bert", 320).bert)
    assert "architectures is BertModel, expected BertLMHeadModel or BertForMaskedLM" in refused(headless)
    described(headless, architectures=["BertForMaskedLM"])
    assert "no weights for" in refused(headless)

    unknown = saved(tmp_path / "unknown", network("gpt_neox", 320))
    described(unknown, model_type="of_mine", auto_map={"AutoModelForCausalLM": "code.Model"})
    (unknown / "code.py").write_text("raise SystemExit('code of a folder was run')")
    assert "model_type 'of_mine' has no language model in transformers" in refused(unknown)

    torch.manual_seed(0)
    two = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16}
    both = transformers.BartForConditionalGeneration(transformers.BartConfig(vocab_size=320, **two))
    assert "an encoder with a decoder" in refused(saved(tmp_path / "both", both))

    damaged = saved(tmp_path / "damaged", network("gpt_neox", 320))
    (damaged / "model.safetensors").write_bytes(b"no weights")
    assert "safetensors" in refused(damaged, Damaged)
    (damaged / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refused(damaged)


def test_another_vocabulary_is_refused_with_both_sizes(corpus: Corpus, tmp_path: Path) -> None:
    model = load_model(saved(tmp_path / "wide", network("gpt_neox", corpus.vocab_size + 8)))
    with pytest.raises(InputRefused, match=f"{corpus.vocab_size + 8}.*{corpus.vocab_size}"):
        tiny.cached(model, tiny.cache_key(corpus), tmp_path / "cache")


def test_a_padded_embedding_is_heard_as_far_as_the_tokenizer_goes(corpus: Corpus, tmp_path: Path) -> None:
    folder = saved(tmp_path / "wide", network("esm", corpus.vocab_size + 8))
    teacher = Narrowed(load_model(folder), corpus.vocab_size)
    cached = tiny.cached(teacher, tiny.cache_key(corpus, stream="test", objective="masked"), tmp_path / "cache")
    stream = corpus.streams["test"]
    windows = plan_windows(stream, tiny.WINDOW, objective="masked")[:4]
    view = masked_view(mask_seed=tiny.CACHE.mask_seed, fold=0, num_folds=3)
    [batch] = window_batches(stream, windows, view, rows=16, token_ids=corpus.token_ids, vocab_size=corpus.vocab_size)
    own_NV = own_logits(folder, "esm", batch)
    told_NV = cached.answer(batch).logits(slice(None)).log_softmax(-1)  # type: ignore[attr-defined]
    expected_NV = own_NV[:, : corpus.vocab_size].log_softmax(-1)
    wide_NV = own_NV.log_softmax(-1)[:, : corpus.vocab_size]
    # windows overlap, and a record is that of the window in which its position is farthest from an edge
    same_N = (told_NV - expected_NV).abs().amax(-1) < 1e-3
    assert same_N.float().mean() > 0.5
    assert not ((told_NV - wide_NV).abs().amax(-1) < 1e-3)[same_N].any()
