"""Has whoever must agree agreed? Nobody can be asked yet, so what would need an approval is refused."""

from __future__ import annotations

from fumehood.model import Decision, Deny, Grant, Verdict
from fumehood.reasons import Reason


def settle(verdict: Verdict) -> Grant | Deny:
    """A grant for what policy allows outright."""
    if verdict.decision is not Decision.ALLOW:
        return Deny(reason=Reason.APPROVAL_UNAVAILABLE, rule=verdict.rule)
    return Grant(verdict=verdict)
