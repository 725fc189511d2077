"""Which host directory may be given to a box (security rule 7): a caller gets no more of the host than it has.

A directory comes as a descriptor that the caller's own uid opened. Its path, as the kernel tells it, is opened again
in the broker's mount namespace and must lead to the same device and inode: a caller with a mount namespace of its own
could otherwise show /etc under any path it likes (and open_tree(2) refuses mounts of other namespaces anyway). From
there on only the broker's descriptor counts; paths serve for comparison with what operators wrote and for messages.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import stat
from pathlib import Path

from fumehood.broker.mounting import AT_FDCWD, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, open_beneath
from fumehood.faults import Refused
from fumehood.model import Deny, WorkspaceMode
from fumehood.reasons import Reason
from fumehood.settings import Settings

_KERNELS_OWN = ("/proc", "/sys", "/dev")
SCANNED = 200_000
SOURCE_FILE_BYTES = 2**20
RULE = "filesystem.workspace"


def check_directory(fd: int, settings: Settings, mode: WorkspaceMode) -> int:
    """Open the directory behind the caller's `fd` as the broker's own, if this caller may give it to a box.

    The result is the one to use, and to close. Raises `Refused`.
    """
    caller_uid = settings.caller_uid
    found = os.fstat(fd)
    if not stat.S_ISDIR(found.st_mode):
        raise _refusal("not a directory")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        # O_PATH needs no permission on the directory itself, so it proves nothing about the caller.
        raise _refusal("the descriptor was not opened for reading")
    path = path_of(fd)
    refuse_path(path, settings.workspace_roots, settings.state.root)
    if mode in (WorkspaceMode.RW, WorkspaceMode.DIRECT) and caller_uid not in (0, found.st_uid):
        raise _refusal(f"{path} belongs to uid {found.st_uid}, and {mode} needs one of your own (uid {caller_uid})")
    ours = open_again(path, found.st_dev, found.st_ino)
    try:
        refuse_mounts_below(path, Path("/proc/thread-self/mountinfo").read_bytes())
    except BaseException:
        os.close(ours)
        raise
    return ours


def open_source(path: str, settings: Settings) -> int:
    """Open the source of a profile's read-only mount, a directory or a regular file.

    Where it really lies must be below a root for mounts, or be one.
    """
    try:
        # Not blocking: a fifo of that name would hold us until somebody writes into it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _refusal(f"the mount's source {path} cannot be opened: {os.strerror(error.errno or 0)}") from error
    try:
        real = path_of(fd)
        refuse_path(real, settings.mount_roots, settings.state.root)
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            refuse_mounts_below(real, Path("/proc/thread-self/mountinfo").read_bytes())
        elif not stat.S_ISREG(found.st_mode) or found.st_size > SOURCE_FILE_BYTES:
            raise _refusal(f"the mount's source {real} is no directory and no file of at most {SOURCE_FILE_BYTES} bytes")
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_again(path: str, device: int, inode: int) -> int:
    """Open the directory at `path` in our mount namespace; it must be the one with this device and inode."""
    try:
        resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
        ours = open_beneath(AT_FDCWD, path, os.O_RDONLY | os.O_DIRECTORY, resolve=resolve)
    except OSError as error:
        raise _refusal(f"{path} cannot be opened by the broker: {os.strerror(error.errno or 0)}") from error
    found = os.fstat(ours)
    if (found.st_dev, found.st_ino) != (device, inode):
        os.close(ours)
        raise _refusal(f"{path} is another directory in the broker's mount namespace")
    return ours


def refuse_path(path: str, roots: tuple[str, ...] | None, state_root: Path) -> None:
    """Pure: raise `Refused` unless this canonical path may be given to a box."""
    if path == "/" or any(_within(path, kernel) for kernel in _KERNELS_OWN):
        raise _refusal(f"{path} is never given to a box")
    state = str(state_root)
    # A box above it would write our records; one inside it would see other tasks' changes.
    if _within(state, path) or _within(path, state):
        raise _refusal(f"{path} holds, or lies in, the state folder {state}")
    if roots is not None and not any(_within(path, root.rstrip("/") or "/") for root in roots):
        raise _refusal(f"{path} is below none of the allowed roots")


def refuse_mounts_below(path: str, mountinfo: bytes) -> None:
    """Pure: raise `Refused` when something is mounted below `path`.

    A clone of the directory shows what lies *under* such a mount, which its owner may not see and nobody expects.
    """
    for line in mountinfo.splitlines():
        point = os.fsdecode(_unescaped(line.split(b" ")[4]))
        if point != path and _within(point, path):
            raise _refusal(f"something is mounted below it, at {point}")


def refuse_direct(directory_fd: int, *, disk_unlimited: bool) -> None:
    """Raise `Refused` for a bind whose disk use would be bounded only in name, or that holds a way to the host."""
    if not disk_unlimited:
        detail = "`direct` writes to the host's disk, where no limit can be held"
        remedy = "Say `disk: unlimited`, or use `rw`."
        raise Refused(Deny(reason=Reason.UNENFORCEABLE, rule=RULE, detail=detail, remedy=remedy))
    seen = 0
    for folder, _, names, folder_fd in os.fwalk(".", dir_fd=directory_fd, follow_symlinks=False):
        for name in names:
            seen += 1
            with contextlib.suppress(FileNotFoundError):
                kind = os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode
                if stat.S_ISSOCK(kind) or stat.S_ISFIFO(kind):
                    raise _refusal(f"`direct` would reach the host through the socket or fifo {folder}/{name}")
        if seen > SCANNED:
            raise _refusal(f"it holds more than {SCANNED} files to check for sockets")


def group_of(uid: int) -> int:
    """The primary group of a user; where nobody knows the user, the group of the same number.

    Never the group of a directory of theirs: its owner need not be a member, and nobody acting for the owner, box or
    committer, may do what the owner cannot.
    """
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def path_of(fd: int) -> str:
    """Where the kernel says a descriptor's directory is."""
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def _unescaped(field: bytes) -> bytes:
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, char)
    return field


def _within(path: str, folder: str) -> bool:
    return folder in ("/", path) or path.startswith(folder + "/")


def _refusal(detail: str) -> Refused:
    return Refused(Deny(reason=Reason.WORKSPACE_NOT_ALLOWED, rule=RULE, detail=detail))
