"""The one upgrade that the gate lets through, once the server has proved that it speaks it (RFC 6455). Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


def accept_for(key: bytes) -> bytes:
    """What a server that understood the handshake answers to a key."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def is_agreed(key: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a 101's headers agree to exactly the WebSocket that was asked for.

    A 101 that an upstream makes up would otherwise turn the connection into a raw relay, behind which nothing is judged.
    """

    def of(wanted: bytes) -> list[bytes]:
        return [value for name, value in headers if name == wanted]

    tokens = {token.strip().lower() for value in of(b"connection") for token in value.split(b",")}
    return (
        of(b"sec-websocket-accept") == [accept_for(key)]
        and [value.lower() for value in of(b"upgrade")] == [b"websocket"]
        and b"upgrade" in tokens
    )
