"""Server-sent events out of bytes, as the WHATWG's HTML standard has them, within bounds. Sans-IO.

Invariants: of an event nothing is kept but its data, its id and `retry`; data is as long as its reader allows, and no longer
(`Text`); every other line is cut at `FIELD_BYTES`; an event without its blank line is none, so that what was cut off in
the middle is never taken for a whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fumehood.faults import ExchangeFailed
from fumehood.memory import Memory
from fumehood.reasons import Reason

FIELD_BYTES = 1024
ID_CHARS = 512
MAX_RETRY_MS = 60_000
_END = re.compile(rb"[\r\n]")
_DATA = b"data:"
_BOM = b"\xef\xbb\xbf"
# Visible characters: an id goes back to the server in a header.
_ID = re.compile(rb"[\x21-\x7e]{1,%d}" % ID_CHARS)


class Text:
    """Bytes of one message: held up to `longest`, and beyond that in memory of its own up to `most`, or refused.

    Line breaks are blanks here: in JSON they stand between values only, and one message is one line everywhere else.
    """

    def __init__(self, longest: int, most: int | None) -> None:
        self._longest = longest
        self._most = most
        self._held = bytearray()
        self._memory: Memory | None = None
        self.size = 0

    def add(self, part: bytes) -> None:
        """Append. Raises ExchangeFailed when it is too much."""
        part = part.replace(b"\n", b" ").replace(b"\r", b" ")
        self.size += len(part)
        if self._memory is None and self.size <= self._longest:
            self._held += part
            return
        if self._most is None or self.size > self._most:
            self.drop()
            most = self._longest if self._most is None else self._most
            raise ExchangeFailed(Reason.RESULT_TOO_LARGE, f"one message of the server's is over {most} bytes")
        if self._memory is None:
            self._memory = Memory(bytes(self._held))
            self._held.clear()
        self._memory.write(part)

    def taken(self) -> bytes | Memory:
        """What was added; the memory is the taker's."""
        memory, self._memory = self._memory, None
        return bytes(self._held) if memory is None else memory.seal()

    def drop(self) -> None:
        """Give it back."""
        if self._memory is not None:
            self._memory.close()


@dataclass(frozen=True, slots=True)
class Event:
    """One event's data."""

    data: bytes | Memory


class Events:
    """The events of one stream. `most` may be changed before each `feed`, and holds for events that begin after it."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self.most: int | None = None
        self.last_id: str | None = None
        self.retry_ms: int | None = None
        self._line = bytearray()
        self._in_data = False
        self._blank_due = False
        self._after_cr = False
        self._begun = False
        self._text: Text | None = None
        self._kind = b""
        self._ready: list[Event] = []

    def feed(self, piece: bytes) -> None:
        """Take bytes of the stream. Raises ExchangeFailed: an event is too long."""
        if not self._begun:
            # It may come in parts; three bytes are not waited for, but a mark is no data either way.
            self._begun = True
            piece = piece.removeprefix(_BOM)
        at = 0
        while at < len(piece):
            if self._after_cr:
                self._after_cr = False
                if piece[at] == 0x0A:
                    at += 1
                    continue
            end = _END.search(piece, at)
            stop = len(piece) if end is None else end.start()
            self._part(piece[at:stop])
            at = stop
            if end is not None:
                self._after_cr = piece[stop] == 0x0D
                self._line_end()
                at += 1

    def next(self) -> Event | None:
        """The next whole event with data, if there is one."""
        return self._ready.pop(0) if self._ready else None

    def drop(self) -> None:
        """Give back what is begun and what nobody took."""
        for data in (*(event.data for event in self._ready), None if self._text is None else self._text.taken()):
            if isinstance(data, Memory):
                data.close()
        self._ready.clear()
        self._text = None

    def _part(self, part: bytes) -> None:
        if not self._in_data:
            self._line += part[: FIELD_BYTES + len(_DATA)]
            if not self._line.startswith(_DATA):
                del self._line[FIELD_BYTES:]
                return
            part = bytes(self._line[len(_DATA) :]) + part[FIELD_BYTES + len(_DATA) :]
            self._line.clear()
            self._in_data = self._blank_due = True
            if self._text is None:
                self._text = Text(self._longest, self.most)
            else:
                self._text.add(b"\n")
        if self._blank_due and part:
            self._blank_due = False
            part = part.removeprefix(b" ")
        if part and self._text is not None:
            self._text.add(part)

    def _line_end(self) -> None:
        if self._in_data:
            self._in_data = False
            return
        line = bytes(self._line)
        self._line.clear()
        if not line:
            self._event_end()
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._kind = value
        elif name == b"id" and _ID.fullmatch(value):
            self.last_id = value.decode("ascii")
        elif name == b"retry" and value.isdigit():
            self.retry_ms = min(int(value), MAX_RETRY_MS)
        elif name == b"data" and line == b"data" and self._text is None:
            self._text = Text(self._longest, self.most)

    def _event_end(self) -> None:
        text, kind = self._text, self._kind
        self._text, self._kind = None, b""
        if text is None:
            return
        if kind in (b"", b"message") and text.size:
            self._ready.append(Event(text.taken()))
        else:
            text.drop()
