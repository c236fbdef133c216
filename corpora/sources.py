"""Documents out of files, or out of the embedded grammar.

`.jsonl` and `.jsonl.zst`: one document a line, its text under `text`, its name under `id` if it has one. `.txt`: one
document a file. `.train` (the challenge's form): a whole domain in one file without borders that can be trusted; it is
cut at line ends into documents of at most `max_document_words` words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from corpora.config import CorpusConfig
from corpora.document import Document, count_words
from corpora.errors import InputRefused
from corpora.storage import file_digest

ENDINGS = (".jsonl.zst", ".jsonl", ".txt", ".train")


def read_documents(config: CorpusConfig, seed: int) -> Iterator[Document]:
    """Every document of the corpus, in a fixed order; raises InputRefused with file and line."""
    if config.source == "synthetic":
        from corpora.synthetic import generate_documents

        yield from generate_documents(config.words or 400_000, seed)
        return
    for path in source_files(config):
        for document in READERS[ending(path)](path, config.max_document_words):
            yield from cut_document(document, config.max_document_words)


def source_identity(config: CorpusConfig) -> dict[str, str]:
    """What the text is made from: the digest of each file, or of the grammar's own source."""
    if config.source == "synthetic":
        return {path.name: file_digest(path) for path in sorted(Path(__file__).parent.glob("synthetic*.py"))}
    root = Path(config.root or "")
    return {str(path.relative_to(root)): file_digest(path) for path in source_files(config)}


def source_files(config: CorpusConfig) -> list[Path]:
    """The readable files below `corpus.root`, sorted; raises InputRefused when there is none."""
    if not config.root:
        raise InputRefused("corpus.root: not set; the source 'folder' reads the files below it: give corpus.root=DIR")
    root = Path(config.root)
    if not root.is_dir():
        raise InputRefused(f"corpus.root: {root} is not a folder; give one that holds {', '.join(ENDINGS)} files")
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name.endswith(ENDINGS))
    if not files:
        raise InputRefused(f"corpus.root: {root} holds no file that ends in {', '.join(ENDINGS)}; put the text there")
    return files


def ending(path: Path) -> str:
    """Which of the known endings a file has."""
    return next(ending for ending in ENDINGS if path.name.endswith(ending))


def source_name(path: Path) -> str:
    """The file's name without its endings: what budgets and reports call the source."""
    return path.name.removesuffix(ending(path))


def cut_document(document: Document, max_words: int) -> Iterator[Document]:
    """The document itself, or, when it is longer than `max_words`, its pieces cut at paragraphs (single newlines)."""
    if count_words(document.text) <= max_words:
        yield document
        return
    for number, text in enumerate(gather_lines(document.text.splitlines(), max_words)):
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
    words = line.split()
    for start in range(0, len(words), max_words):
        yield " ".join(words[start : start + max_words])


def _read_jsonl(path: Path, max_words: int) -> Iterator[Document]:
    name = source_name(path)
    for number, line in enumerate(_text_lines(path), start=1):
        if not line.strip():
            continue
        text, identifier = _text_and_id(line, f"{path}:{number}")
        if text.strip():
            yield Document(
                id=f"{name}/{number}" if identifier is None else f"{name}/{identifier}", source=name, text=text
            )


def _text_and_id(line: str, place: str) -> tuple[str, object]:
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
    try:
        row["text"].encode()
    except UnicodeEncodeError as error:
        raise InputRefused(f"{place}: the text holds a lone surrogate, which is no character; mend the line") from error
    return row["text"], row.get("id")


def _read_txt(path: Path, max_words: int) -> Iterator[Document]:
    text = "".join(_text_lines(path))
    if text.strip():
        yield Document(id=source_name(path), source=source_name(path), text=text)


def _read_train(path: Path, max_words: int) -> Iterator[Document]:
    name = source_name(path)
    lines = (line.rstrip("\n") for line in _text_lines(path))
    for number, text in enumerate(gather_lines(lines, max_words)):
        if text.strip():
            yield Document(id=f"{name}/{number}", source=name, text=text)


def _text_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, with their newline; the place of a byte that is not UTF-8 is named."""
    for number, line in enumerate(_byte_lines(path), start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputRefused(
                f"{path}:{number}: byte {error.start + 1} of the line (0x{line[error.start]:02x}) is not UTF-8; "
                "convert the file, for example with iconv -t UTF-8"
            ) from error


def _byte_lines(path: Path) -> Iterator[bytes]:
    if not path.name.endswith(".zst"):
        with path.open("rb") as file:
            yield from file
        return
    tail = b""
    for piece in _decompressed(path):
        *lines, tail = (tail + piece).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if tail:
        yield tail


def _decompressed(path: Path) -> Iterator[bytes]:
    """Pieces of a Zstandard file of any number of frames; one that ends inside a frame is refused."""
    import zstandard

    with path.open("rb") as file:
        piece = file.read(1 << 20)
        try:
            while piece:
                frame = zstandard.ZstdDecompressor().decompressobj()
                while piece and not frame.eof:
                    yield frame.decompress(piece)
                    piece = frame.unused_data or file.read(1 << 20)
                if not frame.eof:
                    raise InputRefused(f"{path}: ends inside a Zstandard frame; copy the file again")
        except zstandard.ZstdError as error:
            raise InputRefused(f"{path}: not a Zstandard file ({error}); copy it again") from error


READERS = {".jsonl.zst": _read_jsonl, ".jsonl": _read_jsonl, ".txt": _read_txt, ".train": _read_train}
