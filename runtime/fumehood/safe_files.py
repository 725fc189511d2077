"""Reading the files that configure us: only those that nobody but root and the caller could have written.

The attack (rule 6 of the security rules): a box, another user or a cloned repository plants a `fumehood.yaml` or a
profile where an operator's command will find it. So a file is read only when every directory on the way to it, and the
file itself, is owned by root or by the caller and not writable by group or others. The walk starts at `/` and opens
each component below the descriptor of the one before, so what was checked is what is read: there is no moment in
which a checked name can be swapped. A symbolic link is followed only when its own owner is trusted, and everything it
leads through is checked as well.

A sticky directory such as /tmp may be an ancestor (nobody can replace our folder in it) but never the file's own
parent: others may hard-link a file of ours there under a name of their choosing.

Privileged processes import this module: standard library only.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

FILE_BYTES = 256 * 1024
_LINKS = 16
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_OPEN_TO_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def inside(path: str | PurePosixPath, folder: str | PurePosixPath) -> bool:
    """Whether `path` is `folder` or below it. Both absolute and already resolved; `..` is judged textually."""
    inner, outer = (PurePosixPath(os.path.normpath(name)) for name in (path, folder))
    return inner == outer or outer in inner.parents


def read_trusted(path: str | Path, uid: int, *, limit_bytes: int = FILE_BYTES, private: bool = False) -> str:
    """The text of a file that only root and `uid` could have written and, if `private`, only its owner can read.

    Raises FileNotFoundError when it does not exist and CONFIG_UNSAFE when somebody else could have written or read it.
    """
    fd = _open_trusted(Path(path), uid)
    try:
        with os.fdopen(fd, "rb") as file:
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            if private and mode & _OPEN_TO_OTHERS:
                detail = f"{path} holds secrets and is open to others (mode {mode:04o})"
                raise FumehoodError(
                    Reason.CONFIG_UNSAFE, detail, remedy=f"`chmod 600 {path}`, and replace what it holds."
                )
            data = file.read(limit_bytes + 1)
    except OSError as error:  # a file of /proc's, a failing disk
        raise FumehoodError(Reason.CONFIG_UNSAFE, f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit_bytes:
        raise FumehoodError(Reason.CONFIG_INVALID, f"{path} is over {limit_bytes} bytes", remedy="Make it shorter.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FumehoodError(Reason.CONFIG_INVALID, f"{path} is not UTF-8", remedy="Save it as UTF-8.") from error


def check_trusted(path: str | Path, uid: int) -> None:
    """That a file (a program, say) could have been written by root and `uid` only. Raises as `read_trusted` does."""
    os.close(_walk(Path(path), uid, last_is_file=True))


def open_trusted_folder(folder: str | Path, uid: int) -> int:
    """A descriptor, good for locking and for names below it, of a folder in which only root and `uid` can make names.

    Raises FileNotFoundError, or FumehoodError(CONFIG_UNSAFE), for a sticky folder like /tmp too.
    """
    fd = _walk(Path(folder), uid, last_is_file=False)
    try:
        if os.fstat(fd).st_mode & _WRITABLE_BY_OTHERS:
            raise FumehoodError(
                Reason.CONFIG_UNSAFE, f"{folder} can be written by others", remedy="Use a folder of yours."
            )
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)


def list_trusted(folder: Path, uid: int) -> list[str]:
    """The names in a folder that only root and `uid` could have filled; none when there is no such folder."""
    try:
        fd = _walk(Path(folder), uid, last_is_file=False)
    except FileNotFoundError:
        return []
    try:
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)
    try:
        return sorted(os.listdir(listing))  # noqa: PTH208 - the descriptor that was checked, not the name
    finally:
        os.close(listing)


def open_to_append(path: str | Path, uid: int) -> int:
    """A descriptor that can only be appended with, of a file in a folder that only root and `uid` can change; made if missing.

    Raises FileNotFoundError when there is no such folder, and CONFIG_UNSAFE when somebody else could have put the file there.
    """
    place = Path(path)
    folder = _walk(place.parent, uid, last_is_file=False)
    try:
        if os.fstat(folder).st_mode & _WRITABLE_BY_OTHERS:
            raise FumehoodError(Reason.CONFIG_UNSAFE, f"{place.parent} can be written by others", remedy="Use a folder of yours.")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(place.name, flags, 0o600, dir_fd=folder)
        except OSError as error:
            raise FumehoodError(Reason.CONFIG_UNSAFE, f"{place} cannot be appended to: {error.strerror}") from error
    finally:
        os.close(folder)
    try:
        _check(os.fstat(fd), str(place), uid, parent_sticky=False)
    except FumehoodError:
        os.close(fd)
        raise
    return fd


def _open_trusted(path: Path, uid: int) -> int:
    """A readable descriptor of a checked regular file."""
    seen = _walk(path, uid, last_is_file=True)
    try:
        # Opening through /proc reopens the very inode that was checked; the name is not looked up again.
        return os.open(f"/proc/self/fd/{seen}", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise FumehoodError(Reason.CONFIG_UNSAFE, f"{path} cannot be read by uid {uid}") from error
    finally:
        os.close(seen)


def _walk(path: Path, uid: int, *, last_is_file: bool) -> int:  # noqa: C901 - one loop that must be read as a whole
    """An O_PATH descriptor of `path`, with every component on the way checked."""
    todo = [part for part in reversed(os.path.abspath(path).split("/")) if part]  # noqa: PTH100 - links are walked here
    links = 0
    trail = [os.open("/", os.O_PATH | os.O_CLOEXEC)]
    try:
        _check(os.fstat(trail[-1]), "/", uid, parent_sticky=False)
        sofar = PurePosixPath("/")
        while todo:
            part = todo.pop()
            if part == "..":
                # Only a link's target holds `..`; the directory above was checked on the way here.
                if len(trail) > 1:
                    os.close(trail.pop())
                    sofar = sofar.parent
                continue
            sticky = bool(os.fstat(trail[-1]).st_mode & _WRITABLE_BY_OTHERS)
            try:
                fd = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=trail[-1])
            except NotADirectoryError:
                raise FileNotFoundError(str(path)) from None
            except PermissionError as error:
                raise FumehoodError(Reason.CONFIG_UNSAFE, f"{sofar} cannot be searched by uid {uid}") from error
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink("", dir_fd=fd)
                os.close(fd)
                _check(status, str(sofar / part), uid, parent_sticky=sticky)
                links += 1
                if links > _LINKS:
                    raise FumehoodError(Reason.CONFIG_UNSAFE, f"{path} leads through too many links")
                if target.startswith("/"):
                    while len(trail) > 1:
                        os.close(trail.pop())
                    sofar = PurePosixPath("/")
                todo.extend(step for step in reversed(target.split("/")) if step not in ("", "."))
                continue
            trail.append(fd)
            sofar = sofar / part
            _check(status, str(sofar), uid, parent_sticky=sticky)
            if not todo and stat.S_ISDIR(status.st_mode) == last_is_file:
                wanted = "a file" if last_is_file else "a directory"
                raise FumehoodError(Reason.CONFIG_UNSAFE, f"{sofar} is not {wanted}", remedy=f"Name {wanted}.")
        return trail.pop()
    finally:
        for fd in trail:
            os.close(fd)


def _check(status: os.stat_result, name: str, uid: int, *, parent_sticky: bool) -> None:
    """Refuse one component that somebody else owns or can write."""
    if status.st_uid not in (0, uid):
        raise FumehoodError(
            Reason.CONFIG_UNSAFE,
            f"{name} belongs to uid {status.st_uid}, not to root or uid {uid}",
            remedy="Change its owner, or move the file.",
        )
    # A link's own mode means nothing.
    writable = not stat.S_ISLNK(status.st_mode) and bool(status.st_mode & _WRITABLE_BY_OTHERS)
    if writable and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
        raise FumehoodError(
            Reason.CONFIG_UNSAFE,
            f"{name} can be written by others (mode {stat.S_IMODE(status.st_mode):04o})",
            remedy=f"`chmod go-w {name}`, or move the file.",
        )
    if not stat.S_ISDIR(status.st_mode):
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            raise FumehoodError(Reason.CONFIG_UNSAFE, f"{name} is not a regular file", remedy="Name a regular file.")
        if parent_sticky:
            raise FumehoodError(
                Reason.CONFIG_UNSAFE,
                f"{name} lies in a directory that everybody can write",
                remedy="Put it into a folder of yours.",
            )
