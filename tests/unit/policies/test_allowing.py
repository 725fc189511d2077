"""What would let through a call that policies refused: a permit that does, with what it would risk."""

from __future__ import annotations

from typing import Any

import pytest

from fumehood.denial import Asked, Denial
from fumehood.policies.allowing import policy_ways
from fumehood.reasons import Reason


def denial(reason: Reason, rule: str = "policy") -> Denial:
    asked = Asked(kind="tool", name="push", profile="p")
    return Denial(task="01t", result="refused", reason=reason, rule=rule, detail="", remedy="", asked=asked)


def record(sender: str = "http:ci", name: str = "git/push") -> dict[str, Any]:
    return {"sender": sender, "events": [{"facts": {}}, {"facts": {"asked": {"type": "Tool", "id": name}}}]}


def test_what_nobody_permits_comes_with_the_permit_and_what_it_would_risk() -> None:
    explain, permit = policy_ways(denial(Reason.POLICY_DENIED), record())
    assert explain.line == "fumehood policy explain --task 01t"
    assert permit.line == (
        'permit (principal == Sender::"http:ci", action == Action::"call_with_approval", resource == Tool::"git/push");'
    )
    assert "each time that an approver agrees" in permit.risk


def test_where_a_forbid_decided_no_permit_is_shown() -> None:
    (explain,) = policy_ways(denial(Reason.POLICY_DENIED, rule="policy.taint"), record())
    assert explain.where == "shell"


def test_a_sender_that_only_a_token_knows_is_told_both_ways() -> None:
    lines = [way.line for way in policy_ways(denial(Reason.SENDER_DENIED), record())]
    assert lines[-1] == "policy: {shipped: [owner, senders, taint]}"
    assert len(lines) == 3


@pytest.mark.parametrize("name", ['x"); permit (principal, action, resource); //', "a\nb", "\u202ex"])
def test_a_name_that_a_stranger_chose_adds_no_policy(name: str) -> None:
    import cedarpy

    _, permit = policy_ways(denial(Reason.POLICY_DENIED), record(sender=name, name=name))
    assert permit.line.isprintable()
    assert cedarpy.policies_to_json_str(permit.line).count('"effect"') == 1


@pytest.mark.parametrize("reason", list(Reason))
def test_what_policies_do_not_decide_has_no_way_of_theirs(reason: Reason) -> None:
    found = policy_ways(denial(reason), {"sender": "s", "events": []})
    assert bool(found) == (reason.value.startswith(("policy_", "approval", "budget_", "sender_denied")) and reason not in {
        Reason.APPROVAL_DENIED, Reason.APPROVAL_WITHDRAWN, Reason.APPROVAL_UNKNOWN, Reason.APPROVAL_CHANGED,
    })  # fmt: skip
