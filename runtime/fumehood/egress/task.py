"""What a connection's handler has of the call that the connection is made for: rules, limits, leases, a way to dial, a log.

A handler is one module a kind of rule with

    async def serve(connection: socket.socket, route: Route, task: GateTask) -> None

and, where the box needs something to use it (`HTTP`: an authority, placeholders), `def supply(task: GateTask) -> Supplies`, called
once a box. `connection` is an accepted, non-blocking socket to the box; `route` is what it was judged to mean. The handler reads from
it, dials with `task.dial(route)`, counts every byte with `task.sent` and `task.received` *before* it passes it on, and returns when
the connection is closed. What it refuses it raises as `Rejected`, and leaves the connection to be reset; a transport that it has put
on the connection it aborts first (`reset`). It is cancelled when the gate shuts: then the same holds.

Anything that is to be kept between the connections of one box goes to `holdings`, and dies with the gate (rule 22: never a table of
the process's own keyed by `id()`).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Protocol

from fumehood.egress.dial import Dialer
from fumehood.egress.limits import Budget, Meter
from fumehood.egress.log import EgressLog
from fumehood.egress.names import Names, Route
from fumehood.egress.refusals import Why
from fumehood.model import Profile
from fumehood.ports import Leases, Outward
from fumehood.screening.known import KnownSecrets

_AT_ONCE = struct.pack("ii", 1, 0)


class Serve(Protocol):
    """How a handler serves one connection. Raises Rejected, OSError, TimeoutError."""

    def __call__(self, connection: socket.socket, route: Route, task: GateTask, /) -> Awaitable[None]:
        """Serve until the connection is closed."""
        ...


class GateTask:
    """One call at one box's gate. In a session's box `task` is the visiting call's and `box` the session's."""

    def __init__(
        self, *, task: str, box: str, profile: Profile, leases: Leases, outward: Outward, names: Names,
        dialer: Dialer, meter: Meter, budget: Budget, log: EgressLog, holdings: dict[str, Any], java_store: str | None = None,
        known: KnownSecrets | None = None, tool: str | None = None,
    ) -> None:  # fmt: skip
        """Hold these; nothing is open yet."""
        self.task = task
        self.box = box
        self.profile = profile
        self.leases = leases
        self.outward = outward
        self.names = names
        self.meter = meter
        self.budget = budget
        self.egress_log = log
        self.holdings = holdings
        self.java_store = java_store
        self.known = KnownSecrets() if known is None else known
        self.tool = tool
        self._dialer = dialer

    def log(self, kind: str, route: Route | None = None, **facts: Any) -> None:
        """Add an entry: `kind` is dns, connect, request, refused, close or alarm. No secret, no header's value, no body."""
        where = {} if route is None else {"name": route.name, "port": route.port, "rule": route.label}
        self.egress_log.add(kind, {**where, **facts})

    def refuse(self, why: Why, route: Route | None = None, **facts: Any) -> None:
        """Add a refusal: which rule, what was asked, what to add to the profile if it is right."""
        self.log("refused", route, **{"why": why.code, **facts, "remedy": why.remedy})

    async def dial(self, route: Route) -> socket.socket:
        """A connected, non-blocking socket to what the route was judged to mean. Raises Rejected."""
        upstream = await self._dialer.dial(route.name, route.port, route.rule.addresses)
        with suppress(OSError):
            self.log("connect", route, address=str(upstream.getpeername()[0]))
        return upstream

    def sent(self, count: int) -> float:
        """Count bytes from the box before they go out; the seconds to wait before reading more of them. Raises Rejected."""
        return self.meter.sent(count, asyncio.get_running_loop().time())

    def received(self, count: int) -> float:
        """Count bytes for the box before they go in; the seconds to wait before reading more of them. Raises Rejected."""
        return self.meter.received(count, asyncio.get_running_loop().time())

    def count(self) -> None:
        """Bring the log's counters up to date."""
        self.egress_log.counters.update(
            {
                "bytes_out": self.meter.bytes_out - self.egress_log.counters["bytes_out"],
                "bytes_in": self.meter.bytes_in - self.egress_log.counters["bytes_in"],
            }
        )


def reset_when_closed(connection: socket.socket) -> None:
    """Let whoever closes this connection reset it."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other side sees a reset at once. Idempotent."""
    if connection.fileno() != -1:
        reset_when_closed(connection)
        connection.close()


def close_transport(transport: asyncio.Transport) -> None:
    """Close a connection that a transport has, once what is written has gone out. Idempotent, and it can still be reset.

    asyncio's own is neither: the second `close` of a TLS transport makes it forget its connection, which then nobody can end.
    """
    if not transport.is_closing():
        transport.close()


def reset_transport(transport: asyncio.BaseTransport) -> None:
    """The same for a connection that a transport has."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        reset_when_closed(connection)
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()
