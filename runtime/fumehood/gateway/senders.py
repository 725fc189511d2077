"""Who may use a gateway over HTTP: the digests of the bearer tokens in the operator's file, each with its sender's name.

    # a line each: NAME:SHA-256 of the token in hex; `#` begins a comment
    alice:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

Invariants: a token itself is never on disk and never in the file's reader (only its digest is, so a copied file opens
nothing); tokens are 256 random bits, made by us, so a plain SHA-256 is as good as a slow hash; the file is readable
by its owner alone, and nobody but root and the operator could have written it (security rules 6 and 7). One sender may have
several lines, so that a token can be replaced without a moment in which none works. Without a line nobody may do anything.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fumehood.faults import FumehoodError
from fumehood.model import Sender
from fumehood.reasons import Reason
from fumehood.safe_files import list_trusted, read_trusted

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TOKEN_CHARACTERS = 512  # what a header may cost us to digest; ours have 46
SENDERS = 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = "fh_"  # scanners for leaked secrets find it by this


class Row(NamedTuple):
    """One line of the file: a name, and the SHA-256 of one of its tokens in lower-case hex."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Senders:
    """The senders of one tokens file. `uid` is the operator's, on whose behalf they all act."""

    rows: tuple[Row, ...] = field(repr=False)
    uid: int

    def of(self, token: str) -> Sender | None:
        """The sender that a bearer token belongs to, or None. Takes the same time whichever it is."""
        if not token or len(token) > TOKEN_CHARACTERS:
            return None
        asked = digest_of(token)
        found = None
        for row in self.rows:
            # Every row is compared, and each in constant time: neither the place nor a common prefix of digests is told.
            if hmac.compare_digest(row.digest, asked):
                found = row.name
        # Marked, because a local user of the same name is somebody else: in records, and as the owner of a session.
        return None if found is None else Sender(uid=self.uid, name=f"http:{found}")

    def names(self) -> tuple[str, ...]:
        """Each name once, sorted."""
        return tuple(sorted({row.name for row in self.rows}))


def digest_of(token: str) -> str:
    """The SHA-256 of a token in lower-case hex. Never raises: a header may hold anything."""
    return hashlib.sha256(token.encode("utf-8", "backslashreplace")).hexdigest()


def new_token() -> str:
    """A token nobody has seen."""
    return _PREFIX + secrets.token_urlsafe(32)


def read_senders(path: str | Path | None, uid: int) -> Senders:
    """The senders in a file of mode 0600 that only root and `uid` could have written; nobody without one.

    Raises FumehoodError: CONFIG_UNSAFE, or CONFIG_INVALID when there is no such file or it is malformed.
    """
    if path is None:
        return Senders((), uid)
    try:
        text = read_trusted(path, uid, private=True)
    except FileNotFoundError:
        remedy = "Make one: `fumehood gateway token NAME`."
        raise FumehoodError(Reason.CONFIG_INVALID, f"there is no tokens file {path}", remedy=remedy) from None
    return parse_senders(text, str(path), uid)


def parse_senders(text: str, file: str, uid: int) -> Senders:
    """The text of a tokens file. Raises FumehoodError with CONFIG_INVALID; never repeats a line, which may hold a token."""
    rows = _rows(text, file)
    if not rows:
        raise _wrong(file, 1, "expected at least one line NAME:SHA256; nobody could use the gateway")
    return Senders(tuple(rows), uid)


def add_sender(path: Path, name: str, uid: int) -> str:
    """A new token of the sender `name`, whose line is put at the end of the file; a missing file is made, mode 0600.

    Raises FumehoodError as `read_senders` does, and BAD_REQUEST for a name that is none.
    """
    if not NAME.fullmatch(name):
        raise FumehoodError(Reason.BAD_REQUEST, f"{name!r} is no sender's name", remedy="Use a-z, 0-9, `.`, `_`, `-`.")
    list_trusted(path.parent, uid)  # the folder first: in another's, the file could be exchanged while we write it
    try:
        before = read_trusted(path, uid, private=True)
        rows = _rows(before, str(path))
    except FileNotFoundError:
        before, rows = "", []
    if len(rows) >= SENDERS:
        raise FumehoodError(Reason.CONFIG_INVALID, f"{path} has {SENDERS} tokens", remedy="Remove old lines from it.")
    token = new_token()
    line = f"{name}:{digest_of(token)}\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(line if not before or before.endswith("\n") else f"\n{line}")
    except OSError as error:
        raise FumehoodError(Reason.CONFIG_UNSAFE, f"{path} cannot be written: {error.strerror}") from error
    return token


def _rows(text: str, file: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (said := line.partition("#")[0].strip()):
            continue
        name, _, digest = said.partition(":")
        if not NAME.fullmatch(name):
            raise _wrong(file, number, "expected NAME:SHA256 with a name of a-z, 0-9, `.`, `_`, `-`")
        if not _DIGEST.fullmatch(digest):
            raise _wrong(file, number, "expected after `NAME:` the SHA-256 of a token, 64 digits of lower-case hex")
        if any(row.digest == digest and row.name != name for row in rows):
            raise _wrong(file, number, "this token is another sender's too")
        rows.append(Row(name, digest))
    if len(rows) > SENDERS:
        raise _wrong(file, len(rows), f"expected at most {SENDERS} tokens")
    return rows


def _wrong(file: str, line: int, message: str) -> FumehoodError:
    remedy = "`fumehood gateway token NAME` makes a token and its line."
    return FumehoodError(Reason.CONFIG_INVALID, f"{file}:{line}: {message}", remedy=remedy)
