"""One side of a terminated connection: bytes in and out, each with backpressure, so that a gibibyte passes in flat memory.

What was read and not yet taken is counted in the budget that all gates share; beyond the high-water mark (or any, when
the budget is used up) the source is paused until it has been taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from fumehood.egress.limits import Budget
from fumehood.egress.task import close_transport

_WRITE_BYTES = 128 * 1024
_HIGH_WATER_BYTES = 256 * 2**10  # what is read ahead before the other side is paused


class Stream(asyncio.Protocol):
    """A connection's bytes. One task reads, one writes. `on_lost` is called when the connection is gone."""

    transport: asyncio.Transport

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._pieces: list[bytes] = []
        self._held = 0
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._paused = False
        self._full = False
        self._lost = asyncio.Event()
        self.on_lost: Callable[[], None] | None = None

    @property
    def ended(self) -> bool:
        """Whether the other side has said all it will."""
        return self._ended

    async def read(self) -> bytes:
        """All that has come, as soon as there is any; empty at the end. Raises ConnectionError."""
        if not self._pieces and not self._ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if not self._pieces:
            if self._error is not None:
                raise self._error
            return b""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._budget.change(-self._held)
        self._held = 0
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        return data

    async def write(self, pieces: Sequence[bytes]) -> None:
        """Pass on, and wait while the other side does not take it. Raises ConnectionError."""
        if self._lost.is_set():
            raise self._error or ConnectionResetError("the connection is gone")
        self.transport.writelines(pieces)
        if self._full and not self._lost.is_set():
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            finally:
                self._writer = None

    def close(self) -> None:
        """Send what is left, and close."""
        close_transport(self.transport)

    async def closed(self) -> None:
        """Return when the connection is gone."""
        await self._lost.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_WRITE_BYTES)

    def data_received(self, data: bytes) -> None:
        """Keep it until it is read."""
        self._pieces.append(data)
        self._held += len(data)
        self._budget.change(len(data))
        if not self._paused and (self._held >= _HIGH_WATER_BYTES or self._budget.is_tight):
            self._paused = True
            self.transport.pause_reading()
        self._wake(self._reader)

    def eof_received(self) -> bool:
        """Stay open for what goes the other way, where the transport can: TLS cannot."""
        self._ended = True
        self._wake(self._reader)
        return self.transport.get_extra_info("ssl_object") is None

    def pause_writing(self) -> None:
        """The other side is slow."""
        self._full = True

    def resume_writing(self) -> None:
        """The other side has caught up."""
        self._full = False
        self._wake(self._writer)

    def connection_lost(self, exc: Exception | None) -> None:
        """End both directions. What came before is still there to be read."""
        self._ended = True
        self._error = exc
        self._lost.set()
        self._wake(self._reader)
        self._wake(self._writer)
        if self.on_lost is not None:
            self.on_lost()

    def forget(self) -> None:
        """Drop what nobody will read."""
        self._budget.change(-self._held)
        self._pieces.clear()
        self._held = 0

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
