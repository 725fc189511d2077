"""The box of a call to a remote server: no container and no process, only what its gate leads to.

It has every step of a box, so that its record has every step of a call. Invariants: the broker is asked nothing; what the call
can reach is set by its gate alone, before `bind`; when the call is left, nothing of it is left here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from fumehood.faults import BoxFailed
from fumehood.lifecycle import Event
from fumehood.model import REMOTE, Binding, Plan, Usage
from fumehood.ports import Origin
from fumehood.reach import Supplies
from fumehood.reasons import Reason
from fumehood.residence import WayOut
from fumehood.sandbox.log import Log


class Remote:
    """The gate of one call to a remote server, as the stages use it."""

    engine = REMOTE
    standing: WayOut | None = None

    def __init__(self, host: str, log: Log) -> None:
        self.container = f"{REMOTE}:{host}"
        self.way_out: WayOut | None = None
        self._origin: Origin | None = None
        self._log = log

    @property
    def origin(self) -> Origin:
        """Where the gate leads."""
        if self._origin is None:
            raise BoxFailed(Reason.INTERNAL, "a remote server was called without a gate")
        return self._origin

    def lead_to(self, origin: Origin) -> None:
        """Be told by the gate where it leads."""
        self._origin = origin

    async def bind(self, binding: Binding, supplies: Supplies) -> None:
        """Nothing of the call's is attached to anything."""
        del supplies
        await self._log.event(Event.BIND, workspace=binding.workspace.value)

    async def enter(self) -> None:
        """The conversation begins."""
        await self._log.event(Event.START)

    async def leave(self) -> Usage:
        """The conversation is over. What it cost is the server's own affair."""
        await self._log.event(Event.EXIT)
        return Usage()

    async def park(self, seconds: float) -> None:
        """Let nothing more out while somebody is asked something, and revoke the leases."""
        del seconds  # whoever waits for the answer counts
        if self.way_out is not None:
            await self.way_out.suspend()
        await self._log.event(Event.PARK)

    async def resume(self) -> None:
        """Go on with the answer."""
        if self.way_out is not None:
            await self.way_out.resume()
        await self._log.event(Event.RESUME)

    async def kill(self, reason: Reason) -> None:
        """Nothing of ours runs there: the gate ends every connection when the call is left."""


@asynccontextmanager
async def remote(plan: Plan, log: Log) -> AsyncIterator[Remote]:
    """Hold the box of a call to a remote server for the body."""
    url = urlsplit(plan.call.profile.upstream or "")
    box = Remote(url.hostname or "", log)
    # Without its query: that may say what records should not.
    shown = url._replace(query="").geturl()
    await log.event(Event.MAKE, engine=box.engine, container=box.container, upstream=shown)
    try:
        yield box
    finally:
        await log.event(Event.REMOVE, clean=True)
