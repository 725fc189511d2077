"""The exceptions that end a call's path early. Each carries a code of `reasons.py`; anything else is a bug of ours."""

from __future__ import annotations

from fumehood.model import Deny, Repeat
from fumehood.reasons import Reason


class FumehoodError(Exception):
    """Something with a code, told to people in one line."""

    def __init__(self, reason: Reason, detail: str = "", *, remedy: str | None = None) -> None:
        """Carry a code, what exactly went wrong, and a remedy where the code's own is too general."""
        super().__init__(f"{reason.value}: {detail or reason.meaning}. {remedy or reason.remedy}")
        self.reason = reason
        self.detail = detail
        self.remedy = remedy


class Refused(FumehoodError):
    """Nothing ran, and nothing will. Raised where a `Deny` leaves the path."""

    def __init__(self, deny: Deny) -> None:
        """Carry the refusal."""
        super().__init__(deny.reason, deny.detail, remedy=deny.remedy)
        self.deny = deny


class Repeated(FumehoodError):
    """Nothing ran, because an earlier call had done it. Raised where a `Repeat` leaves the path."""

    def __init__(self, repeat: Repeat) -> None:
        """Carry how the earlier call ended."""
        self.earlier = repeat.earlier
        super().__init__(Reason.REPEATED, f"it ran as task {self.earlier.task}: {self.earlier.result.value}")


class BoxFailed(FumehoodError):
    """A box could not be made, bound or started, or it went away."""


class ExchangeFailed(FumehoodError):
    """The conversation with a server inside the box went wrong (died, garbage, too large, error).

    `value` is what the caller gets to see of it: the server's own error, as it came.
    """

    value: object = None


class LedgerGone(FumehoodError):
    """The ledger cannot make a record durable."""
