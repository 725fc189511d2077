"""The client's end: bounded lines on the standard streams, and nothing else on them.

Invariants: while the gateway runs, descriptor 0 is empty and descriptor 1 is the standard error, so a stray `print`
misses the protocol; the protocol has private duplicates that no program inherits. A frame is cut off before it is
parsed: a line over its limit is skipped without being kept, and told as such. No thread blocks on the descriptors, so
the process can end while the client says nothing; and they stay in blocking mode, because the client may share them
with others (its terminal, its log).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import stat
import sys
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel

CLIENT_FRAME_BYTES = 4 * 2**20
_READ_BYTES = 64 * 1024
_PIPE_STEP_BYTES = select.PIPE_BUF  # what a writable pipe takes without blocking


def claim() -> tuple[int, int]:
    """Private duplicates of standard input and output; the numbers themselves then lead to nothing and to stderr."""
    sys.stdout.flush()
    source = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
    sink = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # started without a standard error
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
    os.close(nothing)
    return source, sink


async def read_frames(fd: int, limit: int = CLIENT_FRAME_BYTES) -> AsyncIterator[bytes | None]:
    """The lines that arrive on `fd`, without their ends; None stands for one over the limit. Ends with the stream."""
    buffer = bytearray()
    skipping = False
    searched = 0
    while chunk := await _read(fd):
        buffer += chunk
        while (end := buffer.find(b"\n", searched)) >= 0:
            line = bytes(buffer[:end]).rstrip(b"\r")
            del buffer[: end + 1]
            searched = 0
            if skipping or end > limit:
                skipping = False
                yield None
            elif line.strip():
                yield line
        searched = len(buffer)
        if searched > limit:
            buffer.clear()
            searched, skipping = 0, True


async def _read(fd: int) -> bytes:
    while True:
        # epoll refuses regular files; those never block.
        with contextlib.suppress(PermissionError):
            await anyio.wait_readable(fd)
        await anyio.lowlevel.checkpoint()
        try:
            return os.read(fd, _READ_BYTES)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return b""


class FrameSink:
    """Writes whole lines to one descriptor, for one task. Raises `BrokenPipeError` when nobody reads any more."""

    def __init__(self, fd: int) -> None:
        """Write to `fd`, which stays the caller's."""
        self._fd = fd
        mode = os.fstat(fd).st_mode
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(mode) else None
        self._step = _READ_BYTES if stat.S_ISREG(mode) else _PIPE_STEP_BYTES
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    async def send(self, frame: bytes) -> None:
        """Write one frame and its newline. Cancelled in the middle, it leaves half a line: only the end may do that."""
        left = memoryview(frame + b"\n")
        await anyio.lowlevel.checkpoint()
        while left:
            try:
                left = left[self._write_some(left) :]
            except BlockingIOError:
                await anyio.wait_writable(self._fd)

    def close(self) -> None:
        """Let go of what this opened itself."""
        if self._socket is not None:
            self._socket.close()

    def _write_some(self, data: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(data[:_READ_BYTES], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if not self._poll.poll(0):
            raise BlockingIOError
        return os.write(self._fd, data[: self._step])
