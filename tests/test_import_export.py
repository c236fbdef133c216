"""Folders that were imported or exported answer, where this toolkit is not, as they did here.

Everything is loaded in one process, that of this environment; `make test-export` loads the same folders in others.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_published import GOLDEN, GOLDEN_FILES, golden
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from corpora.config import TokenizerConfig
from corpora.errors import Damaged, ProcessLost
from corpora.storage import new_folder, read_manifest
from corpora.token_ids import TokenIds
from corpora.tokenizer import TextTokenizer, train_bpe, write_tokenizer
from distill import exporting
from distill.exporting import export_run
from distill.importing import import_checkpoint
from distill.reloading import CLASSIFIER, TEXTS, Expectation, Reloaded, answers, compared, expectation
from students.buildable import Buildable
from students.config import ModelConfig
from students.modeling_gpt_bert import GptBertForCausalLM
from students.published import from_published
from students.registry import ARCHITECTURES, build_model
from students.run_folder import load_model, save_model

SIZES = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "max_positions": 64}
# name of a folder: fields of ModelConfig
FORMS: dict[str, dict[str, Any]] = {name: {"architecture": name} for name in ARCHITECTURES} | {
    "llama": {"architecture": "llama", "num_kv_heads": 1, "rope_theta": 500.0},
    **{
        f"elc_bert_{variant}": {"architecture": "elc_bert", "variant": variant, "position_buckets": 8}
        for variant in ("base", "normalized", "weighted_output")
    },
    "gpt_bert_plain": {"architecture": "gpt_bert", "attention_gate": False, "layer_average": False},
    "lv_bert": {"architecture": "lv_bert", "layers": "DSF", "embedding_size": 8},
}
CAUSAL = ("llama", "gptj", "gpt2")  # through transformers


def tokenizer() -> TextTokenizer:
    return train_bpe([text for text in TEXTS for _ in range(3)], TokenizerConfig(vocab_size=320))


def small_model(form: str, vocab_size: int) -> Buildable:
    """A model in evaluation mode, every parameter moved so that zeros and ones hide nothing."""
    model = build_model(ModelConfig(**(SIZES | FORMS[form])), vocab_size=vocab_size, token_ids=TokenIds(), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def saved_run(folder: Path, form: str) -> Path:
    """A run folder as training leaves it."""
    made = tokenizer()
    with new_folder(folder, kind="run", fingerprint={"form": form}) as writer:
        save_model(writer, small_model(form, made.vocab_size))
        write_tokenizer(writer, made)
        writer.facts |= {"name": form, "views": ["causal" if form in CAUSAL else "masked"]}
    return folder


def field_tokenizer(folder: Path) -> Path:
    """A tokenizer.json as LTG-BERT's and BERT's are: WordPiece, BERT's special tokens, several splitters, a frame."""
    pieces = sorted({character for text in TEXTS for character in text.lower()} | {"the", "cat", "##t", "Ġ", "Ġdog"})
    vocabulary = {piece: number for number, piece in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *pieces])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=""))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    made.enable_padding(pad_id=3, pad_token="[PAD]", length=64)
    made.save(str(folder / "field.json"))
    return folder / "field.json"


def every_folder(root: Path, patch: Callable[[Any], None]) -> dict[str, Expectation]:
    """Every architecture exported, golden files imported or saved by transformers in turn; nothing is reloaded yet.

    `patch` puts a function in the place of `exporting.reload`.
    """
    expected: list[Expectation] = []

    def kept(given: Sequence[Expectation]) -> list[Reloaded]:
        expected.extend(given)
        return [Reloaded("", (), 0.0)]

    patch(kept)
    for form in FORMS:
        export_run(saved_run(root / "runs" / form, form), root / f"exported-{form}")
    field = field_tokenizer(root)
    for name in GOLDEN[::2]:
        file, out = GOLDEN_FILES / f"{name}.safetensors", root / f"imported-{name}"
        import_checkpoint(name, file, out, tokenizer=field, objective="causal" if name == "gpt_bert" else "masked")
    for name in GOLDEN[1::2]:
        _, state, config = golden(name)
        network = from_published(name, state, config)
        network.save_pretrained(root / f"saved-{name}")
        expected.append(expectation(root / f"saved-{name}", network, None))
    return {each.folder.name: each for each in expected}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Expectation]:
    """Folders, and what they must answer; nobody changes them."""
    with pytest.MonkeyPatch.context() as patch:
        return every_folder(
            tmp_path_factory.mktemp("folders"), lambda reload: patch.setattr(exporting, "reload", reload)
        )


BROKEN = {  # what is wrong with a folder: what is said of it
    "weights": "AutoModel: values differ by",
    "lost_weight": "AutoModel: values differ by .*, without weights for .'layers'.",
    "nan": "AutoModel: values differ by nan",
    "auto_map": "AutoConfig: ",
    "imports": "AutoModel: .*students",
    "tokens": "AutoTokenizer: 'the cat sees a small dog' is ",
    "special": "AutoTokenizer: pad_token_id is 2, expected 0 as config.json has it",
}


def broken_folders(whole: Expectation, root: Path) -> list[Expectation]:
    """Copies of a folder with one fault each."""
    for name in BROKEN:
        shutil.copytree(whole.folder, root / name)

    def rewrite(name: str, file: str, old: str, new: str) -> None:
        path = root / name / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    rewrite("auto_map", "config.json", '"auto_map"', '"auto_mop"')
    rewrite("imports", "modeling_ltg.py", "import math", "import math\nimport students")
    rewrite("tokens", "tokenizer.json", '"add_prefix_space": true', '"add_prefix_space": false')
    rewrite("special", "tokenizer_config.json", '"pad_token": "<pad>"', '"pad_token": "</s>"')
    state = safetensors.torch.load_file(whole.folder / "model.safetensors")
    name = "gpt_bert.layers.0.attention.out_proj.weight"
    changed = {
        "weights": state | {name: state[name] * 1.001},
        "nan": state | {name: state[name] * float("nan")},
        "lost_weight": {key: tensor for key, tensor in state.items() if key != name},
    }
    for folder, tensors in changed.items():
        safetensors.torch.save_file(tensors, root / folder / "model.safetensors", metadata={"format": "pt"})
    values = {"AutoModel": whole.values["AutoModel"]}
    return [replace(whole, folder=root / name, values=values) for name in BROKEN]


@pytest.fixture(scope="module")
def told(folders: dict[str, Expectation], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of every folder and of the broken ones, what is expected and what another process says."""
    asked = [*folders.values(), *broken_folders(folders["exported-gpt_bert"], tmp_path_factory.mktemp("broken"))]
    found = answers(asked, sys.executable)
    return {each.folder.name: (each, answer) for each, answer in zip(asked, found, strict=True)}


def test_every_folder_answers_elsewhere_as_it_does_here(told: dict[str, Any], folders: dict[str, Expectation]) -> None:
    for name in folders:
        found = compared(*told[name])
        assert found.difference <= 1e-5 and CLASSIFIER in found.classes and "AutoModel" in found.classes
        form = name.partition("-")[2]
        assert ("AutoModelForMaskedLM" in found.classes) == (form not in (*CAUSAL, "lv_bert_encoder"))
        assert ("AutoModelForCausalLM" in found.classes) == (form in CAUSAL or form.startswith("gpt_bert"))
    forms = {folder.removeprefix("exported-") for folder in folders if folder.startswith("exported-")}
    assert {FORMS[form]["architecture"] for form in forms} == set(ARCHITECTURES)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_folder_that_answers_something_else_is_told(fault: str, told: dict[str, Any]) -> None:
    with pytest.raises(Damaged, match=BROKEN[fault]) as caught:
        compared(*told[fault])
    assert "\n" not in str(caught.value) and str(told[fault][0].folder) in str(caught.value)


def test_a_process_that_ends_is_told(folders: dict[str, Expectation]) -> None:
    with pytest.raises(ProcessLost, match="exported-llama: the process that loads it ended with 1, told 'nothing'"):
        answers([folders["exported-llama"]], shutil.which("false") or "")


@pytest.mark.parametrize("form", ["llama", "gpt_bert"])
def test_an_export_is_the_run(form: str, folders: dict[str, Expectation]) -> None:
    """Also for this toolkit, which reads it as it reads the run."""
    run, out = folders[f"exported-{form}"].folder.parent / "runs" / form, folders[f"exported-{form}"].folder
    ours, theirs = load_model(run), load_model(out)
    assert isinstance(theirs, Buildable) and theirs.config == ours.config
    weights = (run / "model.safetensors").read_bytes()
    assert (out / "model.safetensors").read_bytes() == weights
    manifest = read_manifest(out)
    assert manifest is not None and manifest.kind == "plain model" and manifest.facts["name"] == form
    described = json.loads((out / "config.json").read_text())
    assert described.get("rope_theta") == (500.0 if form == "llama" else None)
    assert set(described.get("auto_map", {})) == (
        set() if form == "llama" else {"AutoConfig", *folders[f"exported-{form}"].values}
    )


def test_an_import_is_a_model_of_this_toolkit(folders: dict[str, Expectation]) -> None:
    """The tokenizer says the special ids; both modes of GPT-BERT are there."""
    tensors, _, _ = golden("gpt_bert")
    out = folders["imported-gpt_bert"].folder
    model = load_model(out)
    assert isinstance(model, Buildable) and model.token_ids == TokenIds(pad=3, begin=1, end=2, mask=4)
    segments_BT = -tensors["padding"].long()
    for name, causal in (("logits_masked", False), ("logits_causal", True)):
        logits_BTV = model.head().logits(model.features(tensors["input_ids"], segments_BT, causal))
        assert (logits_BTV - tensors[name])[segments_BT == 0].abs().max() <= 1e-5
    manifest = read_manifest(out)
    assert manifest is not None and manifest.facts["views"] == ["causal", "masked"]
    assert json.loads((out / "config.json").read_text())["architectures"] == [GptBertForCausalLM.__name__]
    assert (out / "generation_config.json").exists()
    described = json.loads((out / "tokenizer_config.json").read_text())
    roles = ("pad_token", "bos_token", "eos_token", "mask_token", "unk_token", "cls_token", "sep_token")
    assert [described[role] for role in roles] == ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "[CLS]", "[SEP]"]
