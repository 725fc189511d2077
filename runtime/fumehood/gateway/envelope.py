"""The request envelope: a signature of the sender's over one request, inside it (`_meta["fumehood/proof"]`). Pure.

    header   {"alg": "EdDSA", "typ": "mcp-call+jws", "kid": RFC 7638 thumbprint}
    claims   {"iss": sender, "aud": whose front door, "iat", "exp": at most 60 s later, "jti": once, "chal": the door's, "bd": digest}

A compact JWS (RFC 7515) with Ed25519 (RFC 8037). `bd` is the digest of the RFC 8785 form of

    {"method": the method, "params": its params without `_meta`, "meta": `_meta` without what is named in `UNCOVERED`}

so what is signed of `_meta` is everything but what belongs to the way and not to the request: the envelope itself, the token that
labels progress, and the trace context that each hop writes anew. What nobody knows yet is covered: a member that decides something
tomorrow must not be one that an attacker could add. The request's id is not signed; it only says which answer is whose.

There is one algorithm and one writing. A JOSE library would have to be told that `none` and an HMAC with the public key are no
signatures, takes unknown header members and equal keys as they come, and reads one signature out of several texts. So the three parts
are taken apart here, by the strict reader of requests, and the signature is checked by `cryptography`. Invariant: what is said of a
bad envelope is the same whatever is bad about it, until its signature is good.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fumehood.canonical import digest_of_json
from fumehood.gateway import strict_json
from fumehood.model import Deny
from fumehood.ports import SenderKey
from fumehood.reasons import Reason
from fumehood.thumbprint import bytes_of, text_of

KEY = "fumehood/proof"
METHOD = "envelope"
UNCOVERED = frozenset({KEY, "progressToken", "traceparent", "tracestate", "baggage"})
MAX_CHARS = 2048
LIFETIME_S = 60
_HEADER = {"alg": "EdDSA", "typ": "mcp-call+jws"}
_TEXTS = {"iss": 64, "aud": 256, "jti": 128, "chal": 64, "bd": 71}
_SEGMENT = re.compile(r"[A-Za-z0-9_-]+")
_NONCE = re.compile(r"[A-Za-z0-9_-]{16,128}")
_KID = re.compile(r"[A-Za-z0-9_-]{43}")
_RULE = "gateway.envelope"


class UnfitError(ValueError):
    """The text is no envelope."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a sender signed. Times are whole seconds since the epoch."""

    iss: str
    aud: str
    iat: int
    exp: int
    jti: str
    chal: str
    bd: str


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope taken apart, before anything of it is believed."""

    kid: str
    claims: Claims
    signed: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What an envelope must say here: for this front door, with a challenge of its, now, of this request (None: it has no digest)."""

    audience: str
    challenges: frozenset[str]
    digest: str | None
    now_s: float
    skew_s: float


def digest(method: str, params: Mapping[str, Any]) -> str:
    """`sha256:<hex>` of a request, however it is written. Raises ValueError when it has no canonical form."""
    meta = params.get("_meta")
    if isinstance(meta, dict):
        meta = {name: value for name, value in meta.items() if name not in UNCOVERED}
    rest = {name: value for name, value in params.items() if name != "_meta"}
    return digest_of_json({"method": method, "params": rest, "meta": {} if meta is None else meta})


def read(text: object) -> Envelope:
    """The envelope in a text. Raises `UnfitError`."""
    if not isinstance(text, str) or len(text) > MAX_CHARS:
        raise UnfitError
    segments = text.split(".")
    if len(segments) != 3:
        raise UnfitError
    head, body, signature = map(_bytes, segments)
    header, claims = _object(head), _object(body)
    kid = header.pop("kid", None)
    if header != _HEADER or not isinstance(kid, str) or not _KID.fullmatch(kid):
        raise UnfitError
    if claims.keys() != {"iss", "aud", "iat", "exp", "jti", "chal", "bd"}:
        raise UnfitError
    if any(type(claims[name]) is not str or len(claims[name]) > most for name, most in _TEXTS.items()):
        raise UnfitError
    if any(type(claims[name]) is not int or not 0 <= claims[name] < 2**53 for name in ("iat", "exp")):
        raise UnfitError
    if not _NONCE.fullmatch(claims["jti"]):
        raise UnfitError
    return Envelope(kid, Claims(**claims), text.rpartition(".")[0].encode(), signature)


def is_signed(envelope: Envelope, key: str) -> bool:
    """Whether the signature is one of this public key's (a JWK's `x`)."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes_of(key)).verify(envelope.signature, envelope.signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def fault(claims: Claims, sender: SenderKey, expected: Expected) -> Deny | None:
    """What is wrong with the claims of a signature that is good, or None. Told in full: only who holds the key can hear it."""
    now_s, skew_s = expected.now_s, expected.skew_s
    if sender.revoked:
        return Deny(reason=Reason.SENDER_REVOKED, rule=_RULE, detail=f"the key {sender.kid} of {sender.name} was revoked")
    if claims.iss != sender.name:
        return _invalid("`iss` is not the name that this key was added for")
    if claims.aud != expected.audience or (sender.audiences and claims.aud not in sender.audiences):
        return _invalid("`aud` is not this front door, or none that this key is for")
    if not 0 < claims.exp - claims.iat <= LIFETIME_S:
        return _invalid(f"`exp` must be at most {LIFETIME_S} s after `iat`")
    if claims.exp + skew_s <= now_s:
        detail = f"it expired {now_s - claims.exp:.0f} s ago by this host's clock"
        return Deny(reason=Reason.PROOF_EXPIRED, rule=_RULE, detail=detail)
    if claims.iat - skew_s > now_s:
        detail = f"it was signed {claims.iat - now_s:.0f} s from now by this host's clock"
        return Deny(reason=Reason.PROOF_EXPIRED, rule=_RULE, detail=detail)
    if claims.chal not in expected.challenges:
        return Deny(reason=Reason.CHALLENGE_STALE, rule=_RULE)
    if expected.digest is None:
        return _invalid("the request has no canonical form (RFC 8785)")
    if claims.bd != expected.digest:
        return _invalid("`bd` is not the digest of this request")
    return None


def write(kid: str, claims: Claims, sign: Any) -> str:
    """The envelope of these claims. `sign` makes the signature of bytes."""
    parts = ({**_HEADER, "kid": kid}, {name: getattr(claims, name) for name in Claims.__slots__})
    signed = ".".join(text_of(strict_json.dumps(part)) for part in parts)
    return f"{signed}.{text_of(sign(signed.encode()))}"


def _bytes(segment: str) -> bytes:
    """A base64url segment, in its one canonical writing: another would be another text with the same signature."""
    if not _SEGMENT.fullmatch(segment):
        raise UnfitError
    try:
        found = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except ValueError as error:
        raise UnfitError from error
    if text_of(found) != segment:
        raise UnfitError
    return found


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = strict_json.parse(text)
    except strict_json.UnfitError as error:
        raise UnfitError from error
    if not isinstance(value, dict):
        raise UnfitError
    return value


def _invalid(detail: str) -> Deny:
    return Deny(reason=Reason.PROOF_INVALID, rule=_RULE, detail=detail)
