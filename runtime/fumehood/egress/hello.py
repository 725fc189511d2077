"""The ClientHello of a TLS connection: enough of it to know which server is meant, and strict about the rest.

Pure. Anything that two readers could take differently is refused, because the server behind us reads it too: a second name, an
extension twice, lengths that do not add up, a message that goes on after its end. Encrypted ClientHello hides the name that counts,
and cannot be told from the decoy (GREASE) that some clients send, so both are refused. A server may ask for another hello
(HelloRetryRequest), and takes its name from that one: it is judged as the first was (`Second`). What a client sends later is
encrypted, a hello of TLS 1.2 that renegotiates too. Sources: RFC 8446 4.1.2 to 4.1.4 and 5.1, RFC 6066 3, RFC 7301, RFC 9849.
"""

from __future__ import annotations

from dataclasses import dataclass

from fumehood.egress.names import is_name
from fumehood.egress.refusals import Rejected, Why

_NAMELESS = "Address the server by its name; for protocols that begin otherwise use a `tcp:` rule."
NOT_TLS = Why("not_tls", "the connection does not begin with a TLS ClientHello", _NAMELESS)
HELLO_MALFORMED = Why("hello_malformed", "the ClientHello is not well-formed", "Use a TLS library that follows RFC 8446.")
SNI_ABSENT = Why("sni_absent", "the ClientHello names no server", _NAMELESS)
SNI_MISMATCH = Why(
    "sni_mismatch", "the ClientHello names another server than was looked up", "Add the name it asks for to the profile."
)
ECH_OFFERED = Why("ech", "the ClientHello hides the server's name, or pretends to", "Turn Encrypted ClientHello off in the client.")

MOST_BYTES = 18 * 2**10  # read at most; a post-quantum hello has about 2 KiB
_MOST_MESSAGE = 16 * 2**10
_MOST_RECORDS = 16  # a hello in a thousand records, read again for every byte that drips in, is a way to burn our time
_HANDSHAKE, _CLIENT_HELLO, _SERVER_HELLO = 22, 1, 2
# The "random" of a ServerHello that is none: SHA-256 of "HelloRetryRequest" (RFC 8446, 4.1.3), in the first record.
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
_RANDOM_BEGINS, _RANDOM_ENDS = 11, 43
_SERVER_NAME, _ALPN = 0, 16
_ENCRYPTED = frozenset({0xFE0D, 0xFE0C, 0xFE0B, 0xFE0A, 0xFE09, 0xFE08, 0xFFCE})  # ECH, its drafts, and ESNI before them


@dataclass(frozen=True, slots=True)
class Hello:
    """What a ClientHello says. `name` is lower-case; None when it has none."""

    name: str | None
    is_encrypted: bool
    protocols: tuple[str, ...]


def parse(data: bytes) -> Hello | Why | None:
    """The hello that a connection begins with, why it is none, or None: more bytes are needed."""
    found = _message(data)
    if not isinstance(found, tuple):
        return found
    try:
        return _hello(_Reader(found[0]))
    except _Malformed:
        return HELLO_MALFORMED


def end_of(data: bytes) -> int:
    """Where the hello ends that `parse` found in this."""
    found = _message(data)
    return found[1] if isinstance(found, tuple) else len(data)


def judge(hello: Hello, name: str) -> Why | None:
    """Why a connection that was made for `name` may not go on with this hello, if so."""
    if hello.is_encrypted:
        return ECH_OFFERED
    if hello.name is None:
        return SNI_ABSENT
    return None if hello.name == name else SNI_MISMATCH


class Second:
    """The bytes behind a first hello, until no second one can count any more.

    Attack: a client that was let through to a content network for one name makes it ask for another hello, and names another customer
    there. Only the server says whether a handshake record is a second hello (TLS 1.2 resumes with one whose first byte is
    encrypted), so one that comes before the server has spoken is held until it has.
    """

    def __init__(self, name: str) -> None:
        """Let nobody but `name` be asked for."""
        self.is_over = False
        self._name = name
        self._answer = b""
        self._is_retry = False
        self._held = b""
        self._passing = 0  # what is left of a record that is passed on

    def from_client(self, data: bytes) -> bytes:
        """What of this, and of what was held, may go on. Raises Rejected."""
        self._held += data
        passed = bytearray()
        while not self.is_over:
            if self._passing:
                part, self._held = self._held[: self._passing], self._held[self._passing :]
                self._passing -= len(part)
                passed += part
            if self._passing or len(self._held) < 5:
                break
            if self._held[0] != _HANDSHAKE:  # early data, a compatible change of ciphers, an alert
                self._passing = 5 + int.from_bytes(self._held[3:5])
            elif not self._is_retry or not self._is_judged():
                break
        if self.is_over:
            passed += self._held
            self._held = b""
        elif len(self._held) > MOST_BYTES:
            raise Rejected(HELLO_MALFORMED, bytes=len(self._held))
        return bytes(passed)

    def from_server(self, data: bytes) -> None:
        """Learn from the server's first bytes whether it asks for another hello."""
        if self._is_retry or self.is_over:
            return
        self._answer += data[:_RANDOM_ENDS]
        if self._answer[:1] in {b"", bytes([_HANDSHAKE])} and len(self._answer) < _RANDOM_ENDS:
            return
        random = self._answer[_RANDOM_BEGINS:_RANDOM_ENDS]
        self._is_retry = self._answer[0] == _HANDSHAKE and self._answer[5] == _SERVER_HELLO and random == _RETRY
        self.is_over = not self._is_retry

    def _is_judged(self) -> bool:
        """Whether a second hello is there, and good: then nothing more is looked at. Raises Rejected."""
        found = parse(self._held)
        if found is None:
            return False
        if isinstance(found, Why):
            raise Rejected(HELLO_MALFORMED)
        if wrong := judge(found, self._name):
            raise Rejected(wrong, asked=found.name)
        self.is_over = True
        return True


def _message(data: bytes) -> tuple[bytes, int] | Why | None:
    """The body of the first handshake message, put together from its records, and where the last of them ends."""
    message, place = b"", 0
    for _ in range(_MOST_RECORDS):
        record = data[place : place + 5]
        if record[:1] not in {b"", b"\x16"} or record[1:2] not in {b"", b"\x03"}:
            return NOT_TLS if place == 0 else HELLO_MALFORMED
        if len(record) < 5:
            return None
        size = int.from_bytes(record[3:5])
        if not 0 < size <= 2**14:
            return HELLO_MALFORMED
        message += data[place + 5 : place + 5 + size]
        if message[:1] not in {b"", b"\x01"}:
            return NOT_TLS
        wanted = 4 + int.from_bytes(message[1:4]) if len(message) >= 4 else 4
        # What follows the hello in its own record belongs to no message that may be there.
        if wanted > _MOST_MESSAGE or len(message) > max(wanted, 4):
            return HELLO_MALFORMED
        if len(data) < place + 5 + size:
            return None
        if len(message) == wanted and wanted > 4:
            return message[4:], place + 5 + size
        if len(message) == 4 == wanted:
            return HELLO_MALFORMED
        place += 5 + size
    return HELLO_MALFORMED


class _Malformed(Exception):
    """Lengths do not add up."""


class _Reader:
    """A span of bytes, read from its beginning."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def is_empty(self) -> bool:
        return self._place == len(self._data)

    def take(self, size: int) -> bytes:
        if self._place + size > len(self._data):
            raise _Malformed
        self._place += size
        return self._data[self._place - size : self._place]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> _Reader:
        """A span that begins with its own length, in `size` bytes."""
        return _Reader(self.take(self.number(size)))

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._place)


def _hello(body: _Reader) -> Hello:
    if body.number(1) != 3:
        raise _Malformed
    body.take(1 + 32)
    if len(body.vector(1).rest()) > 32:
        raise _Malformed
    suites = len(body.vector(2).rest())
    if suites < 2 or suites % 2 or body.vector(1).is_empty:
        raise _Malformed
    if body.is_empty:
        return Hello(None, is_encrypted=False, protocols=())
    extensions = body.vector(2)
    if not body.is_empty:
        raise _Malformed
    name, protocols, seen = None, (), set[int]()
    while not extensions.is_empty:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind in seen:
            raise _Malformed
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _server_name(content)
        elif kind == _ALPN:
            protocols = _protocols(content)
    return Hello(name, is_encrypted=bool(seen & _ENCRYPTED), protocols=protocols)


def _server_name(content: _Reader) -> str:
    names = content.vector(2)
    if names.number(1) != 0:
        raise _Malformed
    name = names.vector(2).rest().decode("latin-1").lower()
    # Exactly one, in bytes that a name may have: `good.example\0.evil.example` is one name to some readers and another to others.
    if not content.is_empty or not names.is_empty or not name.isascii() or not is_name(name):
        raise _Malformed
    return name


def _protocols(content: _Reader) -> tuple[str, ...]:
    listed = content.vector(2)
    found = []
    while not listed.is_empty:
        found.append(listed.vector(1).rest().decode("latin-1"))
        if not found[-1]:
            raise _Malformed
    if not found or not content.is_empty:
        raise _Malformed
    return tuple(found)
