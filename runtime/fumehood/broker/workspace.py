"""The mounts that show a host directory to one box (security rules 11 and 12), made where no box can reach them.

Whatever the mode, the box gets one detached mount, nosuid and nodev. `rw` and `ro` are overlays over an id-mapped
read-only clone of the directory: the box's uid is its owner there, nothing is written below, and a socket in it
cannot be connected, because an overlay's inode is not the socket's. The upper layer of `rw`, and the whole of
`scratch`, is a tmpfs of `disk_bytes`, so that limit holds by construction. Its pages count as the box's memory too,
and its inodes are bounded, since each costs kernel memory. `direct` is a plain id-mapped bind: it must be asked for,
and is refused where sockets or fifos lie.

Invariants: an overlay keeps private clones of its layers, so the layers leave our mount namespace as soon as it is
made; from then on descriptors are all that holds them, and a broker that dies leaves nothing mounted. Nothing in the
caller's directory is ever chowned or written here.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fumehood.broker import mounting
from fumehood.broker.directory import RULE, SOURCE_FILE_BYTES, group_of, open_source, path_of, refuse_direct
from fumehood.broker.idmaps import SAME, IdMaps, only, swapped
from fumehood.broker.mounting import NODEV, NOSUID, RDONLY
from fumehood.faults import BoxFailed, Refused
from fumehood.model import Binding, Deny, ReadOnlyMount, WorkspaceMode
from fumehood.reasons import Reason
from fumehood.settings import Settings

_PARTS = _BASE, _LAYERS, _EMPTY = "base", "layers", "empty"
_INODES = (1024, 131_072)
_IDMAPS = IdMaps()


@dataclass(kw_only=True)
class Workspace:
    """One box's view of a directory. `mount_fd` may be attached once; `close` when the box is gone."""

    mode: WorkspaceMode
    mount_fd: int
    folder: Path
    disk_bytes: int = 0
    base_fd: int | None = None
    upper_fd: int | None = None
    path: str | None = None
    place: str = "/workspace"
    owner_uid: int = 0
    made_ns: int = field(default_factory=time.time_ns)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def close(self) -> bool:
        """Let go of every layer; True when our mount namespace holds none. Idempotent."""
        fds = [self.mount_fd, self.base_fd, self.upper_fd]
        self.mount_fd, self.base_fd, self.upper_fd = -1, None, None
        for fd in fds:
            if fd is not None and fd >= 0:
                os.close(fd)
        for name in _PARTS:
            with contextlib.suppress(OSError):
                (self.folder / name).rmdir()  # EBUSY if it were still a mount point
        return not any((self.folder / name).exists() for name in _PARTS)


def make_workspace(
    binding: Binding, directory_fd: int | None, *, box_uid: int, folder: Path, settings: Settings
) -> Workspace | None:
    """Make the mount that a box sees at /workspace, or None when it sees none.

    `directory_fd` is what `check_directory` returned and stays the caller's; `folder` is made, in our own mount
    namespace. Raises `Refused` or `BoxFailed`.
    """
    if binding.workspace is WorkspaceMode.NONE:
        return None
    with _failures_named(), _made(folder):
        if binding.workspace is WorkspaceMode.SCRATCH:
            return _scratch(box_uid, binding.disk_bytes, folder)
        if directory_fd is None:
            raise Refused(Deny(reason=Reason.WORKSPACE_MISSING, rule=RULE))
        if binding.workspace is WorkspaceMode.DIRECT:
            refuse_direct(directory_fd, disk_unlimited=binding.disk_unlimited)
        with _idmapped_clone(binding.workspace, directory_fd, settings.caller_uid, box_uid) as clone_fd:
            if binding.workspace is WorkspaceMode.DIRECT:
                return _seen(WorkspaceMode.DIRECT, os.dup(clone_fd), directory_fd, folder, {"disk": "not limited"})
            if binding.workspace is WorkspaceMode.RO:
                return _read_only(clone_fd, directory_fd, folder)
            return _transaction(clone_fd, directory_fd, box_uid, binding.disk_bytes, folder)


def make_mounts(mounts: Sequence[ReadOnlyMount], *, box_uid: int, folder: Path, settings: Settings) -> list[Workspace]:
    """Make the profile's read-only mounts, seen at `place`, as `ro` workspaces are made. All of them or none.

    A source that is a file is seen as a directory that holds nothing but a copy of it.
    """
    made: list[Workspace] = []
    try:
        with _failures_named(), _made(folder):
            for number, wanted in enumerate(mounts):
                source_fd = open_source(wanted.source, settings)
                try:
                    with _made(folder / str(number)), _lower(source_fd, box_uid, settings) as clone_fd:
                        made.append(_read_only(clone_fd, source_fd, folder / str(number)))
                        made[-1].place = f"/mnt/{wanted.name}"
                finally:
                    os.close(source_fd)
    except BaseException:
        for mount in made:
            mount.close()
        raise
    return made


def mapped_owner(directory_uid: int, caller_uid: int) -> int:
    """Whose files the box sees as its own. Only root may lend a box what another uid owns."""
    return directory_uid if caller_uid in (0, directory_uid) else caller_uid


@contextmanager
def _failures_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BoxFailed(Reason.BOX_FAILED, f"workspace: {error.strerror or error}") from error


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A 0700 folder that stays, unless the body fails."""
    folder.mkdir(mode=0o700)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for name in _PARTS:
                with contextlib.suppress(FileNotFoundError):
                    (folder / name).rmdir()
            folder.rmdir()
        raise


@contextmanager
def _idmapped_clone(mode: WorkspaceMode, directory_fd: int, caller_uid: int, box_uid: int) -> Iterator[int]:
    """A detached clone of the directory in which the box's uid is the owner's, closed after the body."""
    owner = mapped_owner(os.fstat(directory_fd).st_uid, caller_uid)
    direct = mode is WorkspaceMode.DIRECT
    idmap_fd = _IDMAPS.open(only(owner, box_uid), swapped(group_of(owner), box_uid) if direct else SAME)
    try:
        clone_fd = mounting.clone_mount(directory_fd)
        try:
            mounting.restrict_mount(clone_fd, NOSUID | NODEV | (0 if direct else RDONLY), idmap_fd)
        except OSError as error:
            os.close(clone_fd)
            # EINVAL: the filesystem cannot; EPERM: the mount is id-mapped already.
            detail = f"files of {path_of(directory_fd)} cannot be id-mapped on their filesystem ({error.strerror})"
            remedy = "Use a directory on ext4, xfs, btrfs or tmpfs."
            raise Refused(Deny(reason=Reason.UNENFORCEABLE, rule=RULE, detail=detail, remedy=remedy)) from error
    finally:
        os.close(idmap_fd)
    try:
        yield clone_fd
    finally:
        os.close(clone_fd)


@contextmanager
def _lower(source_fd: int, box_uid: int, settings: Settings) -> Iterator[int]:
    """What a read-only mount shows, as a detached mount that is closed after the body."""
    if stat.S_ISDIR(os.fstat(source_fd).st_mode):
        with _idmapped_clone(WorkspaceMode.RO, source_fd, settings.caller_uid, box_uid) as clone_fd:
            yield clone_fd
        return
    # A clone of the file's directory would show what lies beside it, so the file is copied.
    name = Path(path_of(source_fd)).name
    text = os.pread(source_fd, SOURCE_FILE_BYTES, 0)
    copy_fd = _tmpfs(len(text) + 65_536, (("mode", "755"),))
    try:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=copy_fd)
        with os.fdopen(file, "wb") as copy:
            copy.write(text)
            os.fchmod(copy.fileno(), 0o444)
        mounting.restrict_mount(copy_fd, NOSUID | NODEV | RDONLY)
        yield copy_fd
    finally:
        os.close(copy_fd)


@contextmanager
def _attached(folder: Path, mounts: Mapping[str, int]) -> Iterator[None]:
    """Layers at paths in our 0700 folder for as long as an overlay is being made: before 6.15 it takes no others."""
    attached: list[str] = []
    try:
        for name, mount_fd in mounts.items():
            (folder / name).mkdir(mode=0o700)
            mounting.attach(mount_fd, str(folder / name))
            attached.append(name)
        yield
    finally:
        for name in reversed(attached):
            mounting.detach(str(folder / name))


@contextmanager
def _layer(path: Path) -> Iterator[str]:
    """A short name for a layer, free of what overlay would split at: fsconfig(2) takes 255 bytes, a state folder may lie deep."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _scratch(box_uid: int, disk_bytes: int, folder: Path) -> Workspace:
    mount_fd = _tmpfs(disk_bytes, (("mode", "700"), ("uid", str(box_uid)), ("gid", str(box_uid))))
    facts = {"mode": WorkspaceMode.SCRATCH.value, "disk": "tmpfs size", "disk_bytes": disk_bytes}
    upper_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=mount_fd)
    workspace = Workspace(mode=WorkspaceMode.SCRATCH, mount_fd=mount_fd, folder=folder, facts=facts)
    workspace.upper_fd, workspace.disk_bytes = upper_fd, disk_bytes
    return workspace


def _tmpfs(disk_bytes: int, options: tuple[tuple[str, str], ...]) -> int:
    inodes = min(max(disk_bytes // 1024, _INODES[0]), _INODES[1])
    size = (("size", str(disk_bytes)), ("nr_inodes", str(inodes)))
    return mounting.make_filesystem("tmpfs", (*size, *options), NOSUID | NODEV)


def _read_only(clone_fd: int, directory_fd: int, folder: Path) -> Workspace:
    (folder / _EMPTY).mkdir(mode=0o700)  # an overlay without an upper layer wants two lower ones
    with _attached(folder, {_BASE: clone_fd}), _layer(folder / _BASE) as base, _layer(folder / _EMPTY) as empty:
        layers = (("lowerdir", f"{base}:{empty}"), ("xino", "off"))
        mount_fd = mounting.make_filesystem("overlay", layers, NOSUID | NODEV | RDONLY)
    return _seen(WorkspaceMode.RO, mount_fd, directory_fd, folder, {"disk": "read-only"})


def _transaction(clone_fd: int, directory_fd: int, box_uid: int, disk_bytes: int, folder: Path) -> Workspace:
    layers_fd = _tmpfs(disk_bytes, (("mode", "700"),))
    try:
        os.mkdir("work", 0o700, dir_fd=layers_fd)
        os.mkdir("upper", 0o700, dir_fd=layers_fd)
        upper_fd = os.open("upper", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=layers_fd)
        try:
            os.fchown(upper_fd, box_uid, box_uid)
            os.fchmod(upper_fd, os.fstat(directory_fd).st_mode & 0o777)
            places = folder / _BASE, folder / _LAYERS / "upper", folder / _LAYERS / "work"
            with ExitStack() as held:
                held.enter_context(_attached(folder, {_BASE: clone_fd, _LAYERS: layers_fd}))
                lower, upper, work = (held.enter_context(_layer(place)) for place in places)
                options = (
                    ("lowerdir", lower),
                    ("upperdir", upper),
                    ("workdir", work),
                    # Each of these would leave changes that `changes` cannot read as plain files.
                    *((option, "off") for option in ("redirect_dir", "metacopy", "index", "xino")),
                )
                mount_fd = mounting.make_filesystem("overlay", options, NOSUID | NODEV)
        except BaseException:
            os.close(upper_fd)
            raise
    finally:
        os.close(layers_fd)
    facts = {"disk": "tmpfs size of the overlay's upper layer", "disk_bytes": disk_bytes}
    workspace = _seen(WorkspaceMode.RW, mount_fd, directory_fd, folder, facts)
    workspace.upper_fd, workspace.disk_bytes = upper_fd, disk_bytes
    return workspace


def _seen(mode: WorkspaceMode, mount_fd: int, directory_fd: int, folder: Path, facts: Mapping[str, Any]) -> Workspace:
    found = os.fstat(directory_fd)
    path = path_of(directory_fd)
    layers = "id-mapped bind" if mode is WorkspaceMode.DIRECT else "overlay over an id-mapped read-only clone"
    place = {"path": path, "device": found.st_dev, "inode": found.st_ino, "owner": found.st_uid}
    return Workspace(
        mode=mode,
        mount_fd=mount_fd,
        folder=folder,
        base_fd=os.dup(directory_fd),
        path=path,
        owner_uid=found.st_uid,
        facts={"mode": mode.value, "layers": layers, **place, **facts},
    )
