"""Compact JWS (RFC 7515), as tokens and proofs are written: read once, strictly, and verified with a key and an algorithm of ours.

Attacks: `alg: none`; an algorithm that takes a public key for a shared secret; a header that names its own key or says that
something must be understood (`crit`) which is not; two members of one name, of which two readers take different ones. So the
algorithm and the key are what the caller found for what is signed, never what the header would like; headers and claims are read by
the gateway's one strict parser; joserfc is given bytes and a key, and parses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode

from fumehood.gateway import strict_json

Key = ECKey | OKPKey | RSAKey
# What a header may ask us to do differently, or offers in place of a key that we know.
_FORBIDDEN = ("crit", "b64", "zip", "enc", "jku", "x5u")


class UnfitError(Exception):
    """It is not believed. `error` is the code of RFC 6750 or RFC 9449, the text is for the client and holds nothing of its token."""

    def __init__(self, error: str, message: str, status: int = 401) -> None:
        """Carry both, and the HTTP status."""
        super().__init__(message)
        self.error = error
        self.status = status


@dataclass(frozen=True, slots=True)
class Signed:
    """A compact JWS whose signature nobody has verified yet."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signing_input: bytes
    signature: bytes

    @property
    def algorithm(self) -> str:
        """What it says it was signed with; only good for being compared with what may be."""
        said = self.header.get("alg")
        return said if isinstance(said, str) else ""


def read(text: str, most: int, error: str, what: str) -> Signed:
    """A compact JWS of at most `most` characters. Raises UnfitError with this code, about `what`."""
    if len(text) > most:
        raise UnfitError(error, f"the {what} is over {most} characters")
    try:
        parts = text.encode("ascii").split(b".")
        header, claims, signature = (urlsafe_b64decode(part) for part in parts)
        found = strict_json.parse(header), strict_json.parse(claims)
    except ValueError as fault:
        raise UnfitError(error, f"the {what} is no compact JWS") from fault
    if not isinstance(found[0], dict) or not isinstance(found[1], dict):
        raise UnfitError(error, f"the {what} is no compact JWS")
    if any(name in found[0] for name in _FORBIDDEN):
        raise UnfitError(error, f"the {what} has a header that is not understood here")
    return Signed(found[0], found[1], b".".join(parts[:2]), signature)


def verifies(signed: Signed, key: Key, algorithm: str) -> bool:
    """Whether `key` made the signature with `algorithm`, which must be what was said: a key is of one use."""
    if signed.algorithm != algorithm:
        return False
    known = JWSRegistry.algorithms[algorithm]
    try:
        known.check_key(key)
        return known.verify(signed.signing_input, signed.signature, key)
    except (JoseError, ValueError):
        return False
