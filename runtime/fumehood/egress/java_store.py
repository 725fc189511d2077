"""A Java trust store: Java reads no PEM and no variable, but one file of its own form, which distributions keep at one place.

The form is JKS, which every Java reads whatever it calls its default (`keystore.type.compat`), with the password that distributions
give theirs, or with none. A PKCS #12 store that a library makes is read in one of the two ways only, and takes 7 ms a task, because
every root is encoded anew; here the roots' entries are made once, and a store takes 0.3. Pure. Source: what OpenJDK's
`JavaKeyStore.engineStore` writes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import struct

PASSWORD = "changeit"  # noqa: S105 - of every distribution's trust store: it keeps nothing secret
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_MAGIC, _VERSION, _TRUSTED = 0xFEEDFEED, 2, 2


def java_store(roots: bytes, *more: bytes) -> bytes:
    """A store that trusts every certificate in these PEM texts. `roots` are the same for many stores."""
    known, count = _made_once(roots)
    parts = [known]
    for number, text in enumerate(more):
        entries, found = _made(text, f"more{number}-")
        parts.append(entries)
        count += found
    content = b"".join([struct.pack(">III", _MAGIC, _VERSION, count), *parts])
    # A check of the file's wholeness that anybody can make anew: Java's own form wants SHA-1.
    digest = hashlib.sha1(PASSWORD.encode("utf-16-be") + b"Mighty Aphrodite" + content, usedforsecurity=False)
    return content + digest.digest()


@functools.lru_cache(maxsize=2)
def _made_once(roots: bytes) -> tuple[bytes, int]:
    return _made(roots, "root")


def _made(text: bytes, alias: str) -> tuple[bytes, int]:
    """The entries of a text's certificates, and how many they are."""
    found = [base64.b64decode(match) for match in _CERTIFICATE.findall(text)]
    parts: list[bytes] = []
    for number, certificate in enumerate(found):
        parts.append(struct.pack(">I", _TRUSTED) + _text(f"{alias}{number}") + struct.pack(">Q", 0) + _text("X.509"))
        parts.append(struct.pack(">I", len(certificate)) + certificate)
    return b"".join(parts), len(found)


def _text(text: str) -> bytes:
    encoded = text.encode("ascii")
    return struct.pack(">H", len(encoded)) + encoded
