"""What policy and what was found in the arguments come to: the strictest wins."""

from __future__ import annotations

from typing import Protocol

from fumehood.admission import policy, screen
from fumehood.model import Deny, Screened, Verdict
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


def judged(screened: Screened, log: Log, ports: Ports) -> Verdict | Deny:
    """What is decided of a call."""
    return screen.weigh(policy.evaluate(screened, log.policy, log.opened.booked, ports.owner_uid, ports.clock.wall_s()))
