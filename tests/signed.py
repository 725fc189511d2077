"""Senders that sign by hand, and what front doors ask of them."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fakes import FakeLedger
from fumehood.app import SystemClock
from fumehood.gateway import envelope
from fumehood.gateway.proofs import CHALLENGE_KEY, Proofs
from fumehood.gateway_config import EnvelopeConfig, EnvelopeMode
from fumehood.ports import Clock, Ledger, SenderKey
from fumehood.thumbprint import text_of, thumbprint


def proofs(ledger: Ledger | None = None, mode: str = "accepted", clock: Clock | None = None, **more: Any) -> Proofs:
    """What one front door asks, of a gateway of its own."""
    config = EnvelopeConfig(mode=EnvelopeMode(mode), **more)
    return Proofs(lambda: config, ledger or FakeLedger(), clock or SystemClock())


@dataclass
class Signer:
    """A sender with a key. `x` is its public half."""

    name: str = "alice"
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def x(self) -> str:
        return text_of(self.private.public_key().public_bytes_raw())

    @property
    def kid(self) -> str:
        return thumbprint(self.x)

    def known(self, **more: Any) -> SenderKey:
        return SenderKey(**{"kid": self.kid, "name": self.name, "key": self.x, "tenant": "local", **more})

    def claims(self, method: str, params: Mapping[str, Any], challenge: str, **changes: Any) -> dict[str, Any]:
        now_s = int(time.time())
        return {
            "iss": self.name, "aud": "fumehood", "iat": now_s, "exp": now_s + 30, "jti": secrets.token_urlsafe(16),
            "chal": challenge, "bd": envelope.digest(method, params), **changes,
        }  # fmt: skip

    def token(self, claims: Any, **header: Any) -> str:
        """A JWS of anything; `header` replaces members of the right one, and None removes one."""
        head = {"alg": "EdDSA", "typ": "mcp-call+jws", "kid": self.kid, **header}
        return self.raw(json.dumps({name: value for name, value in head.items() if value is not None}), json.dumps(claims))

    def raw(self, head: str, body: str) -> str:
        """A JWS of two texts."""
        signed = f"{text_of(head.encode())}.{text_of(body.encode())}"
        return f"{signed}.{text_of(self.private.sign(signed.encode()))}"

    def sign(self, method: str, params: Mapping[str, Any], challenge: str, **changes: Any) -> dict[str, Any]:
        """The params with an envelope."""
        return proved(params, self.token(self.claims(method, params, challenge, **changes)))


def proved(params: Mapping[str, Any], token: Any) -> dict[str, Any]:
    """The params with this for an envelope."""
    return {**params, "_meta": {**params.get("_meta", {}), envelope.KEY: token}}


def challenge_of(message: Mapping[str, Any]) -> str:
    """The challenge in an answer, be it a result or a refusal."""
    held = message["result"]["_meta"] if "result" in message else message["error"]["data"]
    found: str = held[CHALLENGE_KEY]["challenge"]
    return found


def plain(segment: str) -> bytes:
    """A base64url segment."""
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
