"""The files that a box gets beside its image (rule 22): a file system of memory at /run, made and filled where no box can reach it.

The bytes come in one sealed memory file, so that nobody changes them while they are read, and a length that was told is the length.
What the box sees is read-only, nosuid, nodev and noexec, its files readable by the tool's own uid alone. The memory is never swapped
out where the kernel can promise that (`noswap`, Linux 6.4, root); elsewhere files that are secret are refused while swap is on.
Invariant: names are a few plain parts below `fumehood/` or `secrets/`, checked by `requests`; nothing is ever opened by a longer path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fumehood.broker import mounting
from fumehood.broker.enter import Cover, Move, Operation, enter
from fumehood.broker.mounting import NODEV, NOEXEC, NOSUID, RDONLY
from fumehood.faults import BoxFailed, Refused
from fumehood.model import Deny
from fumehood.reach import JAVA_STORES
from fumehood.reasons import Reason

PLACE = "/run"
SECRETS = "secrets/"
MOST_FILES = 64
MOST_BYTES = 4 * 2**20
# Where distributions keep the authorities that programs trust. A file may be put over these, and over nothing else.
COVERED = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", *JAVA_STORES,
)  # fmt: skip
_SEALED = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
_RULE = "credentials.deliver"
_SWAPS = Path("/proc/swaps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Supplied:
    """A file as the worker tells of it; its bytes follow those of the files before it."""

    name: str
    size_bytes: int
    over: str | None


@dataclass(kw_only=True)
class Supply:
    """The detached mounts of one box's files. `covers` are copies of single files, by the place that each goes over."""

    mount_fd: int
    covers: dict[str, tuple[str, int]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def attach(self, helper: Path, pidfd: int) -> dict[str, str]:
        """Put them into the box: what the mount table must show there, the path inside the file system by place. Raises BoxFailed."""
        operations: list[Operation] = [Move(self.mount_fd, PLACE), *(Cover(fd, place) for place, (_, fd) in self.covers.items())]
        try:
            absent = enter(helper, pidfd, operations, user_namespace=False)
        except BoxFailed as error:
            if f"move {PLACE}: errno" not in error.detail:
                raise
            remedy = f"Build the image with an empty directory {PLACE}."
            detail = f"the image has no plain directory {PLACE} for the call's files"
            raise BoxFailed(Reason.BOX_FAILED, detail, remedy=remedy) from error
        covered = {place: f"/{name}" for place, (name, _) in self.covers.items() if place not in absent}
        return {PLACE: "/", **covered}

    def close(self) -> None:
        """Let go of the mounts; those in the box stay."""
        for fd in (self.mount_fd, *(fd for _, fd in self.covers.values())):
            os.close(fd)
        self.mount_fd, self.covers = -1, {}


def make_supply(files: Sequence[Supplied], contents: int, *, box_uid: int, folder: Path) -> Supply:
    """Copy the files into a file system of their own. `folder` is made and removed, in our own mount namespace.

    Raises Refused, BoxFailed.
    """
    _check_contents(files, contents)
    try:
        secret = any(each.name.startswith(SECRETS) for each in files)
        mount_fd, unswapped = _memory(sum(each.size_bytes for each in files), secret=secret)
        try:
            _fill(mount_fd, files, contents, box_uid)
            mounting.restrict_mount(mount_fd, RDONLY | NOSUID | NODEV | NOEXEC)
            supply = _cloned(mount_fd, files, folder)
        finally:
            os.close(mount_fd)
    except OSError as error:
        raise BoxFailed(Reason.BOX_FAILED, f"supplied files: {error.strerror or error}") from error
    swapped = "never" if unswapped else "may be" if _swap_is_on() else "no swap"
    supply.facts = {"files": [each.name for each in files], "swapped": swapped}
    return supply


def _check_contents(files: Sequence[Supplied], contents: int) -> None:
    try:
        seals = fcntl.fcntl(contents, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    total = sum(each.size_bytes for each in files)
    if seals & _SEALED != _SEALED or os.fstat(contents).st_size != total or total > MOST_BYTES:
        detail = "supplied files come in a sealed memory file of their length"
        raise Refused(Deny(reason=Reason.BAD_REQUEST, rule="broker.supplies", detail=detail))


def _memory(size_bytes: int, *, secret: bool) -> tuple[int, bool]:
    """An empty file system of memory, and whether it is never swapped out."""
    room = size_bytes + (MOST_FILES + 64) * 4096  # each file takes whole pages, each folder one
    options: list[tuple[str, str | None]] = [("size", str(room)), ("nr_inodes", str(8 * MOST_FILES)), ("mode", "755")]
    attributes = NOSUID | NODEV | NOEXEC
    try:
        return mounting.make_filesystem("tmpfs", [*options, ("noswap", None)], attributes), True
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EPERM}:
            raise
    if secret and _swap_is_on():
        detail = "a secret file could be swapped out to the disk: this kernel, or a user without root, has no tmpfs `noswap`"
        remedy = "Turn swap off, deliver the credential by `gate`, or run as root on Linux 6.4."
        raise Refused(Deny(reason=Reason.UNENFORCEABLE, rule=_RULE, detail=detail, remedy=remedy))
    return mounting.make_filesystem("tmpfs", options, attributes), False


def _swap_is_on() -> bool:
    return len(_SWAPS.read_text(encoding="utf-8").splitlines()) > 1


def _fill(mount_fd: int, files: Sequence[Supplied], contents: int, box_uid: int) -> None:
    offset = 0
    for each in files:
        with _folder_of(mount_fd, each.name, box_uid) as (folder_fd, name):
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400, dir_fd=folder_fd)
            try:
                _copy(contents, offset, each.size_bytes, fd)
                os.fchown(fd, box_uid, box_uid)
                os.fchmod(fd, 0o400)  # whatever the umask
            finally:
                os.close(fd)
        offset += each.size_bytes


@contextmanager
def _folder_of(mount_fd: int, name: str, box_uid: int) -> Iterator[tuple[int, str]]:
    """The folder of a file, made if need be, and the file's last name. Folders of secrets are the tool's alone."""
    *parts, last = name.split("/")
    mode, owner = (0o500, box_uid) if name.startswith(SECRETS) else (0o755, 0)
    fd = os.dup(mount_fd)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=fd)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = below
            os.fchown(fd, owner, owner)
            os.fchmod(fd, mode)
        yield fd, last
    finally:
        os.close(fd)


def _copy(source: int, offset: int, size: int, target: int) -> None:
    while size:
        chunk = os.pread(source, min(size, 2**20), offset)
        written = os.write(target, chunk)
        if not chunk or written != len(chunk):
            raise OSError(errno.EIO, "a copy was cut short")
        offset, size = offset + written, size - written


def _cloned(mount_fd: int, files: Sequence[Supplied], folder: Path) -> Supply:
    """Detached mounts of the whole and of each file that goes over another.

    It is attached to a path of ours meanwhile, because what is attached nowhere cannot be cloned before Linux 6.15.
    """
    folder.mkdir(mode=0o700)
    with ExitStack() as undo, ExitStack() as meanwhile:
        meanwhile.callback(folder.rmdir)
        mounting.attach(mount_fd, str(folder))
        meanwhile.callback(mounting.detach, str(folder))
        supply = Supply(mount_fd=_clone(folder, ".", stat.S_IFDIR))
        undo.callback(supply.close)
        for each in files:
            if each.over is not None:
                supply.covers[each.over] = (each.name, _clone(folder, each.name, stat.S_IFREG))
        undo.pop_all()
    return supply


def _clone(folder: Path, name: str, kind: int) -> int:
    fd = os.open(folder / name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_IFMT(os.fstat(fd).st_mode) != kind:
            raise OSError(errno.EIO, "a supplied file is something else")
        return mounting.clone_mount(fd)
    finally:
        os.close(fd)
