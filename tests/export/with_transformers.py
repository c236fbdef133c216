"""Folders answer in other environments as they did here: with the transformers that the challenge pins, and with ours.

`make test-export` makes the environments, which hold torch and transformers alone, and runs this file; `pytest` alone
does not collect it.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_import_export import CAUSAL, FORMS, every_folder

from corpora.errors import Damaged
from distill import exporting
from distill.reloading import CLASSIFIER, Expectation, answers, compared, reload
from students.registry import ARCHITECTURES

HOUSE = Path(__file__).resolve().parent.parent.parent
(OURS,) = re.findall(r"^transformers==(.+)$", (HOUSE / "constraints.txt").read_text(), re.MULTILINE)
PINNED = "transformers-4.51.3"
VERSIONS = {PINNED: "4.51.3", "transformers-current": OURS}


def python_of(environment: str) -> Path:
    python = HOUSE / ".venv-export" / environment / "bin" / "python"
    assert python.exists(), f"{python} is missing; run `make test-export`"
    return python


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Expectation]:
    """Folders of every architecture, and what they must answer."""
    with pytest.MonkeyPatch.context() as patch:
        return every_folder(
            tmp_path_factory.mktemp("folders"), lambda reload: patch.setattr(exporting, "reload", reload)
        )


@pytest.mark.parametrize("environment", VERSIONS)
def test_every_folder_answers_there_as_it_does_here(environment: str, folders: dict[str, Expectation]) -> None:
    """Logits, last hidden states and token ids, by every Auto class that should load the folder."""
    found = answers(list(folders.values()), python_of(environment))
    for (name, expected), answer in zip(folders.items(), found, strict=True):
        reloaded = compared(expected, answer)
        assert (reloaded.version, reloaded.classes) == (VERSIONS[environment], tuple(expected.values))
        assert {"AutoModel", CLASSIFIER} <= set(reloaded.classes) and reloaded.difference <= 1e-5
        form = name.partition("-")[2]
        assert ("AutoModelForMaskedLM" in reloaded.classes) == (form not in (*CAUSAL, "lv_bert_encoder"))
        assert ("AutoModelForCausalLM" in reloaded.classes) == (form in CAUSAL or form.startswith("gpt_bert"))
    exported = [name.removeprefix("exported-") for name in folders if name.startswith("exported-")]
    assert {FORMS[form]["architecture"] for form in exported} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("file", "changes", "line"),
    [
        # as transformers 5 alone would have written it: another base of the angles is silently taken
        ("config.json", {"rope_theta": None}, "AutoModel: values differ by"),
        ("tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"}, "AutoTokenizer: ValueError"),
        ("tokenizer_config.json", {"add_prefix_space": None}, "AutoTokenizer: 'the cat"),
        ("tokenizer_config.json", {"model_input_names": None}, f"{CLASSIFIER}: TypeError: .*token_type_ids"),
    ],
)
def test_what_version_4_would_read_otherwise_is_told(
    file: str, changes: dict[str, Any], line: str, folders: dict[str, Expectation], tmp_path: Path
) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(folders["exported-llama"].folder, folder)
    written = json.loads((folder / file).read_text()) | changes
    written = {key: value for key, value in written.items() if value is not None}
    (folder / file).write_text(json.dumps(written))
    with pytest.raises(Damaged, match=line):
        reload([replace(folders["exported-llama"], folder=folder)], python_of(PINNED))
