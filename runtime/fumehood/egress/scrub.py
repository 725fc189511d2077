"""A secret that comes back in a response is replaced, byte for byte, and an alarm is raised. Pure.

An upstream that echoes what it was sent (a debug page, a redirect that keeps the query, an error that quotes the header) would hand
the box what the gate kept from it. This is an alarm and no barrier: a server that wants to can spell a secret in more ways than
these. Invariants: what goes out is as long as what came in, so lengths and frames stay true; no spelling goes out, however the stream
was cut; bytes are held back only while they may be the beginning of a secret, so a stream of events is not delayed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from urllib.parse import quote, quote_plus

# Shorter ones are found in any text.
MIN_BYTES = 8


def forms(secret: str, user: str | None = None) -> dict[bytes, str]:
    """The spellings of a secret that are looked for, each with its name: plain, base64, percent, hexadecimal, JSON."""
    plain = secret.encode()
    if len(plain) < MIN_BYTES:
        return {}
    found: dict[bytes, str] = {}

    def add(name: str, spelling: bytes) -> None:
        if len(spelling) >= MIN_BYTES:
            found.setdefault(spelling, name)

    add("plain", plain)
    if user is not None:
        add("basic", base64.b64encode(f"{user}:{secret}".encode()).rstrip(b"="))
    for offset in range(3):
        # Whatever is in front and behind, these characters of base64 depend on the secret alone.
        encoded = base64.b64encode(bytes(offset) + plain).rstrip(b"=")
        whole = encoded[(0, 2, 3)[offset] : (offset + len(plain)) * 8 // 6]
        add("base64", whole)
        add("base64", whole.replace(b"+", b"-").replace(b"/", b"_"))
    for text in (quote(secret, safe=""), quote(secret), quote_plus(secret)):
        add("percent", text.encode())
        add("percent", _lower_escapes(text))
    every = "".join(f"%{byte:02X}" for byte in plain)
    add("percent", every.encode())
    add("percent", every.lower().encode())
    add("hexadecimal", binascii.hexlify(plain))
    add("hexadecimal", binascii.hexlify(plain).upper())
    escaped = secret.replace("\\", "\\\\").replace('"', '\\"')
    add("json", escaped.encode())
    add("json", escaped.replace("/", "\\/").encode())
    return found


def _lower_escapes(text: str) -> bytes:
    first, *rest = text.split("%")
    return (first + "".join("%" + part[:2].lower() + part[2:] for part in rest)).encode()


class Scrubber:
    """Scrubs one response: its head's values with `text`, then its body in pieces with `feed`."""

    def __init__(self, spellings: Iterable[tuple[bytes, str]], placeholder: bytes) -> None:
        """Look for these spellings. `placeholder` is letters and digits: what is written instead, repeated or cut to length."""
        # The longest first: a Basic value contains spellings that are shorter.
        self._pairs = [
            (spelling, name, bytes(islice(cycle(placeholder), len(spelling))))
            for spelling, name in sorted(spellings, key=lambda pair: -len(pair[0]))
        ]
        self._longest = max((len(spelling) for spelling, _, _ in self._pairs), default=1)
        self._beginnings = frozenset(
            spelling[:length] for spelling, _, _ in self._pairs for length in range(1, len(spelling))
        )
        self._held = b""
        self.found: dict[str, int] = {}

    def text(self, value: bytes) -> bytes:
        """Scrub something that is whole."""
        for spelling, name, instead in self._pairs:
            if spelling in value:
                self.found[name] = self.found.get(name, 0) + value.count(spelling)
                value = value.replace(spelling, instead)
        return value

    def feed(self, data: bytes) -> bytes:
        """What may go on of the stream so far, scrubbed."""
        value = self.text(self._held + data)
        held = self._beginning_at_end(value)
        self._held = value[len(value) - held :]
        return value[: len(value) - held]

    def end(self) -> bytes:
        """What was still held back."""
        value, self._held = self._held, b""
        return value

    def _beginning_at_end(self, value: bytes) -> int:
        most = min(self._longest - 1, len(value))
        return next((length for length in range(most, 0, -1) if value[-length:] in self._beginnings), 0)


def spellings_of(secrets: Sequence[tuple[str, str | None]]) -> list[tuple[bytes, str]]:
    """The spellings of several secrets; each comes with the user name it is sent with, if any."""
    return [pair for secret, user in secrets for pair in forms(secret, user).items()]
