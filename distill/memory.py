"""What a process keeps: memory that a step frees stays for the next one, mapped files stay open, and what is read for
good is not looked through for garbage."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import resource
from collections.abc import Iterator

# glibc's mallopt parameters (malloc.h)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Ask glibc to keep large freed blocks instead of giving them back to the system; elsewhere nothing is done.

    By default each tensor above a few megabytes is mapped anew, and zeroed by the kernel, in every step (what
    that costs stands in docs/log.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_TOP_PAD, 256 << 20)


def allow_many_files() -> None:
    """Let this process open as many files as the system allows: each shard of a cache that is read stays mapped.

    The usual limit of 1,024 would end a student of two teachers after 33M tokens.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY:  # systems that say so take less for an answer
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def made_for_good() -> Iterator[None]:
    """What is made inside stays until the process ends: Python's garbage collector never goes through it.

    Of the 67,000 pairs of BLiMP it would find no garbage, and take as long as reading them.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
