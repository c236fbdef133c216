"""Memory that a step frees stays with the process for the next step."""

from __future__ import annotations

import ctypes
import platform

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
