"""Revoking what calls left behind: at the start of a runtime, then every minute, and once more at its end.

Any runtime of a state folder sweeps for all of them. A lease is swept when its record is closed: a runtime that died has its records
closed as lost by the next start's broker, which is usually later than our first look, hence the last one. A lease whose
provider is not configured here stays, and `fumehood leases` shows why.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio

from fumehood.credentials.revoking import revoke_claimed
from fumehood.faults import FumehoodError
from fumehood.ports import CredentialProvider, Ledger, OpenLease, Revoked

EVERY_S = 60.0
AT_END_S = 5.0
_log = logging.getLogger("fumehood")


async def sweep(ledger: Ledger, providers: Mapping[str, CredentialProvider]) -> tuple[int, int]:
    """Revoke every orphaned lease that can be claimed now; how many were closed, and how many stay. Raises FumehoodError."""
    closed = left = 0
    while claimed := await ledger.leases_claim(orphaned=True):
        endings: list[tuple[OpenLease, Revoked | str]] = []

        async def one(lease: OpenLease, told: list[tuple[OpenLease, Revoked | str]]) -> None:
            told.append((lease, await revoke_claimed(lease, providers, ledger)))

        async with anyio.create_task_group() as tasks:
            for each in claimed:
                tasks.start_soon(one, each, endings)
        for each, ending in endings:
            stays = isinstance(ending, str)
            closed, left = closed + (not stays), left + stays
            if stays:
                _log.warning("lease %s of task %s is not revoked: %s", each.lease, each.task, ending)
        if all(isinstance(ending, str) for _, ending in endings):
            break  # whatever it is, it will not be better at once
    return closed, left


@asynccontextmanager
async def sweeping(ledger: Ledger, providers: Mapping[str, CredentialProvider]) -> AsyncIterator[None]:
    """Sweep in the background for the length of the body, and once when it is left, for `AT_END_S` at most.

    A sweep that is under way then is waited for: what it has claimed no other can claim.
    """
    turn = anyio.Lock()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_every_minute, ledger, providers, turn)
        try:
            yield
        finally:
            with anyio.move_on_after(AT_END_S, shield=True):
                async with turn:
                    await _quietly(ledger, providers)
            tasks.cancel_scope.cancel()


async def _every_minute(ledger: Ledger, providers: Mapping[str, CredentialProvider], turn: anyio.Lock) -> None:
    while True:
        async with turn:
            await _quietly(ledger, providers)
        await anyio.sleep(EVERY_S)


async def _quietly(ledger: Ledger, providers: Mapping[str, CredentialProvider]) -> None:
    try:
        await sweep(ledger, providers)
    except* FumehoodError:
        pass  # a ledger that is gone is everybody else's news
