"""Who a box's uid is, in a box without a user namespace: its /etc/passwd and /etc/group.

There the box runs as a uid of its range, which no image knows, and a program that asks who it is (ssh, git, Node's `os.userInfo`) is
told nobody and gives up. So the two files are covered, late and read-only, by the image's own with one line before them: who asks
for the uid finds `box`, as in a box where it is 1000, and who asks for another of the image's users still finds it.

Invariants: the image's bytes are copied, never parsed (rule 1), from the store's root of the image, below which no link is followed;
a file that is a link, or large, is not copied. In the box the helper covers plain files only: where an image has a link, or nothing,
that stays, and the box's uid has no name. What is mounted is in the read-back like everything else.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from pathlib import Path

from fumehood.broker import mounting
from fumehood.broker.enter import Cover
from fumehood.broker.mounting import NODEV, NOEXEC, NOSUID, RDONLY

_FILES = {"/etc/passwd": "box:x:{id}:{id}::/tmp:/bin/sh\n", "/etc/group": "box:x:{id}:\n"}
_MOST_BYTES = 64 * 2**10


def name_uid(root: Path, uid: int, folder: Path) -> list[Cover]:
    """Both files for a box of this image that runs as `uid` and the gid of the same number; their mounts are the caller's to close.

    Each is in the mount table as `/` and its own name. `folder` is made and removed. Raises OSError.
    """
    folder.mkdir(mode=0o700)
    with ExitStack() as undo, ExitStack() as meanwhile:
        meanwhile.callback(folder.rmdir)
        options = [("size", str(4 * _MOST_BYTES)), ("nr_inodes", "8"), ("mode", "755")]
        memory = mounting.make_filesystem("tmpfs", options, NOSUID | NODEV | NOEXEC)
        meanwhile.callback(os.close, memory)
        for place, line in _FILES.items():
            content = line.format(id=uid).encode() + _image_bytes(root, place.removeprefix("/"))
            fd = os.open(Path(place).name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=memory)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
        mounting.restrict_mount(memory, RDONLY | NOSUID | NODEV | NOEXEC)
        # What is attached nowhere cannot be cloned before Linux 6.15.
        mounting.attach(memory, str(folder))
        meanwhile.callback(mounting.detach, str(folder))
        covers: list[Cover] = []
        for place in _FILES:
            source = os.open(folder / Path(place).name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                covers.append(Cover(mounting.clone_mount(source), place))
            finally:
                os.close(source)
            undo.callback(os.close, covers[-1].fd)
        undo.pop_all()
    return covers


def _image_bytes(root: Path, path: str) -> bytes:
    """A plain and short file of an image, or nothing."""
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # Not blocking: an image may have a fifo of that name.
            fd = mounting.open_beneath(directory, path, os.O_RDONLY | os.O_NONBLOCK)
        finally:
            os.close(directory)
    except OSError:
        return b""
    try:
        found = os.fstat(fd)
        return os.read(fd, _MOST_BYTES) if stat.S_ISREG(found.st_mode) and found.st_size <= _MOST_BYTES else b""
    finally:
        os.close(fd)
