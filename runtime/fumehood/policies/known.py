"""What policies can know of a call beside the call: values that the ledger fills in, in the transaction that opens its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

UNTRUSTED = "untrusted"
PRIVATE = "private"
EXTERNAL = "external"
TAINTS = (UNTRUSTED, PRIVATE)


class Unit(StrEnum):
    """What a budget counts: calls, CPU seconds, bytes that leave, and units of the profile's own."""

    CALLS = "calls"
    CPU = "cpu"
    EGRESS = "egress"
    COST = "cost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What one call takes of one budget at most. `key` is whom the budget is counted for, `ask` what follows when it is spent."""

    budget: str
    key: str
    unit: Unit
    amount: float
    most: float
    per_s: float
    ask: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """A budget that a call would exceed, and when there is room for it again (epoch); None when one call is more than all of it."""

    budget: str
    ask: bool
    free_at_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The workspace that a call sees: two are one that lie in each other, or are one directory by its number."""

    path: str
    device: int
    inode: int
    writes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the ledger books a call as, when its record is opened. `tool` is what ends well or not; None: nothing is booked."""

    kept_s: float = 24 * 3600.0
    tool: str | None = None
    taints: tuple[str, ...] = ()
    workspace: Seen | None = None
    charges: tuple[Charge, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Everything one sender did of late, over any connection (a new one launders nothing), and what it holds by now.

    `done` are the tools (`server/name`) that ended well, `since` those that did after the one that is called last did. `taint` is of
    `UNTRUSTED` and `PRIVATE`: this conversation's, and that of the workspace that the call sees.
    """

    done: frozenset[str] = frozenset()
    since: frozenset[str] = frozenset()
    taint: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """What the ledger answers to an account: what there was before the call, and which budgets it would exceed."""

    conversation: Conversation = Conversation()
    spent: tuple[Spent, ...] = ()

    @staticmethod
    def of(said: Mapping[str, Any]) -> Booked:
        """As the ledger writes it."""
        conversation = Conversation(**{name: frozenset(said[name]) for name in ("done", "since", "taint")})
        return Booked(conversation=conversation, spent=tuple(Spent(**each) for each in said["spent"]))
