"""Which runtimes live on this host, whatever state folder they are of.

A runtime's lock lies in its state folder, and that may be gone while cgroups and id ranges of the runtime are not. So each has
a mark for the whole host too: a file of its id, in a folder that only we can write to and that a reboot empties, which names the
state folder and is locked as long as the broker lives. A mark whose lock can be taken is a dead runtime's. A runtime without a
mark may live (it is of an older fumehood, or of another mount namespace), and nothing of it is touched.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARKS = Path("/run/fumehood/runtimes")
_BEGINNING_S = 60.0  # what has not come to its lock by then never will
_PATH_BYTES = 4096


def mark(marks: Path, runtime_id: str, state: Path) -> int:
    """Make a runtime's mark; the descriptor is its lock. Before anything of the runtime's exists outside its state folder."""
    marks.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(marks / runtime_id, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # waits for a sweep that looks at it in this moment, and leaves what says nothing yet
    os.write(lock, os.fsencode(state))
    return lock


def take(path: Path) -> int | None:
    """The lock of a runtime that is dead, now ours; None while it lives, or another sweeper is at it."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


@contextmanager
def taken(path: Path) -> Iterator[int | None]:
    """`take` for the length of the body."""
    lock = take(path)
    try:
        yield lock
    finally:
        if lock is not None:
            os.close(lock)


def never_began(path: Path) -> bool:
    """Whether what a runtime makes first is so old that it must have died while it made it."""
    with suppress(OSError):
        return path.stat().st_mtime < time.time() - _BEGINNING_S
    return False


def dead_elsewhere(marks: Path) -> Iterator[str]:
    """The dead runtimes of which nothing is left but what is the host's: the folder they kept their records in is gone.

    Each is locked while the consumer is at it. Of one whose folder stands its own next start knows more, and sweeps it.
    """
    for path in sorted(marks.iterdir()):
        with taken(path) as lock:
            if lock is None:
                continue
            state = os.pread(lock, _PATH_BYTES, 0)
            if not state:
                if never_began(path):
                    path.unlink(missing_ok=True)
            elif not os.path.lexists(Path(os.fsdecode(state)) / "run" / path.name):
                yield path.name
