"""One tree, one tar: what may differ between two builds of the same files does not reach the digest."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from fumehood.faults import FumehoodError
from fumehood.image.normalise import MOUNT_POINTS, tidy, write_tar
from fumehood.image.tree import Tree

FILES = {"etc/passwd": "root", "etc/machine-id": "random", "usr/bin/tool": "#!", "usr/bin/tool-2": "x"}


def grow(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(FILES[name])
    (root / "usr/bin/tool").chmod(0o755)
    (root / "usr/bin/again").hardlink_to(root / "usr/bin/tool")
    (root / "bin").symlink_to("usr/bin")
    return root


def tidied(root: Path) -> bytes:
    fd = os.open(root, os.O_RDONLY)
    tidy(str(root), Tree(fd, limit_bytes=2**20, limit_files=1000), 1_700_000_000)
    os.close(fd)
    out = io.BytesIO()
    write_tar(str(root), out)
    return out.getvalue()


def test_order_times_logs_and_caches_do_not_show(tmp_path: Path) -> None:
    one = grow(tmp_path / "one", list(FILES))
    two = grow(tmp_path / "two", list(reversed(FILES)))
    (two / "etc/machine-id").write_text("another")
    for junk in (
        "var/log/apt/term.log",
        "var/cache/apt/x",
        "var/lib/dpkg/status-old",
        "tmp/x/y",
        "run/lock",
        "etc/shadow-",
    ):
        (two / junk).parent.mkdir(parents=True, exist_ok=True)
        (two / junk).write_text("junk")
    for folder in ("var/log", "var/cache/apt", "var/lib/dpkg"):
        (one / folder).mkdir(parents=True, exist_ok=True)
    os.utime(two / "etc/passwd", (1, 1))
    assert tidied(one) == tidied(two)


def test_the_tar_says_what_is_on_disk_and_nothing_else(tmp_path: Path) -> None:
    data = tidied(grow(tmp_path / "root", list(FILES)))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {member.name: member for member in tar}
    assert list(members)[1:] == sorted(list(members)[1:])
    assert {member.mtime for member in members.values()} == {1_700_000_000}
    assert {member.uname + member.gname for member in members.values()} == {""}
    assert members["usr/bin/tool"].linkname == "usr/bin/again"
    assert members["etc/machine-id"].size == 0
    assert members["bin"].linkname == "usr/bin"


def test_mount_points_become_real_folders(tmp_path: Path) -> None:
    root = grow(tmp_path / "root", list(FILES))
    tidied(root)
    for name in MOUNT_POINTS:
        assert stat.S_ISDIR((root / name).lstat().st_mode)
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777


@pytest.mark.parametrize("name", MOUNT_POINTS)
def test_a_mount_point_that_is_a_link_is_refused(tmp_path: Path, name: str) -> None:
    root = grow(tmp_path / "root", list(FILES))
    (root / name).symlink_to("etc")
    with pytest.raises(FumehoodError, match="boxes mount there"):
        tidied(root)


def test_setuid_bits_pipes_and_attributes_go(tmp_path: Path) -> None:
    root = grow(tmp_path / "root", list(FILES))
    (root / "usr/bin/tool-2").chmod(0o6755)
    (root / "usr").chmod(0o2755)
    os.mkfifo(root / "etc/pipe")
    os.setxattr(root / "etc/passwd", "user.note", b"x")
    tidied(root)
    assert (root / "usr/bin/tool-2").stat().st_mode & 0o7777 == 0o755
    assert (root / "usr").stat().st_mode & 0o7777 == 0o755
    assert not (root / "etc/pipe").exists()
    assert os.listxattr(root / "etc/passwd") == []


def test_tidying_does_not_reach_through_links(tmp_path: Path) -> None:
    root = grow(tmp_path / "root", list(FILES))
    outside = tmp_path / "outside"
    (outside / "log").mkdir(parents=True)
    (outside / "log" / "kept").write_text("kept")
    (root / "var").symlink_to(outside)
    before = (outside / "log" / "kept").stat().st_mtime_ns
    tidied(root)
    assert (outside / "log" / "kept").stat().st_mtime_ns == before
