"""Where profiles and seccomp files are found, and reading their text. Standard library only: every start reads profiles.

Folders in order: those the configuration names, the user's, the system's, the ones that ship. A name is looked up in
these and nowhere else, and the first file of that name is taken; an unsafe one is refused, not passed over. The working
directory is never searched: a box, or a cloned repository, could have put a profile there. A path is for the
operator's own command line alone (`is_path`), and is checked like everything else (`safe_files`).

Nothing here looks at what a file says. A `Files` notes what it was asked for and what it found: the whole of what a
profile was made from, so `kept` can ask the same again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fumehood.faults import FumehoodError
from fumehood.safe_files import list_trusted, read_trusted
from fumehood.shipping import shipped

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
SECCOMP = "seccomp"


class Lookup(NamedTuple):
    """One file that was asked for: a name below a folder, or a path (`folder` None). `digest` None: there was none."""

    folder: str | None
    name: str
    digest: str | None


class Files:
    """The files one profile is made from: trusted reads in these folders, for this uid, and the trace of them."""

    def __init__(self, folders: Sequence[Path], uid: int) -> None:
        self.folders = tuple(folder.absolute() for folder in folders)
        self.uid = uid
        self.trace: list[Lookup] = []

    def read(self, folder: Path | None, name: str) -> str:
        """The text of a name below a folder, or of an absolute path. Raises FileNotFoundError, or CONFIG_UNSAFE."""
        where = None if folder is None else str(folder)
        try:
            text = _read(folder, name, self.uid)
        except FileNotFoundError:
            self.trace.append(Lookup(where, name, None))
            raise
        # Of the text that is parsed, not of the file: that may have changed by the time somebody looks again.
        self.trace.append(Lookup(where, name, hashlib.sha256(text.encode()).hexdigest()))
        return text

    def found_as(self, lookup: Lookup) -> bool:
        """Whether the same lookup, made and checked now, finds what it found then."""
        with suppress(FileNotFoundError):
            self.read(None if lookup.folder is None else Path(lookup.folder), lookup.name)
        return self.trace[-1] == lookup

    def listing(self, folder: Path) -> list[str]:
        """The names in a folder, to suggest one of them: no part of the trace, for nothing is made from them."""
        return _list(folder, self.uid)


def shipped_folder() -> Path:
    """The folder of the profiles that ship: inside the package, or the checkout's."""
    return shipped("profiles")


def search_folders(configured: Sequence[str], env: Mapping[str, str]) -> tuple[Path, ...]:
    """The folders in which profiles are looked up, first match first."""
    own = env.get("XDG_CONFIG_HOME", "")
    if not own.startswith("/"):
        own = f"{env['HOME']}/.config" if env.get("HOME", "").startswith("/") else ""
    user = (Path(own) / "fumehood" / "profiles",) if own else ()
    return (*map(Path, configured), *user, Path("/etc/fumehood/profiles"), shipped_folder())


def is_path(name: str) -> bool:
    """Whether the operator means a file and not a name."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def names_in(folders: Sequence[Path], uid: int) -> Iterator[tuple[str, Path]]:
    """Every profile name that can be used, with its file. Unsafe folders are passed over: nothing is read from them."""
    seen: set[str] = set()
    for folder in folders:
        try:
            entries = _list(folder, uid)
        except FumehoodError:
            continue
        for entry in entries:
            name = entry.removesuffix(".yaml")
            if name != entry and re.fullmatch(NAME_PATTERN, name) and name not in seen:
                seen.add(name)
                yield name, folder / entry


def _read(folder: Path | None, name: str, uid: int) -> str:
    if folder is None:
        return read_trusted(name, uid)
    if folder == shipped_folder():
        # Whoever can write these can write our code, which lies beside them and runs already.
        return (folder / name).read_text(encoding="utf-8")
    return read_trusted(folder / name, uid)


def _list(folder: Path, uid: int) -> list[str]:
    if folder in (shipped_folder(), shipped_folder() / SECCOMP):
        return sorted(entry.name for entry in folder.iterdir())
    return list_trusted(folder, uid)
