"""A stream: an ordered list of immutable token shards with document offsets and one word-start bit for each token.

Every document begins with a begin token, which has a position like any other token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import xxhash

from corpora.document import Document, count_words
from corpora.errors import InputRefused
from corpora.storage import FolderWriter, Manifest, digest
from corpora.tokenizer import TextTokenizer

SHARD_TOKENS = 1 << 24  # 16.8M tokens: 32 MiB as uint16


class Stream:
    """Tokens of one stream, memory-mapped and verified at first touch."""

    def __init__(self, manifest: Manifest, name: str) -> None:
        facts = manifest.facts["streams"][name]
        self.name = name
        self.digest: str = facts["digest"]
        self.num_tokens: int = facts["tokens"]
        self.num_words: int = facts["words"]
        self._manifest = manifest

    def __len__(self) -> int:
        return self.num_tokens

    @cached_property
    def document_offsets(self) -> np.ndarray:
        """Position of each document's begin token, and the length of the stream at the end; int64 [documents + 1]."""
        return np.array(self._manifest.array(f"{self.name}-document_offsets.npy"))

    @cached_property
    def document_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each document's text; int64 [documents]."""
        return np.array(self._manifest.array(f"{self.name}-document_bytes.npy"))

    @cached_property
    def sources(self) -> list[str]:
        """Names of its documents' sources, by number; none when it was prepared before they were kept."""
        return self._manifest.facts["streams"][self.name].get("sources", [])

    @cached_property
    def document_sources(self) -> np.ndarray:
        """Number of each document's source; uint16 [documents]."""
        return np.array(self._manifest.array(f"{self.name}-document_sources.npy"))

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Token ids of the positions [start, stop); int64."""
        return self._read("tokens", start, stop, SHARD_TOKENS).astype(np.int64)

    def words(self, start: int, stop: int) -> int:
        """Number of words that start in the positions [start, stop)."""
        first_byte, last_byte = start // 8, -(-stop // 8)
        bits = np.unpackbits(self._read("word_starts", first_byte, last_byte, SHARD_TOKENS // 8))
        return int(bits[start - 8 * first_byte : stop - 8 * first_byte].sum())

    def document_of(self, positions: np.ndarray) -> np.ndarray:
        """Number of the document that each position belongs to."""
        return np.searchsorted(self.document_offsets, positions, side="right") - 1

    def prefix_digest(self, num_tokens: int) -> str | None:
        """The digest of a stream that held the first so many tokens of this one and no more.

        None when no stream did: this one is shorter, or one of its documents goes on there.
        """
        documents = int(np.searchsorted(self.document_offsets, num_tokens))
        if documents == len(self.document_offsets) or self.document_offsets[documents] != num_tokens:
            return None
        hasher = xxhash.xxh3_128()
        for start in range(0, num_tokens, SHARD_TOKENS):
            stop = min(start + SHARD_TOKENS, num_tokens)
            hasher.update(np.ascontiguousarray(self._read("tokens", start, stop, SHARD_TOKENS)).data)
        hasher.update(self.document_offsets[: documents + 1].tobytes())
        return hasher.hexdigest()

    def _read(self, kind: str, start: int, stop: int, per_shard: int) -> np.ndarray:
        pieces = [
            self._shard(kind, shard)[max(start - shard * per_shard, 0) : stop - shard * per_shard]
            for shard in range(start // per_shard, max(stop - 1, start) // per_shard + 1)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _shard(self, kind: str, number: int) -> np.ndarray:
        if (kind, number) not in self._shards:
            self._shards[kind, number] = self._manifest.array(f"{self.name}-{kind}-{number:05d}.npy")
        return self._shards[kind, number]

    @cached_property
    def _shards(self) -> dict[tuple[str, int], np.ndarray]:
        return {}


def write_stream(
    writer: FolderWriter, name: str, documents: Sequence[Document], tokenizer: TextTokenizer
) -> dict[str, object]:
    """Tokenise documents into the shards of one stream; returns its facts for the manifest."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    encoded = [np.array(ids, dtype) for ids in tokenizer.encode_batch([document.text for document in documents])]
    tokens = np.concatenate(list(_with_begin_tokens(encoded, tokenizer.token_ids.begin, dtype)))
    starts = np.concatenate(list(_with_begin_tokens([tokenizer.word_starts(ids) for ids in encoded], 0, bool)))
    offsets = np.cumsum([0, *(len(ids) + 1 for ids in encoded)], dtype=np.int64)
    for number, first in enumerate(range(0, len(tokens), SHARD_TOKENS)):
        piece = slice(first, first + SHARD_TOKENS)
        writer.write_array(f"{name}-tokens-{number:05d}.npy", tokens[piece])
        writer.write_array(f"{name}-word_starts-{number:05d}.npy", np.packbits(starts[piece]))
    writer.write_array(f"{name}-document_offsets.npy", offsets)
    writer.write_array(
        f"{name}-document_bytes.npy", np.array([len(document.text.encode()) for document in documents], np.int64)
    )
    sources = sorted({document.source for document in documents})
    numbers = {source: number for number, source in enumerate(sources)}
    writer.write_array(
        f"{name}-document_sources.npy", np.array([numbers[document.source] for document in documents], np.uint16)
    )
    return {
        "digest": digest(tokens.tobytes() + offsets.tobytes()),
        "sources": sources,
        "tokens": len(tokens),
        "documents": len(documents),
        "words": int(starts.sum()),
        "words_by_source": _words_by_source(documents),
    }


def require_row(stream: Stream, seq_len: int) -> None:
    """Raise InputRefused when a stream is shorter than one row and the token after it."""
    if len(stream) < seq_len + 1:
        raise InputRefused(
            f"corpus: the stream '{stream.name}' holds {len(stream)} tokens, one row needs {seq_len + 1}; "
            "add text or lower seq_len"
        )


def _with_begin_tokens(documents: Iterable[np.ndarray], begin: int, dtype: type) -> Iterable[np.ndarray]:
    for document in documents:
        yield np.array([begin], dtype)
        yield document


def _words_by_source(documents: Iterable[Document]) -> dict[str, int]:
    words: dict[str, int] = {}
    for document in documents:
        words[document.source] = words.get(document.source, 0) + count_words(document.text)
    return dict(sorted(words.items()))
