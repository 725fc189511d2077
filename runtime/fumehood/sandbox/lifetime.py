"""Holding a box: made on entry, removed on every way out, the removal shielded from cancellation and bounded in time."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

import anyio

from fumehood.faults import BoxFailed
from fumehood.lifecycle import Event
from fumehood.model import (
    Binding,
    CommitMode,
    Frame,
    Kind,
    Outcome,
    Plan,
    Result,
    Usage,
    WorkspaceMode,
)
from fumehood.ports import Exited, Made, Ports, Settled
from fumehood.reach import Supplies
from fumehood.reasons import Reason
from fumehood.residence import Surveyed, WayOut
from fumehood.sandbox.borrowing import Borrowed, borrowed
from fumehood.sandbox.log import Log
from fumehood.sandbox.remote import Remote, remote
from fumehood.turns import Need

REMOVE_DEADLINE_S = 20.0
_log = logging.getLogger("fumehood")


class Box:
    """The box of one call, as the stages use it."""

    def __init__(self, plan: Plan, made: Made, ports: Ports, log: Log) -> None:
        self._task = plan.call.task
        self._is_standby = plan.call.kind is Kind.STANDBY
        self._broker = ports.broker
        self._log = log
        self.engine = made.engine
        self.container = made.container
        self.way_out: WayOut | None = None
        self.standing: WayOut | None = None  # only a session's box has one before its call
        self._environment: Mapping[str, str] = {}
        self.readback: Mapping[str, Any] = {}

    async def bind(self, binding: Binding, supplies: Supplies) -> None:
        """Attach the call's own things."""
        self._environment = supplies.environment
        facts = await self._broker.bind(self._task, binding, supplies)
        await self._log.event(Event.BIND, **facts)

    async def start(self, argv: Sequence[str], env: Mapping[str, str], stdio: tuple[int, int, int]) -> None:
        """Start the tool, once the broker has read back that the kernel did as planned."""
        environment = {**env, **self._environment}
        self.readback = await self._broker.start(self._task, argv, environment, stdio, check_fence=self._is_standby)
        await self._log.event(Event.START, program=argv[0], readback=self.readback)

    async def wait(self) -> Exited:
        """Wait for the end of the tool and of everything it left running."""
        ended = await self._broker.wait(self._task)
        status = {"exit_code": ended.exit_code, "signal": ended.signal, "killed": ended.killed}
        await self._log.event(Event.EXIT, **status, usage=asdict(ended.usage))
        return ended

    async def kill(self, reason: Reason) -> None:
        """End the box's processes now."""
        await self._broker.kill(self._task, reason)

    async def freeze(self, seconds: float) -> Usage:
        """Stop everything in it, for at most so long; what was used since it went on."""
        return await self._broker.freeze(self._task, seconds)

    async def thaw(self) -> None:
        """Let it go on."""
        await self._broker.thaw(self._task)

    async def survey(self) -> Surveyed:
        """What is in it beside the tool's first process, while it stands still."""
        return await self._broker.survey(self._task)

    async def park(self, seconds: float) -> None:
        """Let the box stand still while somebody is asked something."""
        if self.way_out is not None:
            await self.way_out.suspend()  # a parked box holds no live lease
        await self.freeze(seconds)
        await self._log.event(Event.PARK)

    async def resume(self) -> None:
        """Go on with the answer."""
        if self.way_out is not None:
            await self.way_out.resume()
        await self.thaw()
        await self._log.event(Event.RESUME)

    async def put(self, source: int, path: str) -> None:
        """Copy a file into the workspace before the start."""
        await self._broker.put(self._task, source, path)

    async def get(self, path: str, target: int, most_bytes: int | None = None) -> None:
        """Copy a file out of the workspace after the end."""
        await self._broker.get(self._task, path, target, most_bytes)

    async def settle(self, action: str, protect: Sequence[str]) -> Settled:
        """Commit, hold or discard the workspace's changes."""
        settled = await self._broker.settle(self._task, action, protect)
        await self._log.event(Event.SETTLE, action=action, files=settled.files_total, pending=settled.pending)
        return settled


@asynccontextmanager
async def box(plan: Plan, ports: Ports, log: Log) -> AsyncIterator[Box | Borrowed | Remote]:
    """Hold a box for the body, and remove it however the body ends; or the session's box, and give it back; or none at all.

    A box of its own is waited for where none is free. Raises Refused(BUSY).
    """
    if plan.frame is None:
        async with remote(plan, log) as held:
            yield held
        return
    if plan.call.host is not None:
        async with borrowed(plan, ports, log) as lent:
            yield lent
        return
    async with ports.places.hold(plan.call.sender, _need(plan, plan.frame)) as place:
        if place.waited_s is not None:
            await log.event(Event.QUEUE, waited_s=round(place.waited_s, 4))
        async with _own(plan, plan.frame, ports, log) as made:
            yield made


def _need(plan: Plan, frame: Frame) -> Need:
    """What the box may take; its init is a process too."""
    profile = plan.call.profile
    return Need(
        memory_bytes=frame.memory_bytes, cpu=frame.cpu, pids=frame.pids + 1, profile=profile.name, most=profile.limits.boxes
    )


@asynccontextmanager
async def _own(plan: Plan, frame: Frame, ports: Ports, log: Log) -> AsyncIterator[Box]:
    task = plan.call.task
    try:
        made = await ports.broker.make(task, frame)
        await log.event(
            Event.MAKE, engine=made.engine, container=made.container, frame=frame.digest, image=frame.image, **made.facts
        )
        yield Box(plan, made, ports, log)
    finally:
        # Also when `make` itself was cancelled: the broker may be half way, and removes what it made.
        with anyio.move_on_after(REMOVE_DEADLINE_S, shield=True) as removing:
            try:
                facts = await ports.broker.remove(task)
            except BoxFailed as error:
                facts = {"clean": False, "error": error.detail}
            await log.event(Event.REMOVE, **facts)
        if removing.cancelled_caught:
            _log.error("%s: the box was not removed within %.0f s; the next start sweeps it", task, REMOVE_DEADLINE_S)


async def settle(box: Box | Borrowed | Remote, plan: Plan, outcome: Outcome) -> Outcome:
    """Let the changes of a call that succeeded land, wait, or vanish, as the profile says; those of any other vanish."""
    mode = plan.binding.workspace
    if not isinstance(box, Box) or mode not in {WorkspaceMode.RW, WorkspaceMode.SCRATCH}:
        return outcome  # a session's changes are settled when it ends, and a remote server has none
    filesystem = plan.call.profile.filesystem
    actions = {CommitMode.AUTO: "commit", CommitMode.ASK: "hold", CommitMode.NEVER: "discard"}
    landed = outcome.result is Result.OK and mode is WorkspaceMode.RW
    action = actions[filesystem.commit] if landed else "discard"
    settled = await box.settle(action, filesystem.protect)
    outcome = replace(outcome, files=settled.files, files_total=settled.files_total, pending=settled.pending)
    if settled.failed is not None and outcome.result is Result.OK:
        return replace(outcome, result=Result.FAILED, reason=settled.failed, detail=settled.detail)
    if settled.pending and not outcome.detail:
        return replace(outcome, detail=settled.detail or f"changes wait: fumehood diff {plan.call.task}")
    return outcome
