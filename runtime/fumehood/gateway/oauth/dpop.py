"""DPoP (RFC 9449): that who sends a token has the key it was issued to, shown for this request and nothing else.

A proof is signed over the method, the URL, the token and a nonce of ours, with the key whose thumbprint the token names
(`cnf.jkt`). Attacks: a token taken from a log or another service has no key beside it; a proof that was made for another URL,
method or token; one made in advance, on a machine that an attacker once held, which knows no nonce of ours (section 11.3); and one
sent twice, which the ledger takes only once.

Nonces are not remembered: each is a time under a key of this process's own, so that one from before a restart, or of another
gateway, is answered with a new one. They only bound when a proof was made. That it is used once is the ledger's business, across
all of them.

Invariants: the URL a proof must name comes from the configuration and from no header; the key in its header is believed to be
nothing but itself, and is not even made until its thumbprint is the token's.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import re
import secrets
import struct
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fumehood.gateway.oauth import keys
from fumehood.gateway.oauth.signed import Key, UnfitError, read, verifies
from fumehood.model import Proof
from fumehood.oauth_config import PROOF_ALGORITHMS

METHOD = "dpop"
PROOF_CHARACTERS = 4 * 1024
JTI_CHARACTERS = 128
AGE_S = 60.0
SKEW_S = 10.0
NONCE_S = 300
_INVALID = "invalid_dpop_proof"
_VISIBLE = re.compile(r"[!-~]{1,1024}")
_REQUIRED: Mapping[str, tuple[str, ...]] = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}


class Nonces:
    """The nonces that this process gives out (RFC 9449 section 8)."""

    def __init__(self) -> None:
        """Begin with a key of its own."""
        self._key = secrets.token_bytes(32)

    def new(self, now_s: float) -> str:
        """The nonce of this moment."""
        stamp = struct.pack(">Q", int(now_s))
        return _b64(stamp + self._tag(stamp))

    def age_s(self, nonce: object, now_s: float) -> float | None:
        """How old a nonce of ours is; None when it is none, or none that is good any more."""
        if not isinstance(nonce, str) or len(nonce) != 32:
            return None
        try:
            whole = base64.b64decode(nonce.encode("ascii"), b"-_", validate=True)
        except ValueError:
            return None
        stamp, tag = whole[:8], whole[8:]
        if not hmac.compare_digest(tag, self._tag(stamp)):
            return None
        age_s = now_s - struct.unpack(">Q", stamp)[0]
        return age_s if -1 <= age_s <= NONCE_S else None  # not from later: the clock was set back

    def _tag(self, stamp: bytes) -> bytes:
        return hmac.digest(self._key, stamp, "sha256")[:16]


def prove(text: str, thumbprint: str, token: str, *, method: str, url: str, nonces: Nonces, now_s: float) -> tuple[Proof, bool]:
    """What a proof shows of a request to `url`, and whether its nonce should be replaced soon. Raises UnfitError.

    Its signature and all it says are judged here; what is left is to spend the nonce of what is returned.
    """
    proof = read(text, PROOF_CHARACTERS, _INVALID, "DPoP proof")
    jwk = proof.header.get("jwk")
    if proof.header.get("typ") != "dpop+jwt" or proof.algorithm not in PROOF_ALGORITHMS or not isinstance(jwk, dict):
        raise UnfitError(_INVALID, f"the DPoP proof is no dpop+jwt of {', '.join(PROOF_ALGORITHMS)} with its key")
    if any(name in jwk for name in keys.PRIVATE):
        raise UnfitError(_INVALID, "the DPoP proof has a private key in its header: replace that key")
    members = tuple(jwk.get(name) for name in _REQUIRED.get(str(jwk.get("kty")), ()))
    if not members or not all(isinstance(member, str) and len(member) <= 64 for member in members):
        raise UnfitError(_INVALID, "the DPoP proof has no key that is known here")
    if not hmac.compare_digest(thumbprint_of(jwk).encode(), thumbprint.encode("utf-8", "replace")):
        raise UnfitError("invalid_token", "the token was issued to another key than the DPoP proof's")
    key = _key(str(jwk["kty"]), members)
    if key is None or proof.algorithm not in keys.algorithms_of(key) or not verifies(proof, key, proof.algorithm):
        raise UnfitError(_INVALID, "the DPoP proof's signature does not verify")
    if proof.claims.get("htm") != method or not _same_url(proof.claims.get("htu"), url):
        raise UnfitError(_INVALID, f"the DPoP proof is for another method or URL than this request's to {url}")
    if proof.claims.get("ath") != _b64(hashlib.sha256(token.encode()).digest()):
        raise UnfitError(_INVALID, "the DPoP proof is for another token")
    number, until_s = _once(proof.claims, now_s)
    age_s = nonces.age_s(proof.claims.get("nonce"), now_s)
    if age_s is None:
        raise UnfitError("use_dpop_nonce", "the DPoP proof must have the nonce of this answer")
    return Proof(method=METHOD, key=thumbprint, nonce=number, until_s=until_s), age_s > NONCE_S / 2


def thumbprint_of(jwk: Mapping[str, Any]) -> str:
    """A key's thumbprint (RFC 7638), of the members that make it this key."""
    members = {name: jwk[name] for name in _REQUIRED[str(jwk["kty"])]}
    return _b64(hashlib.sha256(json.dumps(members, separators=(",", ":"), sort_keys=True).encode()).digest())


@functools.lru_cache(maxsize=256)
def _key(kind: str, members: tuple[str, ...]) -> Key | None:
    """Kept, because making one takes as long as verifying with it; only keys that an issuer bound a token to come here."""
    return keys.public_key(dict(zip(_REQUIRED[kind], members, strict=True)))


def _once(claims: Mapping[str, Any], now_s: float) -> tuple[str, float]:
    """What makes it one proof and no other, and until when it is good. Raises UnfitError."""
    issued_s, number = claims.get("iat"), claims.get("jti")
    if not isinstance(issued_s, int | float) or isinstance(issued_s, bool) or not now_s - AGE_S <= issued_s <= now_s + SKEW_S:
        raise UnfitError(_INVALID, "the DPoP proof was not made now")
    if not isinstance(number, str) or not 0 < len(number) <= JTI_CHARACTERS or not (number.isascii() and number.isprintable()):
        raise UnfitError(_INVALID, f"the DPoP proof has no `jti` of at most {JTI_CHARACTERS} printable characters")
    return number, issued_s + AGE_S


def _same_url(said: object, ours: str) -> bool:
    """Whether a proof names our URL: by RFC 3986 sections 6.2.2 and 6.2.3, without its query and fragment (RFC 9449 section 4.3)."""
    # `urlsplit` drops line ends and tabs wherever they are, and spaces before.
    if not isinstance(said, str) or not _VISIBLE.fullmatch(said):
        return False
    try:
        return _place(said) == _place(ours) and "@" not in urlsplit(said).netloc
    except ValueError:
        return False


def _place(url: str) -> tuple[str, str | None, int, str]:
    """Scheme, name, port and path, the first two in lower case. Raises ValueError."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, 443 if parts.port is None else parts.port, parts.path


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
