"""What the record's timeline has of each admission stage's decision. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fumehood.evidence.facts import text
from fumehood.lifecycle import Event
from fumehood.model import REMOTE, Fresh, Grant, Plan, Screened, Verdict, Verified
from fumehood.permission import Approval
from fumehood.policies.asked import asked_of, facts_of
from fumehood.policies.config import PolicyConfig
from fumehood.ports import Opened
from fumehood.screening.judging import facts

REASON_CHARS = 200


def noted(
    value: Verified | Verdict | Grant | Fresh | Plan, opened: Opened, config: PolicyConfig
) -> tuple[Event, dict[str, Any]] | None:
    """The step that a stage's value is, with its facts; None where that is no step of its own."""
    match value:
        case Screened():
            return None  # what was found is told with the decision
        case Verified():
            asked = facts_of(asked_of(value.call, opened.booked.conversation, 0, 0.0, config))
            image = value.image
            if image is None:
                return Event.VERIFY, {"image": None, "asked": asked}
            return Event.VERIFY, {"image": image.name, "image_digest": image.digest, "docker_id": image.docker_id, "asked": asked}
        case Verdict():
            found = facts(value.verified.findings) if isinstance(value.verified, Screened) else []
            secrets = {"secrets": found} if found else {}
            return Event.DECIDE, {"decision": value.decision.value, "rule": value.rule, "policy": value.policy, **secrets}
        case Grant(approval=None):
            return Event.GRANT, {}
        case Grant(approval=Approval() as agreed):
            # The verdict of the moment that it was spent in: what is decided again may be decided by another rule.
            return Event.GRANT, {"rule": value.verdict.rule, "approval": _agreed(agreed)}
        case Plan():
            return Event.PLAN, _plan_facts(value)
        case _:
            return None


def _agreed(approval: Approval) -> dict[str, Any]:
    """An approval as facts, which must fit however many had how much to say: the ledger has their words whole."""
    votes = [{**asdict(vote), "reason": text(vote.reason, REASON_CHARS)} for vote in approval.votes]
    return {"id": approval.id, "binding": approval.binding, "votes": votes}


def _plan_facts(plan: Plan) -> dict[str, Any]:
    frame, binding = plan.frame, plan.binding
    if frame is None:
        return {"engine": REMOTE, "wall_s": binding.wall_s}
    return {
        "engine": frame.engine,
        "runtime": frame.runtime,
        "cpu": frame.cpu,
        "memory_bytes": frame.memory_bytes,
        "pids": frame.pids,
        "wall_s": binding.wall_s,
        "disk_bytes": None if binding.disk_unlimited else binding.disk_bytes,
        "seccomp": frame.seccomp.name,
        "user_namespace": frame.user_namespace.value,
        "accept_risk": list(frame.accept_risk),
        "workspace": binding.workspace.value,
        "workspace_path": binding.workspace_path,
    }
