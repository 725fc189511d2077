"""Signed statements in DSSE envelopes, the form of in-toto and sigstore (https://github.com/secure-systems-lab/dsse, v1.0.2). Pure.

What is signed is the payload's very bytes and their type, length before each (PAE), so nothing is parsed before its signature was
checked, and what was signed as one type is never read as another. Signatures are Ed25519 (RFC 8032).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from fumehood.keys import PublicKey, SigningKey

STATEMENT = "application/vnd.in-toto+json"
CHECKPOINT = "application/vnd.fumehood.checkpoint+json"


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def signed(payload: bytes, payload_type: str, key: SigningKey) -> dict[str, Any]:
    """The envelope of a payload."""
    signature = base64.b64encode(key.sign(pae(payload_type, payload))).decode()
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": key.public.kid, "sig": signature}],
    }


def opened(envelope: object, payload_type: str, keys: Mapping[str, PublicKey]) -> tuple[bytes, PublicKey]:
    """The payload and the key that signed it. Raises ValueError with what is wrong."""
    try:
        if not isinstance(envelope, dict) or envelope["payloadType"] != payload_type:
            raise ValueError(f"it is no envelope of {payload_type}")
        payload = base64.b64decode(envelope["payload"], validate=True)
        found = [(str(each["keyid"]), base64.b64decode(each["sig"], validate=True)) for each in envelope["signatures"]]
    except (KeyError, TypeError, binascii.Error):
        raise ValueError("it is no DSSE envelope") from None
    if not found:
        raise ValueError("it has no signature")
    for kid, signature in found:
        if (key := keys.get(kid)) is not None and key.verifies(signature, pae(payload_type, payload)):
            return payload, key
    known = [kid for kid, _ in found if kid in keys]
    raise ValueError("its signature is wrong" if known else f"it is signed by {found[0][0][:64]}, which is no key of this ledger's")
