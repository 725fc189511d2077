"""Writing files below one folder, whatever their names say.

Every component of every name is opened with O_NOFOLLOW below the descriptor of the one before, so an archive that first
makes `a` a symbolic link to `/etc` and then writes `a/passwd` is refused, not followed. Callers run in a box as well
(`namespace.work_in`): either of the two alone would hold.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from typing import IO, Self

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

DEEPEST = 64
_LONGEST = 4096
_COPY_BYTES = 2**20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def unsafe(detail: str) -> FumehoodError:
    """The refusal of an archive or a tree."""
    return FumehoodError(Reason.IMAGE_UNSAFE, detail)


def parts_of(name: str) -> tuple[str, ...]:
    """The components of an archive member's name; `.` and empty ones are dropped, anything odd is refused."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts or "\0" in name or name.startswith("/") or len(parts) > DEEPEST or len(name) > _LONGEST:
        raise unsafe(f"{name[:200]!r} leads outside the root, or is too long or too deep")
    return parts


class Tree:
    """The files below `folder`, a descriptor that stays the caller's."""

    def __init__(self, folder: int, *, limit_bytes: int, limit_files: int) -> None:
        """Write at most so many bytes and files."""
        self._folder = folder
        self._bytes = limit_bytes
        self._files = limit_files

    def make_folder(self, parts: tuple[str, ...], mode: int) -> None:
        """Make a folder with its parents, or keep the one that is there with this mode."""
        with self._open(parts) as folder:
            os.fchmod(folder.fd, mode & 0o1777)

    def write(self, parts: tuple[str, ...], source: IO[bytes], mode: int) -> None:
        """Write a regular file, replacing what was there."""
        with self._parent(parts) as (folder, name):
            self._make_room(folder, name)
            fd = os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
            )
            with os.fdopen(fd, "wb", buffering=0) as file:
                while data := source.read(_COPY_BYTES):
                    self._bytes -= len(data)
                    if self._bytes < 0:
                        raise unsafe("the image is over its size limit")
                    file.write(data)
                # 0o777 takes setuid and setgid away; sticky means something on folders only.
                os.fchmod(fd, mode & 0o777)

    def append(self, parts: tuple[str, ...], data: bytes) -> None:
        """Add to a regular file."""
        with self._parent(parts) as (folder, name):
            fd = os.open(
                name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder
            )
            with os.fdopen(fd, "wb") as file:
                file.write(data)

    def link_symbolically(self, parts: tuple[str, ...], target: str) -> None:
        """Make a symbolic link. Its target may be anything: it is followed only inside a box."""
        with self._parent(parts) as (folder, name):
            self._make_room(folder, name)
            os.symlink(target, name, dir_fd=folder)

    def link(self, parts: tuple[str, ...], target: tuple[str, ...]) -> None:
        """Make a hard link to a regular file of this tree."""
        with self._parent(target) as (other, old), self._parent(parts) as (folder, name):
            try:
                known = os.stat(old, dir_fd=other, follow_symlinks=False)
            except FileNotFoundError:
                raise unsafe(f"{'/'.join(parts)!r} is a hard link to what is not there") from None
            if not stat.S_ISREG(known.st_mode):
                raise unsafe(f"{'/'.join(parts)!r} is a hard link to something that is no file")
            if target != parts:
                self._make_room(folder, name)
                os.link(old, name, src_dir_fd=other, dst_dir_fd=folder, follow_symlinks=False)

    def own(self, parts: tuple[str, ...], uid: int, gid: int) -> None:
        """Give a file, folder or link to an owner of the image."""
        if not parts:
            os.fchown(self._folder, uid, gid)
            return
        with self._parent(parts) as (folder, name):
            os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)

    def remove(self, parts: tuple[str, ...]) -> None:
        """Remove a file, link or whole folder, if it is there."""
        with self._parent(parts) as (folder, name):
            _remove(folder, name)

    def empty(self, parts: tuple[str, ...]) -> None:
        """Remove everything in a folder, if it is there."""
        with self._open(parts) as folder:
            for name in os.listdir(folder.fd):  # noqa: PTH208 - a descriptor
                _remove(folder.fd, name)

    def names(self, parts: tuple[str, ...]) -> list[str]:
        """What is in a folder."""
        with self._open(parts) as folder:
            return os.listdir(folder.fd)  # noqa: PTH208 - a descriptor

    def kind(self, parts: tuple[str, ...]) -> int | None:
        """The type bits of what is there (`stat.S_IFDIR`, ...), or None."""
        with self._parent(parts) as (folder, name):
            try:
                return stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
            except FileNotFoundError:
                return None

    def _make_room(self, folder: int, name: str) -> None:
        self._files -= 1
        if self._files < 0:
            raise unsafe("the image has too many files")
        _remove(folder, name)

    def _parent(self, parts: tuple[str, ...]) -> _Parent:
        if not parts:
            raise unsafe("the root itself must be a folder")
        return _Parent(self._open(parts[:-1]), parts[-1])

    def _open(self, parts: tuple[str, ...]) -> _Folder:
        """A folder, made with its parents where missing."""
        fd = os.dup(self._folder)
        for part in parts:
            try:
                below = self._step(fd, part)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise unsafe(f"{'/'.join(parts)!r} leads through a link or a file") from None
                raise
            finally:
                os.close(fd)
            fd = below
        return _Folder(fd)

    def _step(self, fd: int, part: str) -> int:
        try:
            return os.open(part, _FOLDER, dir_fd=fd)
        except FileNotFoundError:
            self._files -= 1
            if self._files < 0:
                raise unsafe("the image has too many files") from None
            os.mkdir(part, 0o755, dir_fd=fd)
            return os.open(part, _FOLDER, dir_fd=fd)


class _Folder:
    """An open folder, closed at the end of the `with`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class _Parent:
    """An open folder and a name in it."""

    def __init__(self, folder: _Folder, name: str) -> None:
        self._opened = folder
        self._name = name

    def __enter__(self) -> tuple[int, str]:
        return self._opened.fd, self._name

    def __exit__(self, *_: object) -> None:
        os.close(self._opened.fd)


def _remove(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=folder)
