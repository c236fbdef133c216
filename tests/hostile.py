"""Folders that no score must come from: each takes a good GPT-2 folder and does one thing to it.

Payloads, where there are any, would make a file called `SENTINEL` beside the folder.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SENTINEL = "code-ran"
Make = Callable[[Path], object]


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch '{folder.parent / SENTINEL}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def json_of(path: Path) -> Any:
    return json.loads(path.read_text())


def config(**changes: Any) -> Make:
    """Other values in config.json."""
    return lambda folder: write_config(folder, json_of(folder / "config.json") | changes)


def write_config(folder: Path, value: Any) -> None:
    (folder / "config.json").write_text(json.dumps(value))


def config_text(old: str, new: str) -> Make:
    """Other text in config.json, where JSON of Python's would not do."""

    def make(folder: Path) -> None:
        text = (folder / "config.json").read_text()
        assert old in text
        (folder / "config.json").write_text(text.replace(old, new, 1))

    return make


def raw(name: str, data: bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(data)


def pickled(name: str, protocol: int) -> Make:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Payload(folder), protocol))


def torch_saved(name: str, *, zipped: bool) -> Make:
    return lambda folder: torch.save(Payload(folder), folder / name, _use_new_zipfile_serialization=zipped)


def archive(name: str, kind: str) -> Make:
    def make(folder: Path) -> None:
        buffer = io.BytesIO()
        if kind == "zip":
            with zipfile.ZipFile(buffer, "w") as file:
                file.writestr("../evil.py", "x")
        else:
            with tarfile.open(fileobj=buffer, mode="w") as file:
                file.add(folder / "config.json", "../evil.json")
        (folder / name).write_bytes(gzip.compress(buffer.getvalue()) if kind == "gzip" else buffer.getvalue())

    return make


def header(change: Callable[[dict[str, Any]], object], *, data: Callable[[bytes], bytes] = bytes) -> Make:
    """Another header of the weights, and other data behind it."""

    def make(folder: Path) -> None:
        path = folder / "model.safetensors"
        told, rest = split(path.read_bytes())
        change(told)
        path.write_bytes(joined(json.dumps(told).encode(), data(rest)))

    return make


def split(stored: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    length = int.from_bytes(stored[:8], "little")
    return json.loads(stored[8 : 8 + length]), stored[8 + length :]


def joined(told: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(told)) + told + data


def weights(change: Callable[[bytes], bytes]) -> Make:
    """Other bytes of the weights' file."""
    return lambda folder: (folder / "model.safetensors").write_bytes(
        change((folder / "model.safetensors").read_bytes())
    )


def number(value: bytes) -> Make:
    """The first weight becomes another number."""
    return header(lambda told: None, data=lambda data: value + data[len(value) :])


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Make:
    def make(folder: Path) -> None:
        told = json_of(folder / "tokenizer.json")
        change(told)
        (folder / "tokenizer.json").write_text(json.dumps(told))

    return make


def settings(**changes: Any) -> Make:
    """Other values in tokenizer_config.json."""
    path = "tokenizer_config.json"
    return lambda folder: (folder / path).write_text(json.dumps(json_of(folder / path) | changes))


def first(told: dict[str, Any]) -> dict[str, Any]:
    """The entry of some weight."""
    return told["transformer.wte.weight"]


def model(**changes: Any) -> Make:
    """Other keys of the tokenizer's model."""
    return tokenizer(lambda told: told["model"].update(changes))


def part(name: str, **value: Any) -> Make:
    """Another part of the tokenizer."""
    return tokenizer(lambda told: told.update({name: value}))


def one_token(told: dict[str, Any]) -> None:
    told["model"] = {"type": "WordLevel", "vocab": {"<mask>": 3}, "unk_token": "<mask>"}
    told["pre_tokenizer"] = None


ELF = b"\x7fELF\x02\x01\x01" + bytes(57)
SEQUENCE_A = {"Sequence": {"id": "A", "type_id": 0}}
UNKNOWN_ID = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
BOMB = {"type": "Replace", "pattern": {"String": "e"}, "content": "eeeeeeee"}
MIXED = {"prefix": "##", "merges": [["a", "b"]]}

# what is done, and a few words of the refusal
HOSTILE: dict[str, tuple[Make, str]] = {
    # files
    "pickle-of-weights": (pickled("pytorch_model.bin", 2), "a pickle"),
    "pickle-4-as-safetensors": (pickled("model.safetensors", 4), "a pickle"),
    "pickle-0-as-safetensors": (pickled("model.safetensors", 0), "expected a whole safetensors file"),
    "pickle-0-as-text": (pickled("notes.txt", 0), "a pickle"),
    "pickle-0-as-config": (pickled("config.json", 0), "a pickle"),
    "pickle-5-as-text": (pickled("notes.txt", 5), "a pickle"),
    "pickle-as-tokenizer": (pickled("tokenizer.pkl", 3), "a pickle"),
    "torch-zip": (torch_saved("training_args.bin", zipped=True), "a zip archive"),
    "torch-zip-as-safetensors": (torch_saved("model.safetensors", zipped=True), "a zip archive"),
    "torch-streams": (torch_saved("optimizer.pt", zipped=False), "a pickle"),
    "torch-streams-as-safetensors": (torch_saved("model.safetensors", zipped=False), "a pickle"),
    "zip-as-readme": (archive("README.md", "zip"), "a zip archive"),
    "tar-as-text": (archive("data.txt", "tar"), "a tar archive"),
    "gzip-as-json": (archive("extra.json", "gzip"), "a gzip archive"),
    "python": (raw("modeling_evil.py", b"open('x', 'w')\n"), "Python code"),
    "python-with-our-name": (raw("modeling_elc_bert.py", b"open('x', 'w')\n"), "Python code"),
    "bytecode": (raw("modeling.pyc", b"\xa7\r\r\n" + bytes(12)), "unknown kind"),
    "program-as-licence": (raw("LICENSE", ELF), "a program"),
    "script-as-readme": (raw("README", b"#!/bin/sh\ntouch x\n"), "a script"),
    "library": (raw("kernel.so", ELF), "a program"),
    "control-characters": (raw("notes.md", b"\x1b]0;owned\x07"), "control characters"),
    "not-utf-8": (raw("notes.md", b"\xff\xfe"), "not UTF-8"),
    "link-to-a-file": (lambda folder: (folder / "notes.txt").symlink_to("/etc/hostname"), "a link out of"),
    "link-for-config": (
        lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").symlink_to("/etc/hostname")),
        "a link out of",
    ),
    "link-to-nothing": (lambda folder: (folder / "notes.txt").symlink_to("nothing"), "No such file"),
    "link-to-itself": (lambda folder: (folder / "notes.txt").symlink_to("notes.txt"), "links"),
    "pipe": (lambda folder: os.mkfifo(folder / "notes.txt"), "no regular file"),
    "many-files": (lambda folder: [(folder / f"{n}.txt").touch() for n in range(70)], "more than 64 files"),
    "endless-text": (lambda folder: ((folder / "a.txt").touch(), os.truncate(folder / "a.txt", 1 << 35)), "at most"),
    "endless-weights": (lambda folder: os.truncate(folder / "model.safetensors", 1 << 35), "at most"),
    "adapter": (raw("adapter_config.json", b'{"base_model_name_or_path": "evil/model"}'), "an adapter"),
    "weights-elsewhere": (
        raw("model.safetensors.index.json", b'{"weight_map": {"a": "../../secret.safetensors"}}'),
        "weights in parts",
    ),
    "opcodes-that-go-on": (raw("notes.md", b"(" * 20_000), "a pickle"),
    "part-of-the-weights": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors"),
        "weights in parts",
    ),
    "names-alike": (raw("Config.json", b"{}"), "beside 'Config.json', which differs in case alone"),
    "template-file": (raw("chat_template.jinja", b"{{ 1 }}"), "unknown kind"),
    "name-with-escapes": (raw("a\n\x1b[2Jb.bin", b"x"), "unknown kind"),
    "no-tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    # config.json
    "auto-map": (config(auto_map={"AutoConfig": "evil--modeling.Evil"}), "auto_map: names Python code"),
    "attention-kernel": (config(_attn_implementation="evil/kernel"), "names a kernel"),
    "attention-kernel-inside": (config(_attn_implementation_internal="evil/kernel"), "names a kernel"),
    "attention-kernel-by-argument": (config(attn_implementation="evil/kernel"), "names a kernel"),
    "experts-kernel": (config(experts_implementation="evil/kernel"), "names a kernel"),
    "pipelines": (config(custom_pipelines={"p": {"impl": "evil.P"}}), "names Python code"),
    "quantised": (config(quantization_config={"quant_method": "evil"}), "quantised"),
    "base-model": (config(base_model_name_or_path="evil/model"), "points to another model"),
    "nested-config": (config(text_config={"model_type": "evil"}), "unknown key"),
    "unknown-key": (config(n_layr=3), "did you mean"),
    "unknown-family": (config(model_type="evil"), "model_type: 'evil'"),
    "family-is-a-list": (config(model_type=["gpt2"]), "model_type"),
    "other-class": (config(architectures=["GPT2ForSequenceClassification"]), "architectures"),
    "two-classes": (config(architectures=["GPT2LMHeadModel", "Evil"]), "architectures"),
    "million-layers": (config(n_layer=10**6), "from 1 to 128"),
    "too-much-memory": (config(n_layer=9, n_embd=16_384, n_head=64), "a network of"),
    "endless-vocabulary": (config(vocab_size=1 << 40), "vocab_size"),
    "no-vocabulary": (config(vocab_size=None), "vocab_size: missing"),
    "minus-layers": (config(n_layer=-1), "n_layer: -1"),
    "layers-are-true": (config(n_layer=True), "n_layer: True"),
    "layers-are-text": (config(n_layer="__import__('os')"), "n_layer"),
    "heads-that-do-not-fit": (config(n_head=3), "no network can be built"),
    "cross-attention": (config(add_cross_attention=True), "add_cross_attention: True"),
    "encoder-decoder": (config(is_encoder_decoder=True), "is_encoder_decoder"),
    "id-beyond": (config(pad_token_id=10**5), "an id below vocab_size"),
    "pruned": (config(pruned_heads={"0": [1]}), "unknown key"),
    "nan": (config(resid_pdrop=float("nan")), "NaN is not"),
    "beyond-the-largest": (config_text('"n_layer": 2', '"n_layer": 1e999'), "beyond the largest"),
    "equal-keys": (config_text('"n_layer": 2', '"n_layer": 2, "n_layer": 3'), "occurs twice"),
    "surrogate": (config_text('"gpt2"', '"\\ud800"'), "lone surrogate"),
    "deep": (config_text('"n_layer": 2', '"x": ' + "[" * 50_000 + "]" * 50_000), "nested too deeply"),
    "config-is-a-list": (raw("config.json", b"[]"), "a JSON list"),
    "config-is-empty": (raw("config.json", b""), "not JSON"),
    "config-of-megabytes": (raw("config.json", b"{" + b" " * (1 << 20) + b"}"), "bytes"),
    # model.safetensors
    "weights-empty": (weights(lambda data: b""), "a whole safetensors file"),
    "weights-cut": (weights(lambda data: data[:-1]), "of data"),
    "weights-and-more": (weights(lambda data: data + b"PK\x05\x06" + bytes(18)), "of data"),
    "header-longer-than-the-file": (weights(lambda data: b"\xff" * 8 + data[8:]), "a whole safetensors file"),
    "header-of-megabytes": (
        weights(lambda data: joined(b"{" + b" " * 2_000_000 + b"}", bytes(8))),
        "a header of 2,000,002 bytes",
    ),
    "thousands-of-tensors": (
        header(lambda told: told.update({f"x{n}": first(told) | {"shape": [0]} for n in range(5000)})),
        "bytes",
    ),
    "equal-names": (
        weights(lambda data: joined(b'{"a": 1, "a": 2}', split(data)[1])),
        "occurs twice",
    ),
    "two-in-one-place": (
        header(lambda told: told["transformer.ln_f.bias"].update(told["transformer.ln_f.weight"])),
        "begins at byte",
    ),
    "gap": (
        header(
            lambda told: [entry.update(moved(entry)) for name, entry in told.items() if "shape" in entry],
            data=lambda data: bytes(4) + data,
        ),
        "begins at byte 4",
    ),
    "other-shape": (header(lambda told: first(told)["shape"].reverse()), "has shape"),
    "shape-that-overflows": (header(lambda told: first(told).update(shape=[1 << 63, 2])), "has 17,984 bytes"),
    "shape-beyond-64-bits": (header(lambda told: first(told).update(shape=[1 << 64, 0])), "lists of whole numbers"),
    "shape-with-nothing": (header(lambda told: first(told).update(shape=[0, 16], data_offsets=[0, 0])), "has shape"),
    "minus-offsets": (header(lambda told: first(told).update(data_offsets=[-8, 8])), "lists of whole numbers"),
    "whole-numbers": (header(lambda told: first(told).update(dtype="I32")), "has dtype I32"),
    "eight-bits": (header(lambda told: first(told).update(dtype="F8_E4M3")), "has dtype"),
    "dtype-is-a-list": (header(lambda told: first(told).update(dtype=[])), "has dtype"),
    "entry-of-nothing": (header(lambda told: told.update({"transformer.wte.weight": None})), "data_offsets"),
    "metadata-nested": (header(lambda told: told.update(__metadata__={"format": {}})), "__metadata__"),
    "other-name": (header(lambda told: told.update(evil=told.pop("transformer.wte.weight"))), "a tensor 'evil'"),
    "nan-weight": (number(struct.pack("<f", float("nan"))), "not finite"),
    "infinite-weight": (number(struct.pack("<f", float("inf"))), "not finite"),
    "two-output-embeddings": (
        header(
            lambda told: told.update({"lm_head.weight": first(told) | {"data_offsets": behind(told)}}),
            data=lambda data: data + struct.pack("<f", 0.5) * 4496,
        ),
        "differs from",
    ),
    # tokenizer.json and its settings
    "regex-that-never-ends": (
        part("pre_tokenizer", type="Split", pattern={"Regex": "(a+)+$"}, behavior="Isolated", invert=False),
        "known regular expression",
    ),
    "regex-in-normaliser": (
        part("normalizer", type="Replace", pattern={"Regex": "(.*)*x"}, content=""),
        "known regular expression",
    ),
    "charsmap": (part("normalizer", type="Precompiled", precompiled_charsmap="AAAA"), "'Precompiled'"),
    "empty-pattern": (part("normalizer", type="Replace", pattern={"String": ""}, content="aa"), "1 to 64 characters"),
    "replacement-bomb": (part("normalizer", type="Sequence", normalizers=[BOMB] * 16), "lengthen a text"),
    "endless-sequence": (part("normalizer", type="Sequence", normalizers=[{"type": "NFC"}] * 99), "more than 32 parts"),
    "unknown-part": (part("pre_tokenizer", type="Evil"), "'Evil'"),
    "unknown-key-of-a-part": (part("pre_tokenizer", type="Whitespace", code="x"), "unknown key 'code'"),
    "text-twice": (
        part("post_processor", type="TemplateProcessing", single=[SEQUENCE_A] * 2, pair=[], special_tokens={}),
        "around one A",
    ),
    "token-without-id": (
        part("post_processor", type="TemplateProcessing", single=[UNKNOWN_ID, SEQUENCE_A], special_tokens={}),
        "a token without ids",
    ),
    "framed-beyond": (
        part("post_processor", type="BertProcessing", sep=["a", 10**6], cls=["a", 1]),
        "an id below",
    ),
    "vocabulary-beyond": (tokenizer(lambda told: told["model"]["vocab"].update(zz=281)), "from 0 to 280"),
    "ids-alike": (tokenizer(lambda told: told["model"]["vocab"].update(zz=100)), "one id"),
    "added-beyond": (tokenizer(lambda told: told["added_tokens"][0].update(id=1 << 20)), "from 0 to 280"),
    "added-unseen": (
        tokenizer(lambda told: told["added_tokens"].append(told["added_tokens"][0] | {"content": "new"})),
        "a token with id 281",
    ),
    "dropout": (model(dropout=0.5), "dropout"),
    "prefix-that-is-not-there": (model(continuing_subword_prefix="####"), "make a third"),
    "merge-of-nothing": (model(merges=[["a", "nothing"]]), "make a third"),
    "token-of-pages": (tokenizer(lambda told: told["model"]["vocab"].update({"z" * 5000: 280})), "characters"),
    "model-of-code": (tokenizer(lambda told: told.update(model={"type": "Evil"})), "one of BPE"),
    "key-of-code": (tokenizer(lambda told: told.update(python="import os")), "unknown key 'python'"),
    "all-alike": (tokenizer(one_token), "the same tokens"),
    "values-that-go-on": (raw("tokenizer.json", b'{"model": [' + b"{}," * 200_000 + b"{}]}"), "values; expected at"),
    "settings-of-megabytes": (
        raw("tokenizer_config.json", b'{"x": "' + b"x" * (2 << 20) + b'"}'),
        "more than 2,097,152",
    ),
    "tokenizer-template": (settings(chat_template="{{ x.__class__ }}"), "chat_template"),
    "tokenizer-code": (settings(auto_map={"AutoTokenizer": ["evil.T", None]}), "auto_map"),
    "special-token-of-lists": (settings(mask_token=[]), "mask_token"),
}


def moved(entry: dict[str, Any]) -> dict[str, Any]:
    """A tensor four bytes farther."""
    return {"data_offsets": [offset + 4 for offset in entry["data_offsets"]]}


def behind(told: dict[str, Any]) -> list[int]:
    """Where a copy of the embedding would lie behind all tensors."""
    end = max(entry["data_offsets"][1] for name, entry in told.items() if name != "__metadata__")
    begin, stop = first(told)["data_offsets"]
    return [end, end + stop - begin]
