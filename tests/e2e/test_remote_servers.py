"""Remote MCP servers behind the gateway: the SDK's own, over HTTPS, in both eras; every call with a record and a gate of its own."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from front_client import Told, client
from remote_world import STREAM, Asked, Tokens, event, everything, older_server, scripted, text, world
from remote_world import answer as http_answer

from fumehood.gateway.protocol import GatewayError
from fumehood.lifecycle import State
from fumehood.model import Ask, Result
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio
ERAS = pytest.mark.parametrize("older", [False, True], ids=["2026-07-28", "2025-11-25"])


@ERAS
async def test_a_call_is_recorded_and_leaves_nothing_open(older: bool) -> None:
    seen: list[Asked] = []
    async with everything(older=older, seen=seen) as url, world(url) as open_:
        listed = await open_.ask("tools/list")
        assert "test_simple_text" in [tool["name"] for tool in listed["tools"]]
        done = await open_.call("test_simple_text")
        assert done["content"][0]["type"] == "text"
        task = open_.last.task
        assert open_.last.result is Result.OK
        assert open_.last.engine == "remote"
        assert open_.last.container == "remote:localhost"
        states = [state for name, state, _ in open_.spine.ledger.events if name == task]
        assert states == [
            State.VERIFIED, State.DECIDED, State.GRANTED, State.PLANNED, State.MADE, State.BOUND, State.RUNNING, State.EXITED,
            State.REMOVED,
        ]  # fmt: skip
        requests = [entry.facts for entry in open_.spine.ledger.egress_log[task] if entry.kind == "request"]
        if older:
            assert [each["method"] for each in requests] == ["POST", "POST", "POST", "DELETE"]
            assert seen[-1].method == "DELETE"
        else:
            assert [each["method"] for each in requests] == ["POST"]
            assert seen[-1].headers["mcp-method"] == "tools/call"
            assert seen[-1].headers["mcp-name"] == "test_simple_text"


@ERAS
async def test_everything_of_the_protocol_passes(older: bool) -> None:
    async with everything(older=older) as url, world(url, prompts=None, resources=None, completion=True) as open_:
        assert (await open_.ask("prompts/get", name="test_simple_prompt"))["messages"]
        assert (await open_.ask("resources/read", uri="test://static-text"))["contents"]
        ref = {"type": "ref/prompt", "name": "test_prompt_with_arguments"}
        said = await open_.ask("completion/complete", ref=ref, argument={"name": "arg1", "value": "par"})
        assert said["completion"]["values"] == ["paris", "park", "party"]
        assert (await open_.call("test_image_content"))["content"][0]["type"] == "image"
        assert (await open_.call("test_error_handling"))["isError"] is True
        channel = Told()
        await open_.ask("tools/call", channel=channel, name="test_tool_with_progress", arguments={}, _meta={"progressToken": 7})
        assert [note["progress"] for name, note in channel.notes if name == "notifications/progress"] == [0, 50, 100]


async def test_arguments_that_stand_in_the_head_agree_with_the_body_whatever_they_hold() -> None:
    seen: list[Asked] = []
    async with everything(seen=seen) as url, world(url) as open_:
        for region in ("eu-west-1", "a\r\nX-Forged: 1", "é\0"):
            assert await open_.told("test_header_parameter", region=region) == "the header agreed with the body"
            assert "x-forged" not in seen[-1].headers
        assert seen[-2].headers["mcp-param-region"].startswith("=?base64?")


@ERAS
@pytest.mark.parametrize("asking", ["modern", "legacy"])
async def test_a_question_in_mid_call_reaches_the_client_and_its_answer_the_server(older: bool, asking: str) -> None:
    handshake = older or asking == "legacy"  # a server of both eras is spoken to in its client's
    tool = "test_elicitation" if handshake else "test_streaming_elicitation"
    answer = {"action": "accept", "content": {"name": "Ada", "username": "ada", "email": "ada@example.org"}}
    mine = client(asking, elicitation={})
    async with everything(older=older) as url, world(url, ask=Ask(elicitation=True)) as open_:
        channel = Told(answers={"elicitation/create": answer})
        arguments = {"message": "Who?"} if handshake else {}
        done = await open_.call(tool, mine, channel, **arguments)
        if asking == "modern":
            (name,) = done["inputRequests"]
            more = {"requestState": done["requestState"], "inputResponses": {name: answer}}
            done = await open_.ask("tools/call", mine, channel, name=tool, arguments=arguments, **more)
        assert "ada" in done["content"][0]["text"].lower()
        states = [state for name, state, _ in open_.spine.ledger.events if name == open_.last.task]
        assert states[6:9] == [State.RUNNING, State.PARKED, State.RUNNING]


async def test_a_question_that_the_profile_does_not_allow_is_put_to_nobody() -> None:
    async with everything(older=True) as url, world(url) as open_:
        channel = Told(answers={"elicitation/create": {"action": "accept", "content": {}}})
        with pytest.raises(GatewayError, match="does not allow elicitation"):
            await open_.call("test_elicitation", client("legacy", elicitation={}), channel, message="Who?")
        assert channel.asked == []


async def test_an_answer_that_breaks_off_goes_on_where_the_server_keeps_it() -> None:
    seen: list[Asked] = []
    async with everything(older=True, seen=seen) as url, world(url) as open_:
        assert await open_.told("test_reconnection") == "Reconnection test completed"
        assert [each.headers.get("last-event-id") is not None for each in seen if each.method == "GET"] == [True]


@ERAS
async def test_a_call_over_its_wall_is_given_up_and_its_server_told(older: bool) -> None:
    seen: list[Asked] = []
    async with everything(older=older, seen=seen) as url, world(url, wall_s=1.0) as open_:
        await open_.ask("tools/list")
        done = await open_.call("slow_compute", seconds=30)
        assert (open_.last.result, open_.last.reason) == (Result.KILLED, Reason.WALL)
        assert done["isError"] is True
        if older:
            assert [each.method for each in seen[-3:]] == ["POST", "POST", "DELETE"], "the call, that it is given up, the session"


async def test_a_cancelled_call_closes_its_record_and_its_session() -> None:
    seen: list[Asked] = []
    async with everything(older=True, seen=seen) as url, world(url) as open_:
        await open_.ask("tools/list")
        with anyio.move_on_after(0.5):
            await open_.call("slow_compute", seconds=30)
        (task,) = [task for task, call in open_.spine.ledger.calls.items() if call.tool == "slow_compute"]
        assert open_.spine.ledger.closed[task].reason is Reason.CANCELLED
        assert seen[-1].method == "DELETE"


@pytest.mark.parametrize("may", [True, False])
async def test_an_older_server_may_ask_outside_its_answer_where_the_profile_lets_it_ask(may: bool) -> None:
    listening: list[asyncio.StreamWriter] = []
    answered: asyncio.Queue[Asked] = asyncio.Queue()

    async def on_call(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        await writer.drain()
        if not listening:
            writer.write(event({"id": asked.message["id"], "result": text("nobody listens")}))
            return
        params = {"message": "Who?", "requestedSchema": {"type": "object", "properties": {}}}
        listening[0].write(event({"id": 1, "method": "elicitation/create", "params": params}))
        reply = (await answered.get()).message
        writer.write(event({"id": asked.message["id"], "result": text(reply["result"]["content"]["name"])}))

    async def say(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.method == "GET":
            writer.write(STREAM)
            await writer.drain()
            listening.append(writer)
            await asyncio.sleep(60)
        elif asked.method == "POST" and "method" not in asked.message:
            writer.write(http_answer(b"", "202 Accepted"))
            answered.put_nowait(asked)
        else:
            await older_server(on_call)(asked, writer)

    channel = Told(answers={"elicitation/create": {"action": "accept", "content": {"name": "Ada"}}})
    async with scripted(say) as far, world(far.url, ask=Ask(elicitation=may)) as open_:
        done = await open_.call("t", client("legacy", elicitation={}), channel)
        assert done["content"][0]["text"] == ("Ada" if may else "nobody listens")
        assert len(channel.asked) == may


# Credentials


def bearer(asked: Asked) -> str:
    return asked.headers.get("authorization", "").removeprefix("Bearer ")


@ERAS
async def test_each_call_has_a_token_of_its_own_for_the_resource_that_dies_with_it(older: bool) -> None:
    seen: list[Asked] = []
    tokens = Tokens()
    async with everything(older=older, seen=seen) as url, world(url, tokens=tokens, resource="https://far.example/mcp") as open_:
        for _ in range(2):
            await open_.call("test_simple_text")
        assert open_.last.result is Result.OK
        assert [request.scope for request in tokens.asked] == [{"resource": "https://far.example/mcp"}] * 3
        sent = list(dict.fromkeys(map(bearer, seen)))
        assert sent == tokens.revoked, "the list and each call with its own, in turn"
        assert tokens.live == {}
        kept = repr(open_.spine.ledger.events) + repr(open_.spine.ledger.egress_log) + repr(open_.spine.outcomes)
        assert not any(token in kept for token in sent)


@pytest.mark.parametrize("older", [False, True], ids=["2026-07-28", "2025-11-25"])
async def test_a_call_that_waits_for_an_answer_holds_no_lease(older: bool) -> None:
    seen: list[Asked] = []
    tokens = Tokens()
    answer = {"action": "accept", "content": {"name": "Ada", "username": "ada", "email": "ada@example.org"}}
    tool, arguments = ("test_elicitation", {"message": "Who?"}) if older else ("test_streaming_elicitation", {})
    mine = client(elicitation={})
    async with everything(older=older, seen=seen) as url, world(url, tokens=tokens, ask=Ask(elicitation=True)) as open_:
        await open_.ask("tools/list", mine)
        first = await open_.call(tool, mine, **arguments)
        (name,) = first["inputRequests"]
        assert tokens.live == {}, "while somebody is asked"
        more = {"requestState": first["requestState"], "inputResponses": {name: answer}}
        done = await open_.ask("tools/call", mine, name=tool, arguments=arguments, **more)
        assert "ada" in done["content"][0]["text"].lower()
        assert len(tokens.asked) == 3, "the list, the call, and the call again"
        assert bearer(seen[-1]) == tokens.revoked[-1]
        assert tokens.live == {}
