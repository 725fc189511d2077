"""An approver's answer that came from elsewhere: a compact JWS over one approval, read after its signature was found good. Pure.

    header   {"alg": "Ed25519", "typ": "fumehood-approval+jws"}, and a `kid` that is not looked at
    claims   {"iss": approver, "aud", "iat", "exp": at most 5 minutes later, "jti": once, "approval": id, "binding": digest,
              "decision": "approve" | "deny", "reason"}

The ledger itself verifies it, so that no worker that was taken over can make an approval. It is the least that can be parsed there:
Ed25519 over the text as it came, by each approver's key in turn, and JSON only of what one of them has signed. Whose key it was is
who answers; `iss` must say the same. Standard library and `cryptography`; joserfc, or any library of JOSE, makes them.

A binding is compared, never trusted: it is what the approver has seen. `jti` is taken once, durably, by the store of nonces.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fumehood.thumbprint import bytes_of, text_of, thumbprint

TYPE = "fumehood-approval+jws"
MOST_CHARS = 8 * 1024
LIFETIME_S = 300
SKEW_S = 30
REASON_CHARS = 1024
_SEGMENT = re.compile(r"[A-Za-z0-9_-]{2,6000}")
_TEXTS = {"iss": 64, "aud": 256, "jti": 128, "approval": 26, "binding": 71, "decision": 7, "reason": REASON_CHARS}
_TIMES = ("iat", "exp")
# The same algorithm by its newer and its older name (RFC 9864, RFC 8037).
_ALGORITHMS = ("Ed25519", "EdDSA")
_JTI = re.compile(r"[A-Za-z0-9_-]{16,128}")


class UnfitError(ValueError):
    """It is not believed. The text is for the operator's log alone: whoever sent it must not learn from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an approver signed. `kid` is the thumbprint of the key that did."""

    approver: str
    kid: str
    approval: str
    binding: str
    approves: bool
    reason: str
    jti: str
    until_s: float


def opened(text: str, keys: Mapping[str, str], audience: str, now_s: float) -> Answer:
    """The answer, if one of these approvers' keys (a JWK's `x` by name) signed it for us and it is of now. Raises UnfitError."""
    segments = text.split(".") if len(text) <= MOST_CHARS else []
    if len(segments) != 3 or not all(map(_SEGMENT.fullmatch, segments)):
        raise UnfitError("it is no compact JWS")
    signer = _signer(text, keys)
    header, claims = (_object(segment) for segment in segments[:2])
    if header.get("alg") not in _ALGORITHMS or header.get("typ") != TYPE or not header.keys() <= {"alg", "typ", "kid"}:
        raise UnfitError("its header is another one")
    if claims.keys() != {*_TEXTS, *_TIMES}:
        raise UnfitError(f"its claims must be {', '.join((*_TEXTS, *_TIMES))}")
    if any(type(claims[name]) is not str or len(claims[name]) > most for name, most in _TEXTS.items()):
        raise UnfitError("a claim is no text, or too long")
    if any(type(claims[name]) is not int or not 0 <= claims[name] < 2**53 for name in _TIMES):
        raise UnfitError("`iat` and `exp` must be whole seconds")
    if claims["iss"] != signer:
        raise UnfitError("`iss` is not whose key signed it")
    if claims["aud"] != audience:
        raise UnfitError("`aud` is not ours")
    if not claims["iat"] - SKEW_S <= now_s < claims["exp"] or claims["exp"] - claims["iat"] > LIFETIME_S:
        raise UnfitError("it is out of date, or would be good for too long")
    if claims["decision"] not in ("approve", "deny") or not _JTI.fullmatch(claims["jti"]):
        raise UnfitError("`decision` or `jti` is none")
    return Answer(
        approver=signer, kid=thumbprint(keys[signer]), approval=claims["approval"], binding=claims["binding"],
        approves=claims["decision"] == "approve", reason=claims["reason"], jti=claims["jti"], until_s=float(claims["exp"]),
    )  # fmt: skip


def made(sign: Callable[[bytes], bytes], claims: Mapping[str, Any]) -> str:
    """A signed answer; `sign` is an Ed25519 private key's."""
    header = {"alg": "Ed25519", "typ": TYPE}
    parts = [text_of(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims)]
    return ".".join((*parts, text_of(sign(".".join(parts).encode()))))


def _signer(text: str, keys: Mapping[str, str]) -> str:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    message, _, last = text.rpartition(".")
    signature = _bytes(last)
    for name, x in keys.items():
        try:
            Ed25519PublicKey.from_public_bytes(bytes_of(x)).verify(signature, message.encode())
        except (InvalidSignature, ValueError):
            continue
        return name
    raise UnfitError("no approver's key signed it")


def _object(segment: str) -> dict[str, Any]:
    try:
        found = json.loads(_bytes(segment), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UnfitError("it is no JSON") from error
    if not isinstance(found, dict):
        raise UnfitError("it is no object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("two members of one name")
    return found


def _bytes(segment: str) -> bytes:
    try:
        found = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except (ValueError, binascii.Error) as error:
        raise UnfitError("it is no base64url") from error
    if text_of(found) != segment:
        raise UnfitError("it is written in another way than base64url writes it")
    return found
