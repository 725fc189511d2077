"""Which paths of a workspace are never changed without a person's word: hooks and settings that run code on the host.

Pure. A pattern is `/`-separated; `*`, `?` and `[...]` stay within one name, `**` stands for any number of names.
It matches at any depth (a nested repository's `.git/hooks` runs code just as well), or only at the workspace's top
when it begins with `/`. A path is protected when it, or a folder it lies in, matches. So is a path that *replaces* or
removes a folder which a protected path would lie in: a file or symlink called `.git` points git at hooks elsewhere.
Letter case is ignored: on a case-folding directory `.GIT/Hooks` is the same folder, elsewhere holding it costs little.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

DEFAULT = (".git/hooks", ".git/config", ".vscode", ".idea", ".envrc", "fumehood.yaml")


def protected(patterns: Sequence[str], path: str, *, directory: bool) -> bool:
    """Whether a change that makes `path` a directory (`directory`), or anything else or nothing, needs approval."""
    names = tuple(path.casefold().split("/"))
    return any(_matches(pattern, names, directory=directory) for pattern in patterns)


def first_protected(patterns: Sequence[str], changes: Iterable[tuple[str, bool]], limit: int) -> list[str]:
    """The first `limit` protected ones of these `(path, directory)`."""
    found: list[str] = []
    for path, directory in changes:
        if len(found) == limit:
            break
        if protected(patterns, path, directory=directory):
            found.append(path)
    return found


def _matches(pattern: str, names: tuple[str, ...], *, directory: bool) -> bool:
    wanted = tuple(name for name in pattern.casefold().split("/") if name)
    if not wanted:
        return False
    starts = range(1) if pattern.startswith("/") else range(len(names))
    return any(_meets(wanted, names[start:], stands_in=not directory) for start in starts)


def _meets(wanted: tuple[str, ...], names: tuple[str, ...], *, stands_in: bool) -> bool:
    """Whether `names` begins with a match of `wanted`, or (`stands_in`) is where the way to such a match would lead."""
    if not wanted:
        return True
    if not names:
        return stands_in
    if wanted[0] == "**":
        return _meets(wanted[1:], names, stands_in=stands_in) or _meets(wanted, names[1:], stands_in=False)
    return fnmatchcase(names[0], wanted[0]) and _meets(wanted[1:], names[1:], stands_in=stands_in)
