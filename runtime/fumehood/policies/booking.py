"""What the ledger books a call as when its record is opened: whose it is, what it holds, and what it takes of budgets at most."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase

from fumehood.model import CommitMode, ToolCall, WorkspaceMode, digest_of
from fumehood.policies.config import Budget, PolicyConfig
from fumehood.policies.known import TAINTS, Account, Charge, Seen, Unit
from fumehood.policies.labels import labels_of
from fumehood.policies.naming import Named, resource_of

_KEY_CHARS = 900
_SEES = {WorkspaceMode.RO, WorkspaceMode.RW, WorkspaceMode.DIRECT}


def account_of(call: ToolCall, config: PolicyConfig) -> Account:
    """The account of a call; an empty one for what a front door does with a server on its own."""
    named = resource_of(call)
    if named.type == "Server":
        return Account()
    labels = labels_of(call)
    return Account(
        kept_s=config.kept_s, tool=named.id, taints=tuple(label for label in TAINTS if label in labels), workspace=_seen(call),
        charges=tuple(charges(call, named, config.budgets)),
    )  # fmt: skip


def charges(call: ToolCall, named: Named, budgets: tuple[Budget, ...]) -> Iterator[Charge]:
    """What a call takes at most of each budget that is about it. Pure."""
    for budget in budgets:
        if not _fits(call, named, budget):
            continue
        who = [call.sender.tenant, call.sender.name, call.sender.uid] if "sender" in budget.each else []
        what = [named.id] if "tool" in budget.each else []
        yield Charge(
            budget=budget.name, key=_short(json.dumps([*who, *what])), unit=budget.unit, amount=_most(call, budget.unit),
            most=budget.most, per_s=budget.per_s, ask=budget.ask,
        )  # fmt: skip


def _short(key: str) -> str:
    """A key that fits the ledger: a resource's URI may be long, and two long ones must stay two."""
    return key if len(key) <= _KEY_CHARS else digest_of(key)


def _fits(call: ToolCall, named: Named, budget: Budget) -> bool:
    return (
        _any((call.sender.name,), budget.senders)
        and _any(call.sender.groups, budget.groups)
        and _any((named.id,), budget.tools)
    )


def _any(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _most(call: ToolCall, unit: Unit) -> float:
    profile = call.profile
    match unit:
        case Unit.CALLS:
            return 1.0
        case Unit.CPU:
            return profile.limits.cpu * profile.limits.wall_s
        case Unit.EGRESS:
            return float(profile.network.limits.bytes_out) if profile.network.rules else 0.0
        case _:
            costs = dict(profile.cost)
            return float(costs.get(call.named or "", costs.get("*", 0)))


def _seen(call: ToolCall) -> Seen | None:
    files = call.profile.filesystem
    if call.workspace_fd is None or files.workspace not in _SEES:
        return None
    found = os.fstat(call.workspace_fd)
    writes = files.workspace is WorkspaceMode.DIRECT or (files.workspace is WorkspaceMode.RW and files.commit is not CommitMode.NEVER)
    path = _path_of(call.workspace_fd) or os.path.normpath(call.workspace_path or "")
    return Seen(path=path if path.startswith("/") else "", device=found.st_dev, inode=found.st_ino, writes=writes)


def _path_of(directory: int) -> str | None:
    """Where a directory really is: the name that it was opened by may lead through a link, or around one."""
    try:
        return os.readlink(f"/proc/self/fd/{directory}")  # noqa: PTH115 - a Path for one string
    except OSError:
        return None
