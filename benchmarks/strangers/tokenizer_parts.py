"""The parts of which a stranger's tokenizer may be made: every type, and every key of it with its rule.

Left out: what carries a program of its own (regular expressions that are not known here, precompiled character maps),
and what is not the same twice (dropout). Decoders are not looked at, for nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.strangers.refusal import refuse, shown
from benchmarks.strangers.rules import SWITCH, Rule, choice, text, whole

MAX_PARTS = 32  # in one sequence of parts, nested ones included
MAX_GROWTH = 64  # times that replacements may lengthen a text: sixteen of them in a row could fill any memory
REMEDY = "train or save the tokenizer with parts of the tokenizers library as they are"

# beside each, whose it is; none of them goes back over a run of characters more than once
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KNOWN_REGEXES = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",  # Llama 3
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",  # Qwen 2
    r"\p{N}{1,3}",  # DeepSeek
    r"\s+",
    r" {2,}",  # SentencePiece's, as transformers converts them
    r"\s{2,}|[\n\r\t]",
    r"\n",
}
_BEHAVIOR = choice("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_PATTERN = Rule(
    "a string of 1 to 64 characters, or a known regular expression",
    lambda value: (
        isinstance(value, dict)
        and len(value) == 1
        and (text(1, 64).holds(value.get("String")) or value.get("Regex") in tuple(KNOWN_REGEXES))
    ),
)
_BYTE_LEVEL = {"add_prefix_space": SWITCH, "trim_offsets": SWITCH, "use_regex": SWITCH}

Part = Mapping[str, Rule]
NORMALIZERS: Mapping[str, Part] = {
    "BertNormalizer": {
        "clean_text": SWITCH,
        "handle_chinese_chars": SWITCH,
        "strip_accents": choice(True, False, None),
        "lowercase": SWITCH,
    },
    "ByteLevel": {},
    "Lowercase": {},
    "NFC": {},
    "NFD": {},
    "NFKC": {},
    "NFKD": {},
    "Nmt": {},
    "Prepend": {"prepend": text(1, 8)},
    "Replace": {"pattern": _PATTERN, "content": text(0, 8)},
    "Strip": {"strip_left": SWITCH, "strip_right": SWITCH},
    "StripAccents": {},
}
PRE_TOKENIZERS: Mapping[str, Part] = {
    "BertPreTokenizer": {},
    "ByteLevel": _BYTE_LEVEL,
    "CharDelimiterSplit": {"delimiter": text(1, 1)},
    "Digits": {"individual_digits": SWITCH},
    "Metaspace": {
        "replacement": text(1, 1),
        "prepend_scheme": choice("always", "first", "never"),
        "split": SWITCH,
        "add_prefix_space": SWITCH,
    },
    "Punctuation": {"behavior": _BEHAVIOR},
    "Split": {"pattern": _PATTERN, "behavior": _BEHAVIOR, "invert": SWITCH},
    "UnicodeScripts": {},
    "Whitespace": {},
    "WhitespaceSplit": {},
}


def _named_id(vocab_size: int) -> Rule:
    return Rule(
        f"a token and an id below {vocab_size:,}",
        lambda value: (
            isinstance(value, list)
            and len(value) == 2
            and isinstance(value[0], str)
            and whole(0, vocab_size - 1).holds(value[1])
        ),
    )


def post_processors(vocab_size: int) -> Mapping[str, Part]:
    """What may frame a text with special tokens whose ids the model has."""
    ends = {"sep": _named_id(vocab_size), "cls": _named_id(vocab_size)}
    return {
        "BertProcessing": ends,
        "ByteLevel": _BYTE_LEVEL,
        "RobertaProcessing": {**ends, "trim_offsets": SWITCH, "add_prefix_space": SWITCH},
        "TemplateProcessing": {
            "single": Rule("special tokens around one A", lambda value: _is_template(value, ["A"])),
            "pair": Rule("special tokens around one A and one B", lambda value: _is_template(value, ["A", "B"])),
            "special_tokens": Rule(
                f"tokens with ids below {vocab_size:,}", lambda value: _are_named(value, vocab_size)
            ),
        },
    }


def _is_template(value: Any, sequences: list[str]) -> bool:
    """Whether each sequence stands once, in order, among a few special tokens."""
    if not isinstance(value, list) or len(value) > 16:
        return False
    found = []
    for piece in value:
        if not isinstance(piece, dict) or len(piece) != 1 or not piece.keys() <= {"Sequence", "SpecialToken"}:
            return False
        ((kind, told),) = piece.items()
        if not isinstance(told, dict) or told.keys() != {"id", "type_id"} or not whole(0, 15).holds(told["type_id"]):
            return False
        if not isinstance(told["id"], str):
            return False
        if kind == "Sequence":
            found.append(told["id"])
    return found == sequences


def _placed(template: Mapping[str, Any]) -> set[str]:
    """Special tokens that a checked template places."""
    pieces = [*template.get("single", ()), *template.get("pair", ())]
    return {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}


def _are_named(value: Any, vocab_size: int) -> bool:
    return isinstance(value, dict) and all(
        isinstance(told, dict)
        and told.keys() == {"id", "ids", "tokens"}
        and told["id"] == name
        and isinstance(told["ids"], list)
        and isinstance(told["tokens"], list)
        and 1 <= len(told["ids"]) == len(told["tokens"]) <= 4
        and all(whole(0, vocab_size - 1).holds(number) for number in told["ids"])
        and all(isinstance(token, str) for token in told["tokens"])
        for name, told in value.items()
    )


def checked_parts(told: Any, parts: Mapping[str, Part], place: str, *, members: str) -> dict[str, Any] | None:
    """One part, or a sequence of parts that it lists under `members`, as they were told; null is none.

    Raises InputRefused for a type or a key that is not listed, and for too many or too far-growing parts.
    """
    if told is None:
        return None
    growth, waiting, number = 1.0, [told], 0
    while waiting:
        part = waiting.pop()
        number += 1
        if number > MAX_PARTS:
            refuse(place, f"more than {MAX_PARTS} parts", expected="fewer", remedy=REMEDY)
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "Sequence" and part.keys() == {"type", members} and isinstance(part[members], list):
            waiting += part[members]
            continue
        if not isinstance(kind, str) or kind not in parts:
            refuse(place, f"type {shown(kind)}", expected=f"Sequence, {', '.join(parts)}", remedy=REMEDY)
        for key, value in part.items():
            if key == "type":
                continue
            if key not in parts[kind]:
                refuse(f"{place}: {kind}", f"unknown key {shown(key)}", expected="known keys", remedy=REMEDY)
            if not parts[kind][key].holds(value):
                refuse(f"{place}: {kind}.{key}", shown(value), expected=parts[kind][key].says, remedy=REMEDY)
        if kind == "TemplateProcessing" and not _placed(part) <= part.get("special_tokens", {}).keys():
            refuse(f"{place}: {kind}", "a token without ids", expected="tokens of special_tokens", remedy=REMEDY)
        if kind in ("Replace", "Prepend"):
            replaced = part.get("pattern", {}).get("String", " ") if kind == "Replace" else " "
            growth *= max(1.0, len(part.get("content", part.get("prepend", ""))) / len(replaced))
    if growth > MAX_GROWTH:
        refuse(place, f"replacements that lengthen a text {growth:,.0f} times", expected="shorter ones", remedy=REMEDY)
    return told
