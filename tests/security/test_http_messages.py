"""Messages over HTTP that the door must not let through to the SDK, or must count."""

from __future__ import annotations

import json

import anyio
import pytest
from http_door import Door, opened, until
from raw_client import ENVELOPE

pytestmark = pytest.mark.anyio


def call(arguments: str = "{}", number: str = "1") -> bytes:
    params = f'{{"name":"echo","arguments":{arguments},"_meta":{json.dumps(ENVELOPE)}}}'
    return f'{{"jsonrpc":"2.0","id":{number},"method":"tools/call","params":{params}}}'.encode()


async def in_both_eras(door: Door, body: bytes, status: int, code: int, **headers: str | None) -> None:
    routing: dict[str, str | None] = {"mcp_method": "tools/call", "mcp_name": "echo", **headers}
    for each in (door, await door.older()):
        answer = await each.send(body, **routing)
        assert (answer.status, answer.message["error"]["code"]) == (status, code), answer
    assert door.spine.pids == []


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json, text/plain",
             "application/json; charset=utf-16", "text/plain; application/json", "application/jsonp", "", None],
)  # fmt: skip
async def test_a_content_type_that_a_form_could_send(kind: str | None) -> None:
    async with opened() as door:
        await in_both_eras(door, call(), 415, -32600, content_type=kind)
        await in_both_eras(door, call(), 415, -32600, content_encoding="gzip")


@pytest.mark.parametrize("number", ["true", "1.0", "null", "[1]", "1e0", str(2**63)])
async def test_an_id_that_is_none_does_not_turn_a_call_into_a_notification(number: str) -> None:
    async with opened() as door:
        await in_both_eras(door, call(number=number), 400, -32600)


@pytest.mark.parametrize(
    "arguments",
    ['{"a":NaN}', '{"a":1e400}', '{"a":1,"a":2}', '{"a":"\\ud800"}', '{"a":' + "9" * 400 + "}", "[" * 100_000],
)
async def test_what_parsers_read_differently_is_refused(arguments: str) -> None:
    async with opened() as door:
        await in_both_eras(door, call(arguments), 400, -32700)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
async def test_other_encodings(encoding: str) -> None:
    async with opened() as door:
        await in_both_eras(door, call('{"a":"é"}').decode().encode(encoding), 400, -32700)


async def test_a_batch() -> None:
    async with opened() as door:
        await in_both_eras(door, b"[" + call() + b"," + call(number="2") + b"]", 400, -32600)


async def test_unknown_members_beside_the_method() -> None:
    async with opened() as door:
        await in_both_eras(door, call()[:-1] + b',"result":{}}', 400, -32600)


@pytest.mark.parametrize(
    "headers",
    [{"mcp_method": "tools/list"}, {"mcp_name": "other"}, {"mcp_name": "=?base64?AAAA?="}, {"mcp_method": "TOOLS/CALL"}],
)
async def test_headers_that_say_otherwise_than_the_body(headers: dict[str, str]) -> None:
    async with opened() as door:
        await in_both_eras(door, call(), 400, -32020, **headers)


@pytest.mark.parametrize("missing", ["mcp_method", "mcp_name"])
async def test_a_modern_request_without_its_routing_headers(missing: str) -> None:
    async with opened() as door:
        headers: dict[str, str | None] = {"mcp_method": "tools/call", "mcp_name": "echo", missing: None}
        answer = await door.send(call(), **headers)
        assert (answer.status, answer.message["error"]["code"]) == (400, -32020)
        assert door.spine.pids == []


@pytest.mark.parametrize("version", [None, "2025-11-25"])
async def test_a_modern_body_under_an_older_header(version: str | None) -> None:
    async with opened() as door:
        answer = await door.send(call(), mcp_method="tools/call", mcp_name="echo", mcp_protocol_version=version)
        assert (answer.status, answer.message["error"]["code"]) == (400, -32020)


async def test_a_revision_that_nobody_knows() -> None:
    async with opened() as door:
        answer = await door.send(
            call().replace(b"2026-07-28", b"2099-01-01"), mcp_protocol_version="2099-01-01", mcp_method="tools/call", mcp_name="echo"
        )
        assert answer.status == 400
        assert answer.message["error"]["code"] == -32022
        assert answer.message["error"]["data"]["supported"] == ["2026-07-28"]


async def test_a_name_in_another_alphabet_passes_its_header() -> None:
    import base64

    async with opened() as door:
        encoded = f"=?base64?{base64.b64encode('échø'.encode()).decode()}?="
        answer = await door.call("échø", mcp_name=encoded)
        assert answer.message["error"]["data"]["reason"] == "tool_unknown", "judged by its name, not refused for its header"


@pytest.mark.parametrize("name", ["Mcp-Method", "Mcp-Name", "MCP-Protocol-Version", "Host", "Content-Type", "Mcp-Session-Id"])
async def test_a_deciding_header_that_is_there_twice(name: str) -> None:
    async with opened() as door, await door.connect() as stream:
        body = call()
        head = door.head(content_length=str(len(body)), mcp_method="tools/call", mcp_name="echo")[:-2]
        await stream.send(head + f"{name}: other\r\n{name}: other\r\n\r\n".encode() + body)
        with anyio.fail_after(5):
            assert (await stream.receive()).startswith(b"HTTP/1.1 400 ")
        assert door.spine.pids == []


async def test_a_request_id_reused_in_its_session() -> None:
    async with opened() as door:
        older = await door.older()
        await older.call("echo", 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(older.call, "hang", 7)
            await until(lambda: len(door.spine.pids) == 3)
            for number in (7, "7", "_GET_stream"):
                answer = await older.call("echo", number)
                assert (answer.status, answer.message["error"]["code"]) == (400, -32600), number
            assert (await (await door.older()).call("echo", 7)).message["result"], "another session's ids are its own"
            tasks.cancel_scope.cancel()


async def test_a_flood_of_notifications() -> None:
    async with opened() as door:
        older = await door.older()
        for each, method in [
            (each, method)
            for each in (door, older)
            for method in ("notifications/cancelled", "notifications/initialized", "notifications/progress", "made/up")
        ]:
            body = json.dumps({"jsonrpc": "2.0", "method": method, "params": {"requestId": 1, "_meta": ENVELOPE}}).encode()
            for _ in range(100):
                assert (await each.send(body)).status == 202
        assert (await older.call("echo")).message["result"]
        assert (await door.call("echo")).message["result"]
        assert len(door.spine.outcomes) == 4, "a reading of each era, and two calls"


async def test_a_call_sent_as_a_notification_starts_nothing() -> None:
    async with opened() as door:
        body = json.dumps({"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "echo", "arguments": {}}}).encode()
        for each in (door, await door.older()):
            assert (await each.send(body)).status == 202
        assert door.spine.pids == []


async def test_answers_to_nothing() -> None:
    async with opened() as door:
        older = await door.older()
        body = b'{"jsonrpc":"2.0","id":1,"result":{}}'
        assert (await older.send(body)).status == 202
        assert (await door.send(body)).status == 400
        assert (await older.call("echo")).message["result"]


async def test_a_call_before_the_handshake() -> None:
    async with opened() as door:
        answer = await Door(door.port, door.spine, door.token, "2025-11-25").call("echo")
        assert answer.status == 400
        assert door.spine.pids == []


async def test_a_cancelled_call_of_an_older_client_ends_at_once() -> None:
    async with opened() as door:
        older = await door.older()
        await older.call("echo")
        async with anyio.create_task_group() as tasks:

            async def hang() -> None:
                assert (await older.call("hang", 9)).message["error"]["code"] == -32800

            tasks.start_soon(hang)
            await until(lambda: len(door.spine.pids) == 3)
            body = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 9}}
            await older.send(json.dumps(body).encode())
        assert len(door.spine.removed_at_s) == 3


async def test_a_tool_that_is_not_allowed_starts_nothing() -> None:
    async with opened(tools=frozenset({"echo"})) as door:
        answer = await door.call("hang", arguments={"a": 1})
        assert answer.message["error"]["data"]["reason"] == "tool_not_allowed"
        assert door.spine.pids == []
