"""Who may use a workspace now: first come, first served, across processes and threads, by device and inode.

Whoever wants the directory draws a numbered ticket, a file in a root-only folder, and holds an flock on it. An
exclusive ticket waits for every earlier ticket of the directory, a shared one for every earlier exclusive ticket; so
nobody overtakes, and a stream of readers cannot starve a writer. A dead holder's flock is gone with it: whoever waits
for such a ticket can lock it, and removes it. Numbers are never used twice (the counter is in the file `queue`, whose
flock is held only while a ticket is drawn and locked), so removing a dead ticket by name is safe.

Waiting is asking again every few milliseconds: flock(2) knows no deadline, a thread blocked in it could not be given
up, and inotify instances are few. One question is one system call.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from fumehood.faults import BoxFailed, Refused
from fumehood.model import Deny
from fumehood.reasons import Reason

ASK_AGAIN_S = 0.01
_SHARED, _EXCLUSIVE = "s", "x"


class Ticket:
    """The right to use a directory, held until `release` or the end of the process."""

    def __init__(self, path: Path, fd: int, waited_s: float) -> None:
        """Made by `take_ticket`."""
        self.waited_s = waited_s
        self._path = path
        self._fd = fd

    def release(self) -> None:
        """Let the next one in. Idempotent."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def take_ticket(
    folder: Path, directory_fd: int, *, exclusive: bool, deadline_s: float, given_up: threading.Event | None = None
) -> Ticket:
    """Wait for the directory, and hold it.

    Raises `Refused` (workspace_busy) at the deadline, `BoxFailed` (cancelled) when `given_up` is set meanwhile.
    """
    found = os.fstat(directory_fd)
    prefix = f"{found.st_dev:x}-{found.st_ino:x}."
    began = time.monotonic()
    number, fd = _draw(folder, prefix, exclusive=exclusive)
    drawn = Ticket(folder / _name(prefix, number, exclusive=exclusive), fd, 0.0)
    try:
        until, given_up = began + deadline_s, given_up or threading.Event()
        while (ahead := _ahead(folder, prefix, number, exclusive=exclusive)) is not None:
            _wait_for(ahead, until, given_up)
    except BaseException:
        drawn.release()
        raise
    drawn.waited_s = time.monotonic() - began
    return drawn


def sweep_tickets(folder: Path) -> None:
    """Remove the tickets of dead holders: nobody may ever wait for theirs. A queue that is being drawn from is left alone."""
    try:
        queue = os.open(folder / "queue", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # no ticket was ever drawn
    try:
        # A ticket exists for a moment before it is locked; its number is drawn under this lock.
        fcntl.flock(queue, fcntl.LOCK_EX)
        for path in folder.iterdir():
            if path.name != "queue":
                _alive(path)
    finally:
        os.close(queue)


def _name(prefix: str, number: int, *, exclusive: bool) -> str:
    return f"{prefix}{number:016x}.{_EXCLUSIVE if exclusive else _SHARED}"


def _draw(folder: Path, prefix: str, *, exclusive: bool) -> tuple[int, int]:
    """A new ticket, locked before anybody with a later one can look at it."""
    queue = os.open(folder / "queue", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(queue, fcntl.LOCK_EX)
        number = int(os.pread(queue, 32, 0) or b"0") + 1
        os.pwrite(queue, b"%020d" % number, 0)
        mine = folder / _name(prefix, number, exclusive=exclusive)
        fd = os.open(mine, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
    finally:
        os.close(queue)
    return number, fd


def _wait_for(ahead: Path, until: float, given_up: threading.Event) -> None:
    while _alive(ahead):
        left = until - time.monotonic()
        if left <= 0:
            raise Refused(Deny(reason=Reason.WORKSPACE_BUSY, rule="filesystem.workspace"))
        if given_up.wait(min(ASK_AGAIN_S, left)):
            raise BoxFailed(Reason.CANCELLED, "while it waited for its workspace")


def _ahead(folder: Path, prefix: str, number: int, *, exclusive: bool) -> Path | None:
    """The latest earlier ticket that mine must wait for: those before it will mostly be gone when it is."""
    found: list[tuple[int, str]] = []
    for name in (path.name for path in folder.iterdir()):
        if name.startswith(prefix):
            drawn, kind = name.removeprefix(prefix).split(".")
            if int(drawn, 16) < number and (exclusive or kind == _EXCLUSIVE):
                found.append((int(drawn, 16), name))
    return folder / max(found)[1] if found else None


def _alive(ahead: Path) -> bool:
    """Whether its holder still has it; a dead holder's ticket is removed."""
    try:
        fd = os.open(ahead, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        with suppress(FileNotFoundError):
            ahead.unlink()
        return False
    finally:
        os.close(fd)
