"""What is decided of a call, and once more when it waited: by what holds then."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

import fakes
from fumehood.admission import deciding
from fumehood.model import Decision, Deny, Image, Kind, Screened, ToolCall, Verdict
from fumehood.policies.booking import account_of
from fumehood.policies.cedar import Source
from fumehood.policies.config import PolicyConfig
from fumehood.policies.policy import Policies, Policy, made
from fumehood.ports import Opened, Ports

pytestmark = pytest.mark.anyio

ASKS = """
permit (principal, action, resource);
@id("asks")
forbid (principal, action == Action::"call", resource);
"""
TAINTED = ASKS + """
@id("tainted")
forbid (principal, action, resource) when { context.conversation.taint.contains("untrusted") };
"""


def of(text: str) -> Policy:
    return made(PolicyConfig(shipped=()), [Source(name="p.cedar", text=text)])


@dataclass
class Log:
    policy: Policy
    opened: Opened = field(default_factory=Opened)


def a_call(task: str, **profile: object) -> ToolCall:
    call = replace(fakes.call(), task=task, kind=Kind.TOOL, tool="push", server="git")
    return replace(call, profile=replace(call.profile, tools=None, **profile))


class World:
    """A ledger, policies that a reload can change, and a call that was opened under them."""

    def __init__(self, text: str) -> None:
        self.ports: Ports = replace(fakes.ports(), policies=Policies(of(text)))
        self.log = Log(self.ports.policies.current)

    async def opened(self, call: ToolCall) -> Screened:
        self.log.opened = await self.ports.ledger.open(call, account_of(call, self.log.policy.config))
        return Screened(call=call, image=Image(name="python", digest="sha256:" + "2" * 64, docker_id=None))


def rule(found: Verdict | Deny) -> str:
    return f"{'deny' if isinstance(found, Deny) else found.decision.value} {found.rule}"


async def test_what_waited_is_decided_by_todays_policies_and_conversation() -> None:
    world = World(TAINTED)
    screened = await world.opened(a_call("01hf7yat600000000000000001"))
    assert rule(deciding.judged(screened, world.log, world.ports)) == "ask policy.asks"
    assert rule(await deciding.judged_again(screened, world.log, world.ports)) == "ask policy.asks"

    # Another call of the same sender begins to read what a stranger wrote.
    other = a_call("01hf7yat600000000000000002", labels=(("*", ("untrusted",)),))
    await world.ports.ledger.open(other, account_of(other, world.log.policy.config))
    assert rule(deciding.judged(screened, world.log, world.ports)) == "ask policy.asks"
    assert rule(await deciding.judged_again(screened, world.log, world.ports)) == "deny policy.tainted"

    world.ports.policies.adopt(of("permit (principal, action, resource);"))
    again = await deciding.judged_again(screened, world.log, world.ports)
    assert isinstance(again, Verdict)
    assert again.decision is Decision.ALLOW


async def test_what_a_call_was_booked_with_itself_does_not_count_against_it() -> None:
    world = World(TAINTED)
    screened = await world.opened(a_call("01hf7yat600000000000000003", labels=(("*", ("untrusted",)),)))
    assert rule(await deciding.judged_again(screened, world.log, world.ports)) == "ask policy.asks"
