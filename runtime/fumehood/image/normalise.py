"""One tree, one tar, one digest: whatever may differ between two builds of the same files is taken away.

`tidy` changes the tree in place, so the tree on disk and the tar made from it say the same: times become the lock's;
logs, caches, lists and backups go; setuid bits, extended attributes and everything that is no file, folder or link go;
and the mount points exist as real folders. `write_tar` then writes it sorted, with numeric owners. The digest of that
tar is the image's digest. Both run as the mapped root of a box whose `/` is the folder above the tree.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fumehood.image.tree import Tree, unsafe

# What a box is mounted over. A link here would put a mount of ours wherever the image says (CVE-2025-31133 and kin).
MOUNT_POINTS = ("dev", "proc", "sys", "run", "tmp", "mnt", "workspace", ".fumehood")
_EMPTIED = (
    *("dev", "proc", "sys", "run", "tmp", ".fumehood", "var/tmp", "var/log", "var/cache/apt", "var/cache/ldconfig"),
    *("var/lib/apt/lists", "var/lib/apt/mirrors"),
)
_REMOVED = (
    *("root/.cache", "root/.npm", "root/.config", "etc/apt/sources.list", "etc/apt/sources.list.d", "etc/.pwd.lock"),
    *(f"etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")),
    *(f"var/lib/dpkg/{name}" for name in ("status-old", "diversions-old", "statoverride-old", "available", "lock")),
    *("var/lib/dpkg/lock-frontend", "var/lib/dpkg/triggers/Lock", "var/lib/apt/daily_lock", "var/lib/apt/lists/lock"),
    *("var/cache/debconf/config.dat-old", "var/cache/debconf/templates.dat-old", "var/cache/debconf/passwords.dat"),
)
_KEPT = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
_UNMAPPED = 65_534


def check_mount_points(tree: Tree) -> None:
    """Refuse a tree in which something that is no folder stands where a box mounts."""
    for name in MOUNT_POINTS:
        if tree.kind((name,)) not in (None, stat.S_IFDIR):
            raise unsafe(f"/{name} is not a folder, and boxes mount there")


def tidy(root: str, tree: Tree, epoch: int) -> str:
    """Take away what differs or endangers; says in words what had to go."""
    check_mount_points(tree)
    for path in _EMPTIED:
        _when_folder(tree, path)
    for path in _REMOVED:
        if _reachable(tree, path):
            tree.remove(tuple(path.split("/")))
    for name in MOUNT_POINTS:
        tree.make_folder((name,), 0o1777 if name == "tmp" else 0o755)
    if tree.kind(("etc",)) == stat.S_IFDIR and tree.kind(("etc", "machine-id")) == stat.S_IFREG:
        tree.write(("etc", "machine-id"), io.BytesIO(), 0o444)
    odd = _make_plain(root)
    for path, _ in walk(root):  # after every removal, which touches the folder
        os.utime(path, (epoch, epoch), follow_symlinks=False)
    os.utime(root, (epoch, epoch))
    return f"{odd} devices, pipes or sockets left out" if odd else ""


def _make_plain(root: str) -> int:
    """Leave nothing but files, folders and links with plain modes and known owners; how many things had to go."""
    odd = 0
    Path(root).chmod(0o755)
    for path, status in walk(root):
        if stat.S_IFMT(status.st_mode) not in _KEPT:
            Path(path).unlink()
            odd += 1
            continue
        if max(status.st_uid, status.st_gid) >= _UNMAPPED:
            raise unsafe(f"{path} belongs to an id that no box has")
        for attribute in os.listxattr(path, follow_symlinks=False):
            os.removexattr(path, attribute, follow_symlinks=False)
        if status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            Path(path).chmod(stat.S_IMODE(status.st_mode) & 0o1777)
    return odd


def walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below a folder with its lstat, folders before what is in them, without recursion."""
    todo = [root]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in list(entries):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    todo.append(entry.path)
                yield entry.path, status


def write_tar(root: str, out: IO[bytes]) -> None:
    """Write the tree as a tar whose bytes depend on nothing but the tree."""
    first_name: dict[int, str] = {}
    paths = sorted((os.fsencode(path), status) for path, status in walk(root))
    with tarfile.open(mode="w|", fileobj=out, format=tarfile.PAX_FORMAT, bufsize=2**20) as tar:
        tar.addfile(_header(".", os.lstat(root)))
        for path, status in paths:
            name = os.fsdecode(path)[len(root) + 1 :]
            header = _header(name, status)
            if header.isreg() and status.st_nlink > 1:
                first = first_name.setdefault(status.st_ino, name)
                if first != name:
                    header.type, header.linkname, header.size = tarfile.LNKTYPE, first, 0
            if header.issym():
                header.linkname = os.readlink(os.fsdecode(path))  # noqa: PTH115 - Path would tidy the target
            if header.isreg():
                with Path(os.fsdecode(path)).open("rb") as file:
                    tar.addfile(header, file)
            else:
                tar.addfile(header)


def _header(name: str, status: os.stat_result) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.mode = stat.S_IMODE(status.st_mode)
    header.uid, header.gid = status.st_uid, status.st_gid
    header.mtime = int(status.st_mtime)
    kinds = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE}
    header.type = kinds[stat.S_IFMT(status.st_mode)]
    header.size = status.st_size if header.isreg() else 0
    return header


def _when_folder(tree: Tree, path: str) -> None:
    if _reachable(tree, path) and tree.kind(tuple(path.split("/"))) == stat.S_IFDIR:
        tree.empty(tuple(path.split("/")))


def _reachable(tree: Tree, path: str) -> bool:
    """Whether every folder above a path is a real one: an image's /var may be missing, or a link."""
    parts = tuple(path.split("/"))
    return all(tree.kind(parts[:depth]) == stat.S_IFDIR for depth in range(1, len(parts)))
