"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, the client's side (RFC 5802, RFC 7677), as PostgreSQL speaks it.

Pure: text in, text out. Invariants: the password never leaves the object that was made with it; what the server says is bounded and
checked in every field before it costs anything; `finish` proves that the server knows the password's verifier too, and nothing may
be believed of the server before.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import stringprep
import unicodedata
from dataclasses import dataclass, field

PLAIN, PLUS = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"
# RFC 7677 forbids less; more than the upper bound is a server that wants us to spend our time (4096 take 2 ms).
LEAST_ITERATIONS, MOST_ITERATIONS = 4096, 1_000_000
MOST_BYTES = 2048
_NONCE = re.compile(r"[\x21-\x2b\x2d-\x7e]+")
_PROHIBITED = (
    stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4,
    stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8, stringprep.in_table_c9,
)  # fmt: skip


class ScramError(Exception):
    """The server broke the protocol, or does not know the password's verifier. The text holds nothing secret."""


def prepared(password: str) -> bytes:
    """SASLprep (RFC 4013) as PostgreSQL applies it: what it would prohibit is used as it is, and ASCII always is."""
    raw = password.encode("utf-8", "surrogateescape")
    if password.isascii():
        return raw
    mapped = "".join(
        " " if stringprep.in_table_c12(each) else each for each in password if not stringprep.in_table_b1(each)
    )
    normal = unicodedata.normalize("NFKC", mapped)
    if not normal or any(check(each) for check in _PROHIBITED for each in normal):
        return raw
    if any(stringprep.in_table_a1(each) for each in normal) or not _bidi_holds(normal):
        return raw
    return normal.encode("utf-8", "surrogateescape")


def _bidi_holds(text: str) -> bool:
    """RFC 3454, section 6: text from right to left begins and ends with such a letter, and has none of the others."""
    if not any(stringprep.in_table_d1(each) for each in text):
        return True
    ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
    return ends and not any(stringprep.in_table_d2(each) for each in text)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the server wants of us, checked. `nonce` begins with ours."""

    nonce: str
    salt: bytes
    iterations: int
    text: str


@dataclass(slots=True)
class Client:
    """One authentication. `binding` is the data of `tls-server-end-point`, None without it; `encrypted` says whether there is TLS.

    `nonce` is fresh and random, printable and without a comma. Call `first`, `challenged`, `final`, `finish`, in that order.
    """

    password: str = field(repr=False)
    nonce: str
    binding: bytes | None = None
    encrypted: bool = False
    user: str = ""  # PostgreSQL takes the user's name from the start-up message, and ignores this one
    _expected: bytes = field(default=b"", repr=False)

    def mechanism(self, offered: list[str]) -> str:
        """The strongest that both have. Raises ScramError when the server offers neither."""
        if self.binding is not None and PLUS in offered:
            return PLUS
        # From here on the server must learn that we could have bound the channel and saw no offer: then a third party that removed
        # the offer is found out (RFC 5802, section 6).
        if PLAIN not in offered:
            raise ScramError("the server offers no SCRAM-SHA-256")
        self.encrypted, self.binding = self.encrypted and self.binding is not None, None
        return PLAIN

    @property
    def _gs2(self) -> str:
        if self.binding is not None:
            return "p=tls-server-end-point,,"
        return "y,," if self.encrypted else "n,,"

    @property
    def _bare(self) -> str:
        return f"n={self.user},r={self.nonce}"

    def first(self) -> bytes:
        """The first message to the server."""
        return (self._gs2 + self._bare).encode("ascii")

    def challenged(self, message: bytes) -> Challenge:
        """The server's first message, read. Raises ScramError."""
        text = _text(message)
        fields = text.split(",")
        if len(fields) < 3 or [each[:2] for each in fields[:3]] != ["r=", "s=", "i="]:
            raise ScramError("the server's challenge is malformed")
        nonce, salt, count = (each[2:] for each in fields[:3])
        if not nonce.startswith(self.nonce) or nonce == self.nonce or not _NONCE.fullmatch(nonce):
            raise ScramError("the server's nonce does not continue ours")
        if not re.fullmatch(r"[1-9][0-9]{0,9}", count):
            raise ScramError("the server's iteration count is malformed")
        if not LEAST_ITERATIONS <= int(count) <= MOST_ITERATIONS:
            raise ScramError(f"the server's iteration count is not within {LEAST_ITERATIONS} and {MOST_ITERATIONS}")
        return Challenge(nonce, _unbase64(salt), int(count), text)

    def final(self, challenge: Challenge) -> bytes:
        """The proof. Takes the time of `challenge.iterations` HMACs, without the interpreter's lock."""
        salted = hashlib.pbkdf2_hmac("sha256", prepared(self.password), challenge.salt, challenge.iterations)
        client_key = _hmac(salted, b"Client Key")
        bound = base64.b64encode(self._gs2.encode("ascii") + (self.binding or b"")).decode("ascii")
        without_proof = f"c={bound},r={challenge.nonce}"
        signed = f"{self._bare},{challenge.text},{without_proof}".encode("ascii")
        signature = _hmac(hashlib.sha256(client_key).digest(), signed)
        proof = bytes(left ^ right for left, right in zip(client_key, signature, strict=True))
        self._expected = _hmac(_hmac(salted, b"Server Key"), signed)
        return f"{without_proof},p={base64.b64encode(proof).decode('ascii')}".encode("ascii")

    def finish(self, message: bytes) -> None:
        """The server's last message. Raises ScramError unless it proves that the server knows the verifier."""
        text = _text(message)
        if text.startswith("e="):
            raise ScramError("the server refused the proof")
        if not text.startswith("v="):
            raise ScramError("the server's last message is malformed")
        if not self._expected or not hmac.compare_digest(_unbase64(text[2:].split(",")[0]), self._expected):
            raise ScramError("the server does not know the password's verifier")


def _text(message: bytes) -> str:
    if len(message) > MOST_BYTES:
        raise ScramError("the server's message is too long")
    try:
        return message.decode("ascii")
    except UnicodeDecodeError as error:
        raise ScramError("the server's message is not text") from error


def _unbase64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ScramError("the server's message is not base64") from error
    if not data:
        raise ScramError("the server's message has an empty field")
    return data


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")
