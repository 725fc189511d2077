"""May this sender call this tool? The shipped policy, pure: the owner of the state folder may call what a profile allows."""

from __future__ import annotations

import re

from fumehood.model import Decision, Deny, Kind, Profile, Scope, Screened, Verdict
from fumehood.reasons import Reason

WORKSPACE_FILES = "workspace:///"
# What decided: a result that was given under one policy is not given again under another (rule 24).
IDENTITY = "owner/1"


def evaluate(verified: Screened, owner_uid: int) -> Verdict | Deny:
    """ALLOW or a refusal. A call without a tool name is an ad-hoc command of the operator's, or a catalogue reading."""
    call = verified.call
    if call.sender.uid != owner_uid:
        return Deny(
            reason=Reason.SENDER_DENIED, rule="policy.owner", detail=f"uid {call.sender.uid} does not own the state folder"
        )
    if not permits(call.profile, call.kind, call.tool):
        kind = call.kind.value
        return Deny(
            reason=Reason.TOOL_NOT_ALLOWED if call.kind is Kind.TOOL else Reason.NOT_ALLOWED,
            rule=f"profile.{_FIELDS[call.kind]}",
            detail=f"the profile {call.profile.name} does not allow the {kind} `{call.tool or '':.100}`",
        )  # fmt: skip
    return Verdict(verified=verified, decision=Decision.ALLOW, rule="policy.owner")


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
