"""What a public key is called: its RFC 7638 thumbprint, which nobody can choose. Pure, and for privileged processes too."""

from __future__ import annotations

import base64
import hashlib
import re

_X = re.compile(r"[A-Za-z0-9_-]{43}")


def bytes_of(x: str) -> bytes:
    """The 32 bytes of an Ed25519 public key as a JWK has them (`x`). Raises ValueError."""
    if not _X.fullmatch(x):
        raise ValueError("must be an Ed25519 public key, 43 characters of base64url")
    found = base64.urlsafe_b64decode(f"{x}=")
    if text_of(found) != x:
        raise ValueError("must be written as base64url writes it, in one way only")
    return found


def text_of(data: bytes) -> str:
    """Base64url without padding (RFC 7515)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def thumbprint(x: str) -> str:
    """The `kid` of an Ed25519 public key: SHA-256 of the members that make a key of its kind, in order (RFC 7638, RFC 8037)."""
    return text_of(hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest())
