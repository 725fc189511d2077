"""Revoking one lease, and what of a provider's words may be told."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from typing import TypeVar

import anyio

from fumehood.faults import FumehoodError, LedgerGone
from fumehood.ports import CredentialProvider, Ledger, OpenLease, Revoked
from fumehood.reasons import Reason

REVOKE_DEADLINE_S = 10.0
# Longer than any backend works on a request whose sender died.
SETTLED_S = 30.0
_TOLD_CHARS = 300
Answer = TypeVar("Answer")


async def checked(asked: Awaitable[Answer]) -> Answer:
    """The answer; whatever else than a FumehoodError is raised becomes one that tells its type alone.

    Attack: exceptions of libraries quote URLs, headers and statements, and would carry a secret into the record.
    """
    try:
        return await asked
    except FumehoodError:
        raise
    except Exception as error:  # noqa: BLE001 - see above
        raise FumehoodError(Reason.LEASE_FAILED, f"the provider raised {type(error).__name__}") from None


def said(error: FumehoodError) -> str:
    """A provider's words on one line."""
    words = error.detail or error.reason.meaning
    return "".join(letter if letter.isprintable() else " " for letter in words)[:_TOLD_CHARS]


async def revoke_claimed(one: OpenLease, providers: Mapping[str, CredentialProvider], ledger: Ledger) -> Revoked | str:
    """Revoke a lease that was claimed, and journal how that went. What closed it, or why it stays. Raises LedgerGone."""
    problem = one.problem or ""
    provider = providers.get(one.provider)
    revoked = None
    if provider is None:
        problem = f"no credential {one.provider!r} is configured now"
    elif one.handle.get("kind") != provider.kind:
        problem = f"the credential {one.provider!r} is now of the kind {provider.kind}"
    elif not problem:
        try:
            with anyio.fail_after(REVOKE_DEADLINE_S):
                revoked = await checked(provider.revoke(one.handle, one.sealed))
        except TimeoutError:
            problem = f"no answer within {REVOKE_DEADLINE_S:g} s"
        except LedgerGone:
            raise
        except FumehoodError as error:
            problem = said(error)
        except anyio.get_cancelled_exc_class():
            # The claim is given back: it would keep everybody else away until it lapses.
            with anyio.CancelScope(shield=True):
                await ledger.lease_closed(one.lease, None, "whoever asked ended before the answer")
            raise
    if revoked is not None and not one.issued and time.time() < one.opened_at_s + SETTLED_S:
        # Attack on ourselves: the backend still works on an issue whose sender died, after we found that there is nothing.
        revoked, problem = None, "nothing of it is there; it is looked for once more, because its issue may still be under way"
    with anyio.CancelScope(shield=True):
        await ledger.lease_closed(one.lease, revoked, problem or None)
    return revoked or problem
