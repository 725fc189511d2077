"""The signing proxy between a client's frames and a gateway's door, in this process: what it signs again, and what it never sends."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from http_door import opened
from local_runner import FakeSpine
from raw_client import ENVELOPE, RawClient

from fakes import FakeClock, FakeLedger
from fumehood.app import SystemClock
from fumehood.gateway import sign_proxy
from fumehood.gateway.challenges import EPOCH_S
from fumehood.gateway.sender_keys import PrivateKey
from fumehood.gateway.sign_proxy import Identity
from signed import Signer, proofs

pytestmark = pytest.mark.anyio

ALICE = Signer("alice")
LEGACY = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}


class Stepping(FakeClock, SystemClock):
    """The wall is the host's; the clock that never steps is moved by hand."""

    def wall_s(self) -> float:
        return SystemClock.wall_s(self)


def ledger() -> FakeLedger:
    return FakeLedger(senders={ALICE.kid: ALICE.known()})


@asynccontextmanager
async def through_proxy(spine: FakeSpine, port: int, **identity: Any) -> AsyncIterator[RawClient]:
    """A client by hand whose frames go through a proxy of Alice's."""
    source, to_proxy = os.pipe()
    from_proxy, sink = os.pipe()
    client = RawClient(spine, to_proxy, from_proxy)
    who = Identity(**{"key": PrivateKey(ALICE.private), "audience": "fumehood", **identity})

    async def serve() -> None:
        async with sign_proxy.over_http(f"http://127.0.0.1:{port}/mcp", "a" * 40, ssl.create_default_context()) as way:
            await sign_proxy.carry(who, source, sink, way)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        yield client
        tasks.cancel_scope.cancel()
    client.close()
    for fd in (source, sink):
        os.close(fd)


async def request(client: RawClient, era: str, number: int, method: str, **params: Any) -> dict[str, Any]:
    meta = {"_meta": ENVELOPE} if era == "modern" else {}
    await client.send(id=number, method=method, params={**params, **meta})
    return await client.answer(number)


async def begin(client: RawClient, era: str) -> None:
    if era == "older":
        await client.send(id=0, method="initialize", params=LEGACY)
        assert "result" in await client.answer(0)
        await client.send(method="notifications/initialized")


@pytest.mark.parametrize("era", ["modern", "older"])
async def test_a_stale_challenge_is_signed_anew_with_another_nonce_and_the_client_sees_nothing_of_it(era: str) -> None:
    held, clock = ledger(), Stepping()
    gate = proofs(held, "required", clock)
    async with opened(proving=gate) as door, through_proxy(door.spine, door.port) as client:
        await begin(client, era)
        for number in (1, 2):
            answer = await request(client, era, number, "tools/call", name="echo", arguments={"text": str(number)})
            assert "result" in answer, answer
            clock.advance(3 * EPOCH_S)
        made = [call for call in held_calls(door.spine) if call.front_door == "gateway"]
        assert len({call.proof.nonce for call in made}) == 2
        assert len(held.spent) == 2


def held_calls(spine: FakeSpine) -> list[Any]:
    return list(spine.ports.ledger.calls.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("era", ["modern", "older"])
async def test_nothing_is_sent_unsigned_to_a_gateway_that_takes_no_signed_requests(era: str) -> None:
    gate = proofs(ledger(), "off")
    async with opened(proving=gate) as door, through_proxy(door.spine, door.port) as client:
        await begin(client, era)
        answer = await request(client, era, 1, "tools/call", name="echo", arguments={})
        assert "hands out no challenge" in answer["error"]["message"]
        assert held_calls(door.spine) == []


async def test_a_gateway_of_another_audience_gets_no_signature() -> None:
    held = ledger()
    gate = proofs(held, "required", audience="elsewhere")
    async with opened(proving=gate) as door, through_proxy(door.spine, door.port) as client:
        answer = await request(client, "modern", 1, "tools/call", name="echo", arguments={})
        assert "audience is 'elsewhere'" in answer["error"]["message"]
        assert held.spent == {}
    async with opened(proving=gate) as door, through_proxy(door.spine, door.port, audience="elsewhere") as client:
        assert "result" in await request(client, "modern", 1, "tools/call", name="echo", arguments={})


async def test_a_refusal_that_another_signature_would_not_change_is_the_clients() -> None:
    gate = proofs(FakeLedger(), "required")
    async with opened(proving=gate) as door, through_proxy(door.spine, door.port) as client:
        answer = await request(client, "modern", 1, "tools/list")
        assert answer["error"]["data"]["reason"] == "proof_invalid"


async def test_frames_that_are_no_messages_are_answered_and_signed_by_nobody() -> None:
    held = ledger()
    gate = proofs(held, "required")
    async with opened(proving=gate) as door, through_proxy(door.spine, door.port) as client:
        await client.write(b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "name": "nested"}}')
        assert "duplicate key" in (await client.answer(1))["error"]["message"]
        await client.write(json.dumps({"jsonrpc": "2.0", "id": True, "method": "tools/list"}))
        assert "error" in await client.answer(None)
        assert held.spent == {}


async def test_a_client_that_cancels_again_and_again_is_still_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_proxy, "MAX_PENDING", 3)
    gate = proofs(ledger(), "required")
    async with opened(proving=gate) as door, through_proxy(door.spine, door.port) as client:
        for number in range(1, 8):
            await client.send(id=number, method="tools/call", params={"name": "echo", "arguments": {}, "_meta": ENVELOPE})
            await client.send(method="notifications/cancelled", params={"requestId": number})
        await client.send(id=100, method="tools/list", params={"_meta": ENVELOPE})
        while (answer := await client.read()).get("id") != 100:
            pass
        assert "result" in answer, answer
