"""What a policy says about itself: its name, whose approval it needs, and why. Pure.

    @id("push") @approvers("alice,bob") @count("2") @why("it leaves the house")
    permit (principal, action == Action::"call_with_approval", resource == Tool::"git/push");

An annotation that is unknown or unreadable is refused when the file is: `@aprovers` would let anybody approve.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fumehood.permission import Need

NAMES = ("id", "why", "approvers", "count", "requester")
MOST_APPROVALS = 16
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_APPROVER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/-]{0,127}")
_WHY_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """The annotations of one policy, read."""

    id: str | None
    why: str | None
    need: Need


def read(annotations: Mapping[str, str | None]) -> Said:
    """The annotations as Cedar has them. Raises ValueError, whose text names what is wrong."""
    for name in annotations:
        if name not in NAMES:
            raise ValueError(f"expected annotations of {', '.join(NAMES)}, found @{name}")
    given = {name: value or "" for name, value in annotations.items()}
    if "id" in given and (not _ID.fullmatch(given["id"]) or given["id"].startswith("budgets.")):
        raise ValueError('expected @id("...") of letters, digits, `.`, `_` and `-`, which does not begin like a budget\'s')
    if "why" in given and not (given["why"].isprintable() and 0 < len(given["why"]) <= _WHY_CHARS):
        raise ValueError(f'expected @why("...") with a sentence of at most {_WHY_CHARS} characters')
    if given.get("requester", "allowed") != "allowed":
        raise ValueError('expected @requester("allowed"), or none')
    approvers = _approvers(given.get("approvers"))
    count = _count(given.get("count", "1"))
    if approvers is not None and count > len(approvers):
        raise ValueError(f"@count asks for {count} of {len(approvers)} approvers")
    return Said(
        id=given.get("id"), why=given.get("why"), need=Need(approvers=approvers, count=count, requester="requester" in given),
    )  # fmt: skip


def _approvers(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(_APPROVER.fullmatch(name) for name in names):
        raise ValueError('expected @approvers("NAME,NAME"), the names of approvers')
    return frozenset(names)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_APPROVALS:
        raise ValueError(f'expected @count("N"), N of 1 to {MOST_APPROVALS}')
    return int(text)
