"""The lifetime of one call's gate: up before the tool's first instruction, shut before anything else of the call ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from fumehood.faults import Refused
from fumehood.model import Deny, Plan, Supplies
from fumehood.ports import Leases, Ports
from fumehood.reasons import Reason
from fumehood.residence import WayOut


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
    """The gate of a box without a way out."""

    def __init__(self, supplies: Supplies) -> None:
        self.supplies = supplies

    async def suspend(self) -> None:
        """Nothing is open."""

    async def resume(self) -> None:
        """Nothing is allowed."""


@asynccontextmanager
async def gate(plan: Plan, leases: Leases, box: GatedBox, ports: Ports) -> AsyncIterator[Gate]:
    """Hold the gate of a call's box for the body. Raises Refused, BoxFailed."""
    del box, ports
    if plan.call.profile.network.rules:
        raise Refused(Deny(reason=Reason.UNENFORCEABLE, rule="profile.network", detail="the gate is not there yet"))
    yield NoGate(leases.supplies)
