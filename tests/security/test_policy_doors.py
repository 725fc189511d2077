"""Who comes in by which door: a token is not the owner's uid, and a name at one door is nobody's at another. Real HTTP, a fake box."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from http_door import opened

from fumehood.admission import policy
from fumehood.policies.cedar import Source
from fumehood.policies.config import PolicyConfig
from fumehood.policies.policy import default, made

pytestmark = pytest.mark.anyio

NASTY = {"a": 3.0, "b": [1, {"c": "src/../x"}], "é": "e\u0301", "n": 2**53 - 1, "f": 0.1, "t": True, "z": None}
ONLY_ALICE = '@id("alice") permit (principal == Sender::"http:alice", action == Action::"call", resource);'
AS_OWNER = '@id("root") permit (principal == Sender::"root", action, resource);'


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_sender_with_a_token_is_denied_by_default_and_told_which_line_would_permit_it(era: str) -> None:
    async with opened(mode=era) as modern:
        door = modern if era == "modern" else await modern.older()
        door.spine.ports.policies.adopt(default())
        for answer in (await door.call("echo", arguments={"text": "a"}), await door.ask("tools/list", number=2)):
            said = str(answer.message)
            assert "sender_denied" in said, said
            assert "policy: {shipped: [owner, senders, taint]}" in said
        assert door.spine.pids == [], "a box was started for nobody"


async def test_a_policy_for_one_sender_lets_nobody_else_in_and_no_token_of_the_owners_name() -> None:
    async with opened() as door:
        door.spine.ports.policies.adopt(made(PolicyConfig(shipped=()), [Source(name="a.cedar", text=ONLY_ALICE + AS_OWNER)]))
        assert not (await door.call("echo", arguments={"text": "a"})).message["result"].get("isError")
        # The list that was read for alice is there for everybody; what it names is not.
        refused = (await door.of("b" * 40).call("echo", arguments={"text": "a"})).message["result"]
        assert refused["_meta"]["fumehood/outcome"]["reason"] == "policy_denied"


async def test_what_a_server_gets_is_what_the_policy_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Mapping[str, Any]] = []
    evaluate = policy.evaluate

    def noting(verified: Any, *rest: Any) -> Any:
        if verified.call.tool == "echo":
            judged.append(json.loads(json.dumps(verified.call.arguments)))
        return evaluate(verified, *rest)

    monkeypatch.setattr(policy, "evaluate", noting)
    async with opened() as door:
        result = (await door.call("echo", arguments=NASTY)).message["result"]
        assert json.loads(result["content"][0]["text"]) == judged[0] == NASTY
        # What two parsers read in two ways is no request at all.
        twice = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"a":1,"a":2},"_meta":{}}}'
        assert (await door.send(twice, mcp_method="tools/call", mcp_name="echo")).status == 400
    assert len(judged) == 1
