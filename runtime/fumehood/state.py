"""Where things are kept on disk, and who may touch each folder.

    <state>/            0711 root    /var/lib/fumehood, or $XDG_STATE_HOME/fumehood, or $FUMEHOOD_STATE
      version           0644         the folder's schema; a newer one is refused
      stopped           0644         who stopped everything, while that is so
      bin/              0755         the static init and the mount helper, named by digest
      images/           0755         sha256-<hex>/{rootfs/,image.json,sbom.json}, names/<name>
      ledger/           0700 ledger  ledger.db and its -wal, -shm; results/<task>.<kind>, kept for clients; keys/, which sign
      seccomp/          0700         compiled filters by policy digest
      profiles/         0700         resolved profiles, each with the digests of the files it was made from
      ids/              0700         one file for each id range in use
      locks/            0700         tickets of workspaces in use
      pending/          0700         changes that wait for `fumehood commit|discard`
      run/              0711         <runtime id>/{lock,boxes/<task>/}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VERSION = 1
PREFIX = "fumehood"


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The paths below one state folder."""

    root: Path

    @property
    def version(self) -> Path:
        """The schema's number."""
        return self.root / "version"

    @property
    def stopped(self) -> Path:
        """There while nothing may begin."""
        return self.root / "stopped"

    @property
    def bin(self) -> Path:
        """Static programs that boxes execute."""
        return self.root / "bin"

    @property
    def images(self) -> Path:
        """The image store."""
        return self.root / "images"

    @property
    def ledger(self) -> Path:
        """The ledger's own folder."""
        return self.root / "ledger"

    @property
    def seccomp(self) -> Path:
        """Compiled filters."""
        return self.root / "seccomp"

    @property
    def profiles(self) -> Path:
        """Resolved profiles."""
        return self.root / "profiles"

    @property
    def ids(self) -> Path:
        """Id ranges in use."""
        return self.root / "ids"

    @property
    def locks(self) -> Path:
        """Workspace tickets."""
        return self.root / "locks"

    @property
    def pending(self) -> Path:
        """Uncommitted changes."""
        return self.root / "pending"

    @property
    def run(self) -> Path:
        """Live runtimes."""
        return self.root / "run"


def state_folder(env: Mapping[str, str], uid: int, configured: str | None = None) -> StateFolder:
    """The state folder: $FUMEHOOD_STATE, else the configured one, else root's or the user's own."""
    if chosen := env.get("FUMEHOOD_STATE") or configured:
        return StateFolder(Path(os.path.abspath(chosen)))  # noqa: PTH100 - resolve() would follow a planted symlink
    if uid == 0:
        return StateFolder(Path("/var/lib") / PREFIX)
    base = env.get("XDG_STATE_HOME") or str(Path(env.get("HOME", "/")) / ".local/state")
    return StateFolder(Path(base) / PREFIX)
