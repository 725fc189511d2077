"""Holding a box whose server runs already, a session's or one that stood by: thawed on the way in, frozen on every way out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

import anyio

from fumehood.faults import BoxFailed
from fumehood.lifecycle import Event
from fumehood.model import Binding, Plan, Usage
from fumehood.ports import Ports
from fumehood.reach import Supplies
from fumehood.reasons import Reason
from fumehood.residence import ServerStreams, Visitor, WayOut
from fumehood.sandbox.log import Log

FREEZE_DEADLINE_S = 5.0


class Borrowed:
    """The box of another task, as the stages of one call use it."""

    def __init__(self, visitor: Visitor, log: Log) -> None:
        self._visitor = visitor
        self._log = log
        self._inside = False
        self._began = False
        self.way_out: WayOut | None = None

    @property
    def standing(self) -> WayOut | None:
        """The gate that the box has had from its beginning, shut unless somebody visits."""
        return self._visitor.way_out

    @property
    def streams(self) -> ServerStreams:
        """The server's, which has been running since its box began."""
        return self._visitor.streams

    async def bind(self, binding: Binding, supplies: Supplies) -> None:
        """Nothing of the call's own is attached: the box has its workspace, and what its gate needs, already."""
        del supplies
        await self._log.event(Event.BIND, workspace=binding.workspace.value, visit=self._visitor.number)

    async def enter(self) -> None:
        """Let the server go on."""
        self._inside = True
        await self._visitor.thaw()
        await self._log.event(Event.START, visit=self._visitor.number, readback=self._visitor.readback)
        self._began = True

    async def leave(self) -> Usage:
        """Stop the server where it stands; what the call used. Idempotent."""
        if not self._inside:
            return Usage()
        self._inside = False
        try:
            usage = await self._visitor.freeze()
        except BoxFailed:
            usage = Usage()  # the server has ended, and with it whatever hosts it
        if self._began:  # not where the server had ended before it could go on
            await self._log.event(Event.EXIT, usage=asdict(usage))
        return usage

    async def park(self, seconds: float) -> None:
        """Let the box stand still while somebody is asked something."""
        if self.way_out is not None:
            await self.way_out.suspend()
        await self._visitor.freeze(seconds)
        await self._log.event(Event.PARK)

    async def resume(self) -> None:
        """Go on with the answer."""
        if self.way_out is not None:
            await self.way_out.resume()
        await self._visitor.thaw()
        await self._log.event(Event.RESUME)

    async def kill(self, reason: Reason) -> None:
        """End the box, and the task that hosts it."""
        await self._visitor.kill(reason)


@asynccontextmanager
async def borrowed(plan: Plan, ports: Ports, log: Log) -> AsyncIterator[Borrowed]:
    """Hold the box that the call is a guest in for the body, and leave it frozen however the body ends. Raises Refused."""
    assert plan.frame is not None  # noqa: S101 - a remote server has no sessions of ours
    async with ports.residences.of(plan.call).visit(plan) as visitor:
        await log.event(
            Event.MAKE, engine=visitor.engine, container=visitor.container, frame=plan.frame.digest, image=plan.frame.image,
            **({"session": plan.call.session} if plan.call.standby is None else {"standby": plan.call.standby}),
        )  # fmt: skip
        box = Borrowed(visitor, log)
        try:
            yield box
        finally:
            with anyio.move_on_after(FREEZE_DEADLINE_S, shield=True):
                await box.leave()
                await log.event(Event.REMOVE, given_back=True, clean=True)
