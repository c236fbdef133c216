"""A candidate's tokenizer as scoring needs it: tokens with the characters they cover, words, and special tokens.

Only fast tokenizers know which characters a token covers, and which tokens a text has after a context depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from corpora.errors import Damaged, InputRefused
from corpora.storage import digest, read_manifest
from corpora.tokenizer import SPECIAL_TOKENS

_PROBE = "a"  # any text: what stands around it is the same for all
FILE, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"


class ScoringTokenizer:
    """Texts to encodings; ids of special tokens are None where the tokenizer has none."""

    def __init__(self, tokenizer: Tokenizer, names: dict[str, str], place: str = "tokenizer") -> None:
        """`names`: special tokens by role: bos_token, cls_token, eos_token, sep_token, mask_token, pad_token."""
        # "<mask>" written in a text is text: only protocols place special tokens
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self._place = tokenizer, place
        ids = {role: tokenizer.token_to_id(name) for role, name in names.items()}
        self.begin_id: int | None = _first(ids.get("bos_token"), ids.get("cls_token"))
        self.end_id: int | None = _first(ids.get("eos_token"), ids.get("sep_token"))
        self.mask_id: int | None = ids.get("mask_token")
        framed = tokenizer.encode(_PROBE)
        text = [position for position, special in enumerate(framed.special_tokens_mask) if not special]
        if not text:
            raise InputRefused(f"{place}: {_PROBE!r} gives no token; expected at least one; save the tokenizer again")
        self.leading: tuple[int, ...] = tuple(framed.ids[: text[0]])  # that the tokenizer itself puts before a text
        self.trailing: tuple[int, ...] = tuple(framed.ids[text[-1] + 1 :])  # and behind it

    @cached_property
    def digest(self) -> str:
        """Digest of the whole tokenizer."""
        return digest(self._tokenizer.to_str().encode())

    def to_json(self) -> str:
        """The `tokenizer.json` of the Hugging Face formats."""
        return self._tokenizer.to_str()

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Encodings of texts, without special tokens."""
        return self._tokenizer.encode_batch(list(texts), add_special_tokens=False)

    def written(self, token: int) -> str:
        """A token alone as text."""
        return self._tokenizer.decode([token], skip_special_tokens=False)

    def require(self, role: str, found: int | None) -> int:
        """The id of a special token that a protocol places; raises InputRefused where there is none."""
        if found is None:
            raise InputRefused(
                f"{self._place}: the tokenizer has no {role} token, expected one in {SETTINGS}; name it there, or "
                "choose another protocol"
            )
        return found


def read_scoring_tokenizer(folder: Path) -> ScoringTokenizer:
    """The tokenizer of a run folder or of a Hugging Face folder. Raises InputRefused, Damaged."""
    manifest = read_manifest(folder)
    path = manifest.verified(FILE) if manifest and FILE in manifest.files else folder / FILE
    if not path.exists():
        raise InputRefused(
            f"{folder}: {FILE} is missing, so the tokenizer cannot say which characters a token covers; expected a "
            "fast tokenizer; save it as one"
        )
    try:
        tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        raise Damaged(f"{path}: not a tokenizer ({error}); save the model again") from error
    return ScoringTokenizer(tokenizer, _special_tokens(folder), str(folder))


def own_tokenizer(tokenizer_json: str) -> ScoringTokenizer:
    """A tokenizer of this toolkit, from its JSON."""
    pad, begin, end, mask = SPECIAL_TOKENS
    names = {"pad_token": pad, "bos_token": begin, "eos_token": end, "mask_token": mask}
    return ScoringTokenizer(Tokenizer.from_str(tokenizer_json), names)


def _special_tokens(folder: Path) -> dict[str, str]:
    """Special tokens by role, as either of the two files says."""
    named: dict[str, str] = {}
    for path in (folder / SPECIAL, folder / SETTINGS):
        if path.exists():
            named |= {role: token for role, value in _read(path).items() if (token := _token(role, value)) is not None}
    return named


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputRefused(f"{path}: not JSON ({error}); save the tokenizer again") from error
    if not isinstance(value, dict):
        raise InputRefused(f"{path}: a JSON {type(value).__name__}, expected an object; save the tokenizer again")
    return value


def _token(role: str, value: Any) -> str | None:
    """The text of a special token, which older files write as an object."""
    if not role.endswith("_token"):
        return None
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _first(*ids: int | None) -> int | None:
    return next((found for found in ids if found is not None), None)
