"""`cuvee import` and `cuvee export` from the shell: what they read, what they refuse, and what they leave behind."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_import_export import field_tokenizer, saved_run, tokenizer
from test_published import GOLDEN_FILES, golden
from torch import Tensor
from typer.testing import CliRunner, Result

from corpora.errors import Damaged, InputRefused
from corpora.storage import new_folder, read_manifest
from distill import exporting
from distill.cli import app
from distill.reloading import CLASSIFIER, Expectation, Reloaded
from students.run_folder import load_model


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> list[Expectation]:
    """Nothing is loaded elsewhere; what would have been is kept."""
    kept: list[Expectation] = []

    def reload(given: Sequence[Expectation]) -> list[Reloaded]:
        kept.extend(given)
        return [Reloaded("9.9", ("AutoModel",), 1e-7)]

    monkeypatch.setattr(exporting, "reload", reload)
    return kept


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="cuvee")


def weights_file(path: Path, name: str = "elc_bert_zero", **changes: Tensor) -> Path:
    """A checkpoint with its configuration in the metadata."""
    _, state, config = golden(name)
    safetensors.torch.save_file(state | changes, path, metadata={"config": json.dumps(config)})
    return path


def test_import_from_the_shell(reloads: list[Expectation], tmp_path: Path) -> None:
    file, out = weights_file(tmp_path / "model.safetensors"), tmp_path / "out"
    result = called("import", "elc_bert_zero", file, out)
    assert result.exit_code == 0, result.output
    assert "ElcBertForMaskedLM of 85,898 parameters; transformers 9.9 loads it as AutoModel" in result.stdout
    assert [each.folder for each in reloads] == [out]
    assert called("import", "elc_bert_zero", file, out).stdout == f"import: {out} is there\n"
    stored = bytearray((out / "model.safetensors").read_bytes())
    stored[-1] ^= 1
    (out / "model.safetensors").write_bytes(stored)
    assert called("import", "elc_bert_zero", file, out).exit_code == 0 and len(reloads) == 2  # made again
    other = called("import", "elc_bert_base", file, out)
    assert other.exit_code == 3 and "holds another foreign model" in other.stderr


def test_an_encoder_alone_is_for_transformers(reloads: list[Expectation], tmp_path: Path) -> None:
    golden_file = GOLDEN_FILES / "lv_bert_encoder.safetensors"
    assert called("import", "lv_bert_encoder", golden_file, tmp_path / "out").exit_code == 0
    with pytest.raises(InputRefused, match="a foreign model without cuvee.json"):
        load_model(tmp_path / "out")


def test_a_classifier_is_one_elsewhere(reloads: list[Expectation], tmp_path: Path) -> None:
    """Its head is no new one: what it says is compared."""
    _, state, config = golden("share_bert")
    body = {name: tensor for name, tensor in state.items() if name.startswith("bert.")}
    head = {"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.arange(3.0)}
    metadata = {"config": json.dumps(config | {"num_labels": 3})}
    safetensors.torch.save_file(body | head, tmp_path / "model.safetensors", metadata=metadata)
    assert called("import", "share_bert", tmp_path / "model.safetensors", tmp_path / "out").exit_code == 0
    values = reloads[0].values[CLASSIFIER]
    assert values is not None and values.shape == (2, 3) and set(reloads[0].values) == {"AutoModel", CLASSIFIER}


def test_import_of_a_configuration_beside_the_file(reloads: list[Expectation], tmp_path: Path) -> None:
    _, state, config = golden("share_bert")
    file, sizes = tmp_path / "model.safetensors", tmp_path / "config.json"
    safetensors.torch.save_file(state, file)
    missing = called("import", "share_bert", file, tmp_path / "out")
    assert missing.exit_code == 3 and "add --config FILE.json" in missing.stderr
    for text, line in (("{", "not JSON"), ("[]", "a JSON list, expected an object")):
        sizes.write_text(text)
        result = called("import", "share_bert", file, tmp_path / "out", "--config", sizes)
        assert result.exit_code == 3 and f"{sizes}: {line}" in result.stderr and result.stderr.count("\n") == 1
    sizes.write_text(json.dumps(config))
    assert called("import", "share_bert", file, tmp_path / "out", "--config", sizes).exit_code == 0


def test_a_pickle_is_read_when_it_is_asked_for(reloads: list[Expectation], tmp_path: Path) -> None:
    """Also one of a training script, whose weights stand beside its arguments."""
    _, state, config = golden("ltg_bert")
    file, sizes = tmp_path / "model.bin", tmp_path / "config.json"
    sizes.write_text(json.dumps(config))
    torch.save({"model": state, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1e-2)}, file)
    refused = called("import", "ltg_bert", file, tmp_path / "out", "--config", sizes)
    assert refused.exit_code == 3 and "a PyTorch pickle, expected safetensors" in refused.stderr
    result = called("import", "ltg_bert", file, tmp_path / "out", "--config", sizes, "--pickle")
    assert result.exit_code == 0, result.output
    torch.save(state, file)
    assert called("import", "ltg_bert", file, tmp_path / "plain", "--config", sizes, "--pickle").exit_code == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "plain")]
    assert weights[0] == weights[1]


class Trap:
    """Would write a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    _, _, config = golden("ltg_bert")
    (tmp_path / "config.json").write_text(json.dumps(config))
    file, trap = tmp_path / "model.bin", tmp_path / "sprung"
    torch.save({"model": {}, "args": Trap(trap)}, file)

    def imported() -> Result:
        return called("import", "ltg_bert", file, tmp_path / "out", "--config", tmp_path / "config.json", "--pickle")

    result = imported()
    assert result.exit_code == 3 and "more than tensors" in result.stderr and result.stderr.count("\n") == 1
    assert not trap.exists() and not (tmp_path / "out").exists()
    torch.save([torch.zeros(1)], file)
    assert "holds a list, expected a state dict" in imported().stderr
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert imported().exit_code == 4


def test_files_that_are_no_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights_file(tmp_path / "whole.safetensors").read_bytes()[:1000])
    broken = weights_file(
        tmp_path / "nan.safetensors", **{"classifier.nonlinearity.1.bias": torch.full((48,), torch.nan)}
    )
    for file, exit_code, line in (
        (tmp_path / "none.safetensors", 3, "No such file"),
        (cut, 4, "not a safetensors file"),
        (broken, 3, f"{broken}: tensors not finite: classifier.nonlinearity.1.bias;"),
    ):
        result = called("import", "elc_bert_zero", file, tmp_path / "out")
        assert result.exit_code == exit_code and line in result.stderr and result.stderr.count("\n") == 1
    assert called("import", "elc_bert_zero", broken, tmp_path / "out", "--objective", "casual").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_another_models_is_refused(reloads: list[Expectation], tmp_path: Path) -> None:
    file, given = weights_file(tmp_path / "model.safetensors"), tmp_path / "tokenizer.json"

    def refused(text: str) -> str:
        given.write_text(text)
        result = called("import", "elc_bert_zero", file, tmp_path / "out", "--tokenizer", given)
        assert result.exit_code == 3 and result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
        return result.stderr

    assert "types, the model has 160; name the model's tokenizer" in refused(tokenizer().to_json())
    field = field_tokenizer(tmp_path).read_text()
    assert "no special token for mask (<mask> or [MASK]);" in refused(field.replace("[MASK]", "[HOLE]"))
    assert "not a tokenizer.json" in refused("{}")


def test_export_from_the_shell(reloads: list[Expectation], tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", "gptj")
    result = called("export", run, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "GPTJForCausalLM of" in result.stdout and "largest difference 1e-07, the same token ids" in result.stdout
    assert set(reloads[0].values) == {"AutoModel", "AutoModelForCausalLM", CLASSIFIER}
    described = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert described["model_input_names"] == ["input_ids", "attention_mask"]
    # an export can be exported, as any finished folder of a model
    assert called("export", tmp_path / "out", tmp_path / "again").exit_code == 0
    dotted = called("export", saved_run(tmp_path / "elc", "elc_bert"), tmp_path / "elc.v1")
    assert dotted.exit_code == 0 and "has a dot in its name, with which transformers 4 finds no" in dotted.stdout


def test_exports_that_cannot_be_are_refused(reloads: list[Expectation], tmp_path: Path) -> None:
    run, full = saved_run(tmp_path / "run", "ltg_bert"), tmp_path / "full"
    full.mkdir()
    with new_folder(tmp_path / "cache", kind="cache", fingerprint={}):
        pass
    (full / "config.json").write_text("{}")
    for given, out, line in (
        (tmp_path / "none", tmp_path / "out", "not a finished run folder"),
        (run, full, "not empty; expected a new folder"),
        (run, run, "holds another run; expected a new folder"),
        (tmp_path / "cache", tmp_path / "out", "a cache without cuvee.json, model.safetensors"),
    ):
        result = called("export", given, out)
        assert result.exit_code == 3 and line in result.stderr and result.stderr.count("\n") == 1
    weights = weights_file(tmp_path / "model.safetensors")
    assert called("import", "elc_bert_zero", weights, tmp_path / "bare").exit_code == 0
    result = called("export", tmp_path / "bare", tmp_path / "out")
    assert result.exit_code == 3 and "a foreign model without tokenizer.json and tokenizer_config.json" in result.stderr
    assert (full / "config.json").read_text() == "{}" and read_manifest(run) is not None


def test_a_folder_that_does_not_reload_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def reload(given: Sequence[Expectation]) -> list[Reloaded]:
        assert (given[0].folder / "model.safetensors").exists() and read_manifest(given[0].folder) is None
        raise Damaged("out: in transformers 9.9: no")

    monkeypatch.setattr(exporting, "reload", reload)
    result = called("export", saved_run(tmp_path / "run", "gptj"), tmp_path / "out")
    assert result.exit_code == 4 and not (tmp_path / "out").exists()
