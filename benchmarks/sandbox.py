"""A command in a child process that can reach nothing: no network, no files but those named, little memory and time.

For `--allow-code`, where a candidate's own Python runs. The child has user, network, process, mount, IPC and host-name
namespaces of its own; sees Python, the system's libraries and the paths that it is given, read-only, and an empty /tmp
in memory; has no capability, no variable of our environment and no open file of ours; and is killed with all its
children when its time is over. Where the system does not give such namespaces, the command is refused, never run bare.

This is defence in depth, not a promise: the kernel is shared, memory is limited for each process and not for their sum,
and a score that hostile code prints is whatever it likes. Code of an enemy belongs on a machine of its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import sandbox_child
from benchmarks.strangers.refusal import one_line, refuse
from benchmarks.strangers.strict_json import parse_json_object
from corpora.errors import InputRefused

TORCH_BYTES = 2 << 30  # address space in which torch and transformers start; built for CPUs they map up to 1.1 GiB
MAX_THREADS = 8
_PIECE = 1 << 16  # bytes read at once
_DYING_SECONDS = 10.0  # memory that is given back takes a while
_COMPLAINT_BYTES = 2000  # kept of the end of standard error
_ROOMS = ("benchmarks", "configs", "corpora", "distill", "students", "teachers")
_NAMESPACES = ("--user", "--map-root-user", "--net", "--pid", "--mount", "--ipc", "--uts", "--fork", "--kill-child")
_MEND = "mend the candidate's code, or raise its limits"
_REMEDY = "score a candidate that needs no code, or use Linux 5.14 or later where users may make namespaces"


def run_sandboxed(
    argv: Sequence[str], *, readable: Sequence[Path], seconds: float, memory_bytes: int, output_bytes: int
) -> bytes:
    """What a command writes to standard output; `argv` begins with the path of a program.

    `readable`: files and folders that it may read, at their own paths. `seconds`: wall clock from start to end.
    `memory_bytes`: address space of each of its processes; one that imports torch needs TORCH_BYTES and its tensors.
    `output_bytes`: most that it may write. Raises InputRefused when a limit is passed, when it ends with another status
    than 0, and when there is no sandbox on this system.
    """
    for path in readable:
        if not path.exists():
            refuse(str(path), "missing", expected="a file or folder to be read in the sandbox", remedy="check its name")
    unshare = shutil.which("unshare")
    if unshare is None or not sys.platform.startswith("linux"):
        refuse("sandbox", "no unshare", expected="Linux with util-linux", remedy=_REMEDY)
    with tempfile.TemporaryDirectory(prefix="cuvee-sandbox-") as root:
        plan = {
            "root": root,
            "argv": list(argv),
            "readable": _visible([*_system_paths(), *readable]),
            "environment": _environment(),
            "memory_bytes": memory_bytes,
            "cpu_seconds": math.ceil(seconds) * _threads() + 1,  # of all threads; for the case that we are killed
            "uid": os.getuid(),
        }
        door = [sys.executable, "-I", "-S", sandbox_child.__file__, json.dumps(plan)]
        process = subprocess.Popen(
            [unshare, *_NAMESPACES, *door],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            cwd="/",
            start_new_session=True,
        )
        try:
            output, complaint = _outcome(process, time.monotonic() + seconds, seconds, output_bytes)
        finally:
            _end(process)
    _check_status(process.returncode, complaint)
    return output


def run_sandboxed_json(
    argv: Sequence[str], *, readable: Sequence[Path], seconds: float, memory_bytes: int, output_bytes: int
) -> dict[str, Any]:
    """The JSON object that a command writes, read as strictly as a stranger's file; otherwise as `run_sandboxed`.

    What its values mean is for the caller to check again.
    """
    output = run_sandboxed(
        argv, readable=readable, seconds=seconds, memory_bytes=memory_bytes, output_bytes=output_bytes
    )
    return parse_json_object(output, "sandbox: output", max_depth=16, remedy="mend the candidate's code")


@functools.cache
def why_no_sandbox() -> str | None:
    """Why commands cannot be sandboxed on this system, in one line; None where they can."""
    try:
        run_sandboxed([shutil.which("true") or "true"], readable=[], seconds=10, memory_bytes=1 << 28, output_bytes=0)
    except InputRefused as refusal:
        return str(refusal)
    return None


def _threads() -> int:
    return min(MAX_THREADS, os.cpu_count() or 1)


def _environment() -> dict[str, str]:
    """All that the command learns of ours: nothing is copied, so no token is."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": str(_threads()),
        "RAYON_NUM_THREADS": str(_threads()),
        "MALLOC_ARENA_MAX": "2",  # each would take 64 MiB of the address space
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
    }


def _system_paths() -> list[Path]:
    """Programs and libraries, Python, and this toolkit; no home folder, and of /etc the list of libraries alone."""
    house = Path(__file__).parents[1]
    names = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/sys/devices/system/cpu"]
    return [
        path
        for path in (*map(Path, names), Path(sys.prefix), Path(sys.base_prefix), *(house / room for room in _ROOMS))
        if path.exists()
    ]


def _visible(paths: Sequence[Path]) -> list[str]:
    """Paths as they are named and as links resolve them, without those that lie in another one."""
    wanted = {Path(os.path.abspath(path)) for path in paths} | {path.resolve() for path in paths}
    return sorted(str(path) for path in wanted if not wanted.intersection(path.parents))


def _outcome(
    process: subprocess.Popen[bytes], deadline: float, seconds: float, output_bytes: int
) -> tuple[bytes, bytes]:
    """Standard output, and the end of standard error, once the process has ended."""
    assert process.stdout is not None and process.stderr is not None
    output, complaint = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, output)
        selector.register(process.stderr, selectors.EVENT_READ, complaint)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready or time.monotonic() > deadline:
                _refuse_time(seconds)
            for key, _ in ready:
                piece = os.read(key.fd, _PIECE)
                key.data.extend(piece)
                if not piece:
                    selector.unregister(key.fileobj)
            del complaint[:-_COMPLAINT_BYTES]
            if len(output) > output_bytes:
                expected = f"at most {output_bytes:,}"
                refuse("sandbox", f"more than {output_bytes:,} bytes of output", expected=expected, remedy=_MEND)
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:  # it closed its outputs and went on
        _refuse_time(seconds)
    return bytes(output), bytes(complaint)


def _refuse_time(seconds: float) -> NoReturn:
    refuse("sandbox", f"the command did not end in {seconds:g} seconds", expected="an end", remedy=_MEND)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left, and come back when none of it runs."""
    if process.poll() is None:
        # the first process of a namespace ends after all others of it, and unshare, which waits for it, last of all
        if first := _children(process.pid):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(first[0], signal.SIGKILL)
        else:
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(_DYING_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def _children(process: int) -> list[int]:
    """Processes that a process began; none where the kernel does not list them."""
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def _check_status(status: int, complaint: bytes) -> None:
    if status == 0:
        return
    said = complaint.decode("utf-8", "replace").strip()
    last = one_line(said.splitlines()[-1]) if said else "no message"
    if said.startswith("unshare: ") or status == sandbox_child.FAILED:
        refuse("sandbox", f"it cannot be made here ({last})", expected="namespaces", remedy=_REMEDY)
    refuse("sandbox", f"the command ended with status {status} ({last})", expected="status 0", remedy=_MEND)
