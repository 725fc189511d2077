"""The operator's policy files, read with the operator's rights: only those that nobody else could have written (rule 6).

Everything or nothing: a file that is missing, unsafe or wrong refuses the whole, so that a reload keeps the last good set. A pattern
that matches nothing is an error too: the file that was to forbid something may have been moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from fumehood.faults import FumehoodError
from fumehood.policies.cedar import Source
from fumehood.policies.config import PolicyConfig
from fumehood.policies.policy import Policy, made
from fumehood.reasons import Reason
from fumehood.safe_files import list_trusted, read_trusted

FILE_BYTES = 1024 * 1024
MOST_FILES = 256


def read(config: PolicyConfig, uid: int) -> Policy:
    """The policy that a configuration names. Raises FumehoodError: PolicyError, CONFIG_INVALID or CONFIG_UNSAFE."""
    return made(config, sources(config, uid))


def sources(config: PolicyConfig, uid: int) -> list[Source]:
    """The texts of its files, in order. Raises FumehoodError."""
    return [Source(name=path, text=_text(path, uid)) for path in paths(config, uid)]


def paths(config: PolicyConfig, uid: int) -> list[str]:
    """The files that it names. Raises FumehoodError."""
    found = list(dict.fromkeys(path for pattern in config.files for path in _matching(pattern, uid)))
    if len(found) > MOST_FILES:
        raise FumehoodError(Reason.CONFIG_INVALID, f"policy.files: {len(found)} files, expected at most {MOST_FILES}")
    return found


def _text(path: str, uid: int) -> str:
    try:
        return read_trusted(path, uid, limit_bytes=FILE_BYTES)
    except FileNotFoundError:
        raise FumehoodError(Reason.CONFIG_INVALID, f"policy.files: there is no file {path}") from None


def _matching(pattern: str, uid: int) -> Iterator[str]:
    folder, name = Path(pattern).parent, Path(pattern).name
    if "*" not in name:
        yield pattern
        return
    found = [each for each in list_trusted(folder, uid) if fnmatchcase(each, name) and not each.startswith(".")]
    if not found:
        raise FumehoodError(Reason.CONFIG_INVALID, f"policy.files: nothing matches {pattern}", remedy="Name files that there are.")
    yield from (str(folder / each) for each in found)
