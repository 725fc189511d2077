"""One HTTP/1.1 connection of ours to a remote server: requests out, heads and pieces of bodies in. TLS, or nothing.

Invariants: the certificate is verified for the name that was asked for; a head has a most, a piece has a most, and what is neither
chunked nor counted ends with its connection; nothing is decompressed, so that no small answer becomes a large one; a connection is
used again only when both sides have said all of theirs. Redirects are answers like any other here: following one would send a
credential where nobody judged.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Sequence

import anyio
import h11

from fumehood.egress.addresses import ADDRESS_NOT_ALLOWED
from fumehood.egress.limits import BYTES_IN, BYTES_OUT, Meter
from fumehood.egress.refusals import Rejected
from fumehood.faults import ExchangeFailed
from fumehood.reasons import Reason

HEAD_BYTES = 16 * 1024
PIECE_BYTES = 64 * 1024
HANDSHAKE_S = 10.0
MAX_INFORMATION = 8
# What decides how an answer is read: of two, somebody before us might have read the other.
_REASONS = {ADDRESS_NOT_ALLOWED: Reason.UPSTREAM_NOT_ALLOWED, BYTES_IN: Reason.UPSTREAM_LIMIT, BYTES_OUT: Reason.UPSTREAM_LIMIT}
_ONCE = frozenset({"content-type", "content-encoding", "mcp-session-id", "location", "retry-after"})


class Connection:
    """One connection. Make it with `secured`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, meter: Meter) -> None:
        self._meter = meter
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self._last = False
        self.closed = False

    async def send(self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Send a whole request. Raises ExchangeFailed."""
        events: list[h11.Event] = [h11.Request(method=method, target=target, headers=list(headers))]
        if body:
            events.append(h11.Data(data=body))
        data = b"".join(self._http.send(event) or b"" for event in (*events, h11.EndOfMessage()))
        await self._count(self._meter.sent, len(data))
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise _unreachable(f"the connection broke while asking: {error}") from error

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer. Raises ExchangeFailed."""
        for _ in range(MAX_INFORMATION):
            event = await self._next()
            if isinstance(event, h11.Response):
                return event.status_code, _headers(event)
            if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                break
        raise ExchangeFailed(Reason.SERVER_GARBAGE, "it answered with something else than a response")

    async def piece(self) -> bytes:
        """The next piece of the body, empty at its end. Raises ExchangeFailed."""
        event = await self._next()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        self._finish()
        return b""

    @property
    def idle(self) -> bool:
        """Whether another request can be sent on it."""
        return not self.closed and not self._last and self._http.our_state is h11.IDLE and not self._reader.at_eof()

    def retire(self) -> None:
        """Take no other request."""
        self._last = True

    def close(self) -> None:
        """End it at once. Idempotent."""
        if not self.closed:
            self.closed = True
            # Not a goodbye: the other side may not read, and what is left of an answer is of no use.
            self._writer.transport.abort()

    def _finish(self) -> None:
        """After a whole answer: ready for another request, if both sides keep the connection."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()

    @staticmethod
    async def _count(counted: Callable[[int, float], float], size: int) -> None:
        try:
            wait_s = counted(size, time.monotonic())
        except Rejected as error:
            raise failure(error) from error
        if wait_s:
            await anyio.sleep(wait_s)

    async def _next(self) -> h11.Event:
        try:
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    data = await self._reader.read(PIECE_BYTES)
                    self._http.receive_data(data)  # before anything can be cancelled: who waits may go on waiting later
                    await self._count(self._meter.received, len(data))
                elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    raise ExchangeFailed(Reason.SERVER_DIED, "it closed the connection before it answered")
                else:
                    assert isinstance(event, h11.Event)  # noqa: S101 - the other two are above
                    return event
        except h11.RemoteProtocolError as error:
            self.close()
            if self._http.trailing_data[1]:
                raise ExchangeFailed(Reason.SERVER_DIED, "it closed the connection in the middle of its answer") from error
            raise ExchangeFailed(Reason.SERVER_GARBAGE, f"its answer is no HTTP/1.1: {error}") from error
        except OSError as error:
            self.close()
            raise ExchangeFailed(Reason.SERVER_DIED, f"the connection broke before it answered: {error}") from error


def failure(error: Rejected) -> ExchangeFailed:
    """What the gate turned away, as the end of a conversation."""
    reason = _REASONS.get(error.why, Reason.UPSTREAM_UNREACHABLE)
    told = ", ".join(f"{name} {value}" for name, value in error.facts.items())
    remedy = error.why.remedy if reason is Reason.UPSTREAM_LIMIT else None
    return ExchangeFailed(reason, f"{error.why.meaning} ({told})", remedy=remedy)


async def secured(sock: socket.socket, name: str, context: ssl.SSLContext, meter: Meter) -> Connection:
    """A connected socket as a connection that is verified to be `name`'s. The socket is its. Raises ExchangeFailed."""
    try:
        with anyio.fail_after(HANDSHAKE_S):
            reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=name, limit=PIECE_BYTES)
    except ssl.SSLCertVerificationError as error:
        raise ExchangeFailed(Reason.UPSTREAM_UNTRUSTED, f"{name}: {error.verify_message}") from error
    except TimeoutError as error:
        raise _unreachable(f"{name}: no TLS handshake within {HANDSHAKE_S:g} s") from error
    except OSError as error:
        raise _unreachable(f"{name}: no TLS connection: {error.strerror or error}") from error
    return Connection(reader, writer, meter)


def _headers(response: h11.Response) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw, value in response.headers:
        name, text = raw.decode("ascii"), value.decode("latin-1")
        if name in found and name in _ONCE:
            raise ExchangeFailed(Reason.SERVER_GARBAGE, f"its answer has {name} twice")
        found[name] = f"{found[name]}, {text}" if name in found else text
    if found.get("content-encoding", "identity").lower() != "identity":
        raise ExchangeFailed(Reason.SERVER_GARBAGE, "its answer is compressed, which was not asked for")
    return found


def _unreachable(detail: str) -> ExchangeFailed:
    return ExchangeFailed(Reason.UPSTREAM_UNREACHABLE, detail)
