"""What a call's output is held against while it is still coming: a long line in its memory file, a command's streams on a terminal."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import anyio.lowlevel

from fumehood.memory import Memory
from fumehood.model import Finding
from fumehood.screening.flowing import Flow
from fumehood.screening.judging import Screen
from fumehood.screening.search import Span, marker, spans, whole

WINDOW_BYTES = 2**20
# A secret is seen whole in one of two windows unless it is longer than this.
OVERLAP_BYTES = 2**16
KEPT = "the kept result"


async def cleaned(memory: Memory, screen: Screen) -> Memory:
    """A long line of JSON without secrets: itself if it has none. No step takes long before others get their turn."""
    found: dict[int, Span] = {}
    with mmap.mmap(memory.fd, memory.size, mmap.MAP_PRIVATE, mmap.PROT_READ) as text:
        for low in range(0, len(text), WINDOW_BYTES - OVERLAP_BYTES):
            part = text[low : low + WINDOW_BYTES]
            for span in spans(part, screen.known):
                if screen.out(span.rule, KEPT):
                    # A private key may have no end, and its text has one.
                    quote = part.find(b'"', span.start, span.end) if span.rule == "private-key" else -1
                    start, end = low + span.start, low + (quote if quote >= 0 else span.end)
                    before = found.get(start)  # two windows may have seen it, the first only to its own end
                    found[start] = Span(start, max(end, 0 if before is None else before.end), span.rule)
            await anyio.lowlevel.checkpoint()
        if not found:
            return memory
        screen.count(Finding(rule=span.rule, place=KEPT) for span in found.values())
        made, at = Memory(), 0
        for span in sorted(found.values()):
            start, end = whole(text, span)
            if end > at:
                await _copied(text, at, start, made)
                made.write(marker(span.rule))
                at = end
        await _copied(text, at, len(text), made)
    memory.close()
    return made.seal()


async def _copied(text: mmap.mmap, start: int, end: int, made: Memory) -> None:
    for low in range(start, end, WINDOW_BYTES):
        made.write(text[low : min(end, low + WINDOW_BYTES)])
        await anyio.lowlevel.checkpoint()


class Told:
    """Who is told of a command's output as it comes, without secrets."""

    def __init__(self, on_output: Callable[[str, bytes], None], screen: Screen) -> None:
        """Tell nothing yet."""
        self._on_output = on_output
        self._flows = {
            name: Flow(screen.known, lambda rule, name=name: screen.out(rule, name), keeps_length=False)  # type: ignore[misc]
            for name in ("stdout", "stderr")
        }

    def hear(self, name: str, data: bytes) -> None:
        """Pass on what may go on."""
        self._tell(name, self._flows[name].feed(data))

    def end(self) -> None:
        """Pass on the rest."""
        for name, flow in self._flows.items():
            self._tell(name, flow.end())

    def _tell(self, name: str, data: bytes) -> None:
        if data:
            self._on_output(name, data)
