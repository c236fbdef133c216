"""What the speed suite measures with: BabyLlama's sizes, a corpus of random tokens, and real caches over it.

Speed does not depend on what weights and tokens say, so both are random; sizes, types, files and code paths are those
of training.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from corpora.document import Document
from corpora.prepare import Corpus, open_corpus
from corpora.storage import digest, new_folder
from corpora.stream import write_stream
from corpora.token_ids import TokenIds
from corpora.tokenizer import SPECIAL_TOKENS, TextTokenizer, write_tokenizer
from distill.yaml_tree import packaged_folder, read_file
from students.buildable import Buildable
from students.config import ModelConfig
from students.registry import build_model
from teachers.cache import CachedTeacher, CacheKey, cached_view
from teachers.capture import capture
from teachers.config import CacheConfig

LOGIT_SPREAD = 2.5  # standard deviation of a stand-in's logits: about that of a trained model
SEED = 1


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes of a step."""

    student: ModelConfig
    teachers: Mapping[str, ModelConfig]
    vocab_size: int = 16_000
    rows: int = 8  # of a step
    seq_len: int = 128  # tokens in a row
    corpus_rows: int = 64  # in the stream that steps read
    read_positions: int = 65_536  # in the stream whose cache is read at random

    @property
    def tokens(self) -> int:
        """Tokens that a step reads."""
        return self.rows * self.seq_len


def baby_llama() -> Shapes:
    """The student of 58M and the teachers of 360M and 705M parameters (arXiv 2308.02019), from the packaged recipes."""
    return Shapes(
        student=packaged_model("students/baby_llama_58m.yaml"),
        teachers={
            "llama": packaged_model("teachers/llama_360m.yaml"),
            "gptj": packaged_model("teachers/gptj_705m.yaml"),
        },
    )


def random_corpus(folder: Path, shapes: Shapes) -> Corpus:
    """A prepared corpus of random tokens.

    `train` is cut into documents of one row each, so that a row is one segment and our targets are those that
    transformers takes from `labels`; `test` is one long document, of which every position but the first is a target.
    """
    draw = np.random.default_rng(SEED)
    row = shapes.seq_len - 1  # the begin token comes before
    lengths = {"train": [row] * shapes.corpus_rows, "tune": [row], "test": [shapes.read_positions - 1]}
    words = _words(shapes.vocab_size)
    tokenizer = _word_tokenizer(words)
    with new_folder(folder / "tokenizer", kind="tokenizer", fingerprint={}) as writer:
        write_tokenizer(writer, tokenizer)
    with new_folder(folder / "corpus", kind="corpus", fingerprint={}) as writer:
        writer.facts["streams"] = {}
        for stream, sizes in lengths.items():
            documents = [
                Document(id=f"{stream}-{number}", source="random", text=" ".join(draw.choice(words, size)))
                for number, size in enumerate(sizes)
            ]
            writer.facts["streams"][stream] = write_stream(writer, stream, documents, tokenizer)
    return open_corpus(folder)


def random_model(config: ModelConfig, vocab_size: int) -> Buildable:
    """A model of random weights."""
    return build_model(config, vocab_size=vocab_size, token_ids=TokenIds(), seed=SEED)


def cached_stand_in(
    name: str, config: ModelConfig, corpus: Corpus, stream: str, cache: CacheConfig, folder: Path, device: torch.device
) -> CachedTeacher:
    """The cache of a teacher that has one layer instead of all: what is read later (features, head) is as wide."""
    model = random_model(replace(config, num_layers=1), corpus.vocab_size)
    weight_VD = model.head().weight_VD
    with torch.no_grad():
        weight_VD.mul_(LOGIT_SPREAD / weight_VD.shape[1] ** 0.5 / weight_VD.std())
    key = CacheKey(corpus, stream, digest(name.encode()), cached_view(cache, "causal"), cache)
    capture(key, lambda: model, folder, device=device)
    return CachedTeacher(name, folder, key.fingerprint())


def packaged_model(name: str) -> ModelConfig:
    """The model of a packaged fragment."""
    return ModelConfig(**read_file(packaged_folder() / name).plain()["model"])


def _words(vocab_size: int) -> list[str]:
    """One word of four letters for each type that is not special."""
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    return ["".join(word) for word in itertools.islice(letters, vocab_size - len(SPECIAL_TOKENS))]


def _word_tokenizer(words: list[str]) -> TextTokenizer:
    """A token for each word, written as byte-level BPE writes it."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *(f"Ġ{word}" for word in words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return TextTokenizer(tokenizer)
