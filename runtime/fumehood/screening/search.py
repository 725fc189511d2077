r"""Where secrets are in some bytes, and those bytes without them.

A text may be JSON, or hold it: what is written instead of a secret has no character that JSON escapes, and a secret that begins or
ends within an escape takes all of that with it. So a text that was JSON before is JSON afterwards. Attack: `\u00412345678:...`, where
a bot's token begins within the escape.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable
from typing import NamedTuple

from fumehood.screening import formats
from fumehood.screening.known import ISSUED, KnownSecrets

_CUT = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPE_BYTES = 6
_BACKSLASH = ord("\\")


class Span(NamedTuple):
    """A secret's place in some bytes."""

    start: int
    end: int
    rule: str


def spans(data: bytes, known: KnownSecrets) -> list[Span]:
    """The secrets in some bytes, in order; those that overlap are one."""
    found: list[Span] = []
    for start, end, rule in sorted((*known.spans(data), *formats.spans(data))):
        if found and start < found[-1].end:
            last = found[-1]
            name = ISSUED if ISSUED in {rule, last.rule} else last.rule
            found[-1] = Span(last.start, max(end, last.end), name)
        else:
            found.append(Span(start, end, rule))
    return found


def marker(rule: str) -> bytes:
    """What stands for a secret."""
    return f"[secret removed: {rule}]".encode()


def removed(data: bytes, found: Iterable[Span]) -> bytes:
    """The bytes with a marker for each secret."""
    parts, at = [], 0
    for span in found:
        start, end = whole(data, span)
        if end <= at:
            continue
        parts += [data[at : max(at, start)], marker(span.rule)]
        at = end
    return b"".join((*parts, data[at:]))


def blanked(data: bytes, found: Iterable[Span]) -> bytes:
    """The bytes with an `x` for each byte of a secret: as long as before, for what said its length ahead."""
    made = bytearray(data)
    for span in found:
        start, end = whole(data, span)
        made[start:end] = b"x" * (end - start)
    return bytes(made)


def whole(data: bytes | mmap.mmap, span: Span) -> tuple[int, int]:
    """A span with all of the escapes that it cuts."""
    start, end = _escape_at(data, span.start), _escape_at(data, span.end)
    if end < span.end and (escape := _ESCAPE.match(data, end)) is not None:
        return start, max(span.end, escape.end())
    return start, span.end


def _escape_at(data: bytes | mmap.mmap, at: int) -> int:
    """Where the escape begins that is cut at this place; the place itself when none is."""
    low = max(0, at - _ESCAPE_BYTES)
    if b"\\" not in data[low:at] or (cut := _CUT.search(data[low:at])) is None:
        return at
    begin = low + cut.start()
    first = begin
    while first and data[first - 1] == _BACKSLASH:
        first -= 1
    return at if (begin - first) % 2 else begin  # then it is itself escaped
