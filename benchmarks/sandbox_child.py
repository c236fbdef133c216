"""Between the sandbox's door and the command: what can be seen, what can be spent, and then the command itself.

`sandbox.py` starts this file by its path as the first process of new namespaces, so it needs the standard library
alone. It is root there and nowhere else, until the command takes its place without any capability. Linux 5.14 or later.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FAILED = 125  # exit status when the command could not be started
SAYS = "sandbox: "  # begins the line on standard error that goes with it
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
OPEN_FILES = 256
PROCESSES = 64  # and threads
SCRATCH_BYTES = 64 << 20  # of files in /tmp, which lie in memory
_PIDS = 301 + PROCESSES  # the kernel keeps the first 300 numbers back

_libc = ctypes.CDLL(None, use_errno=True)
# <sys/mount.h>, <linux/mount.h>, <linux/prctl.h>
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
_RDONLY, _NOSUID, _NODEV = 0x1, 0x2, 0x4
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_LAST_CAPABILITY = 63


def main(plan: dict[str, Any]) -> None:
    """Close everything that `plan` does not open, and become its command."""
    if os.getpid() != 1 or {name for _, name in socket.if_nameindex()} != {"lo"}:
        raise OSError("not in namespaces of its own")
    root = Path(plan["root"])
    _mount("none", Path("/"), flags=_MS_REC | _MS_PRIVATE)
    _mount_scratch(root)
    _mount_scratch(root / "tmp")  # before the paths: some may lie in /tmp
    for path in plan["readable"]:
        _show(Path(path), root, _RDONLY | _NOSUID | _NODEV)
    for path in DEVICES:
        _show(Path(path), root, _RDONLY | _NOSUID)
    _mount_processes(root / "proc", outer_uid=plan["uid"])
    _set_flags(root, _RDONLY, 0)
    os.chroot(root)  # where no user namespace can be made either
    os.chdir("/tmp")
    _limit(plan["memory_bytes"], plan["cpu_seconds"])
    _drop_capabilities()
    os.execve(plan["argv"][0], plan["argv"], plan["environment"])


def _mount_scratch(target: Path) -> None:
    target.mkdir(exist_ok=True)
    _mount("tmpfs", target, kind="tmpfs", flags=_MS_NOSUID | _MS_NODEV, data=f"size={SCRATCH_BYTES},mode=755")


def _show(path: Path, root: Path, flags: int) -> None:
    """Make `path` appear at its own place below `root`, with everything that is mounted inside it."""
    target = root / path.relative_to("/")
    if path.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(path), target, flags=_MS_BIND | _MS_REC)
    _set_flags(target, flags, _AT_RECURSIVE)


def _mount_processes(target: Path, *, outer_uid: int) -> None:
    """A /proc of this namespace, read-only: its settings of the kernel would obey root, who may be us outside."""
    target.mkdir(exist_ok=True)
    _mount("proc", target, kind="proc", flags=_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    if outer_uid == 0:  # no limit on processes holds for root; the namespace's own numbers do, from Linux 6.14
        try:
            setting = os.open(target / "sys/kernel/pid_max", os.O_WRONLY)
            os.write(setting, str(_PIDS).encode())
            os.close(setting)
        except OSError as error:
            raise OSError("cannot limit processes of root; run it as an ordinary user") from error
    _set_flags(target, _RDONLY, 0)


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    for limit, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_FSIZE, SCRATCH_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))


def _drop_capabilities() -> None:
    """Whatever is executed from here on has no capability, not even as root, and cannot gain one."""
    for capability in range(_LAST_CAPABILITY + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break  # the first number that the kernel does not know
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _mount(source: str, target: Path, *, kind: str = "none", flags: int = 0, data: str = "") -> None:
    arguments = (os.fsencode(source), bytes(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _checked(_libc.mount(*arguments), f"mount {target}")


def _set_flags(target: Path, flags: int, how: int) -> None:
    """Add flags to a mount, and with _AT_RECURSIVE to all below it; unlike a remount, it cannot take any away."""
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)  # set, cleared, propagation, user namespace
    arguments = (_AT_FDCWD, bytes(target), how, attributes, ctypes.sizeof(attributes))
    _checked(_libc.syscall(_MOUNT_SETATTR, *arguments), f"flags of {target}")


def _checked(status: int, what: str) -> None:
    if status:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _said(arguments: Sequence[str]) -> int:
    try:
        main(json.loads(arguments[0]))
    except OSError as error:
        print(f"{SAYS}{error}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(_said(sys.argv[1:]))
