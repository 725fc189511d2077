"""A secret that comes back in a response is replaced, byte for byte, and an alarm is raised. Pure.

An upstream that echoes what it was sent (a debug page, a redirect that keeps the query, an error that quotes the header) would hand
the box what the gate kept from it. This is an alarm and no barrier: a server that wants to can spell a secret in more ways than
these. Invariants: what goes out is as long as what came in, so lengths and frames stay true; no spelling goes out, however the stream
was cut; bytes are held back only while eight or more of them may begin a secret, so no stream of events or frames is delayed.
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


class Spellings:
    """What to look for in the answers to one secret, made once a secret: it takes longer than a short answer's scrubbing."""

    def __init__(self, spellings: Iterable[tuple[bytes, str]], placeholder: bytes) -> None:
        """Look for these. `placeholder` is letters and digits: what is written instead, repeated or cut to length."""
        # The longest first: a Basic value contains spellings that are shorter.
        self.pairs = [
            (spelling, name, bytes(islice(cycle(placeholder), len(spelling))))
            for spelling, name in sorted(spellings, key=lambda pair: -len(pair[0]))
        ]
        self.longest = max((len(spelling) for spelling, _, _ in self.pairs), default=1)
        self.beginnings = frozenset(
            spelling[:length] for spelling, _, _ in self.pairs for length in range(1, len(spelling))
        )
        self._lasts = frozenset(beginning[-1] for beginning in self.beginnings)

    def beginning_at_end(self, value: bytes) -> int:
        """How many bytes at the end may begin a spelling."""
        if not value or value[-1] not in self._lasts:
            return 0
        most = min(self.longest - 1, len(value))
        return next((length for length in range(most, 0, -1) if value[-length:] in self.beginnings), 0)


class Scrubber:
    """Scrubs one response: its head's values with `text`, then its body in pieces with `feed`."""

    def __init__(self, spellings: Spellings) -> None:
        self._spellings = spellings
        self._tail = b""
        self._gone = 0  # how much of the tail has gone on already
        self.found: dict[str, int] = {}

    def text(self, value: bytes) -> bytes:
        """Scrub something that is whole."""
        for spelling, name, instead in self._spellings.pairs:
            if spelling in value:
                self.found[name] = self.found.get(name, 0) + value.count(spelling)
                value = value.replace(spelling, instead)
        return value

    def feed(self, data: bytes) -> bytes:
        """What may go on of the stream so far, scrubbed."""
        value = self.text(self._tail + data)
        suspect = self._spellings.beginning_at_end(value)
        # A few bytes that begin a spelling by chance go on at once, or a frame would wait for the next one; they are still looked
        # at with what follows, so that of a secret cut there no more than these few are seen.
        end = len(value) if suspect < MIN_BYTES else max(self._gone, len(value) - suspect)
        out = value[self._gone : end]
        self._tail = value[len(value) - suspect :]
        self._gone = end - (len(value) - suspect)
        return out

    def end(self) -> bytes:
        """What was still held back."""
        value, self._tail = self._tail[self._gone :], b""
        self._gone = 0
        return value


def spellings_of(secrets: Sequence[tuple[str, str | None]]) -> list[tuple[bytes, str]]:
    """The spellings of several secrets; each comes with the user name it is sent with, if any."""
    return [pair for secret, user in secrets for pair in forms(secret, user).items()]
