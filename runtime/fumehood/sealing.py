"""What revoking a credential takes and nobody may read, sealed to a key that only the ledger has (rule 19).

A GitHub or OAuth token can be revoked only by who holds it, so the journal must hold it; in clear it would be a secret on disk that
outlives its call. The worker seals it to the ledger's public key (JWE, ECDH-ES with P-256 and AES-256-GCM) and cannot open it again;
the ledger opens it for who has claimed the lease. The lease's id is part of what is authenticated: what was sealed for one lease
opens for no other.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fumehood.faults import FumehoodError, LedgerGone
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from joserfc.jwk import ECKey

FILE = "sweep.key"
_KEY_AGREEMENT, _CONTENT = "ECDH-ES", "A256GCM"
_ALGORITHMS = [_KEY_AGREEMENT, _CONTENT]


def seal(public: Mapping[str, Any], lease: str, parts: Mapping[str, str]) -> str:
    """The parts as a JWE in compact form that only the holder of the private key opens."""
    from joserfc import jwe
    from joserfc.jwk import ECKey

    header = {"alg": _KEY_AGREEMENT, "enc": _CONTENT, "kid": lease}
    return jwe.encrypt_compact(header, json.dumps(dict(parts)), ECKey.import_key(dict(public)), algorithms=_ALGORITHMS)


class SweepKey:
    """The ledger's private key. Never printed, never sent."""

    def __init__(self, folder: Path) -> None:
        """Read `sweep.key` in the ledger's folder, or make it. Raises LedgerGone."""
        from joserfc.errors import JoseError
        from joserfc.jwk import ECKey

        try:
            self._key: ECKey = ECKey.import_key(json.loads(_read(folder) or _make(folder)))
        except (OSError, ValueError, JoseError) as error:
            told = error.strerror if isinstance(error, OSError) else "is no key"
            raise LedgerGone(Reason.STATE_UNAVAILABLE, f"{folder / FILE}: {told}") from None

    @property
    def public(self) -> dict[str, Any]:
        """What others seal with, as a JWK."""
        return dict(self._key.as_dict(private=False))

    def unseal(self, lease: str, sealed: str) -> dict[str, str]:
        """What was sealed for this lease. Raises FumehoodError, with nothing of it in its text."""
        from joserfc import jwe
        from joserfc.errors import JoseError

        try:
            opened = jwe.decrypt_compact(sealed, self._key, algorithms=_ALGORITHMS)
            parts = json.loads(opened.plaintext or b"")
            fits = opened.headers().get("kid") == lease and isinstance(parts, dict)
        except (JoseError, ValueError):
            fits, parts = False, {}
        if not fits:
            raise FumehoodError(Reason.LEASE_FAILED, f"what lease {lease} was sealed with cannot be opened")
        return {str(name): str(value) for name, value in parts.items()}


def _read(folder: Path) -> str | None:
    try:
        fd = os.open(folder / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(fd, encoding="ascii") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ValueError
        return file.read(4096)


def _make(folder: Path) -> str:
    """Make the key under a hidden name and then give it its own: another ledger that does the same must not get half of it."""
    from joserfc.jwk import ECKey

    text = json.dumps(ECKey.generate_key("P-256").as_dict(private=True))
    hidden = folder / f".{FILE}.{os.getpid()}"
    fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        with suppress(FileExistsError):  # another was faster, and its key is everybody's
            os.link(hidden, folder / FILE)
    finally:
        hidden.unlink()
    return _read(folder) or ""
