"""Reading what the kernel writes for whoever asks: /proc and the control groups. Some fifty such files are read for a box."""

from __future__ import annotations

import os
from pathlib import Path


def whole(path: str | Path) -> str:
    """A small file of the kernel's. Raises OSError. A file object takes as long again to make, and `Path.read_text` five times."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = [os.read(fd, 65536)]
        while pieces[-1]:
            pieces.append(os.read(fd, 65536))
    finally:
        os.close(fd)
    return b"".join(pieces).decode("utf-8", "surrogateescape")
