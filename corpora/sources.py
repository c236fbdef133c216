"""Documents out of files, or out of the embedded grammar.

`.jsonl` and `.jsonl.zst`: one document a line, its text under `text`. `.txt`: one document a file. `.train` (the
challenge's form): a whole domain in one file without borders that can be trusted; it is cut at line ends into documents
of at most `max_document_words` words. Files are UTF-8; a byte order mark is dropped and lines may end in CRLF.

A document is named by its place, `file:number` below the root: unique, and the same wherever the folder stands.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from corpora.config import CorpusConfig
from corpora.document import Document, count_words, words_of
from corpora.errors import InputRefused
from corpora.storage import file_digest

ENDINGS = (".jsonl.zst", ".jsonl", ".txt", ".train")
# what JSON can spell and UTF-8 text cannot hold, or should not: lone surrogates and NUL
_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")


def read_documents(config: CorpusConfig, seed: int) -> Iterator[Document]:
    """Every document of the corpus, in a fixed order; raises InputRefused with file and line."""
    if config.source == "synthetic":
        from corpora.synthetic import generate_documents

        yield from generate_documents(config.words or 400_000, seed)
        return
    for name, path in source_files(config).items():
        yield from documents_of(
            path, name, domain_words=config.max_document_words, most_words=config.max_document_words
        )


def documents_of(path: Path, name: str, *, domain_words: int, most_words: int) -> Iterator[Document]:
    """The documents of one file that have text, as pieces of at most `most_words`; `name` stands in their places.

    `domain_words`: of the documents that a file without borders is cut into. Raises InputRefused with file and line.
    """
    for number, text in READERS[ending(path)](path, domain_words):
        if text.strip():
            yield from cut_document(Document(id=f"{name}:{number}", source=source_name(path), text=text), most_words)


def source_identity(config: CorpusConfig) -> dict[str, str]:
    """What the text is made from: the digest of each file, or of the grammar's own source."""
    if config.source == "synthetic":
        return {path.name: file_digest(path) for path in sorted(Path(__file__).parent.glob("synthetic*.py"))}
    return {name: _readable_digest(path) for name, path in source_files(config).items()}


def source_files(config: CorpusConfig) -> dict[str, Path]:
    """The text files below `corpus.root` by their name below it, sorted; raises InputRefused when there is none."""
    if not config.root:
        raise InputRefused("corpus.root: not set; the source 'folder' reads the files below it: give corpus.root=DIR")
    root = Path(config.root)
    if not root.is_dir():
        raise InputRefused(f"corpus.root: {root} is not a folder; give one that holds {', '.join(ENDINGS)} files")
    found = (path for path in root.rglob("*") if path.name.endswith(ENDINGS) and not path.is_dir())
    files = {path.relative_to(root).as_posix(): path for path in sorted(found)}
    if not files:
        raise InputRefused(f"corpus.root: {root} holds no file that ends in {', '.join(ENDINGS)}; put the text there")
    for name in files:
        if _NO_CHARACTER.search(name):
            raise InputRefused(f"corpus.root: the file name {name!a} below {root} is not UTF-8; rename the file")
    return files


def ending(path: Path) -> str:
    """Which of the known endings a file has."""
    return next(ending for ending in ENDINGS if path.name.endswith(ending))


def source_name(path: Path) -> str:
    """The file's name without its endings: what budgets and reports call the source."""
    return path.name.removesuffix(ending(path))


def cut_document(document: Document, max_words: int) -> Iterator[Document]:
    """The document itself, or, when it is longer than `max_words`, its pieces cut at line ends."""
    if count_words(document.text) <= max_words:
        yield document
        return
    for number, text in enumerate(gather_lines(document.text.split("\n"), max_words)):
        yield Document(id=f"{document.id}#{number}", source=document.source, text=text, group=document.id)


def gather_lines(lines: Iterable[str], max_words: int) -> Iterator[str]:
    """Join lines into texts of at most `max_words` words; a longer line is cut between words."""
    gathered: list[str] = []
    room = max_words
    for line in lines:
        for part in _cut_line(line, max_words):
            words = count_words(part)
            if words > room and gathered:
                yield "\n".join(gathered)
                gathered, room = [], max_words
            gathered.append(part)
            room -= words
    if gathered:
        yield "\n".join(gathered)


def _cut_line(line: str, max_words: int) -> Iterator[str]:
    if count_words(line) <= max_words:
        yield line
        return
    words = words_of(line)
    for start in range(0, len(words), max_words):
        yield " ".join(words[start : start + max_words])


# Readers give each text with its number in the file: of the line, or of the document.


def _read_jsonl(path: Path, max_words: int) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_text_lines(path), start=1):
        if line.strip():
            yield number, _text_of(line, f"{path}:{number}")


def _text_of(line: str, place: str) -> str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputRefused(
            f"{place}: not JSON ({error}); expected one object a line; mend or remove the line"
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        found = f"the keys {sorted(row)}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise InputRefused(
            f"{place}: no text: found {found}, expected an object whose 'text' is a string; mend the line"
        )
    if wrong := _NO_CHARACTER.search(row["text"]):
        raise InputRefused(f"{place}: the text holds {wrong[0]!a}, which is no character; mend the line")
    return row["text"]


def _read_txt(path: Path, max_words: int) -> Iterator[tuple[int, str]]:
    yield 1, "".join(_text_lines(path))


def _read_train(path: Path, max_words: int) -> Iterator[tuple[int, str]]:
    lines = (line.rstrip("\n") for line in _text_lines(path))
    yield from enumerate(gather_lines(lines, max_words), start=1)


def _text_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, each ending in a newline but perhaps the last; what is no text is refused by its place."""
    for number, line in enumerate(_byte_lines(path), start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputRefused(
                f"{path}:{number}: byte {error.start + 1} of the line (0x{line[error.start]:02x}) is not UTF-8; "
                "convert the file, for example with iconv -t UTF-8"
            ) from error
        if b"\0" in line:
            raise InputRefused(
                f"{path}:{number}: byte {line.index(0) + 1} of the line is NUL, which no text holds; "
                "if the file is UTF-16, convert it with iconv -f UTF-16 -t UTF-8"
            )
        yield text[:-2] + "\n" if text.endswith("\r\n") else text


def _byte_lines(path: Path) -> Iterator[bytes]:
    if not path.name.endswith(".zst"):
        with path.open("rb") as file:
            yield from file
        return
    begun: list[bytes] = []  # of the line whose end has not been met
    for piece in _decompressed(path):
        first, *others = piece.split(b"\n")
        begun.append(first)
        for other in others:
            yield b"".join(begun) + b"\n"
            begun = [other]
    if any(begun):
        yield b"".join(begun)


def _decompressed(path: Path) -> Iterator[bytes]:
    """Pieces of a Zstandard file of any number of frames; one that ends inside a frame is refused."""
    import zstandard

    with path.open("rb") as file:
        piece = file.read(1 << 20)
        try:
            while True:
                frame = zstandard.ZstdDecompressor().decompressobj()
                while piece and not frame.eof:
                    yield frame.decompress(piece)
                    piece = frame.unused_data or file.read(1 << 20)
                if not frame.eof:
                    raise InputRefused(f"{path}: empty, or ends inside a Zstandard frame; copy the file again")
                if not piece:
                    return
        except zstandard.ZstdError as error:
            raise InputRefused(f"{path}: not a readable Zstandard file ({error}); copy it again") from error


def _readable_digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise InputRefused(f"{path}: cannot be read ({error.strerror}); mend it or take it away") from error


READERS = {".jsonl.zst": _read_jsonl, ".jsonl": _read_jsonl, ".txt": _read_txt, ".train": _read_train}
