"""Locks: exactly which files an image is made of, by version and hash and nothing else.

No address of an index or mirror is ever in a lock: the machine's own apt, pip and npm configuration says where to
fetch, the lock says what must come. `wheels` are installed, or unpacked where the recipe says so; `tools` (pip) help.
`npm` is the `packages` part of npm's own lock (version 3) without `resolved`; every entry carries an integrity.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fumehood.faults import FumehoodError
from fumehood.image.store import write_whole
from fumehood.reasons import Reason
from fumehood.safe_files import read_trusted

LOCK_BYTES = 8 * 2**20
# What `npm ci` needs to lay out node_modules; funding, licences and addresses stay out.
_NPM_KEYS = frozenset(
    (
        *("version", "integrity", "dependencies", "optionalDependencies", "peerDependencies", "peerDependenciesMeta"),
        *("bin", "os", "cpu", "libc", "optional", "peer", "devOptional", "hasInstallScript", "name"),
    )
)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# These become file names and arguments.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+:~!-]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Deb(_Strict):
    """One Debian package."""

    name: Name
    version: Version
    sha256: Sha256


class Wheel(_Strict):
    """One Python wheel; `file` is its name, which pip reads tags from."""

    name: Name
    version: Version
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl$")]
    sha256: Sha256


class Lock(_Strict):
    """One lock file."""

    version: Literal[1] = 1
    recipe: str
    architecture: Literal["amd64", "arm64"]
    epoch: int
    debian: tuple[Deb, ...] = Field(default=(), strict=False)
    wheels: tuple[Wheel, ...] = Field(default=(), strict=False)
    tools: tuple[Wheel, ...] = Field(default=(), strict=False)
    npm: dict[str, dict[str, Any]] = {}

    def files(self) -> dict[str, str]:
        """Every file that is fetched by SHA-256: hash to a name for people."""
        wheels = {wheel.sha256: wheel.file for wheel in (*self.wheels, *self.tools)}
        return {deb.sha256: f"{deb.name}={deb.version}" for deb in self.debian} | wheels

    def npm_packages(self) -> Iterator[tuple[str, str, str]]:
        """Name, version and integrity of every npm package."""
        for path, entry in self.npm.items():
            if path:
                yield entry.get("name") or path.rpartition("node_modules/")[2], entry["version"], entry["integrity"]

    def write(self, path: Path) -> None:
        """Replace the lock at `path`."""
        rows = self.model_dump(mode="json")
        lines = [
            f'"{key}": ' + (json.dumps(value) if not isinstance(value, list | dict) or not value else _block(value))
            for key, value in rows.items()
        ]
        write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _block(value: list[Any] | dict[str, Any]) -> str:
    """One line an entry, so that a changed version is one changed line."""
    if isinstance(value, list):
        return "[\n" + ",\n".join("  " + json.dumps(row) for row in value) + "\n]"
    rows = (f"  {json.dumps(key)}: {json.dumps(row, sort_keys=True)}" for key, row in value.items())
    return "{\n" + ",\n".join(rows) + "\n}"


def read_lock(path: Path, uid: int) -> Lock:
    """The lock at `path`. Raises FileNotFoundError, or IMAGE_RECIPE_INVALID."""
    try:
        lock = Lock.model_validate(json.loads(read_trusted(path, uid, limit_bytes=LOCK_BYTES)))
    except (ValueError, ValidationError) as error:
        raise FumehoodError(
            Reason.IMAGE_RECIPE_INVALID,
            f"{path} is not a lock: {str(error).splitlines()[0]}",
            remedy=f"Make it anew: `fumehood image lock --upgrade {path.stem}`.",
        ) from None
    for path_in_tree, entry in lock.npm.items():
        if path_in_tree and not {"version", "integrity"} <= entry.keys():
            raise FumehoodError(Reason.IMAGE_RECIPE_INVALID, f"{path}: npm: {path_in_tree} has no integrity")
    return lock


def without_addresses(packages: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Npm's `packages` reduced to what an install needs, with no address in it."""
    return {
        path: {key: value for key, value in sorted(entry.items()) if key in _NPM_KEYS}
        for path, entry in sorted(packages.items())
        if path
    }
