"""Folders of our own architectures from somebody else: read with our code, whatever code lies in them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from benchmarks.strangers.load import load_stranger
from corpora.config import TokenizerConfig
from corpora.errors import InputRefused
from corpora.storage import FolderWriter, new_folder
from corpora.token_ids import TokenIds
from corpora.tokenizer import TextTokenizer, train_bpe, write_tokenizer
from students.buildable import Buildable
from students.modeling_gpt_bert import GptBertForCausalLM
from students.registry import ARCHITECTURES, build_model
from students.run_folder import save_model

ONE_LINE = re.compile(r"[^\n\x1b]+: [^\n\x1b]+; expected [^\n\x1b]+; [^\n\x1b]+")
OURS = [name for name, architecture in ARCHITECTURES.items() if architecture.source_files]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_bpe(["the cat sees the dog and 12 geese."] * 5, TokenizerConfig(vocab_size=300))


def model_of(architecture: str, tokenizer: TextTokenizer) -> Buildable:
    config = tiny.model_config(architecture)
    return build_model(config, vocab_size=tokenizer.vocab_size, token_ids=TokenIds(), seed=1).eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer) -> dict[str, Path]:
    """A run of each architecture that comes with modelling files; nobody changes them."""
    folder = tmp_path_factory.mktemp("runs")
    for name in OURS:
        with new_folder(folder / name, kind="run", fingerprint={}) as writer:
            save_model(writer, model_of(name, tokenizer))
            write_tokenizer(writer, tokenizer)
    return {name: folder / name for name in OURS}


@torch.no_grad()
def said(model: Any, *, causal: bool = False) -> torch.Tensor:
    """Logits of two rows."""
    ids_BT = torch.randint(4, 280, (2, 12), generator=torch.Generator().manual_seed(3))
    return model.head().logits(model.features(ids_BT, torch.zeros_like(ids_BT), causal))


@pytest.mark.parametrize("architecture", OURS)
def test_a_run_and_a_plain_folder_mean_what_was_saved(
    architecture: str, runs: dict[str, Path], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    model = model_of(architecture, tokenizer)
    model.network.save_pretrained(tmp_path)
    write_tokenizer(FolderWriter(tmp_path), tokenizer)
    for folder in (runs[architecture], tmp_path):
        assert list(folder.glob("modeling_*.py")) and "auto_map" in json.loads((folder / "config.json").read_text())
        loaded, _ = load_stranger(folder)
        assert isinstance(loaded, ARCHITECTURES[architecture])
        assert torch.equal(said(loaded), said(model))


def test_a_causal_folder_of_gpt_bert_has_the_same_weights(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    model = model_of("gpt_bert", tokenizer)
    network = GptBertForCausalLM(model.network.config)  # type: ignore[arg-type]
    network.load_state_dict(model.network.state_dict())
    network.save_pretrained(tmp_path)
    write_tokenizer(FolderWriter(tmp_path), tokenizer)
    loaded, _ = load_stranger(tmp_path)
    for causal in (True, False):
        assert torch.equal(said(loaded, causal=causal), said(model, causal=causal))


def test_code_of_another_version_is_refused_and_may_be_removed(
    runs: dict[str, Path], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    """Older folders name fewer classes, too."""
    folder = Path(shutil.copytree(runs["elc_bert"], tmp_path / "old"))
    (folder / "manifest.json").unlink()
    code, config = folder / "modeling_elc_bert.py", folder / "config.json"
    code.write_text(code.read_text() + "# as it was\n")
    described = json.loads(config.read_text())
    del described["auto_map"]["AutoModelForSequenceClassification"]
    config.write_text(json.dumps(described))
    with pytest.raises(InputRefused, match="modeling_elc_bert.py: Python code.*remove it") as refused:
        load_stranger(folder)
    assert ONE_LINE.fullmatch(str(refused.value))
    code.unlink()
    assert torch.equal(said(load_stranger(folder)[0]), said(model_of("elc_bert", tokenizer)))
    described["auto_map"]["AutoModel"] = "modeling_other.Other"
    config.write_text(json.dumps(described))
    with pytest.raises(InputRefused, match="auto_map: names Python code"):
        load_stranger(folder)


@pytest.mark.parametrize(
    ("architecture", "changes", "line"),
    [
        ("lv_bert", {"layers": "DSX"}, "layers: 'DSX'; expected a string of 1 to 256 letters of D, S, F"),
        ("lv_bert", {"layers": "S" * 257}, "expected a string of 1 to 256 letters"),
        ("lv_bert", {"layers": "DSFDS"}, "no network can be built (layers: 'DSFDS' has 5 letters"),
        ("lv_bert", {"type_vocab_size": 3}, "type_vocab_size: 3; expected 2"),
        ("share_bert", {"intermediate_size": 4096}, "no network can be built (vocab_size: from 2"),
        ("share_bert", {"tie_word_embeddings": True}, "tie_word_embeddings: True; expected False"),
        ("ltg_bert", {"tie_word_embeddings": False}, "tie_word_embeddings: False; expected True"),
        ("ltg_bert", {"variant": "zero"}, "unknown key 'variant'"),
        ("gpt_bert", {"attention_gate": 1}, "attention_gate: 1; expected True or False"),
        ("gpt_bert", {"layer_average": False}, "expected those that config.json means"),
        ("gpt_bert", {"architectures": ["GptBertModel"]}, "expected ['GptBertForMaskedLM'] or ['GptBertForCausalLM']"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    architecture: str, changes: dict[str, Any], line: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(runs[architecture], tmp_path / "candidate"))
    (folder / "manifest.json").unlink()
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(InputRefused) as refused:
        load_stranger(folder)
    assert line in str(refused.value) and ONE_LINE.fullmatch(str(refused.value))
