"""An answer too long to be held: whose it is, and where in its memory file the result lies.

Choice: it is not parsed as a whole (the values of a gigabyte of JSON need several times that, and the parser would
hold up every other call). It is walked in windows: brackets must match, strings must end, depth and the number of values
are bounded as everywhere, all of it is UTF-8. Parsed are only the short members that decide: `jsonrpc`, `id`, and of the
result `resultType` and `isError`. What the members of a long result hold is the server's word, and the client that reads
it parses it.

Invariants (rule 9): the id must be ours, once, in its own member, so a line of something else in the box cannot pass;
whatever is not exactly an answer with a result is refused; no step takes long before others get their turn.
"""

from __future__ import annotations

import codecs
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio.lowlevel

from fumehood.faults import ExchangeFailed
from fumehood.gateway import strict_json
from fumehood.memory import Memory
from fumehood.reasons import Reason

WINDOW_BYTES = 2**18
SHORT_BYTES = 1024
MAX_MEMBERS = 64
_MAX_TOKENS = 4 * strict_json.MAX_VALUES
_TURN = 4096
_BETWEEN = re.compile(rb'[^"{}\[\],]*+')
_KEY = re.compile(rb'[ \t\r]{0,64}("(?:[^"\\]|\\.){0,256}")[ \t\r]{0,64}:[ \t\r]{0,64}', re.DOTALL)
_QUOTE, _COMMA, _OBJECT = ord('"'), ord(","), ord("{")
_CLOSES = {ord("}"): ord("{"), ord("]"): ord("[")}

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Long:
    """Where a result lies in its memory file, and whether the server calls it an error."""

    offset: int
    size: int
    is_error: bool


async def find(memory: Memory, number: str, member: str) -> Long:
    """The result of the answer `number`, which must have this member, a list. Raises `ExchangeFailed`."""
    with mmap.mmap(memory.fd, memory.size, mmap.MAP_PRIVATE, mmap.PROT_READ) as text:
        await _check_utf8(text)
        frame = await _members(text, (0, len(text)))
        wanted = {"jsonrpc": "2.0", "id": number}
        if frame.keys() != {*wanted, "result"} or any(_short(text, frame[name]) != value for name, value in wanted.items()):
            raise _unusable("it is no answer to what was asked")
        span = frame["result"]
        result = await _members(text, span)
        if member not in result or text[result[member][0]] != ord("["):
            raise _unusable(f"its result has no {member}")
        if "resultType" in result and _short(text, result["resultType"]) != "complete":
            raise _unusable("a question that long is not passed on")
        is_error = "isError" in result and _short(text, result["isError"]) is True
        return Long(span[0], span[1] - span[0], is_error)


async def _check_utf8(text: mmap.mmap) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(text), WINDOW_BYTES):
            decoder.decode(text[start : start + WINDOW_BYTES])
            await anyio.lowlevel.checkpoint()
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _unusable("it is not UTF-8") from error


async def _members(text: mmap.mmap, span: Span) -> Mapping[str, Span]:
    """Where the values of an object's members lie. The span must hold the object and nothing else."""
    found: dict[str, Span] = {}
    for start, end in await _parts(text, span):
        key = _KEY.match(text, start, end)
        name = None if key is None else _parsed(key[1])
        if key is None or not isinstance(name, str) or name in found or len(found) >= MAX_MEMBERS:
            raise _unusable("its members cannot be told apart")
        found[name] = (key.end(), end)
    return found


async def _parts(text: mmap.mmap, span: Span) -> list[Span]:  # noqa: C901, PLR0912 - one loop that must be read as a whole
    """What stands between the commas of an object, its brackets checked all the way down."""
    at, end = span
    if at >= end or text[at] != _OBJECT:
        raise _unusable("it is no object")
    parts: list[Span] = []
    brackets, begin, tokens = bytearray(), at + 1, 0
    while at < end:
        stop = min(end, at + WINDOW_BYTES)
        at = _end(_BETWEEN, text, at, stop)
        tokens += 1
        if tokens > _MAX_TOKENS:
            raise _unusable(f"it has more than {_MAX_TOKENS} values")
        if at == stop or not tokens % _TURN:
            await anyio.lowlevel.checkpoint()
        if at == stop:
            continue
        byte = text[at]
        if byte == _QUOTE:
            at = await _after_string(text, at + 1, end)
            continue
        if byte in _CLOSES:
            if brackets.pop() != _CLOSES[byte]:
                raise _unusable("its brackets do not match")
            if not brackets:
                break
        elif byte != _COMMA:
            brackets.append(byte)
            if len(brackets) > strict_json.MAX_DEPTH:
                raise _unusable(f"it is nested deeper than {strict_json.MAX_DEPTH}")
        elif len(brackets) == 1:
            parts.append((begin, at))
            begin = at + 1
        at += 1
    if brackets or text[at + 1 : min(end, at + 1 + SHORT_BYTES)].strip() or end - at > SHORT_BYTES:
        raise _unusable("it does not end where its object does")
    return [*parts, (begin, at)]


async def _after_string(text: mmap.mmap, at: int, end: int) -> int:
    # Escapes are blanked out and the quote is searched for: a tenth of what a pattern takes. Most strings are short.
    window = SHORT_BYTES
    while at < end:
        stop = min(end, at + min(window, WINDOW_BYTES))
        part = text[at:stop].replace(b"\\\\", b"  ")
        if (quote := part.replace(b'\\"', b"  ").find(b'"')) >= 0:
            return at + quote + 1
        cut = part.endswith(b"\\")  # an escape that goes on in the next window
        if stop == end:
            break
        at, window = stop - cut, window * 4
        await anyio.lowlevel.checkpoint()
    raise _unusable("one of its strings does not end")


def _end(pattern: re.Pattern[bytes], text: mmap.mmap, start: int, stop: int) -> int:
    match = pattern.match(text, start, stop)
    return start if match is None else match.end()


def _short(text: mmap.mmap, span: Span) -> Any:
    start, end = span
    return _parsed(text[start:end]) if end - start <= SHORT_BYTES else None


def _parsed(value: bytes) -> Any:
    try:
        return strict_json.parse(value)
    except strict_json.UnfitError:
        return None


def _unusable(why: str) -> ExchangeFailed:
    return ExchangeFailed(Reason.SERVER_GARBAGE, f"it wrote a message over `limits.result` that cannot be kept: {why}")
