"""What policy and what was found in the arguments come to: the strictest wins."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from fumehood.admission import policy, screen
from fumehood.model import Deny, Screened, Verdict
from fumehood.policies.booking import account_of
from fumehood.policies.policy import Policy
from fumehood.ports import Opened, Ports


class Log(Protocol):
    """The part of a record's log that has what a call is decided by."""

    @property
    def policy(self) -> Policy:
        """The policies in force."""
        ...

    @property
    def opened(self) -> Opened:
        """What the ledger knew when the record was opened."""
        ...


async def judged_again(screened: Screened, log: Log, ports: Ports) -> Verdict | Deny:
    """What is decided of it by now, after it waited: by today's policies, and what its conversation holds today. Raises LedgerGone.

    Its budgets are those that it has taken already.
    """
    current = ports.policies.current
    account = account_of(screened.call, current.config)
    booked = log.opened.booked
    if account.tool is not None and (now := await ports.ledger.conversation(screened.call.task, account)) is not None:
        booked = replace(booked, conversation=now)
    return screen.weigh(policy.evaluate(screened, current, booked, ports.owner_uid, ports.clock.wall_s()))


def judged(screened: Screened, log: Log, ports: Ports) -> Verdict | Deny:
    """What is decided of a call."""
    return screen.weigh(policy.evaluate(screened, log.policy, log.opened.booked, ports.owner_uid, ports.clock.wall_s()))
