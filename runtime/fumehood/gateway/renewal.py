"""Reads a server's lists again when it says that they have changed: soon, seldom, and in a box of their own.

A server says so in the course of a call, in words that a box wrote. So they are no more than a hint: nothing in them is looked
at, and what is pinned afterwards comes from a reading like the first. Invariants: however many hints there are, one reading
is under way or waited for, and `REST_S` lie between two; a reading that fails changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import anyio
import anyio.abc

from fumehood.gateway.events import ListKind
from fumehood.gateway.peer import Client

# Several lists change together, and a server tells of each.
SETTLE_S = 1.0
REST_S = 30.0


class Renewal:
    """The readings again of one server's lists."""

    def __init__(
        self, tasks: anyio.abc.TaskGroup, read: Callable[[Client], Awaitable[frozenset[ListKind]]], tell: Callable[[ListKind], None]
    ) -> None:
        """`read` reads and pins anew and says which lists are others now; `tell` is called with each."""
        self._tasks = tasks
        self._read = read
        self._tell = tell
        self._client: Client | None = None
        self._running = False
        self._rested_s = 0.0

    def hint(self, client: Client) -> None:
        """A server said in this client's call that a list of its has changed."""
        self._client = client
        if not self._running:
            self._running = True
            self._tasks.start_soon(self._run)

    async def _run(self) -> None:
        try:
            while self._client is not None:
                await anyio.sleep(max(SETTLE_S, self._rested_s - time.monotonic()))
                client, self._client = self._client, None
                try:
                    changed = await self._read(client)
                finally:
                    self._rested_s = time.monotonic() + REST_S
                for kind in sorted(changed):
                    self._tell(kind)
        finally:
            self._running = False
