"""The broker's heap stays as large as its boxes need it, however many it has made and removed.

Each verb runs in a thread, and glibc gives threads heaps of their own (arenas), so that they need not wait for each other. Ours
wait anyway, for the interpreter's lock. What it costs is memory: a block is freed where it was made, and a hole that is not at a
heap's end is kept for that heap. Blocks from 128 KiB on would go back to the kernel, but glibc raises that threshold to the largest
block it ever saw freed. The interpreter has one large block that is renewed again and again: the table of interned strings, to which
every new part of a `Path` goes (a task's id, a pid). Renewed in whichever thread adds to it, it left 1 MiB in each heap: 11 MiB after
10,000 calls.

So there is one heap for all, and the threshold stays where it is. Source: mallopt(3).
"""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_LARGE_BYTES = 128 * 2**10  # glibc's own; setting it is what keeps it


def keep_small() -> None:
    """Before the process starts a thread. Another libc than glibc has nothing to set."""
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
