"""What transports hand to the gateway and back: every method in every era, raw results, questions, events, endings."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from fake_front import METHODS, FakeFront
from http_door import ALICE, LEGACY, opened, until
from local_gateway import SENDER
from local_runner import FakeSpine
from raw_client import ENVELOPE, RawClient

from fakes import FakeLedger
from fumehood.gateway import adapter
from fumehood.gateway.events import Event
from fumehood.gateway.proofs import Proofs
from signed import Signer, challenge_of, proofs

pytestmark = pytest.mark.anyio
PARAMS: dict[str, dict[str, Any]] = {
    "tools/call": {"name": "t", "arguments": {}},
    "prompts/get": {"name": "p"},
    "resources/read": {"uri": "file:///a"},
    "resources/subscribe": {"uri": "file:///a"},
    "resources/unsubscribe": {"uri": "file:///a"},
    "completion/complete": {"ref": {"type": "ref/prompt", "name": "p"}, "argument": {"name": "a", "value": "b"}},
    "logging/setLevel": {"level": "info"},
    "tasks/get": {"taskId": "1"},
    "tasks/update": {"taskId": "1", "inputResponses": {}},
    "tasks/cancel": {"taskId": "1"},
}
OLDER_ONLY = {"resources/subscribe", "resources/unsubscribe", "logging/setLevel"}
ROUTED = {"prompts/get": "p", "resources/read": "file:///a", "tools/call": "t"}


@asynccontextmanager
async def on_stdio(front: FakeFront, *, older: bool, proving: Proofs | None = None) -> AsyncIterator[RawClient]:
    source, to_gateway = os.pipe()
    from_gateway, sink = os.pipe()
    client = RawClient(FakeSpine(), to_gateway, from_gateway)

    async def serve() -> None:
        await adapter.serve(front, source, sink, SENDER, proving or proofs())
        os.close(sink)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        if older:
            await client.send(id=0, method="initialize", params={**LEGACY, "capabilities": {"elicitation": {}, "x": None}})
            assert (await client.answer(0))["result"]["capabilities"] == {"tools": {"listChanged": True}, "x-era": "2025-11-25"}
            await client.send(method="notifications/initialized")
        yield client
        client.hang_up()
    client.close()
    os.close(source)


async def test_every_method_reaches_the_gateway_in_its_era_on_stdio() -> None:
    for older in (False, True):
        front = FakeFront()
        async with on_stdio(front, older=older) as client:
            for number, method in enumerate(sorted(METHODS - {"tools/call"}), 1):
                params = PARAMS.get(method, {})
                if older:
                    await client.send(id=number, method=method, params=params)
                    answer = await client.answer(number)
                else:
                    answer = await client.request(number, method, **params)
                if not older and method in OLDER_ONLY:
                    assert answer["error"]["code"] == -32601, method
                else:
                    assert answer["result"]["x-params"] == params, answer
        assert {asked.sender for _, asked in front.asked} == {SENDER}
        assert len({asked.connection for _, asked in front.asked}) == 1
        name = front.asked[0][1].connection
        assert name is not None
        assert len(name) == 32
        assert front.over == [name], "told once that it is over"
        assert front.asked[0][1].capabilities == ({"elicitation": {}, "x": None} if older else {}), "as declared"


async def test_every_method_reaches_the_gateway_in_its_era_on_http() -> None:
    for older in (False, True):
        front = FakeFront()
        async with opened(behind=front) as door:
            each = await door.older() if older else door
            for method in sorted(METHODS - {"tools/call"}):
                params = PARAMS.get(method, {})
                answer = await each.ask(method, params, mcp_name=ROUTED.get(method))
                if not older and method in OLDER_ONLY:
                    assert (answer.status, answer.message["error"]["code"]) == (404, -32601), method
                else:
                    assert answer.message["result"]["x-params"] == params, answer
            if older:
                assert front.over == []
                await each.send(b"", "DELETE")
                await until(lambda front=front: bool(front.over))  # type: ignore[misc] # bound in the loop
        assert {asked.sender for _, asked in front.asked} == {ALICE}
        name = each.extra["mcp-session-id"] if older else None
        assert {asked.connection for _, asked in front.asked} == {name}
        assert front.over == ([name] if older else [])


async def test_discover_tells_the_gateways_capabilities() -> None:
    front = FakeFront()
    async with opened(behind=front) as door:
        told = (await door.ask("server/discover")).message["result"]
        assert told["capabilities"] == {"tools": {"listChanged": True}, "x-era": "2026-07-28"}
        assert told["supportedVersions"] == ["2026-07-28"]


async def test_results_and_notifications_pass_raw_on_http() -> None:
    async with opened(behind=FakeFront()) as door:
        for each in (door, await door.older()):
            note, result = (await each.call("t")).messages
            assert note["params"] == {"level": "info", "data": {"x": [None]}}
            assert result["result"]["content"] == [{"type": "text", "text": "", "x-unknown": None}]


async def test_an_older_client_on_stdio_is_asked_and_strangers_cannot_answer_for_it() -> None:
    front = FakeFront()
    async with on_stdio(front, older=True) as client:
        await client.send(id=1, method="tools/call", params={"name": "ask", "arguments": {}})
        question = await client.read()
        assert question["method"] == "elicitation/create"
        assert len(question["id"]) > 32, "it cannot be guessed"
        for guess in (0, 1, 2, "1", question["id"][:-1], question["id"].upper()):
            await client.send(id=guess, result={"action": "accept", "forged": True})
        await client.send(id=question["id"], result={"action": "accept", "content": {"x": None}})
        await client.send(id=question["id"], result={"action": "decline"})
        assert (await client.answer(1))["result"]["x-said"] == {"action": "accept", "content": {"x": None}}


async def test_an_older_client_on_http_is_asked_in_its_own_session() -> None:
    async with opened(behind=FakeFront()) as door:
        mine, other = await door.older(), await door.older()
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "ask", "arguments": {}}}
        data = json.dumps(body).encode()
        async with await mine.connect() as stream:
            await stream.send(mine.head(content_length=str(len(data))) + data)
            got = b""
            with anyio.fail_after(10):
                while b"elicitation/create" not in got or not got.endswith(b"\r\n\r\n"):
                    got += await stream.receive()
            question = json.loads(got.partition(b"data: ")[2].splitlines()[0])
            answer = {"jsonrpc": "2.0", "id": question["id"], "result": {"action": "cancel", "forged": True}}
            assert (await other.send(json.dumps(answer).encode())).status == 202
            assert (await mine.of("b" * 40).send(json.dumps(answer).encode())).status == 404
            answer["result"] = {"action": "accept"}
            assert (await mine.send(json.dumps(answer).encode())).status == 202
            with anyio.fail_after(10):
                while b"x-said" not in got:
                    got += await stream.receive()
            assert b"forged" not in got


@pytest.mark.parametrize(
    ("header", "argument", "status"), [("eu", "eu", 200), ("us", "eu", 400), (None, "eu", 400), ("eu", None, 400), (None, None, 200)]
)
async def test_a_header_that_says_otherwise_than_an_argument(header: str | None, argument: str | None, status: int) -> None:
    front = FakeFront()
    async with opened(behind=front) as door:
        arguments = {} if argument is None else {"region": argument}
        answer = await door.call("regional", arguments=arguments, mcp_param_region=header)
        assert answer.status == status
        assert ("tools/call" in [method for method, _ in front.asked]) == (status == 200)
        if status == 400:
            assert answer.message["error"]["code"] == -32020


async def test_a_modern_client_is_never_asked() -> None:
    front = FakeFront()
    async with on_stdio(front, older=False) as client:
        assert (await client.request(1, "tools/call", name="ask", arguments={}))["error"]["code"] == -32019
    async with opened(behind=front) as door:
        assert (await door.call("ask")).message["error"]["code"] == -32019


async def test_an_older_client_on_stdio_is_told_of_changes() -> None:
    front = FakeFront()
    async with on_stdio(front, older=True) as client:
        await client.send(id=1, method="tools/list")
        await client.answer(1)
        name = str(front.asked[0][1].connection)
        for event in (
            Event("tools", sender=ALICE),
            Event("resource", "file:///other", connections=frozenset({"other"})),
            Event("resource", "file:///unasked"),
            Event("prompts", sender=SENDER),
            Event("resource", "file:///a", connections=frozenset({name})),
            Event("resources"),
        ):
            front.events.ring(event)
        told = [await client.read() for _ in range(3)]
        assert [each["method"] for each in told] == [
            "notifications/prompts/list_changed",
            "notifications/resources/updated",
            "notifications/resources/list_changed",
        ]
        assert told[1]["params"] == {"uri": "file:///a"}
    assert front.events.listeners == []


async def test_an_older_client_that_signs_on_a_local_connection_is_told_of_what_is_its_own_and_no_other_signers() -> None:
    front, alice = FakeFront(), Signer("alice")
    async with on_stdio(front, older=True, proving=proofs(FakeLedger(senders={alice.kid: alice.known()}))) as client:
        challenge = "x"
        for number in (1, 2):
            await client.send(id=number, method="tools/list", params=alice.sign("tools/list", {}, challenge))
            answer = await client.answer(number)
            challenge = challenge_of(answer) if "error" in answer else challenge
        hers = front.asked[0][1].sender
        assert hers.name == "key:alice"
        front.events.ring(Event("tools", sender=replace(hers, name="key:bob")))
        front.events.ring(Event("prompts", sender=hers))
        assert (await client.read())["method"] == "notifications/prompts/list_changed"


async def test_a_flood_of_events_is_told_in_few_notes() -> None:
    front = FakeFront()
    async with on_stdio(front, older=True) as client:
        for _ in range(10_000):
            front.events.ring(Event("tools"))
        assert (await client.read())["method"] == "notifications/tools/list_changed"
        await client.send(id=1, method="ping")
        assert (await client.read())["id"] == 1


async def test_an_older_client_on_http_hears_on_its_standing_stream() -> None:
    front = FakeFront()
    async with opened(behind=front) as door:
        mine = await door.older()
        async with await door.connect() as stream:
            await stream.send(mine.head("GET"))
            got = await stream.receive()
            assert b"200 OK" in got
            await anyio.sleep(0.1)
            front.events.ring(Event("tools"))
            with anyio.fail_after(10):
                while b"notifications/tools/list_changed" not in got:
                    got += await stream.receive()
            assert (await mine.send(b"", "GET")).status == 409, "one standing stream a session"


@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_a_modern_client_listens(transport: str) -> None:
    front = FakeFront()
    wanted = {"notifications": {"toolsListChanged": True, "resourceSubscriptions": ["file:///a"]}}
    sender = SENDER if transport == "stdio" else ALICE

    def ring() -> None:
        front.events.ring(Event("prompts"))
        front.events.ring(Event("resource", "file:///b"))
        front.events.ring(Event("tools", sender=None if transport == "http" else sender))
        front.events.ring(Event("resource", "file:///a", sender=sender, connections=frozenset({"an older one"})))

    expected = [
        "notifications/subscriptions/acknowledged",
        "notifications/tools/list_changed",
        "notifications/resources/updated",
    ]
    if transport == "stdio":
        async with on_stdio(front, older=False) as client:
            await client.send(id=5, method="subscriptions/listen", params={**wanted, "_meta": ENVELOPE})
            told = [await client.read()]
            ring()
            told += [await client.read() for _ in range(2)]
            assert [each["method"] for each in told] == expected
    else:
        async with opened(behind=front) as door, anyio.create_task_group() as tasks:
            stream = await door.connect()
            body = {"jsonrpc": "2.0", "id": 5, "method": "subscriptions/listen", "params": {**wanted, "_meta": ENVELOPE}}
            data = json.dumps(body).encode()
            await stream.send(door.head(content_length=str(len(data)), mcp_method="subscriptions/listen") + data)
            got = await stream.receive()
            await until(lambda: bool(front.events.listeners))
            ring()
            with anyio.fail_after(10):
                while b"file:///a" not in got.partition(b"updated")[2]:
                    got += await stream.receive()
            assert [got.count(each.encode()) for each in expected] == [1, 1, 1]
            assert b"prompts/list_changed" not in got
            assert b"file:///b" not in got
            await stream.aclose()
            tasks.cancel_scope.cancel()
    assert front.events.listeners == []


async def test_a_listening_client_that_leaves_is_forgotten() -> None:
    front = FakeFront()
    async with opened(behind=front) as door:
        params = {"notifications": {"toolsListChanged": True}, "_meta": ENVELOPE}
        data = json.dumps({"jsonrpc": "2.0", "id": 5, "method": "subscriptions/listen", "params": params}).encode()
        stream = await door.connect()
        await stream.send(door.head(content_length=str(len(data)), mcp_method="subscriptions/listen") + data)
        await until(lambda: bool(front.events.listeners))
        await stream.aclose()
        await until(lambda: not front.events.listeners)


async def test_a_client_without_the_extension_is_told_what_it_lacks() -> None:
    async with on_stdio(FakeFront(), older=False) as mine:
        answer = await mine.request(3, "subscriptions/listen", notifications={"taskIds": ["t"]})
        assert answer["error"]["code"] == -32021
        assert answer["error"]["data"] == {"requiredCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}}}
