"""A document: the unit that is split, budgeted and never crossed by attention."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text with a name: `source` is the file or register it came from, `id` is unique within the corpus.

    Pieces of one long text share `group`, so that a split never separates them.
    """

    id: str
    source: str
    text: str
    group: str = ""  # id of the text that this is a piece of; empty: the document itself

    @property
    def side_key(self) -> str:
        """What decides the side (train, tune, test) of a split."""
        return self.group or self.id


def count_words(text: str) -> int:
    """Number of words: maximal runs of bytes other than ASCII white space, as `wc -w` counts in the C locale."""
    return len(text.encode().split())


def words_of(text: str) -> list[str]:
    """The words that `count_words` counts."""
    return [word.decode() for word in text.encode().split()]
