"""Bytes in a memory file: for what is too long to be held as an object, and for handing bytes to another process.

Once sealed nobody can change, lengthen or shorten it, so that who reads it need not trust who wrote it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Self

_TRIES = 10
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


class Memory:
    """One memory file, closed with the body of `with`, or at the latest when nobody holds it any more."""

    def __init__(self, data: bytes = b"") -> None:
        """Begin with these bytes."""
        self.fd = os.memfd_create("fumehood", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.size = 0
        self.write(data)

    def __enter__(self) -> Self:
        """Hold it for the body."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the memory back."""
        self.close()

    def __del__(self) -> None:
        """A conversation that is cut off drops it; a gigabyte must not stay for it."""
        self.close()

    def write(self, data: bytes) -> None:
        """Append."""
        view = memoryview(data)
        while view:
            written = os.write(self.fd, view)
            self.size += written
            view = view[written:]

    def seal(self) -> Self:
        """Let nobody change it any more.

        The kernel refuses while it holds one of the pages itself, which compaction does in passing (mm/memfd.c waits for it, but
        not for long); who asks again is told yes.
        """
        for left in reversed(range(_TRIES)):
            try:
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
            except OSError as error:
                if error.errno != errno.EBUSY or not left:
                    raise
            else:
                break
        return self

    def close(self) -> None:
        """Close it. Idempotent."""
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)
