"""Disk space set aside while there is some, given back when a record must be closed on a full disk.

Attack: a tool fills the disk, and the record of what it did can then not be written. So no call opens unless the
reserve is whole, and closing may spend it. Copy-on-write file systems may not honour it; then a close that fails is
told to the caller, who tries again.
"""

from __future__ import annotations

import os
from pathlib import Path

FILE = "reserve"
# Closing one call writes a few dozen 4 KiB pages, its receipt's statement and two entries of the chain among them: enough for some
# hundred calls under way.
RESERVE_BYTES = 4 * 2**20


class Reserve:
    """The file `reserve` in the ledger's folder. Several ledgers share it: it belongs to the disk, not to a process."""

    def __init__(self, folder: Path) -> None:
        """Open the file, allocating nothing yet."""
        self._fd = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def fill(self) -> bool:
        """Set the space aside. False when the disk has no room for it."""
        if os.fstat(self._fd).st_blocks * 512 >= RESERVE_BYTES:
            return True
        try:
            os.posix_fallocate(self._fd, 0, RESERVE_BYTES)
        except OSError:
            self.spend()
            return False
        return True

    def spend(self) -> None:
        """Give the space back to the file system."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close the file; the space stays set aside."""
        os.close(self._fd)
