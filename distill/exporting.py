"""`cuvee export`: a run as a plain folder of a Hugging Face model, proved to work where this toolkit is not.

    config.json, model.safetensors, generation_config.json      as transformers 4.51.3 and 5 read them alike
    modeling_*.py, configuration_*.py                            where the architecture is ours
    tokenizer.json, tokenizer_config.json                        for AutoTokenizer
    cuvee.json, manifest.json                                    for this toolkit, which reads the folder as well

`cuvee import` writes its folders through the same door.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from corpora.errors import InputRefused
from corpora.storage import FolderWriter, Manifest, canonical_json, new_folder, read_json, read_manifest
from corpora.tokenizer import MODEL_INPUTS
from distill.reloading import expectation, reload
from students.buildable import Buildable
from students.run_folder import load_model, save_model

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
KINDS = {"export": "plain model", "import": "foreign model"}  # what manifests call the folders
Verb = Literal["export", "import"]


def export_run(run: Path, out: Path) -> None:
    """Write the folder `out` of a finished run, or of one of its snapshots, and print what loads it.

    Another process has loaded it by every Auto class, with the same answers and token ids, before it is there. Raises
    InputRefused for a folder that is no run, and when `out` holds something else; Damaged, NoRoom.
    """
    manifest = read_manifest(run)
    if manifest is None:
        raise InputRefused(
            f"{run}: not a finished run folder; expected RUN_DIR/students/NAME-..., or one of its snapshots"
        )
    model = load_model(run)
    assert isinstance(model, Buildable), "a folder with a manifest is built from its cuvee.json"
    tokenizer = _own_tokenizer(manifest)
    fingerprint = {"of": manifest.kind, "made_from": manifest.fingerprint, "files": manifest.files}
    if is_there(out, "export", fingerprint):
        return
    with verified_folder(
        out, model.network, verb="export", fingerprint=fingerprint, sources=model.source_files, tokenizer=tokenizer
    ) as writer:
        save_model(writer, model)
        writer.facts |= manifest.facts


def is_there(out: Path, verb: Verb, fingerprint: dict[str, Any]) -> bool:
    """Whether a folder was made of the same inputs before, and is whole; prints it.

    Raises InputRefused when it holds anything else: nothing is written over.
    """
    manifest = read_manifest(out)
    if manifest is None:
        if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise InputRefused(f"{out}: not empty; expected a new folder; name another one, or delete it")
        return False
    made_from = json.loads(canonical_json(fingerprint))  # as it would have been read back
    if (manifest.kind, manifest.fingerprint) != (KINDS[verb], made_from):
        raise InputRefused(f"{out}: holds another {manifest.kind}; expected a new folder; name another one")
    whole = not any(manifest.damage(name) for name in manifest.files)
    if whole:
        print(f"{verb}: {out} is there", flush=True)
    return whole


@contextlib.contextmanager
def verified_folder(
    out: Path,
    network: PreTrainedModel,
    *,
    verb: Verb,
    fingerprint: dict[str, Any],
    sources: Sequence[str],
    tokenizer: dict[str, bytes],
) -> Iterator[FolderWriter]:
    """Write a folder that is committed when another process has loaded it as `network` and its `tokenizer` files.

    `sources`: modelling files that are in it. Raises Damaged when the folder does not answer as the network does.
    """
    with new_folder(out, kind=KINDS[verb], fingerprint=fingerprint) as writer:
        yield writer
        for name, data in tokenizer.items():
            writer.write(name, data)
        tokenizer_json = tokenizer[TOKENIZER].decode() if tokenizer else None
        (found,) = reload([expectation(out, network, tokenizer_json)])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    tokens = "the same token ids" if tokenizer else "no tokenizer"
    print(
        f"{verb}: {out}: {type(network).__name__} of {parameters:,} parameters; transformers {found.version} loads it "
        f"as {', '.join(found.classes)}: largest difference {found.difference:.2g}, {tokens}",
        flush=True,
    )
    if sources and "." in out.resolve().name:  # taken for the border of a package, in which files look for each other
        print(f"{verb}: {out}: has a dot in its name, with which transformers 4 finds no modelling files; rename it")


def tokenizer_files(tokenizer_json: bytes, config: dict[str, Any]) -> dict[str, bytes]:
    """The files of a tokenizer by name; `config` names the class and the special tokens."""
    described = config | {"model_input_names": MODEL_INPUTS}
    return {TOKENIZER: tokenizer_json, TOKENIZER_CONFIG: (json.dumps(described, indent=1) + "\n").encode()}


def _own_tokenizer(manifest: Manifest) -> dict[str, bytes]:
    if missing := [name for name in (TOKENIZER, TOKENIZER_CONFIG) if name not in manifest.files]:
        raise InputRefused(
            f"{manifest.folder}: a {manifest.kind} without {' and '.join(missing)}, which AutoTokenizer needs; import "
            "it again with --tokenizer"
        )
    config = read_json(manifest.verified(TOKENIZER_CONFIG))
    return tokenizer_files(manifest.verified(TOKENIZER).read_bytes(), config)
