"""Strangers' images: a root tar, an OCI layout (folder or tar) or a `docker save` archive, unpacked defensively.

Runs as the mapped root of a box that sees one folder and has no network; root on the host only opens the files. Of an
image only its layers are taken: no ENV, ENTRYPOINT, USER, LABEL, VOLUME or HEALTHCHECK survives. Refused: names that
lead outside or through a link, hard links to anything but a file of the tree, ids no box has, too much of anything,
layers whose digest is not the manifest's. Dropped: setuid and setgid bits, extended attributes, devices, pipes.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from fumehood.image.normalise import check_mount_points
from fumehood.image.tree import Tree, parts_of, unsafe

LIMIT_JSON_BYTES = 4 * 2**20
LIMIT_BLOBS = 4096
LIMIT_LAYERS = 256
LIMIT_ARCHIVE_BYTES = 16 * 2**30
LIMIT_MEMORY_BYTES = 2 * 2**30
_LARGEST_ID = 65_533
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_BLOB = re.compile(r"sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})")
_MAGIC: Mapping[bytes, Callable[[IO[bytes]], gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_ZSTD = b"\x28\xb5\x2f\xfd"

Opener = Callable[[str], IO[bytes]]


def open_source(path: Path) -> dict[str, int]:
    """Open what is to be imported, as root, looking at names only: one archive (named ``) or a layout's files."""
    if not path.is_dir():
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise unsafe(f"{path} is neither a folder nor a regular file")
        return {"": fd}
    names = ["oci-layout", "index.json"]
    names += [
        f"blobs/{folder.name}/{blob.name}" for folder in (path / "blobs").glob("sha*") for blob in folder.iterdir()
    ]
    if len(names) > LIMIT_BLOBS:
        raise unsafe(f"{path} has over {LIMIT_BLOBS} blobs")
    found = {}
    for name in names:
        try:
            found[name] = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise unsafe(f"{path} is no OCI layout: it has no {name}") from None
    return found


def unpack(files: Mapping[str, int], tree: Tree) -> str:
    """Unpack what `open_source` opened; says what was left out. Runs in the box."""
    try:
        with ExitStack() as held:
            counted = _unpack(files, tree, held)
    except (tarfile.TarError, EOFError, lzma.LZMAError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk is full, or a bug: not the archive's fault
        raise unsafe(f"the archive is damaged: {error}") from None
    check_mount_points(tree)
    return f"{counted} devices, pipes or sockets left out" if counted else ""


def _unpack(files: Mapping[str, int], tree: Tree, held: ExitStack) -> int:
    if "" not in files:
        return _layout(lambda name: _opened(files, name, held), tree, held)
    archive = _plain(_opened(files, "", held), held)
    with tarfile.open(fileobj=archive, mode="r:") as tar:
        first = tar.next()
        names = _index(tar) if first is not None else {}
        if "index.json" in names and "oci-layout" in names:
            return _layout(lambda name: _member(tar, names, name), tree, held)
        if "manifest.json" in names:
            return _saved(lambda name: _member(tar, names, name), tree, held)
    archive.seek(0)
    return _layer(archive, tree)


def _index(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """The members at an archive's top and under `blobs/`, by name, unless it plainly is a root: then none."""
    names: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        name = member.name.removeprefix("./")
        if len(names) > LIMIT_BLOBS or name in ("bin", "etc", "usr"):
            return {}
        names[name] = member
    return names


def _opened(files: Mapping[str, int], name: str, held: ExitStack) -> IO[bytes]:
    if name not in files:
        raise unsafe(f"the layout has no {name}")
    file = held.enter_context(os.fdopen(os.dup(files[name]), "rb"))
    file.seek(0)
    return file


def _member(tar: tarfile.TarFile, names: Mapping[str, tarfile.TarInfo], name: str) -> IO[bytes]:
    member = names.get(name)
    for _ in range(LIMIT_LAYERS):  # `docker save` links equal layers to one another
        if member is None or not (member.issym() or member.islnk()):
            break
        folder = name.rpartition("/")[0] if member.issym() else ""
        name = os.path.normpath(os.path.join(folder, member.linkname))  # noqa: PTH118 - a name in an archive, no path
        member = names.get(name)
    source = tar.extractfile(member) if member is not None and member.isreg() else None
    if source is None:
        raise unsafe(f"the archive has no file {name}")
    return source


def _layout(opener: Opener, tree: Tree, held: ExitStack) -> int:
    """Unpack the one image of an OCI layout. Source: the OCI image specification, image-layout.md."""
    descriptor = _json(opener("index.json"))
    for _ in range(3):  # an index may hold an index, for several platforms
        if "layers" in descriptor:
            break
        manifests = [row for row in descriptor.get("manifests", []) if _fits(row)]
        if len(manifests) != 1:
            raise unsafe(f"the layout has {len(manifests)} images for this machine; give one with exactly one")
        descriptor = _json(_blob(opener, manifests[0]))
    layers = descriptor.get("layers")
    if not isinstance(layers, list) or not 0 < len(layers) <= LIMIT_LAYERS:
        raise unsafe("the manifest names no layers, or too many")
    return sum(_layer(_plain(_blob(opener, layer), held), tree) for layer in layers)


def _fits(row: Mapping[str, Any]) -> bool:
    platform = row.get("platform") or {}
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine)
    return platform.get("os", "linux") == "linux" and platform.get("architecture", machine) == machine


def _saved(opener: Opener, tree: Tree, held: ExitStack) -> int:
    """Unpack the one image of a `docker save` archive."""
    images = _json(opener("manifest.json"))
    if not isinstance(images, list) or len(images) != 1:
        raise unsafe("the archive must hold exactly one image")
    layers = images[0].get("Layers")
    if not isinstance(layers, list) or not 0 < len(layers) <= LIMIT_LAYERS:
        raise unsafe("the manifest names no layers, or too many")
    return sum(_layer(_plain(opener(str(name)), held), tree) for name in layers)


def _blob(opener: Opener, descriptor: Mapping[str, Any]) -> IO[bytes]:
    """A blob whose bytes are what its digest says."""
    digest = str(descriptor.get("digest"))
    if not _BLOB.fullmatch(digest):
        raise unsafe(f"{digest[:100]!r} is no digest")
    algorithm, _, wanted = digest.partition(":")
    blob = opener(f"blobs/{algorithm}/{wanted}")
    seen = hashlib.new(algorithm)
    while data := blob.read(2**20):
        seen.update(data)
    if seen.hexdigest() != wanted:
        raise unsafe(f"a blob is not what its digest {digest[:20]}... says")
    blob.seek(0)
    return blob


def _json(source: IO[bytes]) -> Any:
    data = source.read(LIMIT_JSON_BYTES + 1)
    if len(data) > LIMIT_JSON_BYTES:
        raise unsafe("a manifest is too long")
    return json.loads(data)


def _plain(raw: IO[bytes], held: ExitStack) -> IO[bytes]:
    """The bytes without their compression, in a file that can be searched."""
    start = raw.read(8)
    raw.seek(0)
    if start.startswith(_ZSTD):
        raise unsafe("it is compressed with zstd; recompress it with gzip")
    for magic, opener in _MAGIC.items():
        if start.startswith(magic):
            copy = held.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - `held` closes it
            left = LIMIT_ARCHIVE_BYTES
            with opener(raw) as source:
                while data := source.read(2**20):
                    left -= len(data)
                    if left < 0:
                        raise unsafe("it decompresses to too much")
                    copy.write(data)
            copy.seek(0)
            return copy
    return raw


def _layer(source: IO[bytes], tree: Tree) -> int:
    """Apply one layer to the tree; how many devices and the like were left out."""
    left_out = 0
    fresh: set[tuple[str, ...]] = set()
    with tarfile.open(fileobj=source, mode="r:") as tar:
        for member in tar:
            parts = parts_of(member.name)
            if parts and parts[-1].startswith(_WHITEOUT):
                _apply_whiteout(parts, tree, fresh)
            elif member.ischr() or member.isblk() or member.isfifo():
                left_out += 1
            else:
                _place(tar, member, parts, tree)
                fresh.update(parts[:depth] for depth in range(1, len(parts) + 1))
    return left_out


def _apply_whiteout(parts: tuple[str, ...], tree: Tree, fresh: set[tuple[str, ...]]) -> None:
    """Hide what lower layers had. Only lower layers: what this layer brought before is kept."""
    folder, name = parts[:-1], parts[-1]
    if name == _OPAQUE:
        for child in tree.names(folder):
            if (*folder, child) not in fresh:
                tree.remove((*folder, child))
        return
    hidden = name.removeprefix(_WHITEOUT)
    if hidden in ("", ".", "..") or hidden.startswith(_WHITEOUT):
        raise unsafe(f"{name[:100]!r} is no whiteout that this understands")
    if (*folder, hidden) not in fresh:
        tree.remove((*folder, hidden))


def _place(tar: tarfile.TarFile, member: tarfile.TarInfo, parts: tuple[str, ...], tree: Tree) -> None:
    if not (0 <= member.uid <= _LARGEST_ID and 0 <= member.gid <= _LARGEST_ID):
        raise unsafe(f"{member.name[:200]!r} belongs to an id that no box has")
    if member.isdir():
        if parts and tree.kind(parts) not in (None, stat.S_IFDIR):
            tree.remove(parts)
        tree.make_folder(parts, member.mode)
    elif member.issym():
        tree.link_symbolically(parts, member.linkname)
    elif member.islnk():
        tree.link(parts, parts_of(member.linkname))
        return
    elif member.isreg():
        tree.write(parts, tar.extractfile(member) or io.BytesIO(), member.mode)
    else:
        raise unsafe(f"{member.name[:200]!r} is of a kind that is not supported")
    tree.own(parts, member.uid, member.gid)
