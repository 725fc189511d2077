"""Applies a set of changes to a workspace, all or nothing, as nobody but the directory's owner.

A program of its own, run as `python -I -S committer.py UID GID FD`: it starts as root only so that the interpreter
and its library need not be readable by the owner, imports what it needs, and becomes the owner, without a capability,
before it reads its first byte. FD is the workspace; all else comes on stdin: eight bytes of length, a JSON manifest,
then the contents of its files one after the other. It answers with one JSON object on stdout.

Invariants: nothing outside FD is ever named, no symlink is followed and no mount entered (openat2). In the first
phase everything new is written under temporary names beside where it belongs (a new directory is built whole under
one), so a full disk, a lost sender or a refusal leaves the workspace as it was. The second phase only renames:
RENAME_EXCHANGE puts the new in place and keeps the old under the temporary name, so every step can be undone until
the last has succeeded. What changed on the host after `since_ns` is not overwritten: that is a conflict.

It stands alone (no import of ours), which is why it has an openat2 of its own.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import struct
import sys

_OPENAT2 = 437
_BENEATH = 1 | 2 | 4 | 8  # RESOLVE_NO_XDEV | NO_MAGICLINKS | NO_SYMLINKS | BENEATH
_NOREPLACE, _EXCHANGE = 1, 2
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS = 4, 24, 28, 38
_SECBITS_LOCKED = 0b11100011  # noroot, no_cap_ambient_raise and their locks; keep_caps locked off
_CAPABILITY_VERSION_3 = 0x20080522
_CHUNK = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


class ConflictError(Exception):
    """The host changed a file while the box was working on it."""


def _checked(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def become(uid: int, gid: int) -> None:
    """Be the owner for good, with no capability in any set and none to be had by executing anything."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    _checked(_libc.prctl(_PR_SET_SECUREBITS, _SECBITS_LOCKED, 0, 0, 0), "securebits")
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # Where the owner is uid 0, all of the above leaves the capabilities that it has now.
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, bytes(24)), "capset")
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    os.umask(0o077)


def beneath(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` below `root`, entering no symlink and no other mount."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, _BENEATH)
    name = ctypes.c_char_p(os.fsencode(path or "."))
    return _checked(_libc.syscall(_OPENAT2, root, name, how, ctypes.c_size_t(len(how))), path)


def rename(folder: int, old: str, new: str, flags: int, told: str) -> None:
    """renameat2(2) within one directory."""
    _checked(_libc.renameat2(folder, os.fsencode(old), folder, os.fsencode(new), ctypes.c_uint(flags)), told)


def remove_tree(folder: int, name: str) -> None:
    """Remove whatever `name` is, without following anything."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        try:
            os.chmod(f"/proc/self/fd/{below}", 0o700)  # noqa: PTH101 - fchmod(2) takes no O_PATH descriptor; pathlib is slow to import
            reading = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=below)
            try:
                for child in os.listdir(reading):  # noqa: PTH208 - a descriptor
                    remove_tree(reading, child)
            finally:
                os.close(reading)
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=folder)


class Transaction:
    """One set of changes to the directory `root`: `stage` each, then `swap`, then `finish`; `undo` after a failure."""

    def __init__(self, root: int, token: str, since_ns: int | None) -> None:
        self.root = root
        self.token = token
        self.since_ns = since_ns
        self.swaps: list[tuple[str, str, str]] = []  # folder, temporary name, name
        self.built: dict[str, str] = {}  # a new directory: where it is being built
        self.new_modes: list[tuple[str, int]] = []
        self.old_modes: dict[str, int] = {}  # of the host's directories, as found; insertion order: outermost first
        self.final_modes: dict[str, int] = {}
        self.done: list[tuple[str, str, str, str]] = []

    def stage(self, change: dict[str, object], source: int) -> None:
        """Write what one change needs under a temporary name."""
        op, path = str(change["op"]), str(change["path"])
        if op == "mode":
            self.final_modes[path] = _number(change, "mode")
            self.widen(path)
            return
        above, _, name = path.rpartition("/")
        if above in self.built:
            real, spot = self.built[above], name
        else:
            self.widen(above)
            self.refuse_conflict(above, name, path)
            real, spot = above, f".fumehood-{self.token}-{len(self.swaps)}"
            self.swaps.append((above, spot, name))
        folder = beneath(self.root, real, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if op == "directory":
                os.mkdir(spot, 0o700, dir_fd=folder)
                self.built[path] = f"{real}/{spot}" if real else spot
                self.new_modes.append((self.built[path], _number(change, "mode")))
            elif op == "symlink":
                os.symlink(str(change["target"]), spot, dir_fd=folder)
            elif op == "file":
                self.write(folder, spot, name, change, source)
        finally:
            os.close(folder)

    def write(self, folder: int, spot: str, name: str, change: dict[str, object], source: int) -> None:
        """Write one file's content, with the access lists and user attributes of the file it will replace."""
        fd = beneath(folder, spot, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            left = _number(change, "size_bytes")
            while left:
                data = read_exactly(source, min(left, _CHUNK))
                left -= len(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            if spot != name:
                copy_attributes(folder, name, fd)
            os.fchmod(fd, _number(change, "mode") & 0o777)
            os.utime(fd, ns=(_number(change, "mtime_ns"),) * 2)
        finally:
            os.close(fd)

    def widen(self, path: str) -> None:
        """Let the owner write in a directory of theirs that says they may not: the box's uid did the same."""
        if path in self.old_modes:
            return
        fd = beneath(self.root, path, os.O_PATH | os.O_DIRECTORY)
        try:
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            self.old_modes[path] = mode
            if mode & 0o700 != 0o700 and os.fstat(fd).st_uid == os.getuid():
                os.chmod(f"/proc/self/fd/{fd}", mode | 0o700)  # noqa: PTH101 - fchmod(2) takes no O_PATH descriptor; pathlib is slow to import
        finally:
            os.close(fd)

    def refuse_conflict(self, above: str, name: str, path: str) -> None:
        """Raise ConflictError when the host changed this path after the box had begun."""
        folder = beneath(self.root, above, os.O_RDONLY | os.O_DIRECTORY)
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        finally:
            os.close(folder)
        if self.since_ns is not None and found.st_ctime_ns > self.since_ns:
            raise ConflictError(path)

    def swap(self, removed: set[str]) -> None:
        """Put everything in place. After this nothing is undone."""
        for path, mode in reversed(self.new_modes):
            self.set_mode(path, mode)
        for above, temporary, name in self.swaps:
            folder = beneath(self.root, above, os.O_RDONLY | os.O_DIRECTORY)
            try:
                path = f"{above}/{name}" if above else name
                how = swap_one(folder, temporary, name, path, gone=path in removed)
                self.done.append((how, above, temporary, name))
            finally:
                os.close(folder)

    def undo(self) -> list[str]:
        """Take everything back; what could not be is named."""
        stuck = []
        for how, above, temporary, name in reversed(self.done):
            try:
                folder = beneath(self.root, above, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    if how == "exchanged":
                        rename(folder, temporary, name, _EXCHANGE, name)
                    elif how == "added":
                        rename(folder, name, temporary, _NOREPLACE, name)
                    elif how == "removed":
                        rename(folder, temporary, name, _NOREPLACE, name)
                finally:
                    os.close(folder)
            except OSError:
                stuck.append(f"{above}/{temporary}" if above else temporary)
        self.final_modes.clear()
        return stuck + self.finish(kept=set(stuck))

    def finish(self, kept: set[str]) -> list[str]:
        """Remove the temporary names but those in `kept`, set the directories' modes; returns what would not go."""
        left = []
        for above, temporary, _ in self.swaps:
            path = f"{above}/{temporary}" if above else temporary
            if path in kept:
                continue
            try:
                folder = beneath(self.root, above, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    remove_tree(folder, temporary)
                finally:
                    os.close(folder)
            except OSError:
                left.append(path)
        for path in reversed(self.old_modes):  # innermost first: an outer one may shut the way
            try:
                self.set_mode(path, self.final_modes.get(path, self.old_modes[path]))
            except OSError:
                left.append(path)
        return left

    def set_mode(self, path: str, mode: int) -> None:
        """Set a directory's permissions; setgid stays as it is (the group its files inherit)."""
        fd = beneath(self.root, path, os.O_PATH | os.O_DIRECTORY)
        try:
            found = stat.S_IMODE(os.fstat(fd).st_mode)
            wanted = (found & 0o7000) | (mode & 0o777)
            if wanted != found:
                os.chmod(f"/proc/self/fd/{fd}", wanted)  # noqa: PTH101 - fchmod(2) takes no O_PATH descriptor; pathlib is slow to import
        finally:
            os.close(fd)


def swap_one(folder: int, temporary: str, name: str, path: str, *, gone: bool) -> str:
    """Put one name in place of what is there; says how, so that it can be undone."""
    if gone:
        try:
            rename(folder, name, temporary, _NOREPLACE, path)
        except FileNotFoundError:
            return "nothing"
        return "removed"
    try:
        rename(folder, temporary, name, _NOREPLACE, path)
    except FileExistsError:
        rename(folder, temporary, name, _EXCHANGE, path)
        return "exchanged"
    return "added"


def copy_attributes(folder: int, name: str, to: int) -> None:
    """Keep the access list and user attributes of a file that is about to be replaced."""
    try:
        old = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return  # there is none, or its owner cannot read it
    try:
        for attribute in os.listxattr(old):
            if attribute.startswith("user.") or attribute == "system.posix_acl_access":
                os.setxattr(to, attribute, os.getxattr(old, attribute))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
    finally:
        os.close(old)


def read_exactly(source: int, length: int) -> bytes:
    """Read `length` bytes; the sender's end before that is a failure."""
    parts = []
    while length:
        data = os.read(source, min(length, _CHUNK))
        if not data:
            raise OSError(errno.EPIPE, "the changes ended early", "")
        parts.append(data)
        length -= len(data)
    return b"".join(parts)


def _number(change: dict[str, object], key: str) -> int:
    value = change[key]
    if not isinstance(value, int):
        raise TypeError(key)
    return value


def commit(root: int, source: int) -> dict[str, object]:
    """Read the manifest and the contents from `source` and apply them to `root`."""
    (length,) = struct.unpack("=Q", read_exactly(source, 8))
    manifest = json.loads(read_exactly(source, length))
    transaction = Transaction(root, manifest["token"], manifest["since_ns"])
    try:
        for change in manifest["changes"]:
            transaction.stage(change, source)
        transaction.swap({change["path"] for change in manifest["changes"] if change["op"] == "remove"})
    except ConflictError as conflict:
        return {"ok": False, "why": "conflict", "path": str(conflict), "stuck": transaction.undo()}
    except OSError as error:
        path = error.filename if isinstance(error.filename, str) else ""
        return {"ok": False, "why": error.strerror or "failed", "path": path, "stuck": transaction.undo()}
    return {"ok": True, "left": transaction.finish(kept=set())}


def main() -> int:
    """Become the owner, apply what stdin says, answer on stdout."""
    uid, gid, root = (int(arg) for arg in sys.argv[1:4])
    become(uid, gid)
    answer = commit(root, 0)
    sys.stdout.write(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
