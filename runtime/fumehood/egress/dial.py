"""Connecting to a name outside the box: resolved here, judged here, and dialled at exactly the address that was judged.

Invariants: no library resolves the name a second time (a name may have another address by then); an address is dialled only when
`addresses.judge` allows it under the rule's networks, and when it is not this host's own, which a name on the internet may point to
as well. Addresses are tried in the resolver's order, the next one when the one before fails or is slow.

With an upstream proxy (`Outward.proxy`) the checked *address* goes into CONNECT, not the name: what was judged is what is dialled,
whoever dials. A proxy that only lets names through is of no use to the gate, and this host must be able to resolve names.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from fumehood.egress.addresses import ADDRESS_NOT_ALLOWED, Address, judge, named
from fumehood.egress.refusals import Rejected, Why
from fumehood.egress.resolver import Resolver, split_place
from fumehood.ports import Outward

NOT_CONNECTED = Why(
    "not_connected", "no address of the name takes a connection", "Check that the service runs and that this host reaches it."
)
PROXY_REFUSED = Why(
    "proxy_refused", "the operator's proxy did not connect", "Let the proxy connect to addresses, or configure none."
)

TIMEOUT_S = 5.0
_NEXT_S = 0.25  # as RFC 8305 has it
_MOST_REPLY = 8192


class Dialer:
    """How gates, and whoever else connects for a call, reach the outside. One a runtime: answers are kept in it."""

    def __init__(self, outward: Outward) -> None:
        """Use the operator's resolvers and proxy."""
        self._resolver = Resolver(outward.resolvers)
        self._proxy = outward.proxy

    async def dial(self, name: str, port: int, networks: Sequence[str] = ()) -> socket.socket:
        """A connected, non-blocking TCP socket to a name (or a literal address) that may lie in `networks` (CIDR) or be public.

        Raises Rejected(NOT_RESOLVED | ADDRESS_NOT_ALLOWED | NOT_CONNECTED | PROXY_REFUSED), within 10 s.
        """
        allowed = await self.judged(name, port, networks)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._proxy is not None:
                    return await self._through_proxy(allowed[0], port)
                return await _first(allowed, port)
        except (OSError, TimeoutError) as error:
            tried = [str(address) for address in allowed[:4]]
            raise Rejected(NOT_CONNECTED, name=name, port=port, addresses=tried, error=_said(error)) from error

    async def judged(self, name: str, port: int, networks: Sequence[str] = ()) -> list[Address]:
        """The addresses of a name that may be dialled, at least one. Raises Rejected(NOT_RESOLVED | ADDRESS_NOT_ALLOWED)."""
        ranges = named(tuple(networks))
        wrong: dict[str, str] = {}
        allowed = []
        for address in await self._found(name):
            why = judge(address, ranges)
            if why is None and not any(address in network for network in ranges) and _is_ours(address, port):
                why = "this host's own"
            if why is None:
                allowed.append(address)
            else:
                wrong[str(address)] = why
        if not allowed:
            raise Rejected(ADDRESS_NOT_ALLOWED, name=name, port=port, addresses=dict(list(wrong.items())[:4]))
        return allowed

    async def _found(self, name: str) -> Sequence[Address]:
        with suppress(ValueError):
            return (ipaddress.ip_address(name),)
        return await self._resolver.addresses(name)

    async def _through_proxy(self, address: Address, port: int) -> socket.socket:
        parts = urlsplit(self._proxy or "")
        host, at = split_place(parts.netloc, 3128)
        connection = await _first(await self._found(host), at)
        place = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(connection, f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
            reply = b""
            while not reply.endswith(b"\r\n\r\n"):
                got = await loop.sock_recv(connection, 1)  # nothing after the head is ours to read
                reply += got
                if not got or len(reply) > _MOST_REPLY:
                    raise Rejected(PROXY_REFUSED, address=place, answer="no answer")
            line = reply.split(b"\r\n", 1)[0].decode("latin-1")
            if line.split(" ")[:1] not in (["HTTP/1.1"], ["HTTP/1.0"]) or line.split(" ")[1:2] != ["200"]:
                raise Rejected(PROXY_REFUSED, address=place, answer=line[:100])
        except BaseException:
            connection.close()
            raise
        return connection


def dialer_of(outward: Outward) -> Dialer:
    """The runtime's one dialer."""
    found = outward.shared.get("dialer")
    if not isinstance(found, Dialer):
        found = outward.shared["dialer"] = Dialer(outward)
    return found


async def _first(addresses: Sequence[Address], port: int) -> socket.socket:
    """The first of these that connects; each has a quarter of a second before the next is tried beside it. Raises OSError."""
    if len(addresses) == 1:
        return await _connect(addresses[0], port)
    running: set[asyncio.Task[socket.socket]] = set()
    waiting = list(addresses)
    failed: OSError = OSError(errno.EHOSTUNREACH, "no address")
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.create_task(_connect(waiting.pop(0), port)))
            done, running = await asyncio.wait(
                running, timeout=_NEXT_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    running |= done - {task}  # two at once: the second is closed below
                    return task.result()
                if not isinstance(error, OSError):
                    raise error
                failed = error
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_close_late)
    raise failed


async def _connect(address: Address, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        place = (str(address), port)
        with suppress(BlockingIOError):
            connection.connect(place)
        # On this host the handshake is over when the call returns, and the loop would need two turns to find out.
        if not _is_connected(connection):
            await asyncio.get_running_loop().sock_connect(connection, place)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_connected(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _is_ours(address: Address, port: int) -> bool:
    """Whether packets to an address would stay on this host: the kernel then sends them from that very address. Sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect((str(address), port))
        except OSError:
            return False  # not reachable at all
        return ipaddress.ip_address(probe.getsockname()[0]) == address


def _said(error: BaseException) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) else type(error).__name__
