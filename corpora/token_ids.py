"""The special tokens that every tokenizer of the toolkit has, at the same ids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Ids of the special tokens; ordinary types follow them."""

    pad: int = 0
    begin: int = 1
    end: int = 2
    mask: int = 3

    @property
    def special(self) -> tuple[int, int, int, int]:
        """All of them; none is ever masked or drawn as a random replacement."""
        return (self.pad, self.begin, self.end, self.mask)
