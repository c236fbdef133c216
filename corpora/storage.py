"""Durable files: every byte that must survive a crash is written, committed and verified here.

A file is written under a unique temporary name, flushed and synced, renamed, and its folder synced; only then does the
call return. A folder exists when its `manifest.json`, written last, says so: the manifest names every file with size
and digest, the fingerprint (every input that affects the bytes) and a few facts, and carries a digest of itself.
Readers verify a file once a process, at first touch.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from corpora.errors import Damaged, InputRefused, NoRoom, describe_differences, differing_fields

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_TEMPORARY = ".partial"
_PIECE = 1 << 20  # bytes that are read or written, and digested while they are in the processor's cache
_OUT_OF_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_verified: set[tuple[str, int, int, str]] = set()


def fault(operation: str, path: Path) -> None:
    """Called before each "write", "sync" and "rename"; tests put a function in its place that fails or kills."""


def canonical_json(value: object) -> str:
    """JSON text that does not depend on the order in which keys were set; NaN and infinity raise ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(data: bytes | memoryview) -> str:
    """XXH3-128 of bytes, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)


def fingerprint_digest(fingerprint: object) -> str:
    """Short name (8 hexadecimal digits) of a fingerprint."""
    return _json_digest(fingerprint)[:8]


def _json_digest(value: object) -> str:
    return digest(canonical_json(value).encode("utf-8", "surrogatepass"))  # a damaged manifest may hold anything


def file_digest(path: Path) -> str:
    """XXH3-128 of a file, read in pieces."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
    return hasher.hexdigest()


@contextlib.contextmanager
def _out_of_room_named(path: Path, size: int) -> Iterator[None]:
    """Turn the system's "no space", "quota" and "file too large" into one line that names path, need and room."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OUT_OF_ROOM:
            raise
        free = shutil.disk_usage(path.parent).free
        raise NoRoom(
            f"{path}: {os.strerror(error.errno)}; {size:,} bytes needed, {free:,} free; "
            "make room and run the same command again"
        ) from error


def _sync_folder(folder: Path) -> None:
    fault("sync", folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, durably; a parent that is a file is refused."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        try:
            with _out_of_room_named(folder, 4096):
                folder.mkdir(exist_ok=True)  # another process may be faster
                _sync_folder(folder.parent)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputRefused(f"{folder}: a file stands where a folder is needed; move it away") from error


def write_file(path: Path, *parts: bytes | memoryview) -> str:
    """Commit the parts, one after the other, as the file `path`, all or nothing; returns its digest.

    Raises NoRoom when the disk, a quota or the file-size limit is exhausted; no temporary is left behind then.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    hasher = xxhash.xxh3_128()
    try:
        with _out_of_room_named(path, sum(len(part) for part in parts)):
            with temporary.open("wb") as file:
                fault("write", path)
                for piece in itertools.chain.from_iterable(map(_pieces, parts)):
                    file.write(piece)
                    hasher.update(piece)
                file.flush()
                fault("sync", path)
                os.fsync(file.fileno())
            fault("rename", path)
            os.replace(temporary, path)
            _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return hasher.hexdigest()


def _pieces(data: bytes | memoryview) -> Iterator[memoryview]:
    view = memoryview(data)
    yield from (view[first : first + _PIECE] for first in range(0, len(view), _PIECE))


def write_json(path: Path, value: object) -> None:
    """Commit a value as indented JSON; NaN and infinity are not JSON and raise ValueError."""
    write_file(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Parse a JSON file of ours; raises Damaged when it is missing or not JSON."""
    try:
        return json.loads(path.read_bytes().decode())
    except FileNotFoundError as error:
        raise Damaged(f"{path}: missing; delete {path.parent} and run the same command again") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: not JSON ({error}); delete {path.parent} and run the same command again") from error


@dataclass(frozen=True)
class Manifest:
    """What a folder is, which inputs made it, and its files."""

    folder: Path
    kind: str
    fingerprint: dict[str, Any]
    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]

    def verified(self, name: str) -> Path:
        """Path of a file after its size and digest were checked (once a process); raises Damaged."""
        path, listed = self.folder / name, self.files[name]
        touched = _touched(path, listed)
        if touched not in _verified:
            if damage := self.damage(name):
                raise Damaged(damage)
            assert touched is not None, "a missing file is damage"
            _verified.add(touched)
        return path

    def damage(self, name: str) -> str | None:
        """What is wrong with a file and what to do, in one line, or None; it is read now, whoever has read it."""
        found = found_instead(self.folder / name, self.files[name])
        return found and f"{self.folder / name}: {found}; {self._remedy}"

    def array(self, name: str) -> np.ndarray:
        """A verified `.npy` file, memory-mapped read-only."""
        return np.load(self.verified(name), mmap_mode="r", allow_pickle=False)

    @property
    def _remedy(self) -> str:
        if self.kind == "cache":  # other folders are made whole, or not at all
            return f"cuvee repair {self.folder} makes again what is damaged"
        return f"delete {self.folder} and run the same command again"

    def require(self, kind: str, fingerprint: dict[str, Any]) -> Manifest:
        """This manifest, if it was made from these inputs; raises InputRefused that names the differing fields."""
        found = {"kind": self.kind, **self.fingerprint}
        expected = json.loads(canonical_json({"kind": kind, **fingerprint}))  # as it would have been read back
        if differing_fields(found, expected):
            raise InputRefused(
                f"{self.folder}: made from other inputs: {describe_differences(found, expected)}; "
                f"use another run_dir, or delete {self.folder} and run the same command again"
            )
        return self


def found_instead(path: Path, listed: dict[str, Any]) -> str | None:
    """What stands at `path` instead of the file that is listed with size and digest, or None when it is that file."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "missing, but the manifest lists it"
    found = file_digest(path)
    if size == listed["size"] and found == listed["digest"]:
        return None
    return (
        f"found {size} bytes with digest {found}, the manifest expects {listed['size']} bytes with {listed['digest']}"
    )


def _touched(path: Path, listed: dict[str, Any]) -> tuple[str, int, int, str] | None:
    """Names a state of a file that needs to be verified once; None when there is no file."""
    if not path.exists():
        return None
    status = path.stat()
    return str(path.resolve()), status.st_mtime_ns, status.st_size, listed["digest"]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None when the folder was never finished.

    Raises Damaged when it cannot be parsed or fails its own digest, InputRefused when it is of another format.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    value = read_json(path)
    stored = value if isinstance(value, dict) else {}
    remedy = f"delete {folder} and run the same command again"
    if stored.get("format") != FORMAT_VERSION:
        found = ascii(stored.get("format"))[:60]  # anybody can have written it
        raise InputRefused(f"{path}: format {found}, this version reads {FORMAT_VERSION}; {remedy}")
    expected = stored.pop("digest", None)
    found = _json_digest(stored)
    if found != expected:
        raise Damaged(f"{path}: its content has digest {found}, it says {expected}; {remedy}")
    return Manifest(folder, stored["kind"], stored["fingerprint"], stored["facts"], stored["files"])


class FolderWriter:
    """Writes the files of one folder; `new_folder` commits them with the manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}
        self.facts: dict[str, Any] = {}
        self._written: list[str] = []

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Commit one file and list it in the manifest to come."""
        self._commit(name, data)

    def write_json(self, name: str, value: object) -> None:
        """Commit a value as canonical JSON."""
        self.write(name, (canonical_json(value) + "\n").encode())

    def write_array(self, name: str, array: np.ndarray) -> None:
        """Commit an array as `.npy`; the bytes depend on the values, the type and the shape alone."""
        array = np.ascontiguousarray(array)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        # the numbers go to the disk from where they are
        self._commit(name, header.getvalue(), array.reshape(-1).view(np.uint8).data)

    def _commit(self, name: str, *parts: bytes | memoryview) -> None:
        self._written.append(name)  # before it is there: a sync that fails may leave it behind
        listed = {"size": sum(len(part) for part in parts), "digest": write_file(self.folder / name, *parts)}
        self.files[name] = listed

    def adopt(self, name: str, listed: dict[str, Any]) -> None:
        """List a file that an earlier, interrupted run has committed."""
        self.files[name] = listed

    def commit(self, kind: str, fingerprint: dict[str, Any]) -> None:
        """Write the manifest: from here on the folder exists."""
        value = {
            "format": FORMAT_VERSION,
            "kind": kind,
            "fingerprint": fingerprint,
            "facts": self.facts,
            "files": self.files,
        }
        write_json(self.folder / MANIFEST, {**value, "digest": _json_digest(value)})

    def discard(self) -> None:
        """Remove what this writer wrote: without a manifest it is nothing. Adopted files stay for the next attempt."""
        with contextlib.suppress(OSError):  # the error that brought us here is the one to tell
            remove_manifest(self.folder)
        for name in self._written:
            (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder may hold checkpoints or shards that a resume will use
            self.folder.rmdir()


@contextlib.contextmanager
def new_folder(folder: Path, *, kind: str, fingerprint: dict[str, Any]) -> Iterator[FolderWriter]:
    """Write a folder whose manifest is committed last; an exception inside leaves no file of it behind.

    A folder that is written anew counts as unfinished from the first moment.
    """
    make_folder(folder)
    remove_manifest(folder)
    writer = FolderWriter(folder)
    try:
        yield writer
        writer.commit(kind, fingerprint)
    except BaseException:
        writer.discard()
        raise


def remove_manifest(folder: Path) -> None:
    """Make a folder count as unfinished, durably."""
    if (folder / MANIFEST).exists():
        (folder / MANIFEST).unlink()
        _sync_folder(folder)


def remove_folder(folder: Path) -> None:
    """Delete a folder, its manifest first, so that a half-deleted one does not count as existing."""
    if folder.exists():
        remove_manifest(folder)
        shutil.rmtree(folder)


def sweep(folder: Path) -> int:
    """Remove stale temporaries below `folder` and return their number; call it under the lock."""
    stale = [path for path in folder.rglob(f".*{_TEMPORARY}") if path.is_file()]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for one writer; the kernel frees the lock of a process that died. A second writer is refused."""
    from filelock import FileLock, Timeout

    make_folder(folder)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputRefused(f"{folder}: another process is writing here; wait for it, or use another run_dir") from error
    try:
        sweep(folder)
        yield
    finally:
        lock.release()


class AppendLog:
    """A JSON Lines file that grows by whole lines and is cut back to a known length when a run resumes."""

    def __init__(self, path: Path, *, length: int = 0) -> None:
        """Open `path` for appending after its first `length` bytes; what follows them is cut off.

        Raises Damaged when it is shorter than that.
        """
        make_folder(path.parent)
        size = path.stat().st_size if path.exists() else 0
        if size < length:
            raise Damaged(f"{path}: {size} bytes, the checkpoint saw {length}; delete {path.parent} and run again")
        self.path = path
        # unbuffered: nothing is left to be written when a line has failed
        self._file = path.open("ab", buffering=0)
        self._cut(length)
        _sync_folder(path.parent)

    def append(self, record: dict[str, Any]) -> None:
        """Add one record as a line of canonical JSON, whole or not at all; raises NoRoom."""
        line = (canonical_json(record) + "\n").encode()
        length = self._file.tell()
        try:
            with _out_of_room_named(self.path, len(line)):
                fault("write", self.path)
                rest = memoryview(line)
                while rest:
                    rest = rest[self._file.write(rest) :]
        except BaseException:
            self._cut(length)
            raise

    def synced_length(self) -> int:
        """Length in bytes, after everything appended so far has reached the disk."""
        with _out_of_room_named(self.path, 0):
            fault("sync", self.path)
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _cut(self, length: int) -> None:
        self._file.truncate(length)
        self._file.seek(length)
