"""The streams train, tune and test, divided by document."""

from __future__ import annotations

from collections.abc import Sequence

from corpora.addressed import address
from corpora.config import SplitConfig
from corpora.document import Document, count_words
from corpora.errors import InputRefused

STREAMS = ("train", "tune", "test")


def split_documents(documents: Sequence[Document], config: SplitConfig, seed: int) -> dict[str, list[Document]]:
    """Documents of each stream, in an order that mixes the sources.

    Each source gives its own share of words to `test` and `tune`, never more; the pieces of a long text stay on one
    side. Raises InputRefused when a stream would be empty.
    """
    groups: dict[str, dict[str, list[Document]]] = {}
    for document in documents:
        groups.setdefault(document.source, {}).setdefault(document.side_key, []).append(document)
    streams: dict[str, list[Document]] = {name: [] for name in STREAMS}
    for by_key in groups.values():
        total = sum(_words(pieces) for pieces in by_key.values())
        room = {"test": int(config.test * total), "tune": int(config.tune * total)}
        for key in sorted(by_key, key=lambda key: (address(seed, "split", key), key)):
            words = _words(by_key[key])
            side = next((name for name in ("test", "tune") if words <= room[name]), "train")
            if side != "train":
                room[side] -= words
            streams[side].extend(by_key[key])
    for name, members in streams.items():
        if not members:
            raise InputRefused(
                f"corpus: {len(documents)} documents leave the stream '{name}' empty; it takes whole documents up to "
                "its share (corpus.split): add documents, or cut them into more files, or raise the share"
            )
        members.sort(key=lambda document: (address(seed, "order", document.id), document.id))
    return streams


def _words(documents: Sequence[Document]) -> int:
    return sum(count_words(document.text) for document in documents)
