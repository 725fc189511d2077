"""The secrets that this process knows itself, found exactly: the operator's, and those of every lease that lives.

One registry a runtime, which leases enter and leave. A secret that left stays findable for `AFTER_S`, since a revoked credential may
work a little longer somewhere, and what a tool did with it may come out late; one that could not be revoked stays until it
expires. Invariants: it is bounded (`MOST`, the longest gone are forgotten first, and what lives never); nothing here is ever
printed; a secret shorter than eight bytes is not looked for.

Secrets are kept in blocks with a pattern each, so that a new one costs a small pattern and not that of all (52 ms for 256 secrets). A
pattern may still have what was forgotten; that it is live is looked up.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fumehood.reach import Secret, SecretForm
from fumehood.screening.spellings import forms

ISSUED = "issued-credential"
AFTER_S = 60.0
MOST = 128
BLOCK = 8
_PARTS = {
    SecretForm.TOKEN: ("token",),
    SecretForm.PASSWORD: ("password",),
    SecretForm.AWS: ("key", "session"),
    SecretForm.SSH: ("key",),
}


@dataclass(slots=True, eq=False)
class _Block:
    """Some secrets that are looked for together."""

    entered: int = 0
    names: set[str] = field(default_factory=set)
    spellings: set[bytes] = field(default_factory=set, repr=False)
    pattern: Any = field(default=None, repr=False)


@dataclass(slots=True)
class _Entry:
    spellings: frozenset[bytes] = field(repr=False)
    block: _Block
    until_s: float | None = None


class KnownSecrets:
    """What is known now. Made once a runtime."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        """Know nothing yet."""
        self._now_s = now_s
        self._entries: dict[str, _Entry] = {}
        self._blocks: list[_Block] = []
        self._live: Counter[bytes] = Counter()

    def __repr__(self) -> str:
        """How many; never what."""
        return f"<{len(self._entries)} known secrets>"

    def enter(self, name: str, secret: Secret, user: str | None = None) -> None:
        """Know a lease's secret from here on; `user` is who it is sent with, if it is a password."""
        self.enter_texts(name, (secret.parts.get(part, "") for part in _PARTS[secret.form]), user or secret.parts.get("user"))

    def enter_texts(self, name: str, texts: Iterable[str], user: str | None = None) -> None:
        """Know these texts."""
        self._forget([name] if name in self._entries else [])
        spellings = frozenset(spelling for text in texts for spelling in forms(text, user))
        if not spellings:
            return
        if not self._blocks or self._blocks[-1].entered >= BLOCK:
            self._blocks.append(_Block())
        block = self._blocks[-1]
        block.entered += 1
        block.names.add(name)
        block.spellings |= spellings
        block.pattern = None
        self._entries[name] = _Entry(spellings, block)
        self._live.update(spellings)

    def leave(self, name: str, lives_s: float = 0.0) -> None:
        """A lease's secret is revoked, or lives for so long yet."""
        if name in self._entries:
            self._entries[name].until_s = self._now_s() + max(AFTER_S, lives_s)
        gone = [each for each, entry in self._entries.items() if entry.until_s is not None]
        self._forget(gone[: max(0, len(self._entries) - MOST)])

    def spans(self, data: bytes) -> Iterator[tuple[int, int, str]]:
        """Where they are in some bytes."""
        now_s = self._now_s()
        self._forget([each for each, entry in self._entries.items() if entry.until_s is not None and entry.until_s <= now_s])
        for block in self._blocks:
            if block.pattern is None:
                block.pattern = _alternatives(block.spellings)
            for match in block.pattern.finditer(data):
                if match.group() in self._live:
                    yield match.start(), match.end(), ISSUED

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            entry = self._entries.pop(name)
            self._live -= Counter(entry.spellings)
            entry.block.names.discard(name)
            if not entry.block.names:
                self._blocks.remove(entry.block)


def _alternatives(spellings: Iterable[bytes]) -> Any:
    import re2  # type: ignore[import-untyped]  # the worker has it by `formats`; the broker, which knows this type, has none of it

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.never_capture = True
    options.log_errors = False
    options.max_mem = 64 * 2**20
    # The longest first: a Basic value contains spellings that are shorter.
    ordered = sorted(spellings, key=lambda each: (-len(each), each))
    return re2.compile(b"|".join(_literal(each) for each in ordered), options)


def _literal(text: bytes) -> bytes:
    return b"".join(b"\\x%02x" % byte if not chr(byte).isalnum() or byte > 127 else bytes((byte,)) for byte in text)
