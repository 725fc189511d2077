"""May this sender call this tool? The shipped policy, pure: the owner of the state folder may call what a profile allows."""

from __future__ import annotations

from fumehood.model import Decision, Deny, Verdict, Verified
from fumehood.reasons import Reason


def evaluate(verified: Verified, owner_uid: int) -> Verdict | Deny:
    """ALLOW or a refusal. A call without a tool name is an ad-hoc command of the operator's, or a catalogue reading."""
    call = verified.call
    if call.sender.uid != owner_uid:
        return Deny(
            reason=Reason.SENDER_DENIED, rule="policy.owner", detail=f"uid {call.sender.uid} does not own the state folder"
        )
    allowed = call.profile.tools
    if call.tool is not None and allowed is not None and call.tool not in allowed:
        return Deny(
            reason=Reason.TOOL_NOT_ALLOWED, rule="profile.tools.allow",
            detail=f"the profile {call.profile.name} does not allow `{call.tool:.100}`",
        )  # fmt: skip
    return Verdict(verified=verified, decision=Decision.ALLOW, rule="policy.owner")
