"""The ways in which a secret can be written, and where one may begin at the end of what has come of a stream. Pure.

Whoever wants to can spell a secret in more ways than these; a secret shorter than `MIN_BYTES` is not looked for at all, because it is
found in any text.
"""

from __future__ import annotations

import base64
import binascii
import json
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
    # Line breaks, as of a private key, and what is not ASCII.
    add("json", json.dumps(secret)[1:-1].encode())
    add("json", json.dumps(secret, ensure_ascii=False)[1:-1].encode("utf-8", "surrogatepass"))
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


def spellings_of(secrets: Sequence[tuple[str, str | None]]) -> list[tuple[bytes, str]]:
    """The spellings of several secrets; each comes with the user name it is sent with, if any."""
    return [pair for secret, user in secrets for pair in forms(secret, user).items()]
