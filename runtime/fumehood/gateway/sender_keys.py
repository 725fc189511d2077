"""Keys of senders, as people have them: public ones to be registered, private ones to sign with.

Ed25519 alone, in the usual writings: a JWK, PEM, or OpenSSH's. A private key comes from a file that nobody else can read, and
is never printed, logged or sent.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fumehood.faults import FumehoodError
from fumehood.gateway import strict_json
from fumehood.reasons import Reason
from fumehood.safe_files import open_trusted_folder, read_trusted
from fumehood.thumbprint import bytes_of, text_of, thumbprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_BYTES = 16 * 1024
_EXPECTED = "expected an Ed25519 public key: a JWK, PEM, or a line of OpenSSH's (`ssh-ed25519 AAAA...`)"


def public_key(text: str, name: str) -> str:
    """The `x` of a public key. Raises FumehoodError; never repeats the text, which may be a private key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    text = text.strip()
    if "PRIVATE KEY" in text or '"d"' in text:
        detail = f"{name} holds a private key, which is its sender's alone"
        raise FumehoodError(Reason.BAD_REQUEST, detail, remedy="Give its public half, and keep the private one where it was.")
    try:
        if text.startswith("{"):
            return _of_jwk(strict_json.parse(text.encode()))
        data = text.encode()
        key = serialization.load_ssh_public_key(data) if text.startswith("ssh-") else serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FumehoodError(Reason.BAD_REQUEST, f"{name}: {_EXPECTED}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise FumehoodError(Reason.BAD_REQUEST, f"{name}: {_EXPECTED}, found another kind of key")
    return text_of(key.public_bytes_raw())


class PrivateKey:
    """What a sender signs with."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """Sign with this key."""
        self._key = key
        self.x = text_of(key.public_key().public_bytes_raw())
        self.kid = thumbprint(self.x)

    def sign(self, data: bytes) -> bytes:
        """The signature of some bytes (RFC 8032)."""
        return self._key.sign(data)

    @property
    def public(self) -> str:
        """The public half as a JWK, for `fumehood senders add`."""
        return json.dumps({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": self.x})


def read_private_key(path: Path, uid: int) -> PrivateKey:
    """The private key in a file of mode 0600, which only root and `uid` could have written. Raises FumehoodError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        data = read_trusted(path.absolute(), uid, limit_bytes=KEY_BYTES, private=True).encode()
    except FileNotFoundError:
        remedy = "Make one: `fumehood senders keygen FILE`."
        raise FumehoodError(Reason.BAD_REQUEST, f"there is no key file {path}", remedy=remedy) from None
    ours = b"OPENSSH PRIVATE KEY" in data
    try:
        key = serialization.load_ssh_private_key(data, None) if ours else serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        detail = f"{path}: expected an Ed25519 private key in PEM or OpenSSH's form, without a passphrase"
        raise FumehoodError(Reason.BAD_REQUEST, detail) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise FumehoodError(Reason.BAD_REQUEST, f"{path}: expected an Ed25519 private key, found another kind")
    return PrivateKey(key)


def make_private_key(path: Path, uid: int) -> PrivateKey:
    """A new private key in a new file of mode 0600. Raises FumehoodError: the file is there already, or its folder is others'."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        folder = open_trusted_folder(path.absolute().parent, uid)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(path.name, flags, 0o600, dir_fd=folder), "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        finally:
            os.close(folder)
    except FileExistsError:
        raise FumehoodError(Reason.BAD_REQUEST, f"{path} is there already", remedy="Name a new file.") from None
    except OSError as error:
        raise FumehoodError(Reason.BAD_REQUEST, f"{path} cannot be written: {error.strerror}") from error
    return PrivateKey(key)


def _of_jwk(value: Any) -> str:
    """The `x` of a JWK. Raises ValueError."""
    if not isinstance(value, dict) or (value.get("kty"), value.get("crv")) != ("OKP", "Ed25519"):
        raise ValueError("not a JWK of an Ed25519 key")
    x = value.get("x")
    if not isinstance(x, str):
        raise ValueError("it has no `x`")  # noqa: TRY004 - a fault of the text, not of the code
    bytes_of(x)
    if value.get("kid", thumbprint(x)) != thumbprint(x):
        raise ValueError("its `kid` is not its thumbprint")
    return x
