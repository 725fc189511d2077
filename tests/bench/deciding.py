"""What policy costs a call: one decision of a thousand rules, and of those that ship, with the call's own projection."""

from __future__ import annotations

import time
from dataclasses import replace

from fakes import call
from fumehood.admission import policy
from fumehood.model import Decision, Deny, Image, Kind, ToolCall, Verified
from fumehood.policies.cedar import Source
from fumehood.policies.config import PolicyConfig
from fumehood.policies.known import Booked, Conversation
from fumehood.policies.policy import Policy, default, made

RULES = 1000
_EACH = """
@id("permit-{number}")
permit (principal in Group::"g{number}", action in [Action::"call", Action::"call_with_approval"], resource in Server::"s{number}");
@id("forbid-{number}")
forbid (principal, action, resource == Tool::"s{number}/write")
when {{ context.path.hasTag("path") && context.path.getTag("path") like "/workspace/secret{number}/*" }};
"""


def thousand() -> Policy:
    """A thousand rules, half of them with a condition on arguments, beside those that ship."""
    text = "".join(_EACH.format(number=number) for number in range(RULES // 2))
    return made(PolicyConfig(), [Source(name="bench.cedar", text=text)])


def decisions(rounds: int, arguments: dict[str, object]) -> dict[str, list[float]]:
    """Milliseconds of one decision each, by set."""
    known = Booked(conversation=Conversation(done=frozenset({f"s{number}/read" for number in range(20)}), taint=frozenset({"private"})))
    found: dict[str, list[float]] = {}
    for name, by in (("what ships", default()), (f"{RULES} rules", thousand())):
        found[name] = [_decision(by, _verified(arguments, number), known) for number in range(rounds + 20)][20:]
    return found


def _verified(arguments: dict[str, object], number: int) -> Verified:
    one = call()
    wanted: ToolCall = replace(
        one, tool="write", kind=Kind.TOOL, server=f"s{number % RULES}", arguments={**arguments, "path": f"src/{number}.py"},
        profile=replace(one.profile, tools=None),
    )  # fmt: skip
    return Verified(call=wanted, image=Image(name="python", digest="sha256:" + "1" * 64, docker_id=None))


def _decision(by: Policy, verified: Verified, known: Booked) -> float:
    began = time.perf_counter()
    verdict = policy.evaluate(verified, by, known, owner_uid=0, now_s=1_000_000.0)
    took = time.perf_counter() - began
    assert not isinstance(verdict, Deny)
    assert verdict.decision is Decision.ALLOW
    return took * 1e3
