"""The lifetime of one call's gate: up before the tool's first instruction, shut before anything else of the call ends.

Runs on asyncio's event loop. A box's gate is a set of sockets inside the box's network that this process serves (`doors.py`); in a box
of a session it stands for as long as the session, with its routes shut, and each call opens it with its own leases, limits and log,
and shuts it before its reply. A call that is parked has it shut, too, and its leases revoked.

Whatever serves a gate is imported for the first call that has rules: most runs of a command have none, and each would wait for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from fumehood.faults import Refused
from fumehood.model import Deny, Plan
from fumehood.ports import Leases, Outward, Ports
from fumehood.reach import Supplies
from fumehood.reasons import Reason
from fumehood.residence import WayOut

if TYPE_CHECKING:
    from fumehood.egress.doors import Doors
    from fumehood.egress.limits import Budget
    from fumehood.egress.names import Names
    from fumehood.egress.task import GateTask

END_DEADLINE_S = 5.0


class Gate(WayOut, Protocol):
    """A call's way out. `suspend` also revokes the leases, `resume` renews them."""

    @property
    def supplies(self) -> Supplies:
        """What the box needs to use it, and what the leases put into the box."""
        ...


class GatedBox(Protocol):
    """The part of a box that its gate needs.

    `way_out` is set by `gate`, for whoever parks the box; `standing` is the gate of a session, in whose box the call is a guest.
    """

    way_out: WayOut | None

    @property
    def standing(self) -> WayOut | None:
        """None unless the box is a session's."""
        ...


class NoGate:
    """The gate of a box without a way out; its leases are delivered in files and variables, if there are any."""

    def __init__(self, leases: Leases) -> None:
        """Know the leases only."""
        self._leases = leases
        self.supplies = leases.supplies

    async def suspend(self) -> None:
        """Nothing is open; the leases are revoked."""
        await self._leases.suspend()

    async def resume(self) -> None:
        """Nothing is allowed; the leases are issued anew."""
        await self._leases.renew()


class StandingGate:
    """A session's, which lets nothing through by itself. `doors`, `names` and `holdings` are lent to each visiting call."""

    def __init__(self, supplies: Supplies, doors: Doors, names: Names, task: GateTask) -> None:
        """Stand, shut."""
        self.supplies = supplies
        self.doors = doors
        self.names = names
        self.box = task.box
        self.holdings = task.holdings

    async def suspend(self) -> None:
        """It is shut."""

    async def resume(self) -> None:
        """It stays shut: a call opens it, and not the session."""


class OpenGate:
    """A call's own, or a session's as a call has it."""

    def __init__(self, supplies: Supplies, doors: Doors, task: GateTask) -> None:
        """Be open from here on."""
        self.supplies = supplies
        self._doors = doors
        self._task = task
        doors.open(task)

    async def suspend(self) -> None:
        """Let nothing through, then revoke the leases."""
        await self._doors.shut()
        await self._task.leases.suspend()

    async def resume(self) -> None:
        """Renew the leases, then let through again."""
        await self._task.leases.renew()
        self._doors.open(self._task)


@asynccontextmanager
async def gate(plan: Plan, leases: Leases, box: GatedBox, ports: Ports) -> AsyncIterator[Gate]:
    """Hold the gate of a call's box for the body. Raises Refused, BoxFailed."""
    if plan.call.profile.upstream is not None:
        from fumehood.egress.remote import RemoteBox, remote_gate  # HTTP and TLS with it

        assert isinstance(box, RemoteBox)  # noqa: S101 - `sandbox.box` makes no other for it
        async with remote_gate(plan, leases, box, ports) as remote:
            yield remote
    elif not plan.call.profile.network.rules:
        box.way_out = NoGate(leases)
        yield box.way_out
    elif box.standing is not None:
        async with _visiting(plan, leases, box.standing, ports) as opened:
            box.way_out = opened
            yield opened
    else:
        async with _own(plan, leases, ports) as own:
            box.way_out = own
            yield own


@asynccontextmanager
async def _own(plan: Plan, leases: Leases, ports: Ports) -> AsyncIterator[OpenGate | StandingGate]:
    """A gate with doors of its own: open for a call, standing where calls are to come."""
    from fumehood.egress.doors import Doors  # dnspython with it
    from fumehood.egress.handlers import supplies_of
    from fumehood.egress.names import Names

    rules = plan.call.profile.network.rules
    names = Names(rules)
    task = _task(plan, leases, ports, names, plan.call.task, {})
    listens = names.listens()
    sockets = await ports.broker.network(plan.call.task, listens)
    doors = Doors(sockets, names, budget_of(ports.outward), task)
    async with _logged(task, doors.close):
        supplies = supplies_of((rule.kind for rule in rules), task, leases.supplies)
        if plan.call.is_hosting:
            yield StandingGate(supplies, doors, names, task)
        else:
            yield OpenGate(supplies, doors, task)


@asynccontextmanager
async def _visiting(plan: Plan, leases: Leases, standing: WayOut, ports: Ports) -> AsyncIterator[OpenGate]:
    """The session's gate, opened for one call."""
    if not isinstance(standing, StandingGate):
        raise Refused(Deny(reason=Reason.SESSION_ENDED, rule="profile.network", detail="the session's box has no gate"))
    task = _task(plan, leases, ports, standing.names, standing.box, standing.holdings)
    async with _logged(task, standing.doors.shut):
        yield OpenGate(leases.supplies, standing.doors, task)


@asynccontextmanager
async def _logged(task: GateTask, end: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Write the task's log during the body, and the rest of it once the gate has ended, however the body is left."""
    task.egress_log.keep_flushing()
    try:
        yield
    finally:
        with anyio.move_on_after(END_DEADLINE_S, shield=True):
            await end()
            task.count()
            await task.egress_log.finish()


def _task(plan: Plan, leases: Leases, ports: Ports, names: Names, box: str, holdings: dict[str, Any]) -> GateTask:
    from fumehood.egress.dial import dialer_of
    from fumehood.egress.limits import Meter
    from fumehood.egress.log import EgressLog
    from fumehood.egress.task import GateTask

    profile, image = plan.call.profile, plan.grant.verdict.verified.image
    return GateTask(
        task=plan.call.task, box=box, profile=profile, leases=leases, outward=ports.outward, names=names,
        dialer=dialer_of(ports.outward), meter=Meter(profile.network.limits), budget=budget_of(ports.outward),
        log=EgressLog(plan.call.task, ports.ledger, ports.clock), holdings=holdings,
        java_store=None if image is None else image.java_store, known=ports.known, tool=plan.call.named,
    )  # fmt: skip


def budget_of(outward: Outward) -> Budget:
    """The memory that all gates of a runtime share."""
    from fumehood.egress.limits import Budget

    found = outward.shared.get("budget")
    if not isinstance(found, Budget):
        found = outward.shared["budget"] = Budget(outward.memory_bytes)
    return found
