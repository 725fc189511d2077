"""Id mappings for mounts, as user namespaces that nobody lives in.

A mapping is given to mount_setattr(2) as a user namespace, and only a process can make one. Forking a threaded Python
is unsafe and a thread cannot unshare CLONE_NEWUSER, so a short-lived `unshare --user` makes it, we write its maps and
keep a descriptor; the process is gone before the mapping is used. That costs 2 ms, so mappings are kept (box ids come
back from a pool, so the same few pairs return). The maps are ours, never a caller's text.

Two mappings exist. *Seen*: the owner's uid is the box's; every other uid is unmapped, so the box can neither write nor
own what belongs to others, and their private files stay private. All gids stay what they are: the
kernel refuses even root a file whose gid is unmapped, so the owner's own files in other groups would be unreadable,
and the box is in none of these groups. *Bound* (`direct`): new files need a gid on disk, so the owner's own group is
the box's.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

KEPT = 64
_ALL = 2**32 - 1  # the last id is -1, "no id"
_UNSHARE = ("/usr/bin/unshare", "--user", "--", "/bin/sh", "-c", "echo && read -r end")


def only(owner: int, box: int) -> str:
    """The map in which `owner` on disk is `box` in the mount and nothing else exists."""
    return f"{owner} {box} 1\n"


def swapped(owner: int, box: int) -> str:
    """The map of every id to itself, except that `owner` on disk is `box` in the mount and `box` on disk is nothing."""
    lines, start = [], 0
    for end in (*sorted({owner, box}), _ALL):
        if end > start:
            lines.append(f"{start} {start} {end - start}\n")
        start = end + 1
    return only(owner, box) + "".join(lines)


SAME = f"0 0 {_ALL}\n"


class IdMaps:
    """Makes and keeps mappings. `command` enters a user namespace, writes a byte and stays until its stdin ends."""

    def __init__(self, command: Sequence[str] = _UNSHARE) -> None:
        """Keep up to `KEPT` mappings, the least recently used one going first."""
        self._command = tuple(command)
        self._kept: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, uid_map: str, gid_map: str) -> int:
        """A descriptor of the mapping, the caller's to close."""
        key = (uid_map, gid_map)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._make(uid_map, gid_map)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                os.close(self._kept.popitem(last=False)[1])
            return os.dup(self._kept[key])

    def _make(self, uid_map: str, gid_map: str) -> int:
        with subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/"
        ) as child:
            if child.stdin is None or child.stdout is None or not child.stdout.read(1):
                raise OSError("unshare --user made no user namespace")
            # Our own unreaped child: its pid cannot be another's.
            process = Path("/proc") / str(child.pid)
            (process / "uid_map").write_text(uid_map)
            (process / "gid_map").write_text(gid_map)
            descriptor = os.open(process / "ns/user", os.O_RDONLY)
            child.stdin.close()
        return descriptor

    def close(self) -> None:
        """Forget every mapping; mounts that use one keep it."""
        with self._lock:
            while self._kept:
                os.close(self._kept.popitem()[1])
