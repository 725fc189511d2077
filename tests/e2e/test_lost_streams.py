"""A client whose stream is cut sends its request again over HTTP, with its key, and has the answer of the one run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from http_door import Door, opened, until
from raw_client import ENVELOPE

from fumehood.gateway import protocol
from fumehood.lifecycle import State

pytestmark = pytest.mark.anyio
STATEFUL = str(Path(__file__).resolve().parent / "servers" / "stateful.py")
KEY = "f3c1a7be-0000-4000-8000-000000000001"
NAP = {"name": "nap", "arguments": {"seconds": 1.0}}
META = {protocol.IDEMPOTENCY_KEY: KEY}


def ran(door: Door) -> int:
    ledger = door.spine.ledger
    mine = {task for task, one in ledger.calls.items() if one.front_door == "gateway"}
    return len({task for task, state, _ in ledger.events if state == State.RUNNING} & mine)


async def cut(door: Door, body: bytes, **headers: str) -> None:
    """Send a request, and hang up while its tool runs."""
    async with await door.connect() as stream:
        await stream.send(door.head(content_length=str(len(body)), **headers) + body)
        await until(lambda: ran(door) == 1)


def request(params: dict[str, Any], number: object = 1) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}).encode()


@pytest.mark.parametrize("older", [False, True])
async def test_a_request_whose_stream_was_cut_is_answered_again_and_ran_once(*, older: bool) -> None:
    async with opened(sys.executable, STATEFUL) as door:
        await door.ask("tools/list")
        mine = await door.older() if older else door
        if older:
            await cut(mine, request({**NAP, "_meta": META}))
        else:
            await cut(mine, request({**NAP, "_meta": {**ENVELOPE, **META}}), mcp_method="tools/call", mcp_name="nap")
        for number in (2, "three"):
            answer = await mine.ask("tools/call", {**NAP, "_meta": META}, number=number)
            assert answer.message["result"]["content"][0]["text"] == "rested"
            assert protocol.REPEATS_KEY in answer.message["result"]["_meta"]
        assert ran(door) == 1


async def test_an_older_client_that_cancels_has_cancelled_with_a_key_or_without() -> None:
    async with opened(sys.executable, STATEFUL) as door:
        await door.ask("tools/list")
        mine = await door.older()
        params = {"name": "nap", "arguments": {"seconds": 60}, "_meta": META}
        async with await mine.connect() as stream:
            body = request(params)
            await stream.send(mine.head(content_length=str(len(body))) + body)
            await until(lambda: ran(door) == 1)
            note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
            assert (await mine.send(json.dumps(note).encode())).status == 202
            await until(lambda: not door.spine.broker.boxes)
        again = await mine.ask("tools/call", params, number=2)
        assert again.message["result"]["_meta"][protocol.OUTCOME_KEY]["reason"] == "cancelled"
        assert ran(door) == 1


async def test_without_a_key_a_cut_stream_ends_its_call() -> None:
    async with opened(sys.executable, STATEFUL) as door:
        await door.ask("tools/list")
        params = {"name": "nap", "arguments": {"seconds": 60}, "_meta": ENVELOPE}
        await cut(door, request(params), mcp_method="tools/call", mcp_name="nap")
        with anyio.fail_after(10):
            await until(lambda: not door.spine.broker.boxes)


async def test_the_key_of_another_token_is_another_key_and_older_clients_have_keys_too() -> None:
    async with opened(sys.executable, STATEFUL) as door:
        mine = await door.ask("tools/call", {**NAP, "_meta": META})
        theirs = await door.of("b" * 40).ask("tools/call", {**NAP, "_meta": META})
        assert protocol.REPEATS_KEY not in theirs.message["result"]["_meta"]
        assert ran(door) == 2
        older = await door.older()
        again = await older.ask("tools/call", {**NAP, "_meta": META}, number=7)
        found = again.message["result"]["_meta"]
        assert found[protocol.REPEATS_KEY] == mine.message["result"]["_meta"][protocol.TASK_KEY]
        assert ran(door) == 2
