"""Bytes both ways between a box and the world: for `tcp:` rules as they are, for `tls:` rules once the ClientHello is judged.

Every byte is counted before it is passed on. Flow control has no buffer of its own: what the one side does not take at once
pauses the other until it has, so a download that nobody reads holds one read (of 256 KiB, or of 16 KiB when the runtime's memory
for this is used up) and the kernel's own buffers. A side that has sent all it will is passed on as such (half-close); a reset as a
reset. asyncio's protocols, not its streams: measured, four times the throughput.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from fumehood.egress import hello
from fumehood.egress.limits import CONNECTION_BYTES, HEAD_S, READ_BYTES
from fumehood.egress.names import Route
from fumehood.egress.refusals import Rejected, Why
from fumehood.egress.task import GateTask, close_transport, reset, reset_transport
from fumehood.reach import EgressKind

HEAD_TOO_SLOW = Why("head_too_slow", "the connection did not begin in time", "Send the whole hello or head at once.")

_RESERVED_BYTES = CONNECTION_BYTES // 2  # of one direction: taken when the connection was accepted
_SEND_BUFFER_BYTES = 512 * 2**10  # toward the box; the kernel would grow it to megabytes for a reader that does not read
_scratch = memoryview(bytearray(READ_BYTES))  # one for all: what is read into it is copied before the next read


async def serve(connection: socket.socket, route: Route, task: GateTask) -> None:
    """Serve a `tls:` or `tcp:` connection."""
    first, second = b"", None
    if route.rule.kind is EgressKind.TLS:
        first, second = await _read_hello(connection, route, task), hello.Second(route.name)
    await relay(connection, await task.dial(route), route, task, first=first, second=second)


async def _read_hello(connection: socket.socket, route: Route, task: GateTask) -> bytes:
    """What the connection begins with, when it names the server that it was made for. Raises Rejected."""
    loop = asyncio.get_running_loop()
    data = b""
    try:
        async with asyncio.timeout(HEAD_S):
            while (found := hello.parse(data)) is None:
                got = await loop.sock_recv(connection, hello.MOST_BYTES - len(data))
                if not got:
                    raise Rejected(hello.NOT_TLS, bytes=len(data))
                data += got
    except TimeoutError:
        raise Rejected(HEAD_TOO_SLOW, bytes=len(data)) from None
    if isinstance(found, Why):
        raise Rejected(found)
    if wrong := hello.judge(found, route.name):
        raise Rejected(wrong, asked=found.name)
    task.log("request", route, sni=found.name, alpn=found.protocols, note="SNI only: fronting behind a shared CDN is possible")
    return data


async def relay(
    connection: socket.socket, upstream: socket.socket, route: Route, task: GateTask,
    *, first: bytes = b"", second: hello.Second | None = None,
) -> None:  # fmt: skip
    """Pass on both ways until both sides are closed. Raises Rejected.

    `first` was read from the box already; with `second` it begins with a hello that was judged, and what follows is judged by that.
    """
    loop = asyncio.get_running_loop()
    pair = _Pair(route, task, second)
    try:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        await loop.create_connection(lambda: pair.outside, sock=upstream)
        await loop.connect_accepted_socket(lambda: pair.inside, connection)
        await pair.run(first, b"")
    finally:
        pair.end()
        if pair.outside.transport is None:
            upstream.close()
        if pair.inside.transport is None:
            reset(connection)


async def join(
    inside: asyncio.Transport, outside: asyncio.Transport, route: Route, task: GateTask,
    *, outgoing: bytes = b"", incoming: bytes = b"",
) -> None:  # fmt: skip
    """The same for two transports that are there already, with TLS or without; both end here. Raises Rejected.

    `outgoing` and `incoming` were read from the box and the world, and are not passed on yet.
    """
    pair = _Pair(route, task)
    try:
        for half, transport in ((pair.inside, inside), (pair.outside, outside)):
            transport.set_protocol(half)
            half.connection_made(transport)
        await pair.run(outgoing, incoming)
    finally:
        pair.end()


class _Pair:
    """One relayed connection."""

    def __init__(self, route: Route, task: GateTask, second: hello.Second | None = None) -> None:
        self.second = second
        self.inside = _Half(self, task.sent)
        self.outside = _Half(self, task.received)
        self.inside.peer, self.outside.peer = self.outside, self.inside
        self.task = task
        self._route = route
        self._over = asyncio.get_running_loop().create_future()

    async def run(self, outgoing: bytes, incoming: bytes) -> None:
        """Begin, and return when both sides are closed."""
        if self.second is not None:
            end = hello.end_of(outgoing)
            self.inside.write(outgoing[:end])
            outgoing = outgoing[end:]
        for half, first in ((self.inside, outgoing), (self.outside, incoming)):
            if first:
                half.pass_on(first)
        for half in (self.inside, self.outside):
            half.begin()
        await self._over
        counts = {"bytes_out": self.inside.count, "bytes_in": self.outside.count}
        self.task.log("close", self._route, **counts)

    def fail(self, error: Exception) -> None:
        """End both sides because of one."""
        if not self._over.done():
            self._over.set_exception(error)

    def lost(self) -> None:
        """A side is closed."""
        if self.inside.is_lost and self.outside.is_lost and not self._over.done():
            self._over.set_result(None)

    def end(self) -> None:
        """Reset what is not closed. Idempotent."""
        for half in (self.inside, self.outside):
            half.stop()
        if self._over.done() and not self._over.cancelled():
            self._over.exception()
        else:
            self._over.cancel()


class _Half(asyncio.BufferedProtocol):
    """One side: what is read from it goes to its peer."""

    peer: _Half

    def __init__(self, pair: _Pair, count_bytes: Callable[[int], float]) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_lost = False
        self.count = 0
        self._pair = pair
        self._count_bytes = count_bytes
        self._has_ended = False
        self._held_bytes = 0  # of our transport's buffer, beyond what is reserved
        self._is_stuffed = False  # the peer takes no more for now
        self._timer: asyncio.TimerHandle | None = None
        # A transport reads before its other side has one, whatever it is told: what comes early waits here.
        self._has_begun = False
        self._early = b""
        self._error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=1, low=0)  # TLS transports stay paused for ever at 0
        self.transport.pause_reading()

    def begin(self) -> None:
        """Pass on what came early, and read from here on; both sides have a transport now."""
        self._has_begun = True
        if self._early:
            early, self._early = self._early, b""
            self.pass_on(early)
        if self._has_ended and not self.eof_received() and self.transport is not None:
            close_transport(self.transport)
        if self.is_lost:
            self._tell_peer()
        self._read_again()

    def get_buffer(self, _sizehint: int) -> memoryview:
        task = self._pair.task
        return _scratch[: min(task.meter.read_bytes, _RESERVED_BYTES if task.budget.is_tight else READ_BYTES)]

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(_scratch[:nbytes])
        if self._has_begun:
            self.pass_on(data)
        else:
            self._early += data
            self._pause()

    def pass_on(self, data: bytes) -> None:
        """Write to the other side what may go on."""
        second = self._pair.second
        if second is not None:
            try:
                data = self._screened(second, data)
            except Rejected as error:
                self._pair.fail(error)
                return
            if second.is_over:
                self._pair.second = None
        if data:
            self.write(data)

    def _screened(self, second: hello.Second, data: bytes) -> bytes:
        if self is self._pair.inside:
            return second.from_client(data)
        second.from_server(data)
        if released := second.from_client(b""):
            self._pair.inside.write(released)
        return data

    def write(self, data: bytes) -> None:
        """Count, and write to the other side."""
        try:
            wait_s = self._count_bytes(len(data))
        except Rejected as error:
            self._pair.fail(error)
            return
        self.count += len(data)
        assert self.peer.transport is not None  # noqa: S101 - nothing is passed on before there is
        self.peer.transport.write(data)
        if wait_s > 0:
            self._pause()
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._go_on)

    def eof_received(self) -> bool:
        self._has_ended = True
        if not self._has_begun:
            return True
        other = self.peer.transport
        if other is None or self.transport is None or self.peer.is_lost:
            return False
        if self.peer._has_ended or not other.can_write_eof():  # noqa: SLF001 - the other half of one thing
            close_transport(other)  # what is written already still goes out
            return False
        other.write_eof()
        # A TLS connection is closed as a whole.
        return self.transport.can_write_eof()

    def pause_writing(self) -> None:
        assert self.transport is not None  # noqa: S101 - it just wrote
        self._hold(max(0, self.transport.get_write_buffer_size() - _RESERVED_BYTES))
        self.peer._is_stuffed = True  # noqa: SLF001 - as above
        self.peer._pause()  # noqa: SLF001

    def resume_writing(self) -> None:
        self._hold(0)
        self.peer._is_stuffed = False  # noqa: SLF001 - as above
        self.peer._read_again()  # noqa: SLF001

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost, self._error = True, exc
        self._hold(0)
        self._stop_timer()
        if self._has_begun:
            self._tell_peer()

    def _tell_peer(self) -> None:
        other = self.peer.transport
        if other is not None and not self.peer.is_lost:
            if self._error is None:
                close_transport(other)
            else:
                reset_transport(other)
        self._pair.lost()

    def stop(self) -> None:
        """Reset it, unless it is closed."""
        self._stop_timer()
        if self.transport is not None and not self.is_lost:
            reset_transport(self.transport)

    def _go_on(self) -> None:
        self._timer = None
        self._read_again()

    def _pause(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def _read_again(self) -> None:
        if self.transport is None or self.transport.is_closing() or self._has_ended:
            return
        if self._has_begun and not self._is_stuffed and self._timer is None:
            self.transport.resume_reading()

    def _hold(self, count: int) -> None:
        self._pair.task.budget.change(count - self._held_bytes)
        self._held_bytes = count

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
