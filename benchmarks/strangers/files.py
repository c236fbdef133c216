"""Which files may lie in a stranger's folder: weights as safetensors, JSON, and text that nobody executes.

Names are promises of the stranger, so every file is judged by its bytes as well: a pickle or an archive is refused
whatever it is called, and whether or not anything here would open it. Folders inside the folder are never entered.
"""

from __future__ import annotations

import itertools
import json
import os
import pickletools
import re
import stat
from pathlib import Path
from typing import Any

from benchmarks.strangers.refusal import refuse, shown, shown_place
from benchmarks.strangers.strict_json import read_json_object
from corpora.errors import Damaged
from corpora.storage import MANIFEST, digest, file_digest, found_instead

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
MAX_FILES = 64
MAX_WEIGHT_BYTES = 16 << 30
MAX_TEXT_BYTES = 64 << 20  # of any other file; the largest are tokenizers
_HEAD = 1024  # bytes that tell a format
_TEXTS = {".json", ".jsonl", ".md", ".txt", ".csv", ".tsv", ".yaml", ".yml", ".bib", ".py"}
_NAMES = {"LICENSE", "NOTICE", "README", ".gitattributes", ".gitignore", ".lock"}
_PART = re.compile(r"model-\d+-of-\d+\.safetensors")
_IN_PARTS = ("weights in parts", f"one {WEIGHTS}", "save it again with max_shard_size='100GB'")
_ADVICE = {  # what files that change a model's meaning are, what fits, what to do about it
    "adapter_config.json": ("weights of an adapter", "a whole model", "merge the adapter into its model and save that"),
    f"{WEIGHTS}.index.json": _IN_PARTS,
    "chat_template.json": ("a chat template", "a model of plain text", "remove it"),
}
_MAGIC = (  # where, which bytes, and what they begin
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"PK\x05\x06", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x7fELF", "a program"),
    (0, b"#!", "a script"),
)
_PICKLE_PROTOCOLS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
MOST_OPCODES = 10_000  # that are looked at; a text that is longer in opcodes was not written by people
_NAMING_OPCODES = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}  # with which a pickle reaches for code
_CONTROLS = bytes(set(range(0x20)) - set(b"\t\n\r\f")) + b"\x7f"


def check_manifest(folder: Path) -> None:
    """Raise InputRefused for a manifest that must not be opened: to be asked before a folder is asked whose it is."""
    path = folder / MANIFEST
    if path.exists() and _regular_size(path, str(path)) is None:
        refuse(str(path), "a directory", expected="a file", remedy="remove it")


def check_files(folder: Path) -> None:
    """Raise InputRefused for a folder with anything but weights, JSON and text in it, or without what a model needs.

    Raises Damaged when the folder has a manifest of ours and a file that it lists has changed.
    """
    if not str(folder).isprintable():  # messages and tables will name it
        remedy = "rename it"
        refuse(shown(str(folder)), "control characters in its name", expected="a printable name", remedy=remedy)
    names = _names(folder)
    _check_cases(names, folder)
    for name in names:
        _check_file(folder / name, shown_place(folder, name), folder)
    if missing := [name for name in (CONFIG, WEIGHTS, TOKENIZER) if name not in names]:
        refuse(
            str(folder),
            f"no {', '.join(missing)}",
            expected=f"{CONFIG}, {WEIGHTS} and {TOKENIZER}",
            remedy="save the model and its fast tokenizer with save_pretrained",
        )
    if MANIFEST in names:
        _check_manifest(folder)


def folder_digest(folder: Path) -> str:
    """Of the files that lie in a folder, whatever they are; links out of it, pipes and folders in it are left out."""
    names = [name for name in _names(folder) if _lies_in(folder / name, folder) and (folder / name).is_file()]
    return digest(json.dumps([[name, file_digest(folder / name)] for name in names]).encode())


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in itertools.islice(entries, MAX_FILES + 1))
    except OSError as error:
        refuse(str(folder), str(error.strerror), expected="a folder", remedy="name a model's folder", cause=error)
    if len(names) > MAX_FILES:
        remedy = "remove what does not belong to the model"
        refuse(str(folder), f"more than {MAX_FILES} files", expected=f"at most {MAX_FILES}", remedy=remedy)
    return names


def _check_cases(names: list[str], folder: Path) -> None:
    """Raise InputRefused for names of which systems that do not tell cases apart keep one alone."""
    kept: dict[str, str] = {}
    for name in names:
        first = kept.setdefault(name.casefold(), name)
        if first != name:
            found = f"beside {shown(first)}, which differs in case alone"
            refuse(shown_place(folder, name), found, expected="names that differ", remedy="remove one of the two")


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path stays in a folder when links are followed."""
    # `realpath`, for `resolve` raises for a link to itself
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _regular_size(path: Path, place: str) -> int | None:
    """Bytes of a regular file, None of a folder; anything else is refused unopened, and so is what is too large."""
    try:
        status = path.stat()
    except OSError as error:
        refuse(place, str(error.strerror), expected="a file", remedy="remove it", cause=error)
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):  # a pipe would never end
        refuse(place, "no regular file", expected="files", remedy="remove it")
    most = MAX_WEIGHT_BYTES if path.name == WEIGHTS else MAX_TEXT_BYTES
    if status.st_size > most:
        refuse(place, f"{status.st_size:,} bytes", expected=f"at most {most:,}", remedy="remove it")
    return status.st_size


def _check_file(path: Path, place: str, folder: Path) -> None:
    """Links first, then kind and size, name, and the bytes themselves."""
    if not _lies_in(path, folder):
        remedy = "copy the folder with its links followed (cp -rL)"
        refuse(place, "a link out of the folder", expected="files that lie in it", remedy=remedy)
    if _regular_size(path, place) is None:
        return
    advice = _IN_PARTS if _PART.fullmatch(path.name) else _ADVICE.get(path.name)
    if advice is not None:
        found, expected, remedy = advice
        refuse(place, found, expected=expected, remedy=remedy)
    is_weights = path.name == WEIGHTS
    with path.open("rb") as file:
        head = file.read(_HEAD)
    # a header's length may begin like anything; `safetensors_check` goes on behind the brace
    kind = None if is_weights and head[8:9] == b"{" else _kind(head)
    if kind is None and not is_weights and path.suffix not in _TEXTS and path.name not in _NAMES:
        kind = "a file of an unknown kind"
    if kind:
        remedy = f"save the model as {WEIGHTS}" if is_weights else "remove it"
        refuse(place, kind, expected=f"{WEIGHTS}, JSON and text", remedy=remedy)
    if not is_weights:
        _check_text(path, place)


def _kind(head: bytes) -> str | None:
    """The format that must not be here; None when the first bytes speak for none."""
    if head.startswith(_PICKLE_PROTOCOLS):
        return "a pickle"
    return next((kind for offset, magic, kind in _MAGIC if head.startswith(magic, offset)), None)


def _check_text(path: Path, place: str) -> None:
    """Raise InputRefused unless a file is UTF-8 text without control characters, and neither code nor a pickle."""
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse(place, f"byte {error.start} is not UTF-8", expected="text", remedy="remove it", cause=error)
    if len(data) != len(data.translate(None, _CONTROLS)):
        refuse(place, "control characters", expected="text", remedy="remove it")
    if _is_text_pickle(data):
        refuse(place, "a pickle (protocol 0)", expected="text", remedy="remove it")
    if path.suffix == ".py" and not _is_ours(path.name, data):
        refuse(place, "Python code", expected="none", remedy="remove it: no code of a candidate is run")


def _is_text_pickle(data: bytes) -> bool:
    """Whether a text is opcodes up to a stop, some of which name code. They are listed, never carried out.

    One that goes on for long is taken for a pickle, for listing megabytes of them takes a minute.
    """
    try:
        named = [opcode.name for opcode, _, _ in itertools.islice(pickletools.genops(data), MOST_OPCODES)]
        return len(named) == MOST_OPCODES or not _NAMING_OPCODES.isdisjoint(named)
    except (ValueError, OverflowError):  # no opcode, or an argument that is none
        return False


def _is_ours(name: str, data: bytes) -> bool:
    """Whether a file is one of our modelling files, which travel with exported models. They are not run from there.

    To the byte: those of another version are refused, for nobody can tell them from code that was changed. A model
    means the same without them, so that their owner may remove them.
    """
    from students.registry import ARCHITECTURES

    ours = {source for architecture in ARCHITECTURES.values() for source in architecture.source_files}
    return name in ours and data == (Path(__file__).parents[2] / "students" / name).read_bytes()


def _check_manifest(folder: Path) -> None:
    """In a run folder of ours, the files that will be read are as they were written."""
    path = folder / MANIFEST
    manifest = read_json_object(path, str(path), max_bytes=1 << 20, max_depth=16, remedy="copy the run again")
    files: Any = manifest.get("files")
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        listed = files.get(name) if isinstance(files, dict) else None
        if not isinstance(listed, dict) or not {"size", "digest"} <= set(listed):
            refuse(str(path), f"{name} is not listed", expected="the manifest of a run", remedy="remove it")
        if found := found_instead(folder / name, {"size": listed["size"], "digest": str(listed["digest"])[:64]}):
            raise Damaged(f"{folder / name}: {ascii(found)[1:-1][:250]}; copy the run again")
