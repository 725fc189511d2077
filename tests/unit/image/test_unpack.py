"""Strangers' archives, by what they try. The unpacker runs here without its box: the names alone must hold."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fumehood.faults import FumehoodError
from fumehood.image.tree import Tree, parts_of
from fumehood.image.unpack import open_source, unpack
from fumehood.reasons import Reason

Member = tuple[str, str, str]  # kind, name, content or target


def tar_of(*members: Member, mode: int = 0o644, uid: int | None = None) -> bytes:
    out = io.BytesIO()
    kinds = {"dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
    kinds |= {"char": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE, "odd": b"Z"}
    with tarfile.open(fileobj=out, mode="w") as tar:
        for kind, name, content in members:
            member = tarfile.TarInfo(name)
            member.mode = 0o755 if kind == "dir" else mode
            member.uid, member.gid = (os.getuid(), os.getgid()) if uid is None else (uid, uid)
            if kind == "file":
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content.encode()))
            else:
                member.type, member.linkname = kinds[kind], content
                tar.addfile(member)
    return out.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("untouched")
    return tmp_path / "rootfs"


@pytest.fixture
def take(root: Path, tmp_path: Path) -> Iterator[Callable[[bytes | Path], str]]:
    fd = os.open(root, os.O_RDONLY)

    def take(source: bytes | Path) -> str:
        path = source if isinstance(source, Path) else tmp_path / "archive"
        if isinstance(source, bytes):
            path.write_bytes(source)
        files = open_source(path)
        try:
            return unpack(files, Tree(fd, limit_bytes=2**20, limit_files=200))
        finally:
            for opened in files.values():
                os.close(opened)

    yield take
    os.close(fd)


Take = Callable[[bytes | Path], str]


def test_a_root_tar_is_unpacked(take: Take, root: Path) -> None:
    take(
        tar_of(
            ("dir", "./etc", ""),
            ("file", "./etc/passwd", "root"),
            ("link", "./bin", "usr/bin"),
            ("hard", "x", "etc/passwd"),
        )
    )
    assert (root / "etc/passwd").read_text() == "root"
    assert (root / "bin").readlink() == Path("usr/bin")
    assert (root / "x").stat().st_ino == (root / "etc/passwd").stat().st_ino


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compression_is_undone(take: Take, root: Path, pack: Callable[[bytes], bytes]) -> None:
    take(pack(tar_of(("file", "x", "content"))))
    assert (root / "x").read_text() == "content"


@pytest.mark.parametrize(
    "members",
    [
        [("file", "../outside/secret", "owned")],
        [("file", "/etc/passwd", "owned")],
        [("file", "a/../../outside/secret", "owned")],
        [("link", "a", "../outside"), ("file", "a/secret", "owned")],
        [("link", "a", "../outside"), ("dir", "a/new", "")],
        [("link", "a", "../outside/secret"), ("hard", "b", "a"), ("file", "b", "owned")],
        [("hard", "b", "../outside/secret")],
        [("link", "a", "../outside"), ("hard", "b", "a/secret")],
        [("hard", "b", "absent")],
        [("link", "a", "../outside"), ("file", "a/.wh.secret", "")],
        [("link", "a", "../outside"), ("file", "a/.wh..wh..opq", "")],
        [("file", ".wh...", "")],
        [("file", ".wh..wh.plnk", "")],
        [("file", "/".join("a" * 70), "deep")],
        [("link", "proc", "tmp")],
        [("file", "dev", "")],
        [("link", "workspace", "/etc")],
        [("link", "tmp", "var/tmp")],
        [("link", ".fumehood", "etc")],
        [("file", "", "the root as a file")],
        [("odd", "x", "")],
        [("file", "big", "x" * (2**20 + 1))],
        [("dir", f"d{number}", "") for number in range(201)],
    ],
)
def test_an_archive_that_reaches_out_or_is_too_much_is_refused(take: Take, root: Path, members: list[Member]) -> None:
    with pytest.raises(FumehoodError) as caught:
        take(tar_of(*members))
    assert caught.value.reason is Reason.IMAGE_UNSAFE
    outside = root.parent / "outside"
    assert [file.name for file in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "untouched"
    assert (outside / "secret").stat().st_nlink == 1


def test_a_link_that_a_file_replaces_is_not_written_through(take: Take, root: Path) -> None:
    take(tar_of(("link", "a", "../outside/secret"), ("file", "a", "mine")))
    assert not (root / "a").is_symlink()
    assert (root.parent / "outside/secret").read_text() == "untouched"


def test_devices_and_pipes_are_left_out_and_counted(take: Take, root: Path) -> None:
    assert take(tar_of(("char", "dev/null", ""), ("fifo", "pipe", ""))) == "2 devices, pipes or sockets left out"
    assert not (root / "dev/null").exists()
    assert not (root / "pipe").exists()


def test_setuid_and_setgid_bits_are_dropped(take: Take, root: Path) -> None:
    take(tar_of(("file", "su", ""), mode=0o6755))
    assert (root / "su").stat().st_mode & 0o7777 == 0o755


def test_an_owner_that_no_box_has_is_refused(take: Take) -> None:
    with pytest.raises(FumehoodError, match="an id that no box has"):
        take(tar_of(("file", "x", ""), uid=65534))


def test_a_damaged_archive_is_refused(take: Take) -> None:
    with pytest.raises(FumehoodError) as caught:
        take(tar_of(("file", "x", "y" * 2000))[:700])
    assert caught.value.reason is Reason.IMAGE_UNSAFE
    with pytest.raises(FumehoodError, match="damaged"):
        take(gzip.compress(b"x" * 4000)[:-9])
    with pytest.raises(FumehoodError, match="zstd"):
        take(b"\x28\xb5\x2f\xfd" + bytes(600))


def layout(folder: Path, *layers: bytes, lie: bool = False, platforms: int = 1) -> Path:
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data + (b"x" if lie else b""))
        return {"digest": f"sha256:{digest}", "size": len(data)}

    config = add(json.dumps({"config": {"Healthcheck": {"Test": ["CMD", "evil"]}, "Volumes": {"/v": {}}}}).encode())
    manifest = add(json.dumps({"config": config, "layers": [add(layer) for layer in layers]}).encode())
    (folder / "index.json").write_text(json.dumps({"manifests": [manifest] * platforms}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


LAYERS = (
    tar_of(
        ("dir", "etc", ""), ("file", "etc/a", "1"), ("file", "etc/b", "1"), ("dir", "old", ""), ("file", "old/x", "1")
    ),
    gzip.compress(
        tar_of(
            ("file", "etc/.wh.a", ""),
            ("file", "etc/c", "2"),
            ("file", "old/new", "2"),
            ("file", "old/.wh..wh..opq", ""),
        )
    ),
)


def assert_layered(root: Path) -> None:
    assert sorted(file.name for file in (root / "etc").iterdir()) == ["b", "c"]
    assert [file.name for file in (root / "old").iterdir()] == ["new"]
    assert sorted(file.name for file in root.iterdir()) == ["etc", "old"]


def test_an_oci_layout_is_unpacked_with_its_whiteouts(take: Take, root: Path, tmp_path: Path) -> None:
    take(layout(tmp_path / "layout", *LAYERS))
    assert_layered(root)


def tarred(folder: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(folder, ".")
    return out.getvalue()


def test_an_oci_layout_in_a_tar_is_unpacked(take: Take, root: Path, tmp_path: Path) -> None:
    take(tarred(layout(tmp_path / "layout", *LAYERS)))
    assert_layered(root)


def test_a_docker_save_archive_is_unpacked(take: Take, root: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    for number, layer in enumerate(LAYERS):
        (saved / f"l{number}").mkdir(parents=True)
        (saved / f"l{number}/layer.tar").write_bytes(layer)
    names = [f"l{number}/layer.tar" for number in range(2)]
    (saved / "manifest.json").write_text(json.dumps([{"Config": "c.json", "Layers": names}]))
    take(tarred(saved))
    assert_layered(root)


def test_a_layout_whose_blobs_lie_is_refused(take: Take, tmp_path: Path) -> None:
    with pytest.raises(FumehoodError, match="not what its digest"):
        take(layout(tmp_path / "layout", *LAYERS, lie=True))


def test_a_layout_with_two_images_is_refused(take: Take, tmp_path: Path) -> None:
    with pytest.raises(FumehoodError, match="2 images"):
        take(layout(tmp_path / "layout", *LAYERS, platforms=2))


def test_a_layout_cannot_name_a_file_outside_its_blobs(take: Take, tmp_path: Path) -> None:
    folder = layout(tmp_path / "layout", *LAYERS)
    (folder / "index.json").write_text(json.dumps({"manifests": [{"digest": "sha256:../../outside/secret"}]}))
    with pytest.raises(FumehoodError, match="is no digest"):
        take(folder)


def test_a_layout_of_links_is_not_opened(tmp_path: Path) -> None:
    folder = layout(tmp_path / "layout", *LAYERS)
    (folder / "index.json").unlink()
    (folder / "index.json").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic"):
        open_source(folder)


def test_names_are_split_without_dots() -> None:
    assert parts_of("./a//b/.") == ("a", "b")
    assert parts_of(".") == ()
