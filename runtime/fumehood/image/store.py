"""The image store: what is in it, read by everybody and written only by `fumehood image` as root.

    <state>/images/               0755
      names/<name>                the digest of the image of that name
      sha256-<hex>/image.json     name, digest, docker_id, created, recipe, packages
      sha256-<hex>/sbom.json      CycloneDX 1.6
      sha256-<hex>/rootfs/        owned by slot 0 of the id pool, without setuid bits and devices

Invariants: an image's folder appears whole, by one rename, and its rootfs never changes afterwards; the metadata files
are replaced by rename. So readers take no lock. A name or digest is matched against its grammar before it becomes
part of a path: profiles choose it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fumehood.model import Image
from fumehood.reach import JAVA_STORES

NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """One image and every name it has. `about` is its image.json."""

    digest: str
    names: tuple[str, ...]
    docker_id: str | None
    created: str
    about: dict[str, Any]


class ImageStore:
    """The images below one folder (`StateFolder.images`)."""

    def __init__(self, folder: Path) -> None:
        """Read `folder`, which need not exist yet."""
        self.folder = folder

    def resolve(self, name_or_digest: str) -> Image | None:
        """The image of this name or digest, or None."""
        if DIGEST.fullmatch(name_or_digest):
            digest = name_or_digest
        else:
            named = self.digest_of_name(name_or_digest)
            if named is None:
                return None
            digest = named
        about = self.about(digest)
        if about is None:
            return None
        name = name_or_digest if name_or_digest != digest else str(about["name"])
        # Whether there is a name; what it leads to in a box is the broker's to judge.
        root = str(self.rootfs(digest))
        java = next((place for place in JAVA_STORES if os.path.lexists(root + place)), None)
        return Image(name=name, digest=digest, docker_id=about["docker_id"], java_store=java)

    def list(self) -> tuple[StoredImage, ...]:
        """Every image, by its first name."""
        names: dict[str, list[str]] = {}
        for name in self.names():
            names.setdefault(self.digest_of_name(name) or "", []).append(name)
        found = [
            StoredImage(
                digest=digest,
                names=tuple(names.get(digest, ())),
                docker_id=about["docker_id"],
                created=about["created"],
                about=about,
            )
            for digest, about in self._all()
        ]
        return tuple(sorted(found, key=lambda image: (image.names or ("~",), image.digest)))

    def rootfs(self, digest: str) -> Path:
        """The image's root on disk."""
        return self.path(digest) / "rootfs"

    def path(self, digest: str) -> Path:
        """The image's folder. Raises ValueError for what is no digest."""
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"not an image digest: {digest!r}")
        return self.folder / digest.replace(":", "-")

    def about(self, digest: str) -> dict[str, Any] | None:
        """The image's image.json, or None when it is not in the store."""
        try:
            about = json.loads((self.path(digest) / "image.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return about if isinstance(about, dict) else None

    def names(self) -> tuple[str, ...]:
        """Every name, sorted."""
        folder = self.folder / "names"
        found = (file.name for file in folder.iterdir()) if folder.is_dir() else ()
        return tuple(sorted(name for name in found if NAME.fullmatch(name)))

    def digest_of_name(self, name: str) -> str | None:
        """The digest a name stands for, or None."""
        if not NAME.fullmatch(name):
            return None
        try:
            digest = (self.folder / "names" / name).read_text().strip()
        except FileNotFoundError:
            return None
        return digest if DIGEST.fullmatch(digest) else None

    def _all(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if not self.folder.is_dir():
            return
        for path in self.folder.glob("sha256-*"):
            digest = path.name.replace("-", ":", 1)
            about = self.about(digest) if DIGEST.fullmatch(digest) else None
            if about is not None:
                yield digest, about


def write_whole(path: Path, text: str) -> None:
    """Replace a world-readable file by rename, so that a reader sees the old text or the new one."""
    fd, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        os.fchmod(fd, 0o644)
        file.flush()
        os.fsync(fd)
    Path(temporary).replace(path)
