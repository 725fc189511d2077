"""A result over `limits.result`: refused, or kept and linked to; and nobody but its sender reads it."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from typing import Any

import anyio
import pytest
from front_client import Open, client, opened

from fumehood.faults import ExchangeFailed
from fumehood.gateway import long, protocol
from fumehood.gateway.kept import MAX_READ_BYTES
from fumehood.gateway.protocol import GatewayError
from fumehood.memory import Memory
from fumehood.model import Keeping, Outcome, Oversize, Result, Scope, Sender
from fumehood.reasons import Reason

pytestmark = pytest.mark.anyio
LIMIT = 20_000  # and 64 KiB of slack for the frame
SPILL: dict[str, Any] = {"results": Oversize.SPILL, "result_bytes": LIMIT}


async def big(open_: Open, size: int, **arguments: Any) -> dict[str, Any]:
    return await open_.ask("tools/call", client(**arguments), name="big", arguments={"bytes": size})


def link_of(result: dict[str, Any]) -> dict[str, Any]:
    said, link = result["content"]
    assert said["text"].startswith("fumehood: the result has ")
    assert str(LIMIT) in said["text"]
    assert link["type"] == "resource_link"
    assert link["uri"] == f"fumehood://task/{result['_meta'][protocol.TASK_KEY]}/result"
    return dict(link)


async def raw(open_: Open, *lines: str) -> Any:
    return await open_.ask("tools/call", name="raw", arguments={"lines": list(lines)})


def reason(result: dict[str, Any]) -> str:
    assert result["isError"] is True
    return str(result["_meta"][protocol.OUTCOME_KEY]["reason"])


@pytest.mark.parametrize("server", ["modern", "legacy"])
@pytest.mark.parametrize("scope", Scope)
async def test_a_spilled_result_is_linked_to_and_read_back_whole_and_in_parts(server: str, scope: Scope) -> None:
    async with opened(server, scope=scope, **SPILL) as open_:
        told = await big(open_, 300_000)
        link = link_of(told)
        assert told["isError"] is False
        assert link["size"] > 300_000
        read = (await open_.ask("resources/read", uri=link["uri"]))["contents"]
        assert [each["uri"] for each in read] == [link["uri"]]
        kept = json.loads(read[0]["text"])
        assert kept["content"] == [{"type": "text", "text": "x" * 300_000}]
        assert len(read[0]["text"]) == link["size"]
        part = await open_.ask("resources/read", uri=f"{link['uri']}?offset=10&length=7")
        assert base64.b64decode(part["contents"][0]["blob"]).decode() == read[0]["text"][10:17]
        past = await open_.ask("resources/read", uri=f"{link['uri']}?offset=9999999&length=7")
        assert past["contents"][0]["blob"] == ""
        # Reading is no call, and the server goes on.
        calls = len(open_.spine.outcomes)
        await open_.ask("resources/read", uri=link["uri"])
        assert len(open_.spine.outcomes) == calls
        assert (await open_.ask("tools/call", name="count", arguments={}))["content"][0]["text"] == "1"


async def test_what_fits_is_passed_on_as_it_came() -> None:
    async with opened("modern", **SPILL) as open_:
        assert (await big(open_, LIMIT))["content"] == [{"type": "text", "text": "x" * LIMIT}]
        assert open_.spine.ledger.kept_bytes == {}


@pytest.mark.parametrize(("results", "size"), [(Oversize.REFUSE, 300_000), (Oversize.SPILL, 16 * LIMIT + 1)])
async def test_refused_or_over_the_hard_cap_it_is_an_error_that_names_the_limit(results: Oversize, size: int) -> None:
    async with opened("modern", results=results, result_bytes=LIMIT) as open_:
        told = await big(open_, size)
        assert reason(told) == Reason.RESULT_TOO_LARGE
        assert "limits.result" in told["content"][0]["text"]
        assert open_.spine.ledger.kept_bytes == {}


async def test_only_its_sender_reads_it_and_nobody_else_can_tell_that_it_is_there() -> None:
    async with opened("modern", **SPILL) as open_:
        uri = link_of(await big(open_, 300_000))["uri"]
        task = uri.split("/")[3]
        mine = client()
        refused = []
        for asking, asked in (
            (replace(mine, sender=replace(mine.sender, name="somebody else")), uri),
            (replace(mine, sender=replace(mine.sender, tenant="other")), uri),
            (replace(mine, sender=Sender(uid=mine.sender.uid + 1, name=mine.sender.name)), uri),
            (mine, f"fumehood://task/{'0' * 26}/result"),
            (mine, f"fumehood://task/{task[:-1]}/result"),
            (mine, f"fumehood://task/{task}/answer"),
            (mine, f"fumehood://task/{task.upper()}/result"),
            (mine, f"fumehood://task/../{task}/result"),
            (mine, f"{uri}?offset=-1&length=5"),
            (mine, f"{uri}#x"),
            (mine, f"{uri}\n"),
            (mine, "fumehood://"),
        ):
            with pytest.raises(GatewayError) as caught:
                await open_.ask("resources/read", asking, uri=asked)
            refused.append((caught.value.code, caught.value.message, caught.value.data))
        assert set(refused) == {(protocol.INVALID_PARAMS, "Invalid params: there is no such resource", None)}


async def test_a_tool_that_promises_a_shape_tells_of_its_long_result_as_an_error() -> None:
    async with opened("modern", **SPILL) as open_:
        told = await open_.ask("tools/call", name="shaped", arguments={"bytes": 300_000})
        link_of(told)
        assert told["isError"] is True, "a client would hold a success against the schema"


@pytest.mark.parametrize(
    "line",
    [
        '{"jsonrpc":"2.0","id":"guessed","result":{"content":[{"type":"text","text":"LONG"}]}}',
        '{"jsonrpc":"2.0","id":7,"result":{"content":["LONG"]}}',
        '{"jsonrpc":"2.0","result":{"id":ID,"content":["LONG"]}}',
        '{"jsonrpc":"2.0","id":"x","id":ID,"result":{"content":["LONG"]}}',
        '{"jsonrpc":"2.0","id":ID,"result":{"content":["LONG"]},"result":{"content":[]}}',
        '{"jsonrpc":"2.0","id":ID,"error":{"code":1,"message":"LONG"}}',
        '{"jsonrpc":"2.0","id":ID,"result":{"content":"LONG"}}',
        '{"jsonrpc":"2.0","id":ID,"result":{"text":"LONG"}}',
        '{"jsonrpc":"2.0","id":ID,"result":{"content":["LONG"]',
        '{"jsonrpc":"2.0","id":ID,"result":{"content":["LONG"}]}',
        '[{"jsonrpc":"2.0","id":ID,"result":{"content":["LONG"]}}]',
        '{"jsonrpc":"2.0","id":ID,"result":{"content":["LONG"]}}{}',
        "LONG",
    ],
)
async def test_a_long_line_that_is_not_our_answer_is_never_kept_and_there_is_no_second_one(line: str) -> None:
    async with opened("modern", **SPILL) as open_:
        honest = '{"jsonrpc":"2.0","id":ID,"result":{"content":["LONG"]}}'
        told = await raw(open_, line, honest)
        assert reason(told) == Reason.SERVER_GARBAGE
        assert open_.spine.ledger.kept_bytes == {}
        assert open_.spine.outcomes[-1][1].result is Result.FAILED


async def test_members_in_any_order_are_found() -> None:
    async with opened("modern", **SPILL) as open_:
        told = await raw(open_, '{ "result" : { "isError" : true, "content" : ["LONG", "}\\\\\\"]"] } , "jsonrpc": "2.0", "id": ID }')
        read = await open_.ask("resources/read", uri=link_of(told)["uri"])
        assert told["isError"] is True
        assert json.loads(read["contents"][0]["text"])["content"][1] == '}\\"]'


async def test_a_question_that_long_is_put_to_nobody() -> None:
    async with opened("modern", **SPILL) as open_:
        told = await open_.ask("tools/call", name="long_question", arguments={})
        assert reason(told) == Reason.SERVER_GARBAGE


async def test_a_store_that_is_full_fails_the_call_and_says_so() -> None:
    async with opened("modern", **SPILL) as open_:
        open_.spine.ledger.room_bytes = 100
        told = await big(open_, 300_000)
        assert reason(told) == Reason.RESULT_NOT_KEPT
        outcome: Outcome = open_.spine.outcomes[-1][1]
        assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.RESULT_NOT_KEPT)


async def test_nothing_of_the_memory_stays_open() -> None:
    async with opened("modern", **SPILL) as open_:
        await big(open_, 300_000)
        before = sorted(os.listdir("/proc/self/fd"))
        uri = link_of(await big(open_, 300_000))["uri"]
        await open_.ask("resources/read", uri=uri)
        await raw(open_, "LONG")
        await big(open_, 17 * LIMIT)
        assert len(os.listdir("/proc/self/fd")) <= len(before)


async def test_what_is_longer_than_one_reading_is_read_in_parts() -> None:
    async with opened("modern", results=Oversize.SPILL, result_bytes=2**20) as open_:
        told = await big(open_, MAX_READ_BYTES + 100)
        link = told["content"][1]
        with pytest.raises(GatewayError, match="read it in parts") as caught:
            await open_.ask("resources/read", uri=link["uri"])
        assert caught.value.data == {"bytes": link["size"]}
        data = b""
        while len(data) < link["size"]:
            part = await open_.ask("resources/read", uri=f"{link['uri']}?offset={len(data)}&length=99999999")
            data += base64.b64decode(part["contents"][0]["blob"])
        assert json.loads(data)["content"][0]["text"] == "x" * (MAX_READ_BYTES + 100)


@pytest.mark.parametrize(
    "body",
    [
        b'{"content":[' + b"[" * 70 + b"]" * 70 + b"]}",
        b'{"content":["\xff"]}',
        b'{"content":["a\\',
        b'{"content":[' + b"1," * 2_100_000 + b"1]}",
        b'{"content":[]' + b" " * 5000 + b"}" + b" " * 5000,
        b'{"content":[]],"x":[}',
        b'{"content":[]}}',
        b"{}",
        b"",
    ],
    ids=["deep", "not UTF-8", "unended", "many", "blank", "mismatched", "early", "empty", "nothing"],
)
async def test_a_long_result_out_of_bounds_is_garbage(body: bytes) -> None:
    with anyio.fail_after(20), Memory(b'{"jsonrpc":"2.0","id":"n","result":' + body + b"}") as memory:
        memory.seal()
        with pytest.raises(ExchangeFailed) as caught:
            await long.find(memory, "n", "content")
    assert caught.value.reason is Reason.SERVER_GARBAGE


@pytest.mark.parametrize("window", [2, 3, 5, 7])
async def test_where_a_window_ends_does_not_matter(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long, "WINDOW_BYTES", window)
    result = {"content": [{"a\\": 'é"\\\\', "b": [1, -2.5e3, None, True, {}]}], "isError": True, "resultType": "complete"}
    body = json.dumps(result, ensure_ascii=False).encode()
    with Memory(b'{"id":"n","result":' + body + b',"jsonrpc":"2.0"}') as memory:
        found = await long.find(memory.seal(), "n", "content")
    assert (found.size, found.is_error) == (len(body), True)


async def test_others_are_served_while_a_long_result_is_walked() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    with Memory(b'{"jsonrpc":"2.0","id":"n","result":{"content":["' + b"\\n" * 10**7 + b'"]}}') as memory:
        async with anyio.create_task_group() as group:
            group.start_soon(other)
            await long.find(memory.seal(), "n", "content")
            group.cancel_scope.cancel()
    assert turns > 50


async def test_capabilities_say_that_there_may_be_resources() -> None:
    async with opened("modern", **SPILL) as open_:
        assert "resources" in open_.front.capabilities(client())
    async with opened("modern") as open_:
        assert "resources" not in open_.front.capabilities(client())


async def test_an_answer_kind_is_not_read_as_a_result() -> None:
    async with opened("modern", **SPILL) as open_:
        uri = link_of(await big(open_, 300_000))["uri"]
        task = uri.split("/")[3]
        data, at = open_.spine.ledger.kept_bytes.pop((task, Keeping.RESULT))
        open_.spine.ledger.kept_bytes[task, Keeping.ANSWER] = data, at
        with pytest.raises(GatewayError, match="no such resource"):
            await open_.ask("resources/read", uri=uri)
