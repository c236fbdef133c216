"""One byte-level BPE for the whole ensemble, and what its tokens say about words and bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from corpora.config import TokenizerConfig
from corpora.errors import Damaged
from corpora.storage import FolderWriter, digest, read_manifest
from corpora.token_ids import TokenIds

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<mask>")  # in the order of TokenIds
# version 4 of transformers adds token types otherwise, for which its Llama's classifier and others have no argument
MODEL_INPUTS = ["input_ids", "attention_mask"]
_WHITE = b" \t\n\r\x0b\x0c"
# between white space that is not ASCII, which words may hold, and white space that ends words
_BORDER = re.compile(r"(?<=[^\S \t\n\r\x0b\x0c])(?=[ \t\n\r\x0b\x0c])")


class TextTokenizer:
    """Text to token ids, without begin tokens: those belong to the stream and to the scorer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # "<mask>" written in a text is text: only views and streams place special tokens
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.token_ids = TokenIds()
        self.vocab_size: int = tokenizer.get_vocab_size()

    @cached_property
    def digest(self) -> str:
        """Digest of the tokenizer's JSON: members of an ensemble must share it."""
        return digest(self.to_json().encode())

    def to_json(self) -> str:
        """The `tokenizer.json` of the Hugging Face formats."""
        return self._tokenizer.to_str(pretty=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._tokenizer.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, on all cores."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        """Whether each token of one text holds the first byte of a word (a run of non-white ASCII bytes); bool."""
        begins_black, ends_white, starts_inside = self._white_space
        after_white = np.ones(len(ids), bool)
        after_white[1:] = ends_white[ids[:-1]]
        return starts_inside[ids] | (begins_black[ids] & after_white)

    @cached_property
    def _white_space(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each type: begins with a non-white byte; ends with a white one; white followed by non-white inside."""
        to_byte = {character: byte for byte, character in _byte_characters().items()}
        tables = np.zeros((3, self.vocab_size), bool)
        for token, index in self._tokenizer.get_vocab().items():
            if index < len(SPECIAL_TOKENS):
                continue
            data = bytes(to_byte[character] for character in token)
            white = [byte in _WHITE for byte in data]
            tables[0, index] = not white[0]
            tables[1, index] = white[-1]
            tables[2, index] = any(before and not after for before, after in zip(white, white[1:], strict=False))
        return tables[0], tables[1], tables[2]


def train_bpe(texts: Iterable[str], config: TokenizerConfig) -> TextTokenizer:
    """Train a byte-level BPE; its size is smaller than asked for when the text holds fewer frequent pairs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # no merge reaches across such a border, so that two words never start in one token
    tokenizer.train_from_iterator((piece for text in texts for piece in _BORDER.split(text)), trainer)
    return TextTokenizer(tokenizer)


def write_tokenizer(writer: FolderWriter, tokenizer: TextTokenizer) -> None:
    """The files that `AutoTokenizer` reads, alike in transformers 4 and 5."""
    pad, begin, end, mask = SPECIAL_TOKENS
    writer.write("tokenizer.json", tokenizer.to_json().encode())
    writer.write_json(
        "tokenizer_config.json",
        {
            # the class name and add_prefix_space that both major versions of transformers read alike
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": True,
            "clean_up_tokenization_spaces": False,
            "model_input_names": MODEL_INPUTS,
            "pad_token": pad,
            "bos_token": begin,
            "eos_token": end,
            "mask_token": mask,
        },
    )


def read_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer of a committed folder, or of one that Hugging Face libraries wrote; raises Damaged."""
    manifest = read_manifest(folder)
    path = manifest.verified("tokenizer.json") if manifest else folder / "tokenizer.json"
    try:
        return TextTokenizer(Tokenizer.from_str(path.read_text("utf-8")))
    except Exception as error:  # tokenizers raises bare Exception
        raise Damaged(f"{path}: not a tokenizer ({error}); prepare the corpus again") from error


def _byte_characters() -> dict[int, str]:
    """Byte to printable character, as byte-level BPE writes its vocabulary (the GPT-2 table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
