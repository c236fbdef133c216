"""What a recipe may say about text, splits and the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Shares of the words that go to the streams `tune` and `test`; the rest is `train`."""

    tune: float = 0.05  # share of the words, 0 to 1
    test: float = 0.05  # share of the words, 0 to 1


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Where the text comes from and how much of it is used."""

    source: Literal["synthetic", "folder"] = "synthetic"  # the embedded corpus, or the files under `root`
    root: str | None = None  # folder of .jsonl.zst, .jsonl, .txt and .train files
    words: int | None = 400_000  # words in all streams together; null: everything there is
    budget: dict[str, int] = field(default_factory=dict)  # most words from a source (the file's name without endings)
    max_document_words: int = 2000  # longer documents are cut at paragraphs; the pieces stay on one side of the split
    split: SplitConfig = field(default_factory=SplitConfig)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The one tokenizer that the whole ensemble shares."""

    kind: Literal["bpe"] = "bpe"  # byte-level BPE
    vocab_size: int = 16_000  # types, special tokens included
    min_frequency: int = 2  # a merge must occur this often in the train stream
