"""The kernel's mount interface, as thin as it can be: one function a step, over ctypes.

Invariants: every descriptor returned is close-on-exec; every failure is an `OSError` that names the step and, where
the kernel explains itself, carries its words. Nothing here decides anything: `workspace` and the engines do. Paths
are given as strings only where the kernel offers nothing better, and those lie in our own 0700 folders.

The system call numbers are those of every architecture since Linux 5.1 (the table was unified at 424), alpha excepted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Sequence

MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE, MS_SLAVE = 2, 4, 16384, 1 << 18, 1 << 19
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8  # MOUNT_ATTR_*

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 1, 2, 4, 8
STAY_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 437, 442
AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_MOUNT_ATTR_IDMAP = 0x100000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, step: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
    return result


def _syscall(step: str, number: int, *args: int | bytes | None) -> int:
    # Variadic C: a Python int would be passed as 32 bits, leaving the upper half of a register to chance.
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide), step)


def clone_mount(directory_fd: int) -> int:
    """A detached mount of exactly this directory, without what is mounted below it.

    The directory must belong to the caller's own mount namespace: open_tree(2) refuses others with EINVAL.
    """
    flags = _AT_EMPTY_PATH | _OPEN_TREE_CLONE | os.O_CLOEXEC
    return _syscall("open_tree", _OPEN_TREE, directory_fd, b"", flags)


def clone_tree(directory_fd: int) -> int:
    """As `clone_mount`, with what is mounted below it."""
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE | _OPEN_TREE_CLONE | os.O_CLOEXEC
    return _syscall("open_tree", _OPEN_TREE, directory_fd, b"", flags)


def restrict_tree(mount_fd: int, attributes: int) -> None:
    """As `restrict_mount`, for every mount of a tree."""
    attr = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _syscall("mount_setattr", _MOUNT_SETATTR, mount_fd, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, attr, len(attr))


def restrict_mount(mount_fd: int, attributes: int, idmap_fd: int | None = None) -> None:
    """Set `RDONLY | NOSUID | NODEV` and, for a mount not yet attached, the id mapping of a user namespace."""
    idmap = 0 if idmap_fd is None else _MOUNT_ATTR_IDMAP
    attr = struct.pack("=QQQQ", attributes | idmap, 0, 0, idmap_fd or 0)
    _syscall("mount_setattr", _MOUNT_SETATTR, mount_fd, b"", _AT_EMPTY_PATH, attr, len(attr))


def make_filesystem(kind: str, options: Sequence[tuple[str, str | None]], attributes: int) -> int:
    """A detached mount of a new filesystem. Options go one by one: no commas to escape, no option smuggled in.

    An option whose value is None is a flag.
    """
    context = _syscall(f"fsopen {kind}", _FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)
    try:
        for key, value in options:
            step = f"fsconfig {kind} {key}"
            command, given = (_FSCONFIG_SET_FLAG, None) if value is None else (_FSCONFIG_SET_STRING, os.fsencode(value))
            _syscall(step, _FSCONFIG, context, command, key.encode(), given, 0)
        _syscall(f"fsconfig {kind} create", _FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _syscall(f"fsmount {kind}", _FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}{_words_of(context)}") from error
    finally:
        os.close(context)


def _words_of(context: int) -> str:
    """What the kernel logged into a filesystem context about its failure."""
    words: list[str] = []
    with contextlib.suppress(OSError):  # ENODATA: it has said everything
        while len(words) < 8:
            words.append(os.read(context, 1024).decode(errors="replace").strip())
    return f" ({'; '.join(words)})" if words else ""


def attach(mount_fd: int, target: str) -> None:
    """Attach a detached mount at a path in the caller's mount namespace."""
    path = os.fsencode(target)
    _syscall(f"move_mount {target}", _MOVE_MOUNT, mount_fd, b"", AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH)


def detach(target: str) -> None:
    """Take the topmost mount off a path at once; descriptors into it stay usable until they are closed."""
    _checked(_libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW), f"umount2 {target}")


def unmount_all(target: str) -> None:
    """Take off whatever is mounted at a path, all of it."""
    with contextlib.suppress(OSError):  # EINVAL: nothing is mounted there any more
        while True:
            detach(target)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount the old way, for what the newer calls do not cover: propagation flags."""
    raw = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _checked(_libc.mount(raw[0], raw[1], raw[2], ctypes.c_ulong(flags), raw[3]), f"mount {target}")


def open_beneath(directory_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int = STAY_BENEATH) -> int:
    """openat2(2). By default nothing outside `directory_fd`, no symlink and no other mount is ever entered."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _syscall(f"openat2 {path}", _OPENAT2, directory_fd, os.fsencode(path), how, len(how))
