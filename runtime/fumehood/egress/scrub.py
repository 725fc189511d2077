"""A secret that comes back in a response is replaced, byte for byte, and an alarm is raised. Pure.

An upstream that echoes what it was sent (a debug page, a redirect that keeps the query, an error that quotes the header) would hand
the box what the gate kept from it. This is an alarm and no barrier: a server that wants to can spell a secret in more ways than
these. Invariants: what goes out is as long as what came in, so lengths and frames stay true; no spelling goes out, however the stream
was cut; bytes are held back only while eight or more of them may begin a secret, so no stream of events or frames is delayed.
"""

from __future__ import annotations

from fumehood.screening.spellings import MIN_BYTES, Spellings


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
