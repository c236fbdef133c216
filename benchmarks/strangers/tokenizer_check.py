"""A stranger's tokenizer, rebuilt from parts that are known, and tried before it is believed.

Only `tokenizer.json` is read, and two files that say which tokens are special; nothing that names a class is followed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.scoring_tokenizer import SETTINGS, SPECIAL, ScoringTokenizer
from benchmarks.strangers.files import TOKENIZER
from benchmarks.strangers.refusal import one_line, refuse, shown
from benchmarks.strangers.rules import SWITCH, Rule, choice, real, text, whole
from benchmarks.strangers.strict_json import read_json_object
from benchmarks.strangers.tokenizer_parts import (
    NORMALIZERS,
    PRE_TOKENIZERS,
    REMEDY,
    checked_parts,
    post_processors,
)

MAX_SETTINGS_BYTES = 2 << 20
MAX_BYTES = 64 << 20
VALUES_PER_TOKEN = 12  # of tokenizer.json: a token with its id, and the merges, of which some have twice as many
MORE_VALUES = 200_000  # added tokens and all the rest
MAX_ADDED = 4096  # tokens beside those of the model
MAX_TOKEN_LENGTH = 512  # characters
ROLES = ("bos_token", "eos_token", "cls_token", "sep_token", "mask_token", "pad_token", "unk_token")
# plain words, numbers and signs, and what few vocabularies hold
PROBES = (
    "The cats that the dog chases are here.",
    " tomorrow, 12 geese won't fly: (never)!",
    "\u2603 \U0001d4b3 \u4e2d\u6587 e\u0301",
)
_KEYS = {
    *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor"),
    *("decoder", "model"),
}
_TOKEN = text(1, MAX_TOKEN_LENGTH)
_AFFIX = Rule("null or at most 16 characters", lambda value: value is None or text(0, 16).holds(value))
_UNKNOWN = Rule("null or a token", lambda value: value is None or _TOKEN.holds(value))
_MODELS: dict[str, dict[str, Rule]] = {  # besides type, vocab and merges
    "BPE": {
        "dropout": choice(None, 0.0, 0),  # with it no score is the same twice
        "unk_token": _UNKNOWN,
        "continuing_subword_prefix": _AFFIX,
        "end_of_word_suffix": _AFFIX,
        "fuse_unk": SWITCH,
        "byte_fallback": SWITCH,
        "ignore_merges": SWITCH,
    },
    "WordPiece": {
        "unk_token": _TOKEN,
        "continuing_subword_prefix": text(0, 16),
        "max_input_chars_per_word": whole(1, 1000),  # time grows with its square
    },
    "WordLevel": {"unk_token": _TOKEN},
    "Unigram": {
        "unk_id": Rule("null or a whole number", lambda value: value is None or whole(0, 1 << 20).holds(value)),
        "byte_fallback": SWITCH,
    },
}


def checked_tokenizer(folder: Path, vocab_size: int) -> ScoringTokenizer:
    """The tokenizer of a folder, whose ids are all below `vocab_size`; raises InputRefused."""
    path = folder / TOKENIZER
    most = VALUES_PER_TOKEN * vocab_size + MORE_VALUES
    told = read_json_object(path, str(path), max_bytes=MAX_BYTES, max_depth=12, max_values=most, remedy=REMEDY)
    names = special_tokens(folder)
    return built_tokenizer(rebuilt(told, str(path), vocab_size=vocab_size), names, str(path), vocab_size=vocab_size)


def rebuilt(told: Mapping[str, Any], place: str, *, vocab_size: int) -> dict[str, Any]:
    """A `tokenizer.json` with the known parts of what was told; raises InputRefused that begins with `place`."""
    if unknown := sorted(told.keys() - _KEYS):
        refuse(place, f"unknown key {shown(unknown[0])}", expected=", ".join(sorted(_KEYS)), remedy=REMEDY)
    parts = post_processors(vocab_size)
    return {
        "version": "1.0",
        "truncation": None,  # rows are cut by who scores, or refused
        "padding": None,
        "added_tokens": _added(told.get("added_tokens", []), place, vocab_size),
        "normalizer": checked_parts(told.get("normalizer"), NORMALIZERS, f"{place}: normalizer", members="normalizers"),
        "pre_tokenizer": checked_parts(
            told.get("pre_tokenizer"), PRE_TOKENIZERS, f"{place}: pre_tokenizer", members="pretokenizers"
        ),
        "post_processor": checked_parts(
            told.get("post_processor"), parts, f"{place}: post_processor", members="processors"
        ),
        "decoder": None,
        "model": _model(told.get("model"), f"{place}: model", vocab_size),
    }


def _added(told: Any, place: str, vocab_size: int) -> list[dict[str, Any]]:
    rules = {"id": whole(0, vocab_size - 1), "content": _TOKEN} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized", "special"), SWITCH
    )
    if not isinstance(told, list) or len(told) > MAX_ADDED:
        refuse(f"{place}: added_tokens", shown(told), expected=f"a list of at most {MAX_ADDED:,}", remedy=REMEDY)
    for token in told:
        fits = isinstance(token, dict) and token.keys() == rules.keys()
        if not fits or not all(rules[key].holds(value) for key, value in token.items()):
            expected = ", ".join(f"{key}: {rule.says}" for key, rule in list(rules.items())[:2]) + " and five switches"
            refuse(f"{place}: added_tokens", shown(token), expected=expected, remedy=REMEDY)
    return told


def _model(told: Any, place: str, vocab_size: int) -> dict[str, Any]:
    kind = told.get("type") if isinstance(told, dict) else None
    if not isinstance(kind, str) or kind not in _MODELS:
        refuse(f"{place}: type", shown(kind), expected=f"one of {', '.join(_MODELS)}", remedy=REMEDY)
    rules = _MODELS[kind]
    for key, value in told.items():
        if key in ("type", "vocab") or (kind == "BPE" and key == "merges"):
            continue
        if key not in rules:
            refuse(place, f"unknown key {shown(key)}", expected=f"type, vocab, {', '.join(rules)}", remedy=REMEDY)
        if not rules[key].holds(value):
            refuse(f"{place}: {key}", shown(value), expected=rules[key].says, remedy=REMEDY)
    if kind == "Unigram":
        _check_unigram(told, f"{place}: vocab", vocab_size)
    else:
        _check_vocab(told.get("vocab"), f"{place}: vocab", vocab_size)
    if kind == "BPE":
        _check_merges(told, f"{place}: merges")
    return told


def _check_vocab(vocab: Any, place: str, vocab_size: int) -> None:
    if not isinstance(vocab, dict) or not vocab:
        refuse(place, shown(vocab), expected="an object of tokens with ids", remedy=REMEDY)
    id_rule = whole(0, vocab_size - 1)
    for token, number in vocab.items():
        if not _TOKEN.holds(token) or not id_rule.holds(number):
            expected = f"{_TOKEN.says} with {id_rule.says} (vocab_size of the model, less one)"
            refuse(place, f"{shown(token)}: {shown(number)}", expected=expected, remedy=REMEDY)
    if len(set(vocab.values())) < len(vocab):
        refuse(place, "two tokens with one id", expected="ids that differ", remedy=REMEDY)


def _check_unigram(told: Mapping[str, Any], place: str, vocab_size: int) -> None:
    vocab = told.get("vocab")
    if not isinstance(vocab, list) or not 0 < len(vocab) <= vocab_size:
        refuse(place, shown(vocab), expected=f"a list of 1 to {vocab_size:,} tokens", remedy=REMEDY)
    score_rule = real(-1e6, 1e6)
    for entry in vocab:
        if (
            not isinstance(entry, list)
            or len(entry) != 2
            or not _TOKEN.holds(entry[0])
            or not score_rule.holds(entry[1])
        ):
            refuse(place, shown(entry), expected=f"{_TOKEN.says} with {score_rule.says}", remedy=REMEDY)
    if (told.get("unk_id") or 0) >= len(vocab):
        refuse(place, f"unk_id {told['unk_id']}", expected=f"an id below {len(vocab):,}", remedy=REMEDY)


def _check_merges(told: Mapping[str, Any], place: str) -> None:
    """Pairs of tokens that make a third one; older files write a pair as one string with a space."""
    merges, vocab, prefix = told.get("merges"), told["vocab"], told.get("continuing_subword_prefix") or ""
    if not isinstance(merges, list) or len(merges) > 4 * len(vocab):
        refuse(place, shown(merges), expected="a list of pairs of tokens", remedy=REMEDY)
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        halves = isinstance(pair, list) and len(pair) == 2 and all(isinstance(half, str) for half in pair)
        # the library cuts the prefix off the second half without looking whether it is there
        if (
            not halves
            or not pair[1].startswith(prefix)
            or not {*pair, pair[0] + pair[1][len(prefix) :]} <= vocab.keys()
        ):
            refuse(place, shown(merge), expected="two tokens of the vocabulary that make a third", remedy=REMEDY)


def special_tokens(folder: Path) -> dict[str, str]:
    """Special tokens by role, as either of two files says. Raises InputRefused when one names code or a template."""
    named: dict[str, str] = {}
    for path in (folder / SPECIAL, folder / SETTINGS):
        if not path.exists():
            continue
        told = read_json_object(path, str(path), max_bytes=MAX_SETTINGS_BYTES, max_depth=8, remedy=REMEDY)
        for key, why in (("auto_map", "names Python code"), ("chat_template", "is a program of its own")):
            if told.get(key) is not None:
                refuse(f"{path}: {key}", why, expected="no such key", remedy="remove it")
        for role in ROLES:
            value = told.get(role)
            token = value.get("content") if isinstance(value, dict) else value  # older files write an object
            if token is None:
                continue
            if not _TOKEN.holds(token):
                refuse(f"{path}: {role}", shown(token), expected=_TOKEN.says, remedy=REMEDY)
            named[role] = token
    return named


def built_tokenizer(told: Mapping[str, Any], names: dict[str, str], place: str, *, vocab_size: int) -> ScoringTokenizer:
    """The tokenizer that a rebuilt `tokenizer.json` means, after it has read a few sentences. Raises InputRefused."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(json.dumps(told))
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
        scoring = ScoringTokenizer(tokenizer, names, place)
        encodings = [tokenizer.encode(probe) for probe in PROBES]
    except BaseException as error:  # tokenizers raises bare Exception, and a panic of its Rust code is not even that
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        refuse(place, f"not a tokenizer ({one_line(error)})", expected="one", remedy=REMEDY, cause=error)
    if largest >= vocab_size:
        refuse(place, f"a token with id {largest}", expected=f"ids below {vocab_size:,}", remedy=REMEDY)
    for probe, encoding in zip(PROBES, encodings, strict=True):
        if any(not 0 <= begin <= end <= len(probe) for begin, end in encoding.offsets):
            refuse(place, f"tokens that lie outside {shown(probe)}", expected="tokens of the text", remedy=REMEDY)
    if len({tuple(encoding.ids) for encoding in encodings}) == 1:
        refuse(place, "the same tokens for every sentence", expected="tokens of the text", remedy=REMEDY)
    return scoring
