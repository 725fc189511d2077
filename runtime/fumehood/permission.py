"""What permission takes beside a rule: who must agree, how many of them, and who has. Pure values; standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Whose approval a call needs. `approvers` are names of the configuration's; None means any of them.

    `count` of them must agree, each once. `requester`: the requester's own client may confirm it instead, which is recorded as that
    and no more (rule 23); else whoever asked for the call does not count among those who approve it.
    """

    approvers: frozenset[str] | None = None
    count: int = 1
    requester: bool = False

    def __and__(self, other: Need) -> Need:
        """What satisfies both: where several rules ask, the strictest wins in each part."""
        either = [each.approvers for each in (self, other) if each.approvers is not None]
        return Need(
            approvers=frozenset.intersection(*either) if either else None,
            count=max(self.count, other.count),
            requester=self.requester and other.requester,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One word for or against a call. `identity` is whose it is whatever they are called: `uid:N`, `key:THUMBPRINT`, `requester`.

    `how` it came: `terminal`, `command`, `signed`, or `requester-confirmed`, which is no approver's.
    """

    approver: str
    identity: str
    approves: bool
    how: str
    reason: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What was agreed to, and by whom. `binding` is the digest of everything that it is for; it is good for one call."""

    id: str
    binding: str
    votes: tuple[Vote, ...] = ()
