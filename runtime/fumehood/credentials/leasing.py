"""The lifetime of one call's leases.

Invariants: what revokes a credential is on disk before it is issued (rule 19); every lease that was opened is revoked when the
body is left, shielded and in bounded time, and what the provider was asked and answered is in its record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fumehood.faults import Refused
from fumehood.model import Deny, Plan, Secret, Supplies
from fumehood.ports import Leases, Ports
from fumehood.reasons import Reason


class NoLeases:
    """The leases of a call whose profile uses no credential."""

    supplies = Supplies()

    def secret(self, credential: str) -> Secret | None:
        """None."""
        del credential
        return None

    async def suspend(self) -> None:
        """Nothing to revoke."""

    async def renew(self) -> None:
        """Nothing to issue."""


@asynccontextmanager
async def lease(plan: Plan, ports: Ports) -> AsyncIterator[Leases]:
    """Hold the leases of a call for the body. Raises Refused."""
    del ports
    if plan.call.profile.credentials:
        raise Refused(Deny(reason=Reason.UNENFORCEABLE, rule="profile.credentials", detail="leases are not there yet"))
    yield NoLeases()
