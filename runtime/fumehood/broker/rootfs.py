"""Image roots as a box sees them: read-only, idmapped from the image store's id range to the box's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fumehood.broker import mounting
from fumehood.broker.idmaps import IdMaps
from fumehood.broker.ids import RANGE
from fumehood.faults import BoxFailed
from fumehood.reasons import Reason


@dataclass(frozen=True, slots=True)
class RootStore:
    """The image store's folder and the first id of the range that owns its files."""

    images: Path
    image_base: int
    idmaps: IdMaps

    def path(self, digest: str) -> Path:
        """Where an image's root lies. The digest comes from the worker, so its form is checked here."""
        kind, _, text = digest.partition(":")
        if kind != "sha256" or len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            raise BoxFailed(Reason.BAD_REQUEST, "the image digest is malformed")
        root = self.images / f"sha256-{text}" / "rootfs"
        if not root.is_dir():
            raise BoxFailed(Reason.IMAGE_MISSING, f"{digest[:19]} is not in the store")
        return root

    def attach(self, digest: str, id_base: int, place: Path) -> None:
        """Mount the image's root at `place` for a box of this id range."""
        root = self.path(digest)
        place.mkdir(mode=0o755)
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        ids = f"{self.image_base} {id_base} {RANGE}\n"
        try:
            idmap = self.idmaps.open(ids, ids)
            tree = mounting.clone_mount(directory)
        finally:
            os.close(directory)
        try:
            mounting.restrict_mount(tree, mounting.RDONLY | mounting.NOSUID | mounting.NODEV, idmap)
            mounting.attach(tree, str(place))
        finally:
            os.close(tree)
            os.close(idmap)

    @staticmethod
    def detach(place: Path) -> bool:
        """Unmount and forget; True when nothing is mounted there any more."""
        if place.exists():
            mounting.detach(str(place))
            place.rmdir()
        return not place.exists()
