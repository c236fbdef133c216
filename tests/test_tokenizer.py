"""The tokenizer loses nothing, counts words as `wc` does, and is the same for us and for Hugging Face libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from corpora.config import TokenizerConfig
from corpora.document import count_words
from corpora.errors import Damaged
from corpora.storage import new_folder
from corpora.synthetic import generate_documents
from corpora.token_ids import TokenIds
from corpora.tokenizer import SPECIAL_TOKENS, TextTokenizer, read_tokenizer, train_bpe, write_tokenizer

CONFIG = TokenizerConfig(vocab_size=400)
# every kind of white space, ASCII or not, next to every other, often enough that merges would form
WHITE = " \t\n\r\x0b\x0c\x1c\x85\xa0\u2003\u2028\u3000"
MIXED_WHITE = [a + b + c for a in WHITE for b in WHITE for c in WHITE] * 3
TEXTS = [document.text for document in generate_documents(3000, seed=1)]

texts = (
    st.text() | st.text(WHITE + "aé\U0001f600") | st.lists(st.sampled_from(["the", "The", "cat", *WHITE])).map("".join)
)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_bpe(TEXTS, CONFIG)


@pytest.fixture(scope="module")
def white_tokenizer() -> TextTokenizer:
    """Trained on little but white space, so that its types are runs of it."""
    return train_bpe(MIXED_WHITE, TokenizerConfig(vocab_size=2000))


@pytest.fixture(scope="module")
def folder(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "tokenizer"
    with new_folder(folder, kind="tokenizer", fingerprint={}) as writer:
        write_tokenizer(writer, tokenizer)
    return folder


@given(texts)
def test_no_text_is_lost(tokenizer: TextTokenizer, text: str) -> None:
    expected = text if text.startswith(" ") or not text else f" {text}"  # each text begins like a word
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@given(texts)
@example("\xa0 \xa0 \xa0")
def test_word_starts_are_as_many_as_words(tokenizer: TextTokenizer, white_tokenizer: TextTokenizer, text: str) -> None:
    for trained in (tokenizer, white_tokenizer):
        ids = np.array(trained.encode(text), np.int64)
        assert trained.word_starts(ids).sum() == count_words(text)


def test_a_word_starts_where_its_first_letter_is(tokenizer: TextTokenizer) -> None:
    ids = np.array(tokenizer.encode("the zyx\n\n cat's"), np.int64)
    started = [
        tokenizer.decode([token]) for token, starts in zip(ids, tokenizer.word_starts(ids), strict=True) if starts
    ]
    assert [token.strip()[0] for token in started] == ["t", "z", "c"]


@pytest.mark.parametrize("written", SPECIAL_TOKENS)
def test_special_tokens_written_in_a_text_stay_text(tokenizer: TextTokenizer, written: str) -> None:
    text = f" a{written}b {written}"
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.token_ids.special)
    assert tokenizer.encode_batch([text]) == [ids]
    assert tokenizer.decode(ids) == text


def test_special_tokens_have_the_ids_that_all_rooms_know(tokenizer: TextTokenizer) -> None:
    assert tokenizer.decode(list(TokenIds().special)) == "".join(SPECIAL_TOKENS)
    assert TokenIds().special == (0, 1, 2, 3)


def test_the_vocabulary_has_the_size_asked_for_or_what_the_text_gives(tokenizer: TextTokenizer) -> None:
    assert tokenizer.vocab_size == CONFIG.vocab_size
    assert train_bpe(["little text"], CONFIG).vocab_size == 260  # 256 bytes and the special tokens


def test_a_batch_is_encoded_as_its_texts_are(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode_batch(TEXTS[:20]) == [tokenizer.encode(text) for text in TEXTS[:20]]


def test_training_is_deterministic_in_every_process(tokenizer: TextTokenizer) -> None:
    script = (
        "from corpora.synthetic import generate_documents; from corpora.config import TokenizerConfig\n"
        "from corpora.tokenizer import train_bpe\n"
        "texts = [document.text for document in generate_documents(3000, seed=1)]\n"
        f"print(train_bpe(texts, TokenizerConfig(vocab_size={CONFIG.vocab_size})).digest)"
    )
    for threads, hash_seed in (("1", "0"), ("2", "1")):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": threads}
        environment["TOKENIZERS_PARALLELISM"] = str(threads != "1").lower()
        found = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stdout
        assert found.strip() == tokenizer.digest


def test_it_is_read_back_as_it_was_written(tokenizer: TextTokenizer, folder: Path) -> None:
    found = read_tokenizer(folder)
    assert found.digest == tokenizer.digest
    assert found.encode("the <mask> cat") == tokenizer.encode("the <mask> cat")


def test_auto_tokenizer_gives_the_same_ids(tokenizer: TextTokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    awkward = ["", " ", "the cat", "  two  spaces ", "line\n\nline", "don't, won't.", "naïve\u2003Grüße \U0001f600"]
    for text in TEXTS[:20] + awkward:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    ids = TokenIds()
    named = (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.mask_token_id)
    assert named == (ids.pad, ids.begin, ids.end, ids.mask)
    assert len(theirs) == tokenizer.vocab_size


def test_what_is_no_tokenizer_is_damage(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"tokenizer\.json: not a tokenizer \(.*prepare the corpus again"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Damaged, match=r"tokenizer\.json: not a tokenizer \(.*prepare the corpus again"):
        read_tokenizer(tmp_path)
