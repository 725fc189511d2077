"""The pipes of a tool: made, fed, read within limits, and cut into lines.

A session's streams are used by calls that do not own them, and its box may end while one waits. The number of a pipe that is
closed is the next pipe's, of another call: whoever waits is woken first, and asks for the number anew.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from fumehood.execution.work import RunningBox
from fumehood.faults import ExchangeFailed
from fumehood.memory import Memory
from fumehood.reasons import Reason

FLOOD_FACTOR = 16
FRAME_SLACK_BYTES = 64 * 1024
CHUNK_BYTES = 65_536


@dataclass(slots=True)
class Kept:
    """What is kept of one stream."""

    limit: int
    data: bytearray = field(default_factory=bytearray)
    total: int = 0

    def take(self, chunk: bytes) -> bytes:
        """Count a chunk and keep what fits; returns what was kept of it."""
        self.total += len(chunk)
        kept = chunk[: max(0, self.limit - len(self.data))]
        self.data += kept
        return kept

    @property
    def flooded(self) -> bool:
        """Whether the tool wrote so much that it is ended."""
        return self.total > FLOOD_FACTOR * self.limit


class Pipes:
    """The three pipes of one tool: the box's ends are given away, ours are non-blocking."""

    def __init__(self, *, stdin: bool) -> None:
        self.box_in, self.our_in = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), -1)
        self.our_out, self.box_out = os.pipe()
        self.our_err, self.box_err = os.pipe()
        for fd in (self.our_in, self.our_out, self.our_err):
            if fd >= 0:
                os.set_blocking(fd, False)

    def close_box_ends(self) -> None:
        """After the tool has its own copies, its end of a pipe must be the only one."""
        for name in ("box_in", "box_out", "box_err"):
            _close(self, name)

    def close(self) -> None:
        """Close whatever is open."""
        for name in ("box_in", "box_out", "box_err", "our_in", "our_out", "our_err"):
            _close(self, name)

    def close_input(self) -> None:
        """Tell the tool that its input has ended."""
        _close(self, "our_in")


def _close(pipes: Pipes, name: str) -> None:
    fd = getattr(pipes, name)
    if fd >= 0:
        setattr(pipes, name, -1)
        with contextlib.suppress(RuntimeError):  # outside an event loop nobody waits
            anyio.notify_closing(fd)
        os.close(fd)


@dataclass(slots=True)
class Heard:
    """When the tool last wrote something, and whether it stands still."""

    event: anyio.Event = field(default_factory=anyio.Event)
    parked: bool = False

    def now(self) -> None:
        """Something was written."""
        event, self.event = self.event, anyio.Event()
        event.set()


async def collect(
    box: RunningBox, fd: int, name: str, kept: Kept, on_output: Callable[[str, bytes], None] | None, heard: Heard
) -> None:
    """Read one stream to its end; a tool that floods it is ended."""
    while chunk := await _read(lambda: fd):
        heard.now()
        fresh = kept.take(chunk)
        if fresh and on_output is not None:
            on_output(name, fresh)
        if kept.flooded:
            await box.kill(Reason.OUTPUT)
            return


async def feed(source: int, pipes: Pipes) -> None:
    """Copy the caller's input into the tool's until either ends."""
    try:
        while True:
            # A plain file cannot be waited for, and need not be; any other is read only when it has something.
            with contextlib.suppress(PermissionError):
                await anyio.wait_readable(source)
            if not (chunk := os.read(source, CHUNK_BYTES)):
                return
            await _write(lambda: pipes.our_in, chunk)
    except (BrokenPipeError, OSError):
        pass  # the tool does not want more
    finally:
        pipes.close_input()


class Lines:
    """A server's streams, a line a message, every line bounded."""

    def __init__(self, pipes: Pipes, longest: int, heard: Heard) -> None:
        self._pipes = pipes
        self._longest = longest
        self._heard = heard
        self._buffer = bytearray()
        self._skipping = False
        self._sending = anyio.Lock()

    async def send(self, frame: bytes) -> None:
        """Write one message. Raises ExchangeFailed."""
        async with self._sending:
            try:
                await _write(lambda: self._pipes.our_in, frame + b"\n")
            except BrokenPipeError:
                raise ExchangeFailed(Reason.SERVER_DIED, "the server closed its input") from None

    async def receive(self) -> bytes:
        """The next line. Raises ExchangeFailed: it is too long, or the server has ended."""
        if (line := await self._line()) is None:
            self._skipping = True
            raise ExchangeFailed(Reason.RESULT_TOO_LARGE, f"one message of the server's is over {self._longest} bytes")
        return line

    @property
    def has_unread(self) -> bool:
        """Whether the server has written what nobody has read; of what it has not flushed yet the kernel knows nothing."""
        return bool(self._buffer) or bool(select.select([self._pipes.our_out], [], [], 0)[0])

    async def receive_long(self, most_bytes: int) -> bytes | Memory:
        """The next line, in sealed memory when it is over the limit. Raises ExchangeFailed."""
        if (line := await self._line()) is not None:
            return line
        memory = Memory()
        self._skipping = True
        try:
            while True:
                end = self._buffer.find(b"\n")
                part = bytes(self._buffer if end < 0 else self._buffer[:end])
                if memory.size + len(part) > most_bytes:
                    detail = f"one message of the server's is over {most_bytes} bytes, the most that is kept"
                    raise ExchangeFailed(Reason.RESULT_TOO_LARGE, detail)
                memory.write(part)
                del self._buffer[: len(part) + (end >= 0)]
                if end >= 0:
                    self._skipping = False
                    return memory.seal()
                self._buffer += await self._more()
        except BaseException:
            memory.close()
            raise

    async def _line(self) -> bytes | None:
        """The next line, or None when it is too long: what there is of it is then still in the buffer."""
        if self._skipping:
            await self._skip()
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > self._longest:
                return None
            self._buffer += await self._more()
        if end > self._longest:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def _skip(self) -> None:
        """Drop the rest of a line that was too long: a session's next call must not find it."""
        while (end := self._buffer.find(b"\n")) < 0:
            self._buffer.clear()
            self._buffer += await self._more()
        del self._buffer[: end + 1]
        self._skipping = False

    async def _more(self) -> bytes:
        chunk = await _read(lambda: self._pipes.our_out)
        if not chunk:
            raise ExchangeFailed(Reason.SERVER_DIED, "the server ended before it answered")
        self._heard.now()
        return chunk


async def _read(end: Callable[[], int]) -> bytes:
    """What there is; nothing when the pipe has ended or was closed. `end` is asked anew after each wait."""
    while (fd := end()) >= 0:
        try:
            return os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            with contextlib.suppress(anyio.ClosedResourceError):
                await anyio.wait_readable(fd)
    return b""


async def _write(end: Callable[[], int], data: bytes) -> None:
    """All of it. Raises BrokenPipeError, also when the pipe was closed."""
    view = memoryview(data)
    while view:
        if (fd := end()) < 0:
            raise BrokenPipeError
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            with contextlib.suppress(anyio.ClosedResourceError):
                await anyio.wait_writable(fd)
