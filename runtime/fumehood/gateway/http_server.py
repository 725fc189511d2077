"""The HTTP server itself: uvicorn, with the bounds that it lacks.

Attacks: a client that sends its head byte by byte, or none at all; one that stops reading an answer; one that opens
connections until there are no descriptors left. A connection without a whole head after `HEAD_S`, or whose answer has
not moved for `STALL_S`, is cut; over `MAX_CONNECTIONS` new ones are. A client that closes only its sending half counts
as gone (asyncio closes the rest), which cancels what it asked.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import anyio
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from fumehood.gateway.answering import Answering
from fumehood.gateway.http import CERTIFICATE, application
from fumehood.gateway.http_head import MAX_HEAD_BYTES, Rules
from fumehood.gateway.proofs import Proofs
from fumehood.ports import Ports

MAX_CONNECTIONS = 128
HEAD_S = 10.0
STALL_S = 30.0
KEEP_ALIVE_S = 15
ENDING_S = 20.0


async def serve(
    gateway: Answering, listener: socket.socket, rules: Rules, proofs: Proofs, tls: ssl.SSLContext | None = None,
    ports: Ports | None = None,
) -> None:
    """Serve HTTP on a bound and listening socket until cancelled; every call under way is then cancelled too."""
    # It would write a line for each broken request: a stranger's to flood. Our own faults are logged before it sees them.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    async with application(gateway, rules, proofs, ports) as app:
        config = Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        config.load()
        config.ssl = tls
        server = _Server(config)
        try:
            await server.serve(sockets=[listener])
        finally:
            with anyio.CancelScope(shield=True):
                await server.end()


class _Server(Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command's."""
        yield

    async def end(self) -> None:
        """Take no more, cancel what runs, and wait for it: boxes are removed before we are gone."""
        for each in self.servers:
            each.close()
        running = set(self.server_state.tasks)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=ENDING_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class _Protocol(H11Protocol):
    """One connection, with deadlines for its heads and its answers."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        # Any byte that is not taken counts as a stall, also while the connection closes.
        # Not 0: asyncio's TLS transport would pause at an empty buffer, and nothing would ever resume it.
        transport.set_write_buffer_limits(high=1, low=0)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        if (shown := _certificate(transport)) is not None:
            self.app_state = {**self.app_state, CERTIFICATE: shown}
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.trailing_data[0] and not self._waiting():
            # The next request before the answer to this one: uvicorn would stop reading, and not see the client leave.
            self.transport.abort()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._stall):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _expect_head(self) -> None:
        waiting = self._waiting()
        if not waiting and self._head is not None:
            self._head.cancel()
            self._head = None
        elif waiting and self._head is None:
            # Armed once a request, not once a byte. Between requests uvicorn's own ends a connection that says nothing.
            self._head = self.loop.call_later(HEAD_S, self._cut)

    def _waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _cut(self) -> None:
        self._head = None
        self.transport.abort()


def _certificate(transport: asyncio.Transport) -> str | None:
    """The SHA-256 of what the client was verified by, as tokens name it (RFC 8705 section 3.1); it is not parsed for that."""
    tls = transport.get_extra_info("ssl_object")
    shown = None if tls is None else tls.getpeercert(binary_form=True)
    if shown is None:
        return None
    return base64.urlsafe_b64encode(hashlib.sha256(shown).digest()).rstrip(b"=").decode()
