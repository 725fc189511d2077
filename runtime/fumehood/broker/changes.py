"""What a box changed in its workspace, read from the overlay's upper layer after the box is dead.

The upper layer is written by an attacker: it is walked by directory descriptors, no symlink is ever followed, no
content is interpreted (only hashed), and count, depth and bytes are bounded. What could harm the host is refused, and
then the whole set is: setuid and setgid files, devices, sockets, fifos, symlinks that lead out. Hard links are
separate files here. A setgid *directory* only inherits its group, so the bit is dropped, not refused.

How an overlay without redirects or metacopy tells its story: a character device 0/0 is a deletion; a directory with
`trusted.overlay.opaque` hides what lies below it (the kernel sets it on most new directories, so it means little by
itself); anything else stands for itself. Compared with the directory as it is now this gives a flat list of steps,
folders before what is in them. A directory put in the place of another is told as one that stays and loses children.

A symlink may climb only at its beginning (`../../a/b`): `..` after a name would be resolved through what that name
turns out to be, so two harmless-looking links could together lead out.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field

from fumehood.model import FileChange

CHANGES = 100_000
DEPTH = 64
PATH_BYTES = 4000
_OPAQUE = "trusted.overlay.opaque"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One step for the committer. `op`: `file`, `directory` (new), `symlink`, `remove` or `mode` (of a directory)."""

    op: str
    path: str
    kind: str
    mode: int = 0
    size_bytes: int = 0
    mtime_ns: int = 0
    sha256: str | None = None
    target: str | None = None

    @property
    def told(self) -> FileChange:
        """The change as records and callers see it."""
        return FileChange(path=self.path, kind=self.kind, size_bytes=self.size_bytes, sha256=self.sha256)

    @property
    def directory(self) -> bool:
        """Whether the path is a directory afterwards."""
        return self.op in ("directory", "mode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """All of them; `refused` are (path, why); `lost` what disappears along with a removed or replaced directory."""

    steps: tuple[Change, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[FileChange, ...]:
        """The changes as records and callers see them."""
        return tuple(step.told for step in self.steps)


class _OverTheLimitError(Exception):
    """The walk ends here."""


@dataclass(slots=True)
class _Walk:
    most_bytes: int
    steps: list[Change] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    bytes: int = 0

    def add(self, step: Change) -> None:
        self.steps.append(step)
        self._bound(step.path)

    def lose(self, path: str) -> None:
        self.lost.append(path)
        self._bound(path)

    def _bound(self, path: str) -> None:
        if len(self.steps) + len(self.lost) > CHANGES:
            self.refused.append((path, f"more than {CHANGES} changes"))
            raise _OverTheLimitError

    def folder(self, upper: int, base: int | None, prefix: str, *, opaque: bool) -> None:
        """Walk one directory of the upper layer beside the directory of the same path on the host, if there is one."""
        names = sorted(os.listdir(upper))
        for name in names:
            self.entry(upper, base, prefix, name, opaque=opaque)
        if opaque and base is not None:
            for name in sorted(set(os.listdir(base)) - set(names)):  # noqa: PTH208 - a descriptor
                self.removal(base, prefix + name, name)

    def entry(self, upper: int, base: int | None, prefix: str, name: str, *, opaque: bool) -> None:
        path = prefix + name
        found = os.stat(name, dir_fd=upper, follow_symlinks=False)
        old = _stat_or_none(base, name)
        if len(os.fsencode(path)) > PATH_BYTES:
            self.refused.append((path, f"its path is longer than {PATH_BYTES} bytes"))
        elif stat.S_ISDIR(found.st_mode):
            self.directory(upper, base, path, name, old, opaque=opaque)
        elif base is not None and old is not None and stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            self.removal(base, path, name)
        elif stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            return  # a deletion of what is not there
        else:
            if base is not None and old is not None and stat.S_ISDIR(old.st_mode):
                self.contents(base, path, name)
            if stat.S_ISREG(found.st_mode):
                self.file(upper, base, path, name, found, old)
            elif stat.S_ISLNK(found.st_mode):
                self.symlink(upper, base, path, name, old)
            else:
                self.refused.append((path, f"a {_kind_of(found.st_mode)}"))

    def directory(
        self, upper: int, base: int | None, path: str, name: str, old: os.stat_result | None, *, opaque: bool
    ) -> None:
        if path.count("/") + 1 >= DEPTH:
            self.refused.append((path, f"deeper than {DEPTH} directories"))
            return
        below = _open_directory(upper, name)
        below_base = None
        try:
            mode = os.fstat(below).st_mode & 0o777
            if base is not None and old is not None and stat.S_ISDIR(old.st_mode):
                below_base = _open_directory(base, name)
                if mode != old.st_mode & 0o777:
                    self.add(Change(op="mode", path=path, kind="modified", mode=mode))
            else:
                self.add(Change(op="directory", path=path, kind="directory", mode=mode))
            self.folder(below, below_base, path + "/", opaque=opaque or _is_opaque(below))
        finally:
            for fd in (below, below_base):
                if fd is not None:
                    os.close(fd)

    def file(
        self, upper: int, base: int | None, path: str, name: str, found: os.stat_result, old: os.stat_result | None
    ) -> None:
        if found.st_mode & (stat.S_ISUID | stat.S_ISGID):
            self.refused.append((path, "setuid or setgid"))
            return
        self.bytes += found.st_size
        if self.bytes > self.most_bytes:
            # Hard links and holes: more to write than the layer could hold.
            self.refused.append((path, f"the changes are larger than {self.most_bytes} bytes"))
            raise _OverTheLimitError
        sha256 = _digest(upper, name)
        if base is not None and old is not None and _untouched(found, old) and _digest(base, name) == sha256:
            return  # copied up, then left as it was
        self.add(
            Change(
                op="file",
                path=path,
                kind="added" if old is None else "modified",
                mode=found.st_mode & 0o777,
                size_bytes=found.st_size,
                mtime_ns=found.st_mtime_ns,
                sha256=sha256,
            )
        )

    def symlink(self, upper: int, base: int | None, path: str, name: str, old: os.stat_result | None) -> None:
        target = os.readlink(name, dir_fd=upper)
        if (
            base is not None
            and old is not None
            and stat.S_ISLNK(old.st_mode)
            and os.readlink(name, dir_fd=base) == target
        ):
            return
        if why := leads_out(path, target):
            self.refused.append((path, why))
        else:
            self.add(
                Change(op="symlink", path=path, kind="symlink", size_bytes=len(os.fsencode(target)), target=target)
            )

    def removal(self, base: int, path: str, name: str) -> None:
        self.add(Change(op="remove", path=path, kind="deleted"))
        self.contents(base, path, name)

    def contents(self, base: int, path: str, name: str) -> None:
        """Note everything below a host directory that goes away, so that `protect` sees it."""
        found = _stat_or_none(base, name)
        if found is None or not stat.S_ISDIR(found.st_mode):
            return
        if path.count("/") >= 4 * DEPTH:
            self.refused.append((path, "too deep to see what its removal takes along"))
            return
        folder = _open_directory(base, name)
        try:
            for below in sorted(os.listdir(folder)):  # noqa: PTH208 - a descriptor
                self.lose(f"{path}/{below}")
                self.contents(folder, f"{path}/{below}", below)
        finally:
            os.close(folder)


def changes(upper_fd: int, base_fd: int | None, *, most_bytes: int) -> Changes:
    """Read the upper layer at `upper_fd` against the host directory `base_fd` (None: a scratch, all is new)."""
    walk = _Walk(most_bytes=most_bytes)
    with suppress(_OverTheLimitError):  # said in `refused`
        walk.folder(upper_fd, base_fd, "", opaque=False)
    return Changes(steps=tuple(walk.steps), refused=tuple(walk.refused), lost=tuple(walk.lost))


def leads_out(path: str, target: str) -> str | None:
    """Pure: why a symlink at `path` in the workspace may not point at `target`, or None."""
    if target.startswith("/"):
        return f"a symlink to the absolute path {target}"
    names = [name for name in target.split("/") if name not in ("", ".")]
    climbs = 0
    while climbs < len(names) and names[climbs] == "..":
        climbs += 1
    if climbs > path.count("/"):
        return f"a symlink out of the workspace, to {target}"
    if ".." in names[climbs:]:
        return f"a symlink that climbs after a name, to {target}"
    return None


def open_content(upper_fd: int, path: str) -> int:
    """A regular file of the upper layer, opened for reading without following anything on the way."""
    fd = os.dup(upper_fd)
    *folders, name = path.split("/")
    for folder in folders:
        above, fd = fd, _open_directory(fd, folder)
        os.close(above)
    try:
        return _open_file(fd, name)
    finally:
        os.close(fd)


def _open_directory(above: int, name: str) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)


def _open_file(folder: int, name: str) -> int:
    # O_NONBLOCK: on the host's side the file may have become a fifo by now.
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(f"{name} is no longer a regular file")


def _digest(folder: int, name: str) -> str:
    with os.fdopen(_open_file(folder, name), "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _untouched(found: os.stat_result, old: os.stat_result) -> bool:
    def told(of: os.stat_result) -> tuple[int, int, int]:
        return of.st_mode, of.st_size, of.st_mtime_ns

    return told(found) == told(old)


def _stat_or_none(folder: int | None, name: str) -> os.stat_result | None:
    if folder is None:
        return None
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError:  # ENODATA
        return False


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "file of an unknown kind")
