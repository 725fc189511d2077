"""The /dev of every box: a read-only tmpfs of ours with five devices, made once and cloned into each box.

Images bring no /dev that is used, and the runtime's own is covered: CVE-2025-31133 and -52565 came from a runtime binding
devices over what an image had put there.

Without root no device can be made: the host's own five are bound over empty files of ours, each a mount of its own.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fumehood.broker import mounting

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)}
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}


def make_devices(place: Path) -> int:
    """Mount the template at `place` and return a descriptor of it, from which `clone_devices` takes copies."""
    _mount_template(place)
    for name, (major, minor) in DEVICES.items():
        os.mknod(place / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        (place / name).chmod(0o666)
    return _furnished(place)


def bind_devices(place: Path) -> int:
    """As `make_devices`, where mknod(2) is refused; `clone_bound_devices` takes copies."""
    _mount_template(place)
    for name, (major, minor) in DEVICES.items():
        (place / name).touch(0o600)
        source = os.open(Path("/dev") / name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(source)
            if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(major, minor):
                raise OSError(f"/dev/{name} is not the device of that name")
            mount_fd = mounting.clone_mount(source)
        finally:
            os.close(source)
        try:
            mounting.attach(mount_fd, str(place / name))
        finally:
            os.close(mount_fd)
    return _furnished(place)


def _mount_template(place: Path) -> None:
    place.mkdir(mode=0o755)
    mount_fd = mounting.make_filesystem("tmpfs", [("size", "64k"), ("mode", "755")], mounting.NOSUID | mounting.NOEXEC)
    try:
        mounting.attach(mount_fd, str(place))
    finally:
        os.close(mount_fd)


def _furnished(place: Path) -> int:
    for name, target in _LINKS.items():
        (place / name).symlink_to(target)
    (place / "shm").mkdir(mode=0o755)
    return os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def clone_devices(template: int) -> int:
    """A detached read-only mount of the template."""
    mount_fd = mounting.clone_mount(template)
    mounting.restrict_mount(mount_fd, mounting.RDONLY | mounting.NOSUID | mounting.NOEXEC)
    return mount_fd


def clone_bound_devices(template: int) -> int:
    """A detached read-only tree of mounts: a template of `bind_devices` and its devices."""
    mount_fd = mounting.clone_tree(template)
    mounting.restrict_tree(mount_fd, mounting.RDONLY | mounting.NOSUID | mounting.NOEXEC)
    return mount_fd


def private_tmpfs(size_bytes: int, uid: int) -> int:
    """A detached world-writable tmpfs of bounded bytes and inodes, nosuid and nodev."""
    inodes = max(1024, size_bytes // 4096)
    options = [("size", str(size_bytes)), ("nr_inodes", str(inodes)), ("mode", "1777"), ("uid", str(uid)), ("gid", str(uid))]
    return mounting.make_filesystem("tmpfs", options, mounting.NOSUID | mounting.NODEV)
