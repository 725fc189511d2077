"""Results kept beside the records: files below `results/`, each copied in from a descriptor, bounded in number and in age.

Invariants: a file's name is made from a checked task id and a `Keeping`, and from nothing else a caller says; what has
that name is whole and on disk, because it is copied under a hidden name, synced and then renamed; what a killed process
left under a hidden name is removed by the next start, but not what another living ledger is copying (it holds its
lock). All files together stay within `BUDGET_BYTES`: the oldest go first. Only sealed memory is copied from: a pipe
could keep the one thread waiting, and a plain file could grow or shrink under the copy.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fumehood.faults import FumehoodError, Refused
from fumehood.model import Deny, Keeping
from fumehood.reasons import Reason

FOLDER = "results"
BUDGET_BYTES = 2**30
STEP_BYTES = 4 * 2**20
# Records must find room whatever is kept.
FREE_BYTES = 32 * 2**20
_HIDDEN = "."
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


@dataclass(frozen=True, slots=True)
class Found:
    """A kept file, open for reading; `until_s` is when its age ends it."""

    fd: int
    size_bytes: int
    at_s: float
    until_s: float


class Results:
    """The folder of kept results. Several ledgers share it."""

    def __init__(self, folder: Path, kept_s: float, budget_bytes: int = BUDGET_BYTES) -> None:
        """Use `results/` in the ledger's folder, made if need be. Raises FumehoodError."""
        self._kept_s = kept_s
        self._budget = budget_bytes
        try:
            with suppress(FileExistsError):
                (folder / FOLDER).mkdir(0o700)
            self._fd = os.open(folder / FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise FumehoodError(Reason.STATE_UNAVAILABLE, f"{folder / FOLDER}: {error.strerror}") from error
        found = os.fstat(self._fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            os.close(self._fd)
            raise FumehoodError(Reason.STATE_UNAVAILABLE, f"{folder / FOLDER} must be ours alone")

    def close(self) -> None:
        """Close the folder."""
        os.close(self._fd)

    def begin(self, task: str, kind: Keeping, source: int, offset: int, size: int) -> Copy:
        """Make room and begin to copy. `source` becomes the copy's own. Raises Refused."""
        try:
            _check_source(source, offset, size)
            with self._alone():
                self._make_room(size)
                return Copy(self._fd, _name(task, kind), source, offset, size, time.time() + self._kept_s)
        except BaseException as error:
            os.close(source)
            if isinstance(error, OSError):
                raise _not_kept(error.strerror or "an error of the disk") from error
            raise

    def find(self, task: str, kind: Keeping) -> Found | None:
        """What is kept of a task and not yet too old."""
        try:
            fd = os.open(_name(task, kind), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            return None
        status = os.fstat(fd)
        until_s = status.st_mtime + self._kept_s
        if until_s < time.time():
            os.close(fd)
            return None
        return Found(fd, status.st_size, status.st_mtime, until_s)

    def forget(self, task: str, kind: Keeping) -> None:
        """Remove what is kept of a task, if anything is."""
        with _told(), suppress(FileNotFoundError):
            os.unlink(_name(task, kind), dir_fd=self._fd)

    def prune(self, older_than_s: float | None = None) -> tuple[int, int]:
        """Remove what is older than that, or than results are kept; how many that were, and their bytes."""
        limit_s = time.time() - (self._kept_s if older_than_s is None else older_than_s)
        with _told(), self._alone():
            old = [entry for entry in self._entries() if entry.at_s <= limit_s]
            return len(old), sum(self._remove(entry) for entry in old)

    def sweep(self, known: Iterable[str]) -> None:
        """Remove what a killed process left half copied, what is too old, and what belongs to none of these tasks."""
        wanted = set(known)
        with _told(), self._alone():
            for name in self._names():
                if name.startswith(_HIDDEN) and not self._is_being_copied(name):
                    os.unlink(name, dir_fd=self._fd)
            for entry in self._entries():
                if entry.task not in wanted:
                    self._remove(entry)
        self.prune()

    def tasks(self) -> list[str]:
        """The tasks of which something is kept."""
        return sorted({entry.task for entry in self._entries()})

    def _make_room(self, size: int) -> None:
        if size > self._budget:
            raise _not_kept(f"it has {size} bytes, and all kept results together may have {self._budget}")
        entries = sorted(self._entries(), key=lambda entry: entry.at_s)
        used = sum(entry.size_bytes for entry in entries) + self._being_copied()
        too_old_s = time.time() - self._kept_s
        for entry in entries:
            if entry.at_s <= too_old_s or used + size > self._budget:
                used -= self._remove(entry)
        if used + size > self._budget:
            raise _not_kept("others are just being kept, and together they are too much")
        disk = os.fstatvfs(self._fd)
        if disk.f_bavail * disk.f_frsize < size + FREE_BYTES:
            raise _not_kept(f"the disk has no room for {size} bytes")

    def _names(self) -> list[str]:
        return os.listdir(self._fd)  # noqa: PTH208 - the folder that was checked, not its name

    def _entries(self) -> list[_Entry]:
        found = []
        for name in self._names():
            with suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                if not name.startswith(_HIDDEN):
                    found.append(_Entry(name, status.st_size, status.st_mtime))
        return found

    def _being_copied(self) -> int:
        total = 0
        for name in self._names():
            with suppress(FileNotFoundError):
                if name.startswith(_HIDDEN):
                    total += os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_size
        return total

    def _is_being_copied(self, name: str) -> bool:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _remove(self, entry: _Entry) -> int:
        with suppress(FileNotFoundError):
            os.unlink(entry.name, dir_fd=self._fd)
        return entry.size_bytes

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder: what is counted must not change, and a hidden file must have its lock before it is seen."""
        # A descriptor of its own: closing it lets go, whatever happened.
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


class Copy:
    """One result on its way to the disk, a step at a time: the ledger has other peers to answer meanwhile."""

    def __init__(self, folder: int, name: str, source: int, offset: int, size: int, until_s: float) -> None:
        """Make the hidden file, locked and as long as it will be, so that others count it."""
        self.until_s = until_s
        self._folder = folder
        self._name = name
        self._source = source
        self._at = offset
        self._left = size
        if _exists(folder, name):
            raise _not_kept("this task's is kept already")
        try:
            self._target = os.open(
                _HIDDEN + name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
            )
        except FileExistsError as error:
            raise _not_kept("this task's is just being kept") from error
        try:
            fcntl.flock(self._target, fcntl.LOCK_EX)
            os.ftruncate(self._target, size)
        except OSError:
            self.abandon(keep_source=True)
            raise

    def step(self) -> bool:
        """Copy some more; True when all of it is on disk under its name. Raises Refused, and has then cleaned up."""
        try:
            if self._left:
                done = os.sendfile(self._target, self._source, self._at, min(self._left, STEP_BYTES))
                if not done:
                    raise OSError(0, "it ended early")
                self._at += done
                self._left -= done
                # Now and not all at the end: a gigabyte's sync would keep the others waiting.
                os.fdatasync(self._target)
                return False
            os.utime(self._target)
            os.fsync(self._target)
            os.rename(_HIDDEN + self._name, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        except OSError as error:
            self.abandon()
            raise _not_kept(error.strerror or "an error of the disk") from error
        os.close(self._target)
        os.close(self._source)
        return True

    def abandon(self, *, keep_source: bool = False) -> None:
        """Leave nothing of it."""
        with suppress(FileNotFoundError):
            os.unlink(_HIDDEN + self._name, dir_fd=self._folder)
        os.close(self._target)
        if not keep_source:
            os.close(self._source)


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    size_bytes: int
    at_s: float

    @property
    def task(self) -> str:
        return self.name.partition(".")[0]


def _name(task: str, kind: Keeping) -> str:
    return f"{task}.{kind.value}"


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _check_source(source: int, offset: int, size: int) -> None:
    status = os.fstat(source)
    try:
        sealed = fcntl.fcntl(source, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # no memory file at all
        sealed = False
    if not stat.S_ISREG(status.st_mode) or not sealed or offset + size > status.st_size:
        raise _not_kept("what it is to be copied from is not sealed memory of that size")


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FumehoodError(Reason.STATE_UNAVAILABLE, f"kept results: {error.strerror}") from error


def _not_kept(detail: str) -> Refused:
    return Refused(Deny(reason=Reason.RESULT_NOT_KEPT, rule="ledger.keep", detail=detail))
