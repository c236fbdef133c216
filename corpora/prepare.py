"""From text to a tokenizer and three streams, in two committed folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from corpora.budget import apply_budget
from corpora.config import CorpusConfig, TokenizerConfig
from corpora.document import Document
from corpora.errors import Damaged
from corpora.sources import read_documents, source_identity
from corpora.split import STREAMS, split_documents
from corpora.storage import Manifest, new_folder, read_manifest
from corpora.stream import Stream, write_stream
from corpora.token_ids import TokenIds
from corpora.tokenizer import TextTokenizer, read_tokenizer, train_bpe, write_tokenizer


@dataclass(frozen=True)
class Corpus:
    """The streams of a prepared corpus and the tokenizer they were cut with."""

    streams: dict[str, Stream]
    tokenizer: TextTokenizer
    manifest: Manifest
    tokenizer_folder: Path

    @property
    def token_ids(self) -> TokenIds:
        """Special tokens."""
        return self.tokenizer.token_ids

    @property
    def vocab_size(self) -> int:
        """Types of the tokenizer."""
        return self.tokenizer.vocab_size

    def identity(self, stream: str) -> dict[str, str]:
        """What a file made from one stream depends on: its tokens and the tokenizer."""
        return {"tokens": self.streams[stream].digest, "tokenizer": self.tokenizer.digest}


def prepare_corpus(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    *,
    seed: int,
    folder: Path,
    announce: Callable[[str], None] = lambda line: None,
) -> Corpus:
    """Make `folder/tokenizer` and `folder/corpus`, or open them when they were made from the same inputs.

    Raises InputRefused for text that cannot be read and for folders made from other inputs.
    """
    text = {
        "files": source_identity(corpus),
        "corpus": {name: value for name, value in asdict(corpus).items() if name != "root"},
        "seed": seed,
    }
    fingerprint = {**text, "tokenizer": asdict(tokenizer)}
    found = {kind: read_manifest(folder / kind) for kind in ("tokenizer", "corpus")}
    for kind, manifest in found.items():
        if manifest:
            manifest.require(kind, fingerprint)
    if not all(found.values()):
        announce("corpus: reading text")
        documents = apply_budget(read_documents(corpus, seed), corpus.budget, corpus.words, seed)
        streams = split_documents(documents, corpus.split, seed)
        if not found["tokenizer"]:
            announce(f"tokenizer: training on {len(streams['train']):,} documents")
            _write_tokenizer(folder / "tokenizer", streams["train"], tokenizer, fingerprint)
        announce("corpus: tokenising")
        _write_streams(folder, streams, fingerprint)
    return open_corpus(folder)


def open_corpus(folder: Path) -> Corpus:
    """The prepared corpus below `folder`; raises Damaged."""
    manifest = read_manifest(folder / "corpus")
    if manifest is None:
        raise Damaged(f"{folder / 'corpus'}: not finished; run the same command again")
    streams = {name: Stream(manifest, name) for name in STREAMS}
    return Corpus(streams, read_tokenizer(folder / "tokenizer"), manifest, folder / "tokenizer")


def _write_tokenizer(
    folder: Path, documents: list[Document], config: TokenizerConfig, fingerprint: dict[str, object]
) -> None:
    trained = train_bpe((document.text for document in documents), config)
    with new_folder(folder, kind="tokenizer", fingerprint=fingerprint) as writer:
        write_tokenizer(writer, trained)
        writer.facts |= {"vocab_size": trained.vocab_size, "digest": trained.digest}


def _write_streams(folder: Path, streams: dict[str, list[Document]], fingerprint: dict[str, object]) -> None:
    tokenizer = read_tokenizer(folder / "tokenizer")
    with new_folder(folder / "corpus", kind="corpus", fingerprint=fingerprint) as writer:
        writer.facts["vocab_size"] = tokenizer.vocab_size
        writer.facts["streams"] = {
            name: write_stream(writer, name, documents, tokenizer) for name, documents in streams.items()
        }
