"""The ledger's signing keys: Ed25519, one JWK (RFC 8037) a file, named by its RFC 7638 thumbprint.

Invariants: a file is 0600, in a 0700 folder of the ledger's own; it appears whole or not at all; one key signs at a time, the newest.
A key is never forgotten, because what it signed must stay verifiable: when another takes its place it gets an end (`exp`), some time
ahead so that runtimes which have not noticed yet may still sign with it, and after that its private half is removed.

`nbf` and `exp` (seconds since the epoch) say when a key may sign. Whoever has them from `fumehood keys export` can tell a signature
that claims to be from a time at which its key was not in use. Nothing here is imported before something is to be signed.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fumehood.faults import FumehoodError, LedgerGone
from fumehood.reasons import Reason
from fumehood.thumbprint import text_of, thumbprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FOLDER = "keys"
_SUFFIX = ".jwk"
_KEY_BYTES = 4096
# Clocks of runtimes on one host differ by nothing, but a whole second is what `nbf` can say.
_SLACK_S = 1.0


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What verifies. `until_s` is None for the key in use."""

    kid: str
    raw: bytes
    from_s: float
    until_s: float | None = None

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether this key made that signature."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def signs_at(self, at_s: float) -> bool:
        """Whether it was in use then."""
        return self.from_s - _SLACK_S <= at_s <= (at_s if self.until_s is None else self.until_s + _SLACK_S)

    def jwk(self) -> dict[str, Any]:
        """As others read it."""
        ends = {} if self.until_s is None else {"exp": int(self.until_s)}
        return {**_members(self.raw), "kid": self.kid, "alg": "EdDSA", "use": "sig", "nbf": int(self.from_s), **ends}

    def pem(self) -> str:
        """SubjectPublicKeyInfo, for tools that know no JWK."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        key = Ed25519PublicKey.from_public_bytes(self.raw)
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


class SigningKey:
    """A key with its private half. Never printed, never sent."""

    def __init__(self, public: PublicKey, private: Ed25519PrivateKey) -> None:
        """Sign as `public`."""
        self.public = public
        self._private = private

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of a signature; of one message always the same."""
        return self._private.sign(message)


def public_keys(text: str) -> dict[str, PublicKey]:
    """The keys of a JWKS, by id. Raises ValueError for what is none."""
    try:
        return {key.kid: key for key in (_public(jwk) for jwk in json.loads(text)["keys"])}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is no JWKS of Ed25519 keys") from error


class KeyFolder:
    """The folder `keys` in the ledger's own."""

    def __init__(self, ledger: Path) -> None:
        """Use the folder of a ledger that has been opened; nothing is made before something is to be signed."""
        self._folder = ledger / FOLDER
        self._seen_ns = -1
        self._current: SigningKey | None = None

    def current(self) -> SigningKey:
        """The key to sign with, made if there is none; read again when the folder has changed. Raises LedgerGone."""
        with _told(self._folder):
            if self._current is None or self._folder.stat().st_mtime_ns != self._seen_ns:
                with self._alone():
                    self._retire(time.time())
                    found = [jwk for jwk in self._read() if "d" in jwk and "exp" not in jwk]
                    self._current = _signing(max(found, key=lambda jwk: float(jwk["nbf"])) if found else self._make())
                    self._seen_ns = self._folder.stat().st_mtime_ns
            return self._current

    def public(self) -> list[PublicKey]:
        """All keys there ever were, the oldest first. Raises LedgerGone."""
        with _told(self._folder):
            # Of those of one second the one in use comes last.
            return sorted((_public(jwk) for jwk in self._read()), key=lambda key: (key.from_s, key.until_s is None, key.kid))

    def rotate(self, overlap_s: float) -> PublicKey:
        """Make another key the one that signs; the one before may for `overlap_s` more. Raises LedgerGone."""
        now_s = time.time()
        with _told(self._folder), self._alone():
            for jwk in self._read():
                if "exp" not in jwk:
                    self._write({**jwk, "exp": int(now_s + overlap_s)})
            made = self._make()
            self._retire(now_s)
            return _public(made)

    def _retire(self, now_s: float) -> None:
        """Remove the private halves of keys whose time is over."""
        for jwk in self._read():
            if "d" in jwk and jwk.get("exp", now_s) < now_s - _SLACK_S:
                self._write({name: value for name, value in jwk.items() if name != "d"})

    def _read(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        with suppress(FileNotFoundError):
            found = [json.loads(_read(path)) for path in sorted(self._folder.iterdir()) if path.name.endswith(_SUFFIX)]
        for jwk in found:
            _public(jwk)  # one that cannot be read is told of, and not passed over
        return found

    def _make(self) -> Mapping[str, Any]:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private = Ed25519PrivateKey.generate()
        raw = private.public_key().public_bytes_raw()
        jwk = {**_members(raw), "d": text_of(private.private_bytes_raw()), "kid": thumbprint(text_of(raw)), "nbf": int(time.time())}
        self._write(jwk)
        return jwk

    def _write(self, jwk: Mapping[str, Any]) -> None:
        """Put a key in its place whole: a reader must not get half of it."""
        hidden = self._folder / ".new"
        hidden.unlink(missing_ok=True)  # of one who was killed here: we hold the folder
        fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            json.dump(jwk, file)
            file.flush()
            os.fsync(fd)
        hidden.rename(self._folder / f"{jwk['kid']}{_SUFFIX}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder: two runtimes that begin at once must make one key."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_uid != os.geteuid() or os.fstat(fd).st_mode & 0o077:
                raise ValueError
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def jwks(keys: Sequence[PublicKey]) -> dict[str, Any]:
    """The public keys as others take them in."""
    return {"keys": [key.jwk() for key in keys]}


def _members(raw: bytes) -> dict[str, str]:
    return {"crv": "Ed25519", "kty": "OKP", "x": text_of(raw)}


def _public(jwk: Mapping[str, Any]) -> PublicKey:
    raw = _decoded(jwk["x"])
    if jwk["kty"] != "OKP" or jwk["crv"] != "Ed25519" or len(raw) != 32:
        raise ValueError("it is no JWKS of Ed25519 keys")
    # The name is made here: a key that bears another's would be taken for it.
    return PublicKey(thumbprint(text_of(raw)), raw, float(jwk.get("nbf", 0)), float(jwk["exp"]) if "exp" in jwk else None)


def _signing(jwk: Mapping[str, Any]) -> SigningKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return SigningKey(_public(jwk), Ed25519PrivateKey.from_private_bytes(_decoded(jwk["d"])))


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _read(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, encoding="ascii") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ValueError
        return file.read(_KEY_BYTES)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except FumehoodError:
        raise
    except OSError as error:
        raise LedgerGone(Reason.STATE_UNAVAILABLE, f"{folder}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise LedgerGone(Reason.STATE_UNAVAILABLE, f"{folder} holds what is no key, or what others may read") from None
