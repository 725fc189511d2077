"""May this sender call this tool, now? Pure: the profile's own limits first, then the operator's policies (`policies/`).

Invariants: ALLOW < ASK < DENY, the strictest wins and emptiness denies; an error denies, whatever else was said; what a profile does
not name no policy permits.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from functools import reduce

from fumehood.model import Decision, Deny, Kind, Profile, Scope, Verdict, Verified
from fumehood.permission import Need
from fumehood.policies.asked import asked_of
from fumehood.policies.cedar import Rule
from fumehood.policies.deciding import Ruling, rule_on
from fumehood.policies.known import Booked, Spent
from fumehood.policies.naming import LOCAL, door_of, resource_of
from fumehood.policies.policy import Policy
from fumehood.reasons import Reason

WORKSPACE_FILES = "workspace:///"


def evaluate(verified: Verified, policy: Policy, booked: Booked, owner_uid: int, now_s: float) -> Verdict | Deny:
    """ALLOW, ASK or a refusal. A call without a tool name is an ad-hoc command of the operator's, or a catalogue reading."""
    call = verified.call
    if not permits(call.profile, call.kind, call.tool):
        kind = call.kind.value
        return Deny(
            reason=Reason.TOOL_NOT_ALLOWED if call.kind is Kind.TOOL else Reason.NOT_ALLOWED,
            rule=f"profile.{_FIELDS[call.kind]}",
            detail=f"the profile {call.profile.name} does not allow the {kind} `{call.tool or '':.100}`",
        )  # fmt: skip
    asked = asked_of(call, booked.conversation, owner_uid, now_s)
    ruling = rule_on(policy.rules, asked, booked.spent)
    match ruling.decision:
        case Decision.DENY:
            return _denied(verified, policy, ruling, booked.spent)
        case Decision.ALLOW:
            return Verdict(verified=verified, decision=Decision.ALLOW, rule=f"policy.{ruling.rules[0].id}", policy=policy.digest)
        case _:
            return _asked(verified, policy, ruling, booked.spent)


def _asked(verified: Verified, policy: Policy, ruling: Ruling, spent: Sequence[Spent]) -> Verdict:
    over = tuple(f"the budget {each.budget} is used up" for each in spent)
    return Verdict(
        verified=verified, decision=Decision.ASK, policy=policy.digest,
        rule=f"policy.budgets.{spent[0].budget}" if ruling.permitted and spent else f"policy.{ruling.rules[0].id}",
        why=(*(rule.why for rule in ruling.rules if rule.why is not None), *over),
        need=reduce(Need.__and__, (rule.need for rule in ruling.rules), Need(requester=not over)),
    )  # fmt: skip


def _denied(verified: Verified, policy: Policy, ruling: Ruling, spent: Sequence[Spent]) -> Deny:
    call = verified.call
    what = f"{call.sender.name} may not call {resource_of(call).id:.100}"
    if ruling.errors:
        return Deny(reason=Reason.POLICY_FAILED, rule="policy", detail=f"{what}: {ruling.errors[0]:.300}")
    if ruling.rules:
        against = ruling.rules[0]
        return Deny(reason=Reason.POLICY_DENIED, rule=f"policy.{against.id}", detail=f"{what}: {_told(against)}")
    if spent and ruling.permitted:
        over = next((each for each in spent if not each.ask), spent[0])
        free = "one call is more than all of it" if over.free_at_s is None else f"there is room again {_time(over.free_at_s)}"
        return Deny(
            reason=Reason.BUDGET_EXCEEDED, rule=f"policy.budgets.{over.budget}",
            detail=f"{what}: the budget {over.budget} is used up; {free}",
        )  # fmt: skip
    if not policy.is_shipped:
        named = resource_of(call)
        # Nobody thinks of it until the first call: a server's lists are read before anything of it is called.
        remedy = f'Permit `resource == Server::"{named.id}"` to who may call its tools.' if named.type == "Server" else None
        return Deny(reason=Reason.POLICY_DENIED, rule="policy", detail=f"{what}: no policy permits it", remedy=remedy)
    if door_of(call.sender) == LOCAL:
        return Deny(
            reason=Reason.SENDER_DENIED, rule="policy.owner", detail=f"uid {call.sender.uid} does not own the state folder",
        )  # fmt: skip
    return Deny(
        reason=Reason.SENDER_DENIED, rule="policy", detail=f"{what}: no policy permits senders but the owner anything",
        remedy="Add `policy: {shipped: [owner, senders, taint]}` to fumehood.yaml, so that all senders that it lists may call"
        " what profiles allow; or write policies, below `policy.files`.",
    )  # fmt: skip


def _time(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(math.ceil(at_s)))


def _told(rule: Rule) -> str:
    return rule.why or f"{rule.where} forbids it"


_FIELDS = {
    Kind.TOOL: "tools.allow",
    Kind.PROMPT: "prompts.allow",
    Kind.RESOURCE: "resources.allow",
    Kind.COMPLETION: "completion",
    Kind.COMMAND: "command",
    Kind.SESSION: "scope",
    Kind.STANDBY: "pool.started",
}


def permits(profile: Profile, kind: Kind, name: str | None) -> bool:
    """Whether the profile names this tool, prompt or resource, or allows completion. A command is the operator's own."""
    match kind:
        case Kind.COMMAND:
            return name is None
        case Kind.SESSION:
            return name is None and profile.scope is Scope.SESSION
        case Kind.STANDBY:
            return name is None and profile.pool.started > 0
        case Kind.COMPLETION:
            return profile.completion
        case Kind.RESOURCE:
            return name is not None and _resource_allowed(profile.resources, name)
        case _:
            allowed = profile.tools if kind is Kind.TOOL else profile.prompts
            return name is not None and (allowed is None or name in allowed)


def _resource_allowed(allowed: frozenset[str] | None, uri: str) -> bool:
    """An entry that ends in `*` allows what begins so; but `file:///workspace/../etc` only looks as if it did."""
    if uri.startswith(WORKSPACE_FILES):
        # Files of the workspace are none of the server's resources: whoever allows all of those has not named them.
        allowed = frozenset(entry for entry in allowed or () if entry.startswith(WORKSPACE_FILES))
    if allowed is None or uri in allowed:
        return True
    segments = re.split(r"[/\\]|%2f|%5c", uri.lower())
    if any(segment.replace("%2e", ".") in {".", ".."} for segment in segments):
        return False
    return any(entry.endswith("*") and uri.startswith(entry[:-1]) for entry in allowed)
