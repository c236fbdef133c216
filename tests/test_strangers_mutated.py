"""Thousands of changed headers, configurations and tokenizers: each is refused in one line or means what it says."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import test_strangers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from benchmarks.strangers.config_check import checked_description
from benchmarks.strangers.families import COMMON, FAMILIES
from benchmarks.strangers.load import load_stranger
from benchmarks.strangers.safetensors_check import checked_names
from benchmarks.strangers.strict_json import parse_json_object
from benchmarks.strangers.tokenizer_check import built_tokenizer, rebuilt
from corpora.errors import InputRefused

tokenizer, folders = test_strangers.tokenizer, test_strangers.folders


SNIPPETS = (b"NaN", b"null", b"true", b"-1", b"0", b"1e999", b"9" * 5000, b"[", b"]", b"{", b"}", b'"', b"\\", b"\xff")
SNIPPETS += (
    b"\0",
    b"[" * 9,
    b'"a":1,',
    b'"\\ud800"',
    b"[]",
    b"{}",
    b'""',
    b"18446744073709551615",
    b"2",
    b"1",
    b"{" * 9,
)


def mutated(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(changed) + 1)
        end = min(len(changed), start + draw.randint(0, 10))
        kind = draw.randrange(5)
        if kind == 0:
            del changed[start:end]
        elif kind == 1:
            changed[start:start] = draw.choice(SNIPPETS)
        elif kind == 2:
            changed[start:start] = changed[start:end]
        elif kind == 3 and start < len(changed):
            changed[start] ^= 1 << draw.randrange(8)
        else:
            changed[start:end] = draw.choice(SNIPPETS)
    return bytes(changed)


def taken(attempt: Callable[[], object]) -> bool:
    """Whether an attempt was successful; one that is refused must be so in one line."""
    try:
        attempt()
    except InputRefused as refusal:
        assert re.fullmatch(r"[^\n\x1b]+: [^\n\x1b]+; [^\n\x1b]+", str(refusal)), str(refusal)
        return False
    return True


def test_4000_mutated_headers_are_refused_or_mean_the_same(folders: dict[str, Path]) -> None:
    draw = random.Random(5)
    stored = (folders["bert"] / "model.safetensors").read_bytes()
    told, data = hostile.split(stored)
    shapes = {name: tuple(entry["shape"]) for name, entry in told.items() if name != "__metadata__"}
    length = len(stored) - len(data)
    read = 0
    for number in range(4000):
        if number % 2:
            changed = hostile.joined(mutated(stored[8:length], draw), data)
        else:
            changed = mutated(stored[:length], draw) + data[: draw.choice((None, None, -1, 0))]

        def attempt(changed: bytes = changed) -> None:
            names = checked_names(io.BytesIO(changed), len(changed), "p", expected=shapes, second_names={})
            assert names == set(shapes)

        read += taken(attempt)
    assert 10 < read < 400


VALUES: tuple[Any, ...] = (None, True, False, 0, 1, 2, 3, 4, 7, 16, 17, 256, 100_000, -1, 1 << 64, 0.5, 1e-300, 1e9)
VALUES += ("gelu", "x", "default", [], {}, ["p2c"], {"rope_type": "default", "rope_theta": 3.0}, {"rope_type": "x"})


def test_1000_changed_configurations_are_refused_or_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    draw = random.Random(9)
    bases = {kind: hostile.json_of(folder / "config.json") for kind, folder in folders.items()}
    loaded = 0
    for number in range(1000):
        kind = draw.choice(list(folders))
        keys = [*COMMON, *FAMILIES[kind.partition("-biased")[0]].keys, "model_type", "architectures", "unknown"]
        config = bases[kind] | {draw.choice(keys): draw.choice(VALUES) for _ in range(draw.randint(1, 2))}
        if not taken(lambda config=config: checked_description(config, "p")):
            continue
        folder = tmp_path / str(number)
        shutil.copytree(folders[kind], folder, copy_function=lambda source, to: Path(to).hardlink_to(source))
        (folder / "config.json").unlink()
        hostile.write_config(folder, config)
        loaded += taken(lambda folder=folder: load_stranger(folder))
    assert 20 < loaded < 300


def test_4000_mutated_json_files_are_refused_or_objects(folders: dict[str, Path]) -> None:
    draw = random.Random(13)
    data = (folders["bert"] / "config.json").read_bytes()

    def attempt(changed: bytes) -> None:
        value = parse_json_object(changed, "p", max_depth=4, remedy="r")
        json.dumps(value, allow_nan=False).encode("ascii")
        taken(lambda: checked_description(value, "p"))

    changes = [mutated(data, draw) for _ in range(4000)]
    read = sum(taken(lambda changed=changed: attempt(changed)) for changed in changes)
    assert 100 < read < 2500


def tokenizers() -> list[dict[str, Any]]:
    """One of each model, with parts of every kind."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]
    letters = [*map(chr, range(33, 127)), "\u2581"]
    vocab = {token: number for number, token in enumerate([*special, *letters])}
    pieces = vocab | {f"##{letter}": len(vocab) + number for number, letter in enumerate(letters)}
    template = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    cut = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits()])
    bert_ends = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    roberta_ends = processors.RobertaProcessing(("[SEP]", 2), ("[CLS]", 1))
    unigram = models.Unigram([(token, -float(number)) for token, number in vocab.items()], 0, False)
    bpe = models.BPE(vocab | {"th": len(vocab)}, [("t", "h")], unk_token="[UNK]")
    parts: list[tuple[Any, Any, Any, Any]] = [
        (
            models.WordPiece(pieces, unk_token="[UNK]"),
            normalizers.BertNormalizer(),
            pre_tokenizers.BertPreTokenizer(),
            template,
        ),
        (unigram, normalizers.Sequence([spaces, normalizers.NFKC()]), pre_tokenizers.Metaspace(), template),
        (models.WordLevel(vocab, unk_token="[UNK]"), normalizers.Lowercase(), cut, bert_ends),
        (bpe, normalizers.Prepend("\u2581"), pre_tokenizers.Split(" ", "isolated"), roberta_ends),
    ]
    found = []
    for model, normalizer, pre_tokenizer, post_processor in parts:
        built = Tokenizer(model)
        built.normalizer, built.pre_tokenizer, built.post_processor = normalizer, pre_tokenizer, post_processor
        built.add_special_tokens(special)
        found.append(json.loads(built.to_str()))
    return found


PARTS: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    -1,
    5,
    1 << 40,
    0.5,
    "",
    "a",
    "[UNK]",
    "\u2581",
    "Isolated",
    "NFD",
    "Replace",
)
PARTS += (
    [],
    {},
    ["a", 1],
    [["a", 1]],
    {"type": "Lowercase"},
    {"type": "ByteLevel"},
    {"String": "a"},
    {"Regex": "(a+)+$"},
)


def places_in(value: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Containers with a key each, the first few of every container."""
    children = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    found = [(value, key) for key in list(children)[:24]]
    return found + [place for container, key in found for place in places_in(container[key], depth + 1)]


def test_1500_changed_tokenizers_are_refused_or_read_sentences() -> None:
    draw = random.Random(17)
    whole = [json.dumps(told) for told in tokenizers()]

    def attempt(told: dict[str, Any]) -> None:
        built = built_tokenizer(rebuilt(told, "p", vocab_size=400), {}, "p", vocab_size=400)
        for encoding in built.encode(
            ["The cats  sleep 123\n\u00a0x", "a" * 3000, " " * 500, "\U0001f600\u0301" * 50, ""]
        ):
            assert all(number < 400 for number in encoding.ids)

    for told in whole:
        attempt(json.loads(told))
    read = 0
    for _ in range(1500):
        told = json.loads(draw.choice(whole))
        for _ in range(draw.randint(1, 2)):
            container, key = draw.choice(places_in(told))
            if draw.random() < 0.3:
                del container[key]
            else:
                container[key] = draw.choice(PARTS)
        read += taken(lambda told=told: attempt(told))
    assert 100 < read < 800
