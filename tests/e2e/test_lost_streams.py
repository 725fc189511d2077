"""A client whose stream is cut sends its request again over HTTP, with its key, and has the answer of the one run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

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


async def test_a_request_whose_stream_was_cut_is_answered_again_and_ran_once() -> None:
    async with opened(sys.executable, STATEFUL) as door:
        await door.ask("tools/list")
        params = {**NAP, "_meta": {**ENVELOPE, **META}}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        head = door.head(mcp_method="tools/call", mcp_name="nap", content_length=str(len(body)))
        async with await door.connect() as stream:
            await stream.send(head + body)
            await until(lambda: ran(door) == 1)
        answers = [await door.ask("tools/call", {**NAP, "_meta": META}, number=number) for number in (2, "three")]
        for answer in answers:
            assert answer.message["result"]["content"][0]["text"] == "rested"
            assert protocol.REPEATS_KEY in answer.message["result"]["_meta"]
        assert ran(door) == 1


async def test_without_a_key_a_cut_stream_ends_its_call() -> None:
    async with opened(sys.executable, STATEFUL) as door:
        await door.ask("tools/list")
        params = {"name": "nap", "arguments": {"seconds": 60}, "_meta": ENVELOPE}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        head = door.head(mcp_method="tools/call", mcp_name="nap", content_length=str(len(body)))
        async with await door.connect() as stream:
            await stream.send(head + body)
            await until(lambda: ran(door) == 1)
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
