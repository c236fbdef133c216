"""From files to streams: what is read, what is refused and where, who gets how many words, and that it comes out alike.

The folders of text are written by the tests themselves; nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import zstandard
from conftest import in_child, kill_at
from hypothesis import given
from hypothesis import strategies as st

from corpora import prepare, storage, stream
from corpora.budget import apply_budget, proportional_shares
from corpora.config import CorpusConfig, SplitConfig, TokenizerConfig
from corpora.document import Document, count_words, words_of
from corpora.errors import CuveeError, Damaged, InputRefused
from corpora.loader import plan_rows
from corpora.prepare import Corpus, open_corpus, prepare_corpus
from corpora.sources import READERS, cut_document, read_documents
from corpora.split import STREAMS, split_documents
from corpora.storage import file_digest, read_manifest

TOKENIZER = TokenizerConfig(vocab_size=300)
NAMES = ("anna", "ben", "clara", "david", "eva", "finn", "greta", "hugo")

lines_of_words = st.lists(st.text("ab \t\x0b\x1c\x85\xa0\u2028é", max_size=30), min_size=1, max_size=12)


def write_text_folder(root: Path) -> Path:
    """Sixty short documents in two files, one a line."""
    root.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    for source in ("stories", "talk"):
        lines = [" ".join(rng.choices(NAMES, k=rng.randint(5, 15))) for _ in range(30)]
        (root / f"{source}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return root


def config_of(root: Path, **changes: object) -> CorpusConfig:
    split = SplitConfig(tune=0.1, test=0.1)
    return replace(CorpusConfig(source="folder", root=str(root), words=None, split=split), **changes)


def prepare_in(folder: Path, config: CorpusConfig, *, seed: int = 1, tokenizer: TokenizerConfig = TOKENIZER) -> Corpus:
    return prepare_corpus(config, tokenizer, seed=seed, folder=folder)


def read(root: Path, **changes: object) -> list[Document]:
    return list(read_documents(config_of(root, **changes), seed=1))


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_digest(path) for path in folder.rglob("*") if path.is_file()}


def documents_of(texts: Sequence[str], source: str = "stories") -> list[Document]:
    return [Document(id=f"{source}:{number}", source=source, text=text) for number, text in enumerate(texts)]


# ---- readers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.txt", "a.train"])
def test_every_kind_of_file_is_read(tmp_path: Path, name: str) -> None:
    jsonl = '{"text": "Grüße an Anna."}\n\n{"text": "  "}\n{"id": 7, "text": "two\\nlines"}\n'.encode()
    frames = zstandard.compress(jsonl[:40]) + zstandard.compress(jsonl[40:])  # cut inside a line
    plain = "Grüße an Anna.\ntwo\nlines\n".encode()
    (tmp_path / name).write_bytes({"a.jsonl": jsonl, "a.jsonl.zst": frames}.get(name, plain))
    expected = {
        "a.jsonl": {"a.jsonl:1": "Grüße an Anna.", "a.jsonl:4": "two\nlines"},
        "a.jsonl.zst": {"a.jsonl.zst:1": "Grüße an Anna.", "a.jsonl.zst:4": "two\nlines"},
        "a.txt": {"a.txt:1": "Grüße an Anna.\ntwo\nlines\n"},
        "a.train": {"a.train:1": "Grüße an Anna.\ntwo", "a.train:2": "lines"},
    }[name]
    documents = read(tmp_path, max_document_words=4)
    if name == "a.txt":  # longer than four words: cut, and the pieces know where they are from
        assert [(document.id, document.text, document.group) for document in documents] == [
            ("a.txt:1#0", "Grüße an Anna.\ntwo", "a.txt:1"),
            ("a.txt:1#1", "lines\n", "a.txt:1"),
        ]
        documents = read(tmp_path)
    assert {document.id: document.text for document in documents} == expected
    assert {document.source for document in documents} == {"a"}


def test_every_ending_has_a_test() -> None:
    assert set(READERS) == {".jsonl", ".jsonl.zst", ".txt", ".train"}


def test_a_byte_order_mark_and_crlf_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfthree\r\nfour\r\n")
    (tmp_path / "c.train").write_bytes(b"five\r\nsix")
    assert [document.text for document in read(tmp_path)] == ["one", "two", "three\nfour\n", "five\nsix"]


def test_a_very_long_line_is_read_and_cut_between_words(tmp_path: Path) -> None:
    text = "word " * 300_000
    for name in ("a.jsonl", "b.jsonl.zst"):
        line = json.dumps({"text": text}).encode()
        (tmp_path / name).write_bytes(zstandard.compress(line) if name.endswith(".zst") else line)
    documents = read(tmp_path)
    assert [count_words(document.text) for document in documents] == [2000] * 300
    assert {document.group for document in documents} == {"a.jsonl:1", "b.jsonl.zst:1"}


def test_skippable_frames_are_skipped(tmp_path: Path) -> None:
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"
    (tmp_path / "a.jsonl.zst").write_bytes(skippable + zstandard.compress(b'{"text": "one"}\n'))
    assert [document.text for document in read(tmp_path)] == ["one"]


def test_ids_are_unique_however_the_files_are_named_and_whatever_ids_they_give(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ("a.jsonl", "x/a.jsonl"):
        (tmp_path / name).write_text('{"id": "1", "text": "one"}\n{"id": "1", "text": "two"}\n{"text": "three"}\n')
    (tmp_path / "a.txt").write_text("four\nfive\n")
    (tmp_path / "a.train").write_text("six\nseven\n")
    ids = [document.id for document in read(tmp_path, max_document_words=1)]
    assert len(ids) == len(set(ids)) == 10


def test_the_order_of_documents_does_not_follow_the_listing_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("c.txt", "a.txt", "b.txt", "b/z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    expected = read(tmp_path)
    rglob = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(rglob(self, pattern))))
    assert read(tmp_path) == expected
    assert len(expected) == 4


# ---- refused ------------------------------------------------------------------------------------------------------

BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "not UTF-8": ("a.txt", b"one\ntw\xffo\n", r"a\.txt:2: byte 3 of the line \(0xff\) is not UTF-8; convert"),
    "not UTF-8, JSONL": ("a.jsonl", b'{"text": "\xe9"}\n', r"a\.jsonl:1: byte 11 of the line \(0xe9\) is not UTF-8"),
    "not UTF-8, .train": ("a.train", b"one\ntwo\n\x80", r"a\.train:3: byte 1 of the line"),
    "UTF-16": ("a.txt", "one".encode("utf-16"), r"a\.txt:1: byte 1 of the line \(0xff\) is not UTF-8"),
    "UTF-16 without mark": ("a.txt", "one".encode("utf-16-le"), r"a\.txt:1: byte 2 of the line is NUL.*UTF-16"),
    "NUL": ("a.jsonl", b'{"text": "a\0b"}\n', r"a\.jsonl:1: byte 12 of the line is NUL"),
    "escaped NUL": ("a.jsonl", rb'{"text": "a\u0000b"}', r"a\.jsonl:1: the text holds '\\x00', which is no character"),
    "lone surrogate": ("a.jsonl", rb'{"text": "\ud800"}', r"a\.jsonl:1: the text holds '\\ud800', which is no char"),
    "no text": ("a.jsonl", b'{"text": "one"}\n{"txt": "two"}\n', r"a\.jsonl:2: no text: found the keys \['txt'\]"),
    "text is no string": ("a.jsonl", b'{"text": null}\n', r"a\.jsonl:1: no text.*'text' is a string; mend the line"),
    "not an object": ("a.jsonl", b"[1, 2]\n", r"a\.jsonl:1: no text: found a list"),
    "broken JSON": ("a.jsonl", b'{"text": "one"}\n\n{"text": "two\n', r"a\.jsonl:3: not JSON \(.*mend or remove"),
    "deep JSON": ("a.jsonl", b"[" * 200_000, r"a\.jsonl:1: not JSON"),
    "endless number": ("a.jsonl", b'{"text": ' + b"9" * 10_000 + b"}", r"a\.jsonl:1: not JSON"),
    "not UTF-8 inside .zst": ("a.jsonl.zst", zstandard.compress(b'{"text": "one"}\n\xff'), r"a\.jsonl\.zst:2: byte 1"),
    "not a .zst": ("a.jsonl.zst", b'{"text": "one"}\n', r"a\.jsonl\.zst: not a readable Zstandard file \(.*copy"),
    "empty .zst": ("a.jsonl.zst", b"", r"a\.jsonl\.zst: empty, or ends inside a Zstandard frame; copy"),
    "junk after a frame": ("a.jsonl.zst", zstandard.compress(b'{"text": "one"}\n') + b"junk", r"a\.jsonl\.zst: "),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_that_names_the_place(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / name).write_bytes(content)
    with pytest.raises(InputRefused, match=message) as raised:
        prepare_in(tmp_path / "run", config_of(tmp_path / "text"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_every_truncation_of_a_zst_file_is_refused(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"text": f"document {number}"}).encode() + b"\n" for number in range(20))
    first, second = zstandard.compress(lines), zstandard.compress(lines)
    for length in range(len(first + second)):
        if length == len(first):  # between frames it is a whole file
            continue
        (tmp_path / "a.jsonl.zst").write_bytes((first + second)[:length])
        with pytest.raises(InputRefused, match=r"a\.jsonl\.zst"):
            read(tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(InputRefused, match=r"a\.txt: cannot be read \(No such file"):
        prepare_in(tmp_path / "run", config_of(tmp_path))


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are always UTF-8")
def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("one")
    with pytest.raises(
        InputRefused, match=r"^corpus\.root: the file name '\\udcff\.txt' below .* is not UTF-8; rename"
    ):
        read(tmp_path)


@pytest.mark.parametrize("root", [None, "missing", "a_file.txt", "empty"])
def test_a_folder_without_text_is_refused(tmp_path: Path, root: str | None) -> None:
    (tmp_path / "a_file.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "picture.png").touch()
    config = replace(config_of(tmp_path), root=root and str(tmp_path / root))
    with pytest.raises(InputRefused, match=r"^corpus\.root: .*(give|put)"):
        prepare_in(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_budget_for_an_unknown_source_is_refused(tmp_path: Path) -> None:
    config = config_of(write_text_folder(tmp_path / "text"), budget={"storys": 10})
    with pytest.raises(InputRefused, match=r"corpus\.budget\.storys: no such source; there are stories, talk"):
        prepare_in(tmp_path / "run", config)


@pytest.mark.parametrize("texts", [[], ["one document"], ["two", "documents"]])
def test_an_empty_stream_is_refused(texts: list[str]) -> None:
    with pytest.raises(InputRefused, match=rf"^corpus: {len(texts)} documents leave the stream '\w+' empty.*add docu"):
        split_documents(documents_of(texts), SplitConfig(), seed=1)


def test_a_corpus_smaller_than_one_row_is_refused(tmp_path: Path) -> None:
    train = prepare_in(tmp_path / "run", config_of(write_text_folder(tmp_path / "text"))).streams["train"]
    plan_rows(train, seq_len=len(train) - 1, batch_size=1, seed=1, random_offsets=True)
    with pytest.raises(InputRefused, match=rf"'train' holds {len(train)} tokens, one row needs {len(train) + 1}; add"):
        plan_rows(train, seq_len=len(train), batch_size=1, seed=1, random_offsets=True)


# ---- cutting ------------------------------------------------------------------------------------------------------


@given(st.text())
def test_words_are_those_that_are_counted(text: str) -> None:
    assert len(words_of(text)) == count_words(text)
    assert count_words(" ".join(words_of(text))) == count_words(text)


@given(lines_of_words, st.integers(1, 8))
def test_pieces_never_exceed_and_no_word_is_lost(lines: list[str], most: int) -> None:
    document = Document(id="a", source="a", text="\n".join(lines))
    pieces = list(cut_document(document, most))
    assert all(count_words(piece.text) <= most for piece in pieces)
    assert [word for piece in pieces for word in words_of(piece.text)] == words_of(document.text)
    assert {piece.side_key for piece in pieces} == {"a"}
    assert len({piece.id for piece in pieces}) == len(pieces)


def test_a_document_is_cut_at_line_ends_alone() -> None:
    # these end lines for str.splitlines, and words for str.split, yet are letters to us
    text = "one\x1ctwo\u2028three four\xa0five\n\nsix\x85seven eight"
    pieces = cut_document(Document(id="a", source="a", text=text), 2)
    assert "\n".join(piece.text for piece in pieces) == text


# ---- budgets ------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 10_000), max_size=6), st.integers(0, 30_000))
def test_shares_are_proportional_and_never_exceed(available: dict[str, int], total: int) -> None:
    shares = proportional_shares(available, total)
    assert all(0 <= shares[name] <= available[name] for name in available)
    assert sum(shares.values()) <= total
    everything = sum(available.values())
    assert sum(shares.values()) >= min(total, everything) - max(len(available) - 1, 0)
    more = proportional_shares(available, total + 1)
    assert all(more[name] >= shares[name] for name in available)


corpora_of_lines = st.dictionaries(
    st.sampled_from(["stories", "talk", "facts"]), st.lists(lines_of_words, min_size=1, max_size=5), min_size=1
)


@given(corpora_of_lines, st.integers(0, 120), st.integers(0, 40), st.integers(0, 3))
def test_a_budget_is_never_exceeded_and_more_words_only_add(
    corpus: dict[str, list[list[str]]], words: int, growth: int, seed: int
) -> None:
    documents = [
        document
        for source, texts in corpus.items()
        for document in documents_of(["\n".join(lines) for lines in texts], source)
        if document.text.strip()
    ]
    budget = {documents[0].source: 9} if documents else {}
    taken = apply_budget(documents, budget, words, seed)
    by_source: Counter[str] = Counter()
    for document in taken:
        by_source[document.source] += count_words(document.text)
    assert by_source.total() <= words
    assert all(by_source[source] <= most for source, most in budget.items())
    more = {document.id: words_of(document.text) for document in apply_budget(documents, budget, words + growth, seed)}
    for document in taken:
        assert words_of(document.text) == more[document.id][: count_words(document.text)]
    assert apply_budget(documents[::-1], budget, words, seed) == taken


def test_a_budget_is_used_up_to_the_word_where_lines_allow() -> None:
    documents = documents_of(["one two three four"] * 10)
    assert sum(count_words(document.text) for document in apply_budget(documents, {}, 22, seed=1)) == 22


# ---- splits -------------------------------------------------------------------------------------------------------


def test_each_source_gives_its_share_and_never_more() -> None:
    documents = documents_of(["ten words " * 5] * 200, "stories") + documents_of(["ten words " * 5] * 100, "talk")
    streams = split_documents(documents, SplitConfig(tune=0.1, test=0.05), seed=1)
    numbers = {name: Counter(document.source for document in members) for name, members in streams.items()}
    assert numbers["tune"] == {"stories": 20, "talk": 10}
    assert numbers["test"] == {"stories": 10, "talk": 5}
    assert numbers["train"] == {"stories": 170, "talk": 85}


@given(st.lists(st.integers(1, 40), min_size=20, max_size=40), st.integers(0, 5))
def test_pieces_stay_on_one_side_and_nothing_is_lost(lengths: list[int], seed: int) -> None:
    documents = [
        piece
        for document in documents_of(["word " * length for length in lengths])
        for piece in cut_document(document, 8)
    ]
    streams = split_documents(documents, SplitConfig(tune=0.3, test=0.3), seed)
    sides = [{document.side_key for document in streams[name]} for name in STREAMS]
    assert len(set.union(*sides)) == sum(map(len, sides)) == len(lengths)
    assert sorted(document.id for members in streams.values() for document in members) == sorted(
        document.id for document in documents
    )
    for name in ("tune", "test"):
        assert sum(count_words(document.text) for document in streams[name]) <= 0.3 * sum(lengths)
    assert split_documents(documents[::-1], SplitConfig(tune=0.3, test=0.3), seed) == streams


# ---- streams ------------------------------------------------------------------------------------------------------


def test_a_stream_holds_its_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SHARD_TOKENS", 64)  # so that rows and documents cross shards
    config = config_of(write_text_folder(tmp_path / "text"))
    corpus = prepare_in(tmp_path / "run", config)
    texts = split_documents(apply_budget(read(tmp_path / "text"), {}, None, 1), config.split, 1)
    for name, documents in texts.items():
        found = corpus.streams[name]
        offsets = found.document_offsets
        assert offsets[0] == 0 and offsets[-1] == len(found) == found.num_tokens
        whole = found.tokens(0, len(found))
        assert np.flatnonzero(whole == corpus.token_ids.begin).tolist() == offsets[:-1].tolist()
        for number, document in enumerate(documents):
            start, stop = int(offsets[number]), int(offsets[number + 1])
            assert corpus.tokenizer.decode(found.tokens(start + 1, stop)) == " " + document.text
            assert found.words(start, stop) == count_words(document.text)
            assert found.document_bytes[number] == len(document.text.encode())
            assert found.document_of(np.arange(start, stop)).tolist() == [number] * (stop - start)
        assert found.words(0, len(found)) == found.num_words
        rng = random.Random(2)
        for _ in range(200):
            start, stop = sorted(rng.sample(range(len(found) + 1), 2))
            assert np.array_equal(found.tokens(start, stop), whole[start:stop])
            middle = rng.randint(start, stop)
            assert found.words(start, middle) + found.words(middle, stop) == found.words(start, stop)


def test_words_of_each_source_are_recorded(tmp_path: Path) -> None:
    corpus = prepare_in(tmp_path / "run", config_of(write_text_folder(tmp_path / "text")))
    facts = corpus.manifest.facts["streams"]
    for name in STREAMS:
        assert sum(facts[name]["words_by_source"].values()) == facts[name]["words"] == corpus.streams[name].num_words
    assert set(facts["train"]["words_by_source"]) == {"stories", "talk"}


# ---- the whole preparation ----------------------------------------------------------------------------------------


def test_the_same_text_gives_the_same_files_wherever_it_lies(tmp_path: Path) -> None:
    for number in (1, 2):
        root = write_text_folder(tmp_path / f"somewhere-{number}" / "text")
        prepare_in(tmp_path / f"run-{number}", config_of(root))
    assert digests(tmp_path / "run-1") == digests(tmp_path / "run-2")


def test_what_is_there_is_opened_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(write_text_folder(tmp_path / "text"))
    made = prepare_in(tmp_path / "run", config)
    monkeypatch.setattr(prepare, "read_documents", None)
    opened = prepare_in(tmp_path / "run", config)
    assert [opened.identity(name) for name in STREAMS] == [made.identity(name) for name in STREAMS]


CHANGES: dict[str, dict[str, object]] = {
    r"corpus\.words is None there and 300 here": {"words": 300},
    r"corpus\.budget\.talk is None there and 9 here": {"budget": {"talk": 9}},
    r"corpus\.split\.test is 0\.1 there and 0\.2 here": {"split": SplitConfig(tune=0.1, test=0.2)},
    r"corpus\.max_document_words is 2000 there and 99 here": {"max_document_words": 99},
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_corpus_of_another_recipe_is_refused_and_the_field_named(tmp_path: Path, message: str) -> None:
    config = config_of(write_text_folder(tmp_path / "text"))
    prepare_in(tmp_path / "run", config)
    before = digests(tmp_path / "run")
    with pytest.raises(InputRefused, match=message) as raised:
        prepare_in(tmp_path / "run", replace(config, **CHANGES[message]))
    assert str(raised.value).count(" there and ") == 1
    assert digests(tmp_path / "run") == before


def test_another_seed_or_tokenizer_is_refused_and_named(tmp_path: Path) -> None:
    config = config_of(write_text_folder(tmp_path / "text"))
    prepare_in(tmp_path / "run", config)
    with pytest.raises(InputRefused, match=r"inputs: seed is 1 there and 2 here; use another run_dir, or delete"):
        prepare_in(tmp_path / "run", config, seed=2)
    with pytest.raises(InputRefused, match=r"inputs: tokenizer\.vocab_size is 300 there and 290 here; use"):
        prepare_in(tmp_path / "run", config, tokenizer=TokenizerConfig(vocab_size=290))


@pytest.mark.parametrize("name, before", [("talk.jsonl", r"'\w{32}'"), ("new.txt", "None")])
def test_changed_text_is_refused_and_the_file_named(tmp_path: Path, name: str, before: str) -> None:
    config = config_of(write_text_folder(tmp_path / "text"))
    prepare_in(tmp_path / "run", config)
    (tmp_path / "text" / name).write_text('{"text": "something else"}')
    with pytest.raises(InputRefused, match=rf"inputs: files\.{name} is {before} there and '\w{{32}}' here; use"):
        prepare_in(tmp_path / "run", config)


def test_another_place_is_no_other_input(tmp_path: Path) -> None:
    config = config_of(write_text_folder(tmp_path / "text"))
    prepare_in(tmp_path / "run", config)
    shutil.move(tmp_path / "text", tmp_path / "elsewhere")
    prepare_in(tmp_path / "run", replace(config, root=str(tmp_path / "elsewhere")))


def test_killed_anywhere_the_next_attempt_ends_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # a forked child has no threads
    config = config_of(write_text_folder(tmp_path / "text"))
    prepare_in(tmp_path / "expected", config)
    expected = digests(tmp_path / "expected")
    finished = []
    for number in count(2, 7):  # every seventh operation, and so each of the four kinds
        folder = tmp_path / f"run-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(storage, "fault", kill_at(number))
            status = in_child(lambda folder=folder: prepare_in(folder, config))
        finished.append([read_manifest(folder / kind) is not None for kind in ("tokenizer", "corpus")])
        if status == 0:
            break
        assert status == -signal.SIGKILL  # the manifest may be in its place, and its folder not yet synced
        with storage.locked(tmp_path):
            prepare_in(folder, config)
        assert digests(folder) == expected
    assert [False, False] in finished and [True, False] in finished and finished[-1] == [True, True]


def test_an_exception_in_the_middle_leaves_no_half_written_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stream = prepare.write_stream

    def interrupted(writer: object, name: str, *rest: object) -> dict[str, object]:
        if name == "tune":
            raise KeyboardInterrupt
        return write_stream(writer, name, *rest)

    monkeypatch.setattr(prepare, "write_stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_in(tmp_path / "run", config_of(write_text_folder(tmp_path / "text")))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tokenizer"]


def test_a_corpus_that_was_not_finished_is_named(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="corpus: not finished; run the same command again"):
        open_corpus(tmp_path)


@pytest.mark.parametrize("name", ["corpus/train-tokens-00000.npy", "corpus/test-word_starts-00000.npy"])
def test_a_damaged_shard_is_seen_when_it_is_first_touched(tmp_path: Path, name: str) -> None:
    config = config_of(write_text_folder(tmp_path / "text"))
    prepare_in(tmp_path / "run", config)
    path = tmp_path / "run" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    touched = open_corpus(tmp_path / "run").streams[Path(name).name.split("-")[0]]
    with pytest.raises(Damaged, match=re.escape(name)):
        touched.tokens(0, 1)
        touched.words(0, 1)


def test_a_lost_tokenizer_is_made_again_as_it_was(tmp_path: Path) -> None:
    config = config_of(write_text_folder(tmp_path / "text"))
    prepare_in(tmp_path / "run", config)
    before = digests(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "tokenizer")
    with pytest.raises(CuveeError, match="tokenizer"):
        open_corpus(tmp_path / "run")
    prepare_in(tmp_path / "run", config)
    assert digests(tmp_path / "run") == before


def test_the_embedded_corpus_is_prepared_alike(tmp_path: Path) -> None:
    config = CorpusConfig(words=3000)
    made = [prepare_in(tmp_path / name, config) for name in ("a", "b")]
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert 2800 < sum(found.num_words for found in made[0].streams.values()) <= 3000
