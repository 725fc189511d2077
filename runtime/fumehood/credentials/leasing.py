"""The lifetime of one call's leases.

Invariants: what revokes a credential is on disk before it is issued (rule 19); every lease that was opened is revoked when the
body is left or the call is parked, shielded and in bounded time, and what the provider was asked and answered is in its record. What
could not be revoked stays open in the journal, for the sweep, and the outcome says until when it may live.

A provider's own exceptions are never passed on, only their codes and what was written for people: others' words may hold a secret.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import anyio

from fumehood.credentials.revoking import REVOKE_DEADLINE_S, checked, said
from fumehood.faults import FumehoodError, LedgerGone, Refused
from fumehood.model import Deny, Plan, ToolCall, task_id
from fumehood.ports import CredentialProvider, LeaseRequest, Leases, Ports, Revoked
from fumehood.reach import CredentialUse, Delivery, Secret, Supplies
from fumehood.reasons import Reason

ISSUE_DEADLINE_S = 15.0
# Past the wall: what ends a call takes a while, and a credential that dies in mid-call helps nobody.
MARGIN_S = 60.0
_PAUSES_S = (0.1, 0.3, 0.6, 1.0, 2.0)
_NOTE_DEADLINE_S = 2.0
_log = logging.getLogger("fumehood")
Answer = TypeVar("Answer")


class Remarks(Protocol):
    """The part of a record's log that leases write to."""

    def remark(self, text: str) -> None:
        """Have something said in the outcome's detail."""
        ...


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


@dataclass(slots=True)
class _Lease:
    """One lease that is in the journal and not yet closed there."""

    use: CredentialUse
    provider: CredentialProvider
    request: LeaseRequest
    handle: Mapping[str, Any]
    until_s: float
    sealed: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret: Secret | None = field(default=None, repr=False)
    revoked: Revoked | None = None
    error: str | None = None


class HeldLeases:
    """The leases of one call."""

    def __init__(self, plan: Plan, ports: Ports, log: Remarks) -> None:
        self._call: ToolCall = plan.call
        self._seconds = plan.binding.wall_s + MARGIN_S
        self._ports = ports
        self._log = log
        self._held: list[_Lease] = []
        self.supplies = Supplies()

    def secret(self, credential: str) -> Secret | None:
        """The live secret of a credential that the profile names so."""
        return next((each.secret for each in self._held if each.use.name == credential and each.secret is not None), None)

    async def begin(self) -> None:
        """Issue all of them. Raises Refused, LedgerGone; what was issued by then is still to be ended."""
        await self._issue(self._call.profile.credentials)
        issued = [(each.use, each.secret) for each in self._held if each.secret is not None]
        from fumehood.credentials.supplying import supplies_of

        self.supplies = supplies_of(issued)

    async def suspend(self) -> None:
        """Revoke all of them: the call is parked."""
        await self._revoke()

    async def renew(self) -> None:
        """Issue them anew, but for those that went into the box: it has the old ones. Raises Refused, LedgerGone."""
        await self._issue([use for use in self._call.profile.credentials if use.deliver is Delivery.GATE])

    async def end(self) -> None:
        """Revoke what is left, and say what lives on."""
        self.supplies = Supplies()
        await self._revoke()
        for each in self._held:
            until = datetime.fromtimestamp(each.until_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            told = f"credential {each.use.name}: unrevoked until {until}, lease {each.request.lease}"
            self._log.remark(told)
            _log.warning("task %s: %s: %s", self._call.task, told, each.error or "its issue was never answered")

    async def _issue(self, uses: Sequence[CredentialUse]) -> None:
        # All scopes are judged before any backend is asked.
        requests = [(use, *self._request(use)) for use in uses]
        problems: list[FumehoodError] = []

        async def one(use: CredentialUse, provider: CredentialProvider, request: LeaseRequest) -> None:
            try:
                await self._issue_one(use, provider, request)
            except FumehoodError as error:
                problems.append(error)

        async with anyio.create_task_group() as tasks:
            for request in requests:
                tasks.start_soon(one, *request)
        if problems:
            raise problems[0]

    def _request(self, use: CredentialUse) -> tuple[CredentialProvider, LeaseRequest]:
        rule = f"credentials.{use.name}"
        provider = self._ports.outward.providers.get(use.source)
        if provider is None:
            detail = f"no credential {use.source!r} is configured"
            remedy = "Add it to `credentials` in fumehood.yaml."
            raise Refused(Deny(reason=Reason.CONFIG_INVALID, rule=f"{rule}.source", detail=detail, remedy=remedy))
        from fumehood.credentials.scope import scope_of

        scope = scope_of(use.scope, self._call.arguments, provider.maximum, f"{rule}.scope")
        lease = task_id(int(self._ports.clock.wall_s() * 1000), os.urandom(10))
        request = LeaseRequest(
            lease=lease, task=self._call.task, credential=use.name, scope=scope, seconds=self._seconds
        )  # fmt: skip
        return provider, request

    async def _issue_one(self, use: CredentialUse, provider: CredentialProvider, request: LeaseRequest) -> None:
        rule = f"credentials.{use.name}"
        handle = {"kind": provider.kind, **await _bounded(lambda: provider.handle(request), rule)}
        # If the answer is lost nobody knows when the credential ends: at the latest then.
        until_s = self._ports.clock.wall_s() + ISSUE_DEADLINE_S + max(request.seconds, provider.least_s)
        await self._ports.ledger.lease_opened(request.lease, request.task, use.name, use.source, handle, until_s)
        lease = _Lease(use, provider, request, handle, until_s)
        self._held.append(lease)

        async def issue() -> None:
            issued = await provider.issue(request, handle)
            lease.sealed = issued.sealed
            lease.until_s = issued.expires_at_s if issued.expires_at_s is not None else until_s
            await self._ports.ledger.lease_issued(request.lease, issued.expires_at_s, issued.sealed, issued.facts)
            # Known before it can be used: nothing of it may come out unseen.
            self._ports.known.enter(request.lease, issued.secret, use.username)
            lease.secret = issued.secret  # usable from here on, and not before it is on disk how to revoke it

        await _bounded(issue, rule)

    async def _revoke(self) -> None:
        """Revoke what is held, in bounded time whatever is being cancelled; what remains in `_held` could not be."""
        for each in self._held:
            each.secret = None
            self._forget(each)  # as far as is known now: one that nobody can revoke is known until it expires
        if not self._held:
            return
        with anyio.move_on_after(REVOKE_DEADLINE_S, shield=True):
            async with anyio.create_task_group() as tasks:
                for each in self._held:
                    tasks.start_soon(self._revoke_one, each)
        with anyio.move_on_after(_NOTE_DEADLINE_S, shield=True):
            for each in self._held:
                if each.revoked is None and each.error is None:
                    each.error = f"no answer within {REVOKE_DEADLINE_S:g} s"
                    await self._note(each)
        self._held = [each for each in self._held if each.revoked is None or not _as_expected(each)]

    async def _revoke_one(self, lease: _Lease) -> None:
        for pause_s in (*_PAUSES_S, *([_PAUSES_S[-1]] * 16)):
            if lease.revoked is not None:
                return
            try:
                lease.revoked = await checked(lease.provider.revoke(lease.handle, lease.sealed))
            except FumehoodError as error:
                lease.error = said(error)
            await self._note(lease)
            self._forget(lease)
            if lease.revoked is None:
                await anyio.sleep(pause_s)

    def _forget(self, lease: _Lease) -> None:
        """It may be forgotten soon after it is gone; one that lives on, when that ends."""
        gone = lease.revoked is not None and lease.revoked.gone
        self._ports.known.leave(lease.request.lease, 0.0 if gone else lease.until_s - self._ports.clock.wall_s())

    async def _note(self, lease: _Lease) -> None:
        """Journal a try. Should the ledger be gone, the lease stays open there and the sweep asks again."""
        try:
            await self._ports.ledger.lease_closed(lease.request.lease, lease.revoked, None if lease.revoked else lease.error)
        except (LedgerGone, Refused) as error:
            _log.error("task %s: lease %s is not noted as revoked: %s", self._call.task, lease.request.lease, error.detail)


def _as_expected(lease: _Lease) -> bool:
    """Whether there is nothing to tell: it is gone, or of a kind that nobody can revoke, which its record says."""
    return lease.revoked is not None and (lease.revoked.gone or not lease.provider.revocable)


async def _bounded(ask: Callable[[], Awaitable[Answer]], rule: str) -> Answer:
    """What a provider answers. Raises Refused(LEASE_FAILED), LedgerGone.

    Shielded, so that a caller who cancels does not lose the answer that holds what revokes the credential.
    """
    with anyio.move_on_after(ISSUE_DEADLINE_S, shield=True):
        try:
            return await checked(ask())
        except (Refused, LedgerGone):
            raise
        except FumehoodError as error:
            raise Refused(Deny(reason=error.reason, rule=rule, detail=f"{rule}: {error.detail}", remedy=error.remedy)) from None
    raise Refused(Deny(reason=Reason.LEASE_FAILED, rule=rule, detail=f"{rule}: no answer within {ISSUE_DEADLINE_S:g} s"))


@asynccontextmanager
async def lease(plan: Plan, ports: Ports, log: Remarks) -> AsyncIterator[Leases]:
    """Hold the leases of a call for the body. Raises Refused, LedgerGone.

    A task that hosts has none: each call in it has its own, and they cannot be put into a box that runs already.
    """
    call = plan.call
    uses = call.profile.credentials
    if call.is_hosting or call.host is not None:
        for use in uses:
            if use.deliver is not Delivery.GATE:
                detail = f"credentials.{use.name}: a server that runs cannot be given a new {use.deliver.value} for each call"
                remedy = "Say `deliver: gate`, or have a server started for each call."
                rule = f"credentials.{use.name}.deliver"
                raise Refused(Deny(reason=Reason.UNENFORCEABLE, rule=rule, detail=detail, remedy=remedy))
    if not uses or call.is_hosting:
        yield NoLeases()
        return
    leases = HeldLeases(plan, ports, log)
    try:
        await leases.begin()
        yield leases
    finally:
        await leases.end()
