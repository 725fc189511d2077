"""Messages of PostgreSQL's protocol 3 before queries begin: pure, strict, bounded.

Every function takes bytes and gives values; what is not exactly the format is `Malformed`, and what is not there yet is None. Nothing
here knows of sockets, credentials or rules. Source: PostgreSQL's documentation, chapter "Frontend/Backend Protocol".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

CANCEL, SSL, GSS = 80877102, 80877103, 80877104
PROTOCOL_3_0 = 3 << 16
MOST_STARTUP_BYTES = 10_000  # PostgreSQL's own bound
MOST_MESSAGE_BYTES = 30_000  # libpq's bound before authentication
MOST_PARAMETERS = 64
_PARAMETER = re.compile(rb"[A-Za-z_][A-Za-z0-9_.]{0,62}")


class Malformed(Exception):
    """Not the protocol. The text says what is wrong, and holds nothing of what was sent."""


class Encryption(Enum):
    """A client asks whether the server would encrypt the connection."""

    TLS = SSL
    GSS = GSS


@dataclass(frozen=True, slots=True)
class Cancel:
    """A client asks that what a session runs be stopped. `key` is 4 to 256 bytes."""

    pid: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Startup:
    """A client begins a session. `parameters` has names as sent, in order, without duplicates, values without NUL."""

    minor: int
    parameters: Mapping[str, bytes]


Opening = Encryption | Cancel | Startup


def opening(data: bytes) -> tuple[Opening, int] | None:
    """The packet that `data` begins with, and its length; None when more bytes are needed. Raises Malformed."""
    if data[:1] == b"\x16":
        raise Malformed("TLS without asking for it first (sslnegotiation=direct)")
    if data[:2] not in {b"", b"\0", b"\0\0"} or (len(data) >= 4 and not 8 <= _int(data) <= MOST_STARTUP_BYTES):
        raise Malformed("the first packet is not PostgreSQL's")
    if len(data) < 8 or len(data) < _int(data):
        return None
    length, code = struct.unpack_from("!II", data)
    body = bytes(data[8:length])
    if code in {SSL, GSS}:
        if body:
            raise Malformed("a request for encryption has a body")
        return Encryption(code), length
    if code == CANCEL:
        if not 8 <= len(body) <= 260:
            raise Malformed("a cancel request of the wrong length")
        return Cancel(_int(body), body[4:]), length
    if code >> 16 != 3:
        raise Malformed(f"protocol version {code >> 16}.{code & 0xFFFF}")
    return Startup(code & 0xFFFF, _parameters(body)), length


def _parameters(body: bytes) -> dict[str, bytes]:
    """`name NUL value NUL ... NUL`, and nothing after it."""
    if body[-1:] != b"\0":
        raise Malformed("the start-up message does not end")
    parts = body[:-1].split(b"\0")
    if parts.pop() != b"" or len(parts) % 2:
        raise Malformed("the start-up message has a name without a value")
    if len(parts) > 2 * MOST_PARAMETERS:
        raise Malformed("the start-up message has too many parameters")
    found: dict[str, bytes] = {}
    for name, value in zip(parts[::2], parts[1::2], strict=True):
        if not _PARAMETER.fullmatch(name):
            raise Malformed("a parameter's name is no name")
        text = name.decode("ascii")
        # Two servers could disagree on which of two counts, and so could we and one of them.
        if text in found:
            raise Malformed(f"the parameter {text} is there twice")
        found[text] = value
    return found


@dataclass(frozen=True, slots=True)
class Message:
    """One typed message of a server's. `kind` is its letter."""

    kind: bytes
    body: bytes

    def encoded(self) -> bytes:
        """The message on the wire."""
        return self.kind + struct.pack("!I", len(self.body) + 4) + self.body


def message(data: bytes) -> tuple[Message, int] | None:
    """The server's message that `data` begins with, and its length; None when more bytes are needed. Raises Malformed."""
    if len(data) < 5:
        return None
    length = _int(data, 1)
    if not 4 <= length <= MOST_MESSAGE_BYTES:
        raise Malformed("a message's length is out of bounds")
    if len(data) < 1 + length:
        return None
    return Message(bytes(data[:1]), bytes(data[5 : 1 + length])), 1 + length


def startup(parameters: Mapping[str, bytes]) -> bytes:
    """A start-up message of protocol 3.0. Values must hold no NUL."""
    body = b"".join(name.encode("ascii") + b"\0" + value + b"\0" for name, value in parameters.items()) + b"\0"
    return struct.pack("!II", len(body) + 8, PROTOCOL_3_0) + body


def request(code: int) -> bytes:
    """A request for encryption."""
    return struct.pack("!II", 8, code)


def cancel(pid: int, key: bytes) -> bytes:
    """A cancel request."""
    return struct.pack("!III", 12 + len(key), CANCEL, pid) + key


def sasl_initial(mechanism: str, data: bytes) -> bytes:
    """A client's choice of mechanism, and its first message."""
    return Message(b"p", mechanism.encode("ascii") + b"\0" + struct.pack("!I", len(data)) + data).encoded()


def sasl_response(data: bytes) -> bytes:
    """A client's later message."""
    return Message(b"p", data).encoded()


def authentication_ok() -> bytes:
    """The server believes the client."""
    return Message(b"R", struct.pack("!I", 0)).encoded()


def key_data(pid: int, key: bytes) -> bytes:
    """What a client needs for a cancel request."""
    return Message(b"K", struct.pack("!I", pid) + key).encoded()


def negotiate(unknown: list[str]) -> bytes:
    """We speak 3.0 and none of these `_pq_.` options."""
    names = b"".join(name.encode("ascii") + b"\0" for name in unknown)
    return Message(b"v", struct.pack("!II", PROTOCOL_3_0, len(unknown)) + names).encoded()


def fatal(sqlstate: str, text: str, detail: str = "", hint: str = "") -> bytes:
    """An error that ends the connection, as clients show it to people."""
    fields = {"S": "FATAL", "V": "FATAL", "C": sqlstate, "M": text, "D": detail, "H": hint}
    said = (f"{letter}{value}".replace("\0", "?").encode() + b"\0" for letter, value in fields.items() if value)
    return Message(b"E", b"".join(said) + b"\0").encoded()


def authentication(body: bytes) -> tuple[int, bytes]:
    """Which proof a server wants (the protocol's number), and the rest. Raises Malformed."""
    if len(body) < 4:
        raise Malformed("an authentication request is too short")
    return _int(body), body[4:]


def mechanisms(rest: bytes) -> list[str]:
    """The names in a server's offer of SASL mechanisms. Raises Malformed."""
    if not rest.endswith(b"\0\0") or len(rest) > 1024:
        raise Malformed("a list of mechanisms that does not end")
    return [name.decode("ascii", "replace") for name in rest[:-2].split(b"\0")]


def backend_key(body: bytes) -> tuple[int, bytes]:
    """A session's number and key. Raises Malformed."""
    if len(body) != 8:
        raise Malformed("a session's key of the wrong length")
    return _int(body), body[4:]


def error_fields(body: bytes) -> dict[str, str]:
    """The fields of an error or a notice, by letter: short, printable, in one line. Never raises."""
    fields: dict[str, str] = {}
    for part in body[:8192].split(b"\0"):
        if part:
            text = part[1:].decode("utf-8", "replace")
            fields[chr(part[0])] = "".join(each if each.isprintable() else " " for each in text)[:300]
    return fields


def _int(data: bytes, at: int = 0) -> int:
    number: int = struct.unpack_from("!I", data, at)[0]
    return number
