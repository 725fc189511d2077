"""The worker's side of `wire`: many requests under way on one socket, each awaited by its own task.

Invariants: replies are matched by id; when the socket ends, every waiting and every later request raises
`WireError`. A caller that is cancelled while it waits leaves its id behind, and the late reply is dropped with
its descriptors closed.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from fumehood import wire


class Asker:
    """One socket to the broker or the ledger. Make it with `asking`."""

    def __init__(self, sock: socket.socket) -> None:
        """Use `sock`, which must be non-blocking."""
        self._sock = sock
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[anyio.Event, list[tuple[dict[str, Any], list[int]]]]] = {}
        self._gone = False
        self._sending = anyio.Lock()

    async def ask(self, verb: str, args: Mapping[str, Any], fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
        """Send a request and wait for its result. Raises `Refused`, `BoxFailed`, `LedgerGone`, `WireError`."""
        number = next(self._ids)
        answered: list[tuple[dict[str, Any], list[int]]] = []
        event = anyio.Event()
        self._waiting[number] = (event, answered)
        try:
            await self._send({"id": number, "verb": verb, "args": args}, fds)
            await event.wait()
        finally:
            del self._waiting[number]
        if not answered:
            raise wire.WireError("the other process is gone")
        reply, reply_fds = answered[0]
        return wire.result_of_reply(reply), reply_fds

    async def tell(self, verb: str, args: Mapping[str, Any]) -> None:
        """Send what has no reply: it is in the kernel's queue, in order, when this returns. Raises `WireError`."""
        await self._send({"id": None, "verb": verb, "args": args}, ())

    async def _send(self, message: Mapping[str, Any], fds: Sequence[int]) -> None:
        async with self._sending:
            while not self._gone:
                try:
                    wire.send(self._sock, message, fds)
                except BlockingIOError:
                    await anyio.wait_writable(self._sock)
                else:
                    return
        raise wire.WireError("the other process is gone")

    async def read_replies(self) -> None:
        """Deliver replies until the socket ends."""
        try:
            while True:
                await anyio.wait_readable(self._sock)
                try:
                    got = wire.receive(self._sock)
                except BlockingIOError:
                    continue
                if got is None:
                    return
                reply, fds = got
                waiting = self._waiting.get(reply.get("id", 0))
                if waiting is None:
                    wire.close_all(fds)
                    continue
                waiting[1].append((reply, fds))
                waiting[0].set()
        finally:
            self._gone = True
            for event, _ in self._waiting.values():
                event.set()


@asynccontextmanager
async def asking(sock: socket.socket) -> AsyncIterator[Asker]:
    """Ask over `sock` for the length of the body; the socket is closed with it."""
    sock.setblocking(False)
    asker = Asker(sock)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(asker.read_replies)
            yield asker
            tasks.cancel_scope.cancel()
    finally:
        sock.close()
