"""`fumehood image import`: a stranger's root becomes an image of ours, or is refused."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from fumehood.faults import FumehoodError
from fumehood.image.install import work_in_tree
from fumehood.image.store import NAME
from fumehood.image.tree import Tree
from fumehood.image.unpack import LIMIT_MEMORY_BYTES, open_source, unpack
from fumehood.image.workshop import Workshop
from fumehood.reasons import Reason

# Imported files get one time for all, so that equal archives give equal digests.
_EPOCH = 0


def take_in(shop: Workshop, name: str, path: Path) -> str:
    """Import the archive or layout at `path` under `name`; its digest."""
    if not NAME.fullmatch(name):
        raise FumehoodError(Reason.BAD_REQUEST, f"{name!r} is no image name", remedy="Use a-z, 0-9, `.`, `_` and `-`.")
    try:
        files = open_source(path)
    except OSError as error:
        raise FumehoodError(
            Reason.BAD_REQUEST, f"{path} cannot be read: {error.strerror}", remedy="Name a tar file or an OCI layout."
        ) from None

    def work(tree: Tree) -> str:
        # Headers and manifests say how much memory to take; a bomb ends this process and nothing else.
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_MEMORY_BYTES, LIMIT_MEMORY_BYTES))
        return unpack(files, tree)

    try:
        with shop.staging() as staging:
            for folder in (staging, staging / "rootfs"):
                folder.mkdir(mode=0o755, exist_ok=True)
                os.chown(folder, shop.owners.start, shop.owners.start)
            shop.say(f"{name}: unpacking {path}")
            if note := work_in_tree(staging, shop.owners, work):
                shop.say(f"{name}: {note}")
            os.chown(staging, 0, 0)
            shop.say(f"{name}: tidying and hashing")
            about: dict[str, object] = {
                "recipe": None,
                "chain": [],
                "sources": None,
                "entry_point": [],
                "architecture": os.uname().machine,
            }
            digest = shop.keep(staging, name=name, epoch=_EPOCH, about=about, rows=())
    finally:
        for fd in files.values():
            os.close(fd)
    return digest
