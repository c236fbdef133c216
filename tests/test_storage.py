"""Storage keeps its promise: a file is old or new, a folder is whole or unfinished, and damage is seen before use."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from conftest import in_child, kill_at
from hypothesis import given
from hypothesis import strategies as st

from corpora import storage
from corpora.errors import Damaged, InputRefused, NoRoom, describe_differences, differing_fields

OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FINGERPRINT = {"seed": 1, "model": {"layers": 2, "width": 8}}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def fail_at(number: int, error: int, *, sticky: bool = False) -> Callable[[str, Path], None]:
    """A fault hook that fails at the `number`-th operation, or from it on."""
    calls = 0

    def fault(operation: str, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == number or (sticky and calls > number):
            raise OSError(error, os.strerror(error))

    return fault


def write_example(folder: Path, value: int = 7) -> None:
    """A folder of two small files, one in a format of its own and one array."""
    with storage.new_folder(folder, kind="example", fingerprint=FINGERPRINT) as writer:
        writer.write("weights.bin", bytes([value]) * 24)
        writer.write_array("numbers.npy", np.arange(value))
        writer.facts["value"] = value


def use(folder: Path) -> dict[str, bytes] | None:
    """Every byte of a folder, read as its users read it, or None when it is unfinished."""
    manifest = storage.read_manifest(folder)
    if manifest is None:
        return None
    manifest.require("example", FINGERPRINT)
    return {name: manifest.verified(name).read_bytes() for name in manifest.files}


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# ---- one file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from_then_on"])
@pytest.mark.parametrize("error", [*OUT_OF_ROOM, errno.EIO], ids=errno.errorcode.get)
def test_a_failing_operation_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, sticky: bool
) -> None:
    path = tmp_path / "file.bin"
    for number in count(1):
        monkeypatch.setattr(storage, "fault", lambda operation, path: None)
        storage.write_file(path, b"old")
        monkeypatch.setattr(storage, "fault", fail_at(number, error, sticky=sticky))
        try:
            storage.write_file(path, b"the new content")
        except OSError as raised:
            assert raised.errno == error == errno.EIO
        except NoRoom as raised:
            assert error in OUT_OF_ROOM
            assert str(path) in str(raised) and "15 bytes needed" in str(raised) and " free" in str(raised)
        else:
            break
        assert path.read_bytes() in (b"old", b"the new content")
        assert files_below(tmp_path) == [path]
    assert number == 5  # write, sync, rename and the folder's sync have all failed once
    assert path.read_bytes() == b"the new content"


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append("folder" if os.path.isdir(f"/dev/fd/{fd}") else "file"), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("rename"), replace(old, new)))
    storage.write_file(tmp_path / "file.bin", b"content")
    assert calls == ["file", "rename", "folder"]


def test_new_folders_are_synced_into_their_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(storage, "fault", lambda operation, path: synced.append(path))
    storage.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


def test_a_file_where_a_folder_is_needed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(InputRefused, match="run: a file stands where a folder is needed"):
        storage.write_file(tmp_path / "run" / "corpus" / "tokens.npy", b"")


def limited_to(size: int, action: Callable[[], object], report: Path) -> None:
    """Run `action` in a child whose files may not exceed `size` bytes; what it raises goes to `report`."""

    def limited() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        try:
            action()
        except NoRoom as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            report.write_text(str(error))

    assert in_child(limited) == 0


def test_a_real_file_size_limit_is_told_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    limited_to(4096, lambda: storage.write_file(folder / "big.bin", bytes(10_000)), tmp_path / "report")
    assert f"{folder / 'big.bin'}: File too large; 10,000 bytes needed" in (tmp_path / "report").read_text()
    assert files_below(folder) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where the system lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "cuvee-test", str(disk)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_told_in_one_line_and_work_goes_on_once_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(40_000))
    with pytest.raises(NoRoom, match=r"big\.bin: No space left on device; 50,000 bytes needed, [\d,]+ free; make room"):
        storage.write_file(small_disk / "big.bin", bytes(50_000))
    assert files_below(small_disk) == [ballast]
    ballast.unlink()
    storage.write_file(small_disk / "big.bin", bytes(50_000))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(7),
        np.array([[True, False], [False, True]]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12, dtype="<u2")[::3],
        np.zeros((0, 4), np.float32),
        np.array(3.5),
        np.array([(1, [2, 3])], [("scale", "<f4"), ("features", "<i1", (2,))]),
        np.arange(3 * storage._PIECE // 8 + 5),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_arrays_are_the_files_that_numpy_writes(tmp_path: Path, array: np.ndarray) -> None:
    writer = storage.FolderWriter(tmp_path)
    writer.write_array("array.npy", array)
    np.save(tmp_path / "numpy.npy", np.ascontiguousarray(array))
    assert (tmp_path / "array.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    size, digest = (tmp_path / "numpy.npy").stat().st_size, storage.file_digest(tmp_path / "numpy.npy")
    assert writer.files == {"array.npy": {"size": size, "digest": digest}}


# ---- a folder -----------------------------------------------------------------------------------------------------


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with storage.new_folder(tmp_path / "run", kind="example", fingerprint={}) as writer:
            writer.write("weights.bin", b"half")
            1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_a_failing_operation_leaves_no_file_of_the_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the last points are the manifest's own: also when its rename was done and only the folder's sync failed
    for number in count(1):
        folder = tmp_path / f"run-{number}"
        monkeypatch.setattr(storage, "fault", fail_at(number, errno.ENOSPC))
        try:
            write_example(folder)
        except NoRoom:
            assert storage.read_manifest(folder) is None
            assert files_below(folder) == []
        else:
            break
    assert number == 14  # the folder's own entry, then four operations for each of three files
    assert use(folder)


def test_a_manifest_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        with storage.new_folder(tmp_path / "run", kind="example", fingerprint={}) as writer:
            writer.write("weights.bin", b"half")
            writer.facts["loss"] = float("nan")
    assert list(tmp_path.iterdir()) == []


def test_adopted_files_survive_an_exception(tmp_path: Path) -> None:
    storage.write_file(tmp_path / "run" / "shard-0.bin", b"an hour of work")
    with pytest.raises(ZeroDivisionError):
        with storage.new_folder(tmp_path / "run", kind="example", fingerprint={}) as writer:
            writer.adopt("shard-0.bin", {"size": 15, "digest": storage.digest(b"an hour of work")})
            1 / 0  # noqa: B018
    assert files_below(tmp_path) == [tmp_path / "run" / "shard-0.bin"]


@pytest.mark.parametrize("before", ["nothing", "an_older_folder"])
def test_killed_anywhere_a_folder_is_unfinished_or_whole_and_the_next_attempt_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    write_example(tmp_path / "expected")
    expected = use(tmp_path / "expected")
    states = []
    for number in count(1):
        folder = tmp_path / f"run-{number}"
        if before == "an_older_folder":
            write_example(folder, value=5)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "fault", kill_at(number))
            status = in_child(lambda folder=folder: write_example(folder))
        states.append(use(folder))
        with storage.locked(folder):
            write_example(folder)
        assert use(folder) == expected
        assert not list(folder.rglob("*.partial"))
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert number >= 13
    assert states[-1] == states[-2] == expected  # the last point is the sync after the manifest's rename
    assert all(state is None for state in states[1:-2])


def test_a_folder_without_a_manifest_is_unfinished(tmp_path: Path) -> None:
    assert storage.read_manifest(tmp_path / "missing") is None
    assert storage.read_manifest(tmp_path) is None


def test_removing_a_folder_takes_its_manifest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example(tmp_path / "run")
    monkeypatch.setattr(shutil, "rmtree", lambda folder: None)  # killed in the middle
    storage.remove_folder(tmp_path / "run")
    assert storage.read_manifest(tmp_path / "run") is None
    storage.remove_folder(tmp_path / "never was")


# ---- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.bin", "numbers.npy", storage.MANIFEST])
def test_every_flipped_bit_is_seen_before_use(tmp_path: Path, name: str) -> None:
    write_example(tmp_path)
    path = tmp_path / name
    intact = path.read_bytes()
    for position in range(8 * len(intact)):
        flipped = bytearray(intact)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises((Damaged, InputRefused)) as raised:
            use(tmp_path)
        assert str(path) in str(raised.value)
        assert "delete" in str(raised.value)


@pytest.mark.parametrize("name", ["weights.bin", "numbers.npy", storage.MANIFEST])
def test_every_truncation_is_seen_before_use(tmp_path: Path, name: str) -> None:
    write_example(tmp_path)
    path = tmp_path / name
    intact = path.read_bytes().rstrip(b"\n")  # the manifest's last newline says nothing
    for length in range(len(intact)):
        path.write_bytes(intact[:length])
        with pytest.raises((Damaged, InputRefused), match=str(path)):
            use(tmp_path)


def test_a_missing_file_is_damage(tmp_path: Path) -> None:
    write_example(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(Damaged, match=r"weights\.bin: missing, but the manifest lists it; delete"):
        use(tmp_path)


NO_MANIFESTS = (
    "",
    "null",
    "[]",
    '"manifest"',
    "{}",
    '{"format": 1}',
    r'{"format": 1, "kind": "\ud800"}',
    "[" * 100_000,
)


@pytest.mark.parametrize("text", [*NO_MANIFESTS, "\ud800"], ids=range(len(NO_MANIFESTS) + 1))
def test_what_is_no_manifest_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / storage.MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises((Damaged, InputRefused), match=r"manifest\.json: "):
        storage.read_manifest(tmp_path)


def test_another_format_is_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example(tmp_path)
    monkeypatch.setattr(storage, "FORMAT_VERSION", 2)
    with pytest.raises(InputRefused, match="format 1, this version reads 2"):
        storage.read_manifest(tmp_path)


def test_a_file_is_verified_again_when_its_manifest_is_another(tmp_path: Path) -> None:
    write_example(tmp_path)
    assert use(tmp_path)
    status = (tmp_path / "weights.bin").stat()
    with storage.new_folder(tmp_path, kind="example", fingerprint=FINGERPRINT) as writer:
        writer.write("weights.bin", bytes(24))
    (tmp_path / "weights.bin").write_bytes(bytes([7]) * 24)
    os.utime(tmp_path / "weights.bin", ns=(status.st_atime_ns, status.st_mtime_ns))  # looks like the one verified above
    with pytest.raises(Damaged):
        use(tmp_path)


# ---- fingerprints -------------------------------------------------------------------------------------------------


def test_a_differing_field_is_named_with_both_values(tmp_path: Path) -> None:
    write_example(tmp_path)
    manifest = storage.read_manifest(tmp_path)
    assert manifest is not None
    with pytest.raises(InputRefused) as raised:
        manifest.require("example", {"seed": 2, "model": {"layers": 2, "width": 16}})
    assert "seed is 1 there and 2 here; " in str(raised.value)
    assert "model.width is 8 there and 16 here" in str(raised.value)
    assert "layers" not in str(raised.value)
    with pytest.raises(InputRefused, match="kind is 'example' there and 'cache' here"):
        manifest.require("cache", FINGERPRINT)


def test_a_fingerprint_is_compared_as_it_is_read_back(tmp_path: Path) -> None:
    with storage.new_folder(tmp_path, kind="example", fingerprint={"betas": (0.9, 0.95), "note": None}):
        pass
    manifest = storage.read_manifest(tmp_path)
    assert manifest is not None
    manifest.require("example", {"betas": (0.9, 0.95), "note": None})
    manifest.require("example", {"betas": [0.9, 0.95]})  # absent is None


def test_many_differences_stay_one_readable_line() -> None:
    old, new = ({f"file-{number:03d}": value for number in range(200)} for value in ("a", "b"))
    line = describe_differences(old, new)
    assert line.startswith("file-000 is 'a' there and 'b' here; ")
    assert line.endswith("; and 190 more")


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_a_value_has_no_differences_from_itself(value: dict) -> None:
    assert differing_fields(value, json.loads(storage.canonical_json(value))) == []


@given(json_values)
def test_canonical_json_is_json_of_the_same_value(value: object) -> None:
    text = storage.canonical_json(value)
    assert json.loads(text) == value
    assert storage.canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(), json_values, max_size=5), st.randoms())
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict, random) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert storage.canonical_json(dict(items)) == storage.canonical_json(value)
    assert storage.fingerprint_digest(dict(items)) == storage.fingerprint_digest(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_not_json(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError):
        storage.canonical_json({"loss": value})
    with pytest.raises(ValueError):
        storage.write_json(tmp_path / "facts.json", {"loss": value})
    assert files_below(tmp_path) == []


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1))
def test_an_array_comes_back_and_its_bytes_depend_on_its_values_alone(tmp_path_factory, values: list[int]) -> None:
    folder = tmp_path_factory.mktemp("arrays")
    array = np.array(values, np.uint16)
    with storage.new_folder(folder, kind="example", fingerprint={}) as writer:
        writer.write_array("a.npy", array)
        writer.write_array("b.npy", np.repeat(array, 2)[::2])  # the same values, strided
    manifest = storage.read_manifest(folder)
    assert manifest is not None
    assert manifest.array("a.npy").tolist() == values
    assert manifest.files["a.npy"] == manifest.files["b.npy"]


# ---- one writer at a time -----------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_until_the_first_is_gone_even_by_kill(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ready, holding = os.pipe()
    holder = os.fork()
    if holder == 0:
        with storage.locked(folder):
            os.write(holding, b"!")
            signal.pause()
        os._exit(1)
    try:
        os.read(ready, 1)
        with pytest.raises(InputRefused, match="run: another process is writing here"):
            with storage.locked(folder):
                pass
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    with storage.locked(folder):
        write_example(folder)
    with storage.locked(folder):  # and the lock was given back
        assert use(folder)


def test_a_timeout_of_someone_elses_lock_is_not_ours(tmp_path: Path) -> None:
    from filelock import Timeout

    with pytest.raises(Timeout):
        with storage.locked(tmp_path):
            raise Timeout("a download")


def test_the_lock_sweeps_what_dead_writers_left(tmp_path: Path) -> None:
    write_example(tmp_path / "run")
    stale = tmp_path / "run" / ".weights.bin.0123abcd.partial"
    stale.write_bytes(b"half")
    with storage.locked(tmp_path):
        assert not stale.exists()
    assert use(tmp_path / "run")
    assert storage.sweep(tmp_path) == 0


# ---- logs ---------------------------------------------------------------------------------------------------------


def test_a_log_is_cut_back_to_what_the_checkpoint_saw(tmp_path: Path) -> None:
    log = storage.AppendLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "loss": 2.5})
    seen = log.synced_length()
    log.append({"step": 2, "loss": 2.4})
    log.close()
    log = storage.AppendLog(tmp_path / "metrics.jsonl", length=seen)
    log.append({"step": 2, "loss": 2.0})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"loss":2.5,"step":1}\n{"loss":2.0,"step":2}\n'


def test_a_log_that_is_shorter_than_the_checkpoint_saw_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(Damaged, match="0 bytes, the checkpoint saw 10"):
        storage.AppendLog(path, length=10)
    assert not path.exists()
    path.write_text("{}\n")
    with pytest.raises(Damaged, match="3 bytes, the checkpoint saw 10"):
        storage.AppendLog(path, length=10)
    assert path.read_text() == "{}\n"


def test_a_log_keeps_whole_lines_when_the_room_ends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"

    def fill() -> None:
        log = storage.AppendLog(path)
        for step in count():
            log.append({"step": step})

    limited_to(100, fill, tmp_path / "report")
    assert f"{path}: File too large" in (tmp_path / "report").read_text()
    lines = path.read_text().splitlines(keepends=True)
    assert lines == [f'{{"step":{step}}}\n' for step in range(9)]  # of 11 bytes each


def test_a_log_that_failed_once_goes_on_with_the_next_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = storage.AppendLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(storage, "fault", fail_at(1, errno.EDQUOT))
        with pytest.raises(NoRoom, match=r"metrics\.jsonl"):
            log.append({"step": 2})
    log.append({"step": 3})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step":1}\n{"step":3}\n'
