"""The store's write side: one writer at a time, and nothing half-made is ever seen.

A new root grows in a staging folder inside the store, is tidied and hashed in a box, and becomes an image by one
rename. A staging folder that exists while its lock is ours belongs to a writer that died; it is removed. The Docker
copy of an image is made from the same tar as its digest, and made again whenever the engine has lost it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

from fumehood.faults import FumehoodError
from fumehood.image.install import work_in_tree
from fumehood.image.namespace import Box, stream_from
from fumehood.image.normalise import tidy, write_tar
from fumehood.image.owners import Owners, owners
from fumehood.image.sbom import sbom
from fumehood.image.store import ImageStore, write_whole
from fumehood.reasons import Reason

_STAGING = ".staging-"
_CHUNK_BYTES = 2**20
Say = Callable[[str], None]


class Engine(Protocol):
    """A Docker engine, as far as images go."""

    def has(self, docker_id: str) -> bool:
        """Whether the engine still has this image."""
        ...

    def load(self, tar: Iterable[bytes], repository: str, tag: str) -> str:
        """Import a root; the image's id."""
        ...

    def remove(self, docker_id: str) -> bool:
        """Remove an image; False when a container uses it."""
        ...


class Workshop:
    """The store while we are its only writer. Made by `workshop`."""

    def __init__(self, store: ImageStore, engine: Engine | None, say: Say) -> None:
        """Write to `store`, and to `engine` where there is one."""
        self.store = store
        self.engine = engine
        self.say = say
        self.owners: Owners = owners()
        self.cache = store.folder / ".cache"
        self.cache.mkdir(mode=0o755, exist_ok=True)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder of root's for one new image, gone afterwards."""
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.store.folder))
        folder.chmod(0o755)  # the mapped root passes through it; what is in it is public
        try:
            yield folder
        finally:
            discard(folder)

    def keep(
        self, staging: Path, *, name: str, epoch: int, about: Mapping[str, Any], rows: Sequence[Mapping[str, str]]
    ) -> str:
        """Make the root in `<staging>/rootfs` an image, and `name` its name; its digest."""
        if note := work_in_tree(staging, self.owners, lambda tree: tidy("/rootfs", tree, epoch)):
            self.say(note)
        digest = self._digest(staging)
        if self.store.about(digest) is None:
            whole = staging / "image"
            whole.mkdir(mode=0o755)
            (staging / "rootfs").rename(whole / "rootfs")
            document = {
                "name": name,
                "digest": digest,
                "docker_id": None,
                "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "epoch": epoch,
                **about,
                "packages": [{key: row[key] for key in ("type", "name", "version")} for row in rows],
            }
            write_whole(whole / "sbom.json", json.dumps(sbom(name, digest, epoch, rows), indent=1) + "\n")
            write_whole(whole / "image.json", json.dumps(document, indent=1) + "\n")
            whole.rename(self.store.path(digest))
        else:
            self._amend(digest, about)
        self.offer_to_docker(digest, name)
        self._point(name, digest)
        return digest

    def offer_to_docker(self, digest: str, name: str) -> str | None:
        """The image's id in the Docker engine, importing it when the engine has none; None without an engine."""
        about = self.store.about(digest)
        if self.engine is None or about is None:
            return None
        known = about["docker_id"]
        if known is not None and self.engine.has(known):
            return str(known)
        self.say("importing into the Docker engine")
        box = Box(root=self.store.path(digest), owners=self.owners, read_only=True, system=False)
        seen = hashlib.sha256()
        with stream_from(box, lambda out: write_tar("/rootfs", out)) as tar:
            docker_id = self.engine.load(
                _hashed(tar, seen.update), f"fumehood/{name}", digest.removeprefix("sha256:")[:12]
            )
        if f"sha256:{seen.hexdigest()}" != digest:
            self.engine.remove(docker_id)
            raise FumehoodError(
                Reason.IMAGE_UNSAFE,
                f"the files of {name} are no longer those of {digest}",
                remedy=f"Build {name} again.",
            )
        self._amend(digest, {"docker_id": docker_id})
        return docker_id

    def remove(self, name_or_digest: str) -> str | None:
        """Remove a name, and its image when no other name is left; that image's digest. Raises IMAGE_IN_USE.

        Other images without a name stay: profiles may name them by digest.
        """
        image = self.store.resolve(name_or_digest)
        if image is None:
            raise FumehoodError(
                Reason.IMAGE_MISSING, f"{name_or_digest} is not in the store", remedy="See `fumehood image list`."
            )
        names = {name for name in self.store.names() if self.store.digest_of_name(name) == image.digest}
        gone = names if name_or_digest == image.digest else {name_or_digest}
        last = gone == names
        folder = self.store.path(image.digest)
        if last and (user := _user_of(folder)):
            raise FumehoodError(Reason.IMAGE_IN_USE, f"process {user} runs in a box of {name_or_digest}")
        if last and self.engine and image.docker_id and not self.engine.remove(image.docker_id):
            raise FumehoodError(Reason.IMAGE_IN_USE, f"a Docker container uses {name_or_digest}")
        for name in gone:
            (self.store.folder / "names" / name).unlink()
        if not last:
            return None
        discard(folder)
        return image.digest

    def _point(self, name: str, digest: str) -> None:
        folder = self.store.folder / "names"
        folder.mkdir(mode=0o755, exist_ok=True)
        write_whole(folder / name, digest + "\n")

    def _amend(self, digest: str, changes: Mapping[str, Any]) -> None:
        about = self.store.about(digest) or {}
        write_whole(self.store.path(digest) / "image.json", json.dumps({**about, **changes}, indent=1) + "\n")

    def _digest(self, staging: Path) -> str:
        digest = hashlib.sha256()
        box = Box(root=staging, owners=self.owners, read_only=True, system=False)
        with stream_from(box, lambda out: write_tar("/rootfs", out)) as tar:
            for _ in _hashed(tar, digest.update):
                pass
        return f"sha256:{digest.hexdigest()}"


def refuse_without_root() -> None:
    """Raise FumehoodError(UNENFORCEABLE) for anybody but root."""
    if os.geteuid() != 0:
        raise FumehoodError(
            Reason.UNENFORCEABLE,
            "images are made by root, who alone can map ids for their files",
            remedy="Run it as root.",
        )


@contextmanager
def workshop(folder: Path, engine: Engine | None, say: Say) -> Iterator[Workshop]:
    """Become the only writer of the store at `folder`, waiting for another one to end."""
    refuse_without_root()
    folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.mkdir(mode=0o755, exist_ok=True)
    closed = [above for above in folder.parents if not above.stat().st_mode & stat.S_IXOTH]
    if closed:
        raise FumehoodError(
            Reason.STATE_UNAVAILABLE,
            f"{closed[0]} lets only its owner through, and boxes of other ids start from {folder}",
            remedy=f"`chmod o+x {closed[0]}`, or use another FUMEHOOD_STATE.",
        )
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another image command is at work; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(f"{_STAGING}*"):
            discard(left)
        yield Workshop(ImageStore(folder), engine, say)
    finally:
        os.close(lock)


def discard(folder: Path) -> None:
    """Remove a folder of the store, however deep a stranger made it. Never follows a link, never crosses a mount."""
    subprocess.run(["rm", "-rf", "--one-file-system", "--", str(folder)], check=True)


def _hashed(source: IO[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    """Pass a stream on in chunks, hashing them."""
    while data := source.read(_CHUNK_BYTES):
        update(data)
        yield data


def _user_of(folder: Path) -> int | None:
    """A process that has a mount of this folder, or None."""
    inside = f"/{folder.parent.name}/{folder.name}/"  # the mount's root may be written from another root than ours
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                mounts = (process / "mountinfo").read_text(errors="surrogateescape")
            except OSError:  # it ended, or is a zombie
                continue
            if inside in mounts:
                return int(process.name)
    return None
