"""Attacks on signed requests, against the real front doors (HTTP, a local connection) in both eras: what was captured is of no use."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from http_door import Answer, Door, opened
from raw_client import ENVELOPE, RawClient, connect

from fakes import FakeLedger
from fumehood.app import SystemClock
from fumehood.gateway import proofs as proving
from fumehood.reasons import Reason
from fumehood.store import nonces
from ledgers import client as ledger_client
from ledgers import running
from signed import Signer, challenge_of, proofs, proved

pytestmark = pytest.mark.anyio

ALICE, BOB = Signer("alice"), Signer("bob")
LEGACY = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
CALL: dict[str, Any] = {"name": "echo", "arguments": {"text": "hello"}}
ERAS = pytest.mark.parametrize("era", ["modern", "older"])


def ledger() -> FakeLedger:
    return FakeLedger(senders={each.kid: each.known() for each in (ALICE, BOB)})


def full(params: dict[str, Any], era: str) -> dict[str, Any]:
    """The params as a client of this era has them before it signs."""
    return {**params, "_meta": {**ENVELOPE, **params.get("_meta", {})}} if era == "modern" else dict(params)


def reason(message: dict[str, Any]) -> str:
    """What was said to a request: the reason of a refusal, or that it was done."""
    if "result" in message:
        return "done"
    found: str = message["error"]["data"]["reason"]
    return found


@asynccontextmanager
async def door(era: str, held: FakeLedger, mode: str = "required") -> AsyncIterator[tuple[Door, str]]:
    """A gateway over HTTP, as Alice's client sees it, and the challenge that it was given."""
    async with opened(proving=proofs(held, mode)) as front:
        yield await greeted(front, era)


async def greeted(front: Door, era: str, token: str = "a" * 40) -> tuple[Door, str]:
    """A client of a gateway's, and its challenge."""
    mine = front.of(token)
    if era == "modern":
        return mine, challenge_of((await mine.ask("server/discover")).message)
    opening = Door(front.port, front.spine, token, None)
    answer = await opening.ask("initialize", LEGACY)
    session = Door(front.port, front.spine, token, "2025-11-25", {"mcp-session-id": answer.headers["mcp-session-id"]})
    assert (await session.send(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode())).status == 202
    return session, challenge_of(answer.message)


async def post(front: Door, params: dict[str, Any], number: int = 1, method: str = "tools/call") -> Answer:
    """Send exactly these params."""
    heads = {"mcp_method": method, "mcp_name": params.get("name")} if front.version == "2026-07-28" else {}
    body = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()
    return await front.send(body, **heads)


async def said(front: Door, params: dict[str, Any], number: int = 1, method: str = "tools/call") -> str:
    return reason((await post(front, params, number, method)).message)


def calls(front: Door | RawClient) -> int:
    """How many calls of the gateway's were recorded."""
    return sum(call.front_door == "gateway" for call in front.spine.ports.ledger.calls.values())  # type: ignore[attr-defined]


@ERAS
async def test_replay_on_the_same_connection_runs_nothing_twice(era: str) -> None:
    async with door(era, ledger()) as (front, challenge):
        captured = ALICE.sign("tools/call", full(CALL, era), challenge)
        assert await said(front, captured) == "done"
        assert [await said(front, captured, number) for number in (1, 2, 3)] == ["replayed"] * 3
        assert calls(front) == 1


async def test_replay_on_another_local_connection_and_in_another_session_of_the_same_sender_is_refused() -> None:
    held = ledger()
    async with opened(proving=proofs(held, "required")) as front:
        first, challenge = await greeted(front, "older")
        second, _ = await greeted(front, "older")
        captured = ALICE.sign("tools/call", CALL, challenge)
        assert await said(second, captured) == "challenge_stale"
        assert held.spent == {}
        assert await said(first, captured) == "done"
        assert await said(second, captured) == "challenge_stale"
    gate = proofs(held, "required")
    async with connect(proving=gate) as one, connect(proving=gate) as other:
        challenge = challenge_of(await one.request(0, "server/discover"))
        captured = ALICE.sign("tools/call", full(CALL, "modern"), challenge)
        for each, answer in ((other, "challenge_stale"), (one, "done"), (one, "replayed"), (other, "challenge_stale")):
            await each.send(id=1, method="tools/call", params=captured)
            assert reason(await each.answer(1)) == answer


@ERAS
async def test_replay_under_the_token_of_another_sender_is_refused(era: str) -> None:
    held = ledger()
    async with opened(proving=proofs(held, "required")) as front:
        _, challenge = await greeted(front, era)
        bobs, _ = await greeted(front, era, "b" * 40)
        captured = ALICE.sign("tools/call", full(CALL, era), challenge)
        assert await said(bobs, captured) == "challenge_stale"
        assert calls(front) == 0


@ERAS
async def test_a_stolen_token_is_of_no_use_without_the_key_nor_with_another_senders(era: str) -> None:
    async with door(era, ledger()) as (front, challenge):
        params = full(CALL, era)
        assert await said(front, params) == "proof_missing"
        assert await said(front, BOB.sign("tools/call", params, challenge)) == "proof_invalid"
        assert await said(front, BOB.sign("tools/call", params, challenge, iss="alice")) == "proof_invalid"
        assert calls(front) == 0


@ERAS
async def test_replay_after_expiry_is_refused(era: str) -> None:
    class Slipping(SystemClock):
        offset_s = 0.0

        def wall_s(self) -> float:
            return super().wall_s() + self.offset_s

    clock = Slipping()
    async with opened(proving=proofs(ledger(), "required", clock)) as front:
        mine, challenge = await greeted(front, era)
        captured = ALICE.sign("tools/call", full(CALL, era), challenge)
        clock.offset_s = 40.0
        assert await said(mine, captured) == "proof_expired"
        clock.offset_s = -10.0
        assert await said(mine, captured) == "proof_expired"
        assert calls(front) == 0


@ERAS
async def test_replay_after_a_restart_and_against_a_second_gateway_on_the_same_database_is_refused(era: str) -> None:
    held = ledger()
    async with door(era, held) as (first, challenge), door(era, held) as (second, _):
        captured = ALICE.sign("tools/call", full(CALL, era), challenge)
        assert await said(second, captured) == "challenge_stale"
        assert await said(first, captured) == "done"
    async with door(era, held) as (again, _):
        assert await said(again, captured) == "challenge_stale"
        assert calls(again) == 0


async def test_were_the_challenge_known_the_database_alone_would_still_refuse_a_second_gateway_and_a_restarted_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("fumehood.gateway.challenges.secrets.token_bytes", lambda size: b"0" * size)
    with running(tmp_path / "ledger") as one, running(tmp_path / "ledger", runtime="r2") as two:

        class Known(FakeLedger):
            """Keys of a fake, nonces of a real ledger process."""

            async def spend(self, key: str, nonce: str, until_s: float) -> None:
                await self.real.spend(key, nonce, until_s)

        async with ledger_client(one) as first, ledger_client(two) as second:
            held = [Known(senders=ledger().senders), Known(senders=ledger().senders)]
            held[0].real, held[1].real = first, second  # type: ignore[attr-defined]
            async with door("modern", held[0]) as (front, challenge), door("modern", held[1]) as (other, same):
                assert challenge == same
                captured = ALICE.sign("tools/call", full(CALL, "modern"), challenge)
                assert await said(front, captured) == "done"
                assert await said(other, captured) == "replayed"
                assert calls(other) == 0


@ERAS
@pytest.mark.parametrize(
    "change",
    [
        {"arguments": {"text": "goodbye"}}, {"name": "nested"}, {"requestState": "x", "inputResponses": {}}, {"unknown": 1},
        {"_meta": {"fumehood/session": "s2"}}, {"_meta": {"fumehood/idempotencyKey": "k2"}}, {"_meta": {"of/tomorrow": True}},
        {"task": {"ttl": 1}},
    ],
)  # fmt: skip
async def test_a_changed_body_or_meta_is_refused_and_burns_no_nonce(era: str, change: dict[str, Any]) -> None:
    held = ledger()
    async with door(era, held) as (front, challenge):
        asked = full({**CALL, "_meta": {"fumehood/session": "s1", "fumehood/idempotencyKey": "k1"}}, era)
        good = ALICE.sign("tools/call", asked, challenge)
        swapped = {**good, **change, "_meta": {**good["_meta"], **change.get("_meta", {})}}
        assert await said(front, swapped) == "proof_invalid"
        assert held.spent == {}
        assert calls(front) == 0


@ERAS
async def test_an_envelope_of_a_list_is_refused_for_a_call_and_the_other_way_round(era: str) -> None:
    async with door(era, ledger()) as (front, challenge):
        params = full({}, era)
        of_a_list = ALICE.sign("tools/list", params, challenge)["_meta"]["fumehood/proof"]
        assert await said(front, proved(full(CALL, era), of_a_list)) == "proof_invalid"
        of_a_call = ALICE.sign("tools/call", full(CALL, era), challenge)["_meta"]["fumehood/proof"]
        assert await said(front, proved(params, of_a_call), 1, "tools/list") == "proof_invalid"
        assert await said(front, proved(params, of_a_list), 1, "tools/list") == "done"


@ERAS
async def test_a_list_without_a_signature_starts_no_box(era: str) -> None:
    async with door(era, ledger()) as (front, _):
        for method in ("tools/list", "prompts/list", "resources/list", "resources/templates/list"):
            assert await said(front, full({}, era), 1, method) == "proof_missing"
        assert front.spine.ports.ledger.calls == {}  # type: ignore[attr-defined]


@ERAS
async def test_where_an_envelope_may_be_left_out_a_bad_one_is_not_passed_over(era: str) -> None:
    async with door(era, ledger(), "accepted") as (front, challenge):
        params = full(CALL, era)
        assert await said(front, params) == "done"
        assert await said(front, ALICE.sign("tools/call", params, challenge)) == "done"
        for token in ("a.b.c", "", None, 7, BOB.token(ALICE.claims("tools/call", params, challenge))):
            assert await said(front, proved(params, token)) == "proof_invalid"
        assert calls(front) == 2


@ERAS
async def test_a_huge_proof_is_refused(era: str) -> None:
    async with door(era, ledger()) as (front, challenge):
        params = full(CALL, era)
        long = ALICE.token({**ALICE.claims("tools/call", params, challenge), "iss": "x" * 1_000_000})
        assert await said(front, proved(params, long)) == "proof_invalid"


async def test_nonces_burnt_with_bad_signatures_are_none(caplog: pytest.LogCaptureFixture) -> None:
    held = ledger()
    async with door("modern", held) as (front, challenge):
        params = full(CALL, "modern")
        claims = ALICE.claims("tools/call", params, challenge)
        for _ in range(30):
            assert await said(front, proved(params, BOB.token(claims, kid=ALICE.kid))) == "proof_invalid"
        assert held.spent == {}
        assert await said(front, proved(params, ALICE.token(claims))) == "done"
    assert "proof_invalid" in caplog.text


async def test_a_sender_that_fills_its_share_of_the_store_is_refused_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonces, "NONCES_OF_A_KEY", 3)
    async with opened(proving=proofs(ledger(), "required")) as front:
        alices, challenge = await greeted(front, "modern")
        answers = [await said(alices, ALICE.sign("tools/call", full(CALL, "modern"), challenge)) for _ in range(4)]
        assert answers == ["done", "done", "done", "nonces_full"]
        bobs, challenge = await greeted(front, "modern", "b" * 40)
        assert await said(bobs, BOB.sign("tools/call", full(CALL, "modern"), challenge)) == "done"


async def test_a_ledger_that_does_not_answer_refuses_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hung(FakeLedger):
        async def spend(self, key: str, nonce: str, until_s: float) -> None:  # noqa: ARG002 - the port's signature
            await anyio.sleep_forever()

    monkeypatch.setattr(proving, "LEDGER_S", 0.2)
    async with door("modern", Hung(senders=ledger().senders)) as (front, challenge):
        with anyio.fail_after(10):
            assert await said(front, ALICE.sign("tools/call", full(CALL, "modern"), challenge)) == "ledger_unavailable"
        assert calls(front) == 0


async def test_two_senders_on_one_local_connection_are_two_in_records_and_never_share_a_session() -> None:
    async with connect(proving=proofs(ledger(), "required")) as client:
        challenge = challenge_of(await client.request(0, "server/discover"))
        for number, each in enumerate((ALICE, BOB), 1):
            await client.send(id=number, method="tools/call", params=each.sign("tools/call", full(CALL, "modern"), challenge))
            assert reason(await client.answer(number)) == "done"
        made = [call for call in client.spine.ports.ledger.calls.values() if call.front_door == "gateway"]  # type: ignore[attr-defined]
        assert [call.sender.name for call in made] == ["key:alice", "key:bob"]
        assert [call.proof.key for call in made] == [ALICE.kid, BOB.kid]
        assert len({call.proof.nonce for call in made}) == 2
        assert made[0].request_digest == made[1].request_digest


async def test_every_call_records_the_digest_of_its_request_and_only_a_signed_one_a_proof() -> None:
    async with connect(proving=proofs(ledger())) as client:
        await client.call("echo", 1, text="one")
        await client.call("echo", 2, text="two")
        await client.call("echo", 3, text="one")
        made = [call for call in client.spine.ports.ledger.calls.values() if call.front_door == "gateway"]  # type: ignore[attr-defined]
        one, two, again = (call.request_digest for call in made)
        assert one == again != two
        assert {call.proof for call in made} == {None}


async def test_a_subscription_is_a_request_like_any_other() -> None:
    async with door("modern", ledger()) as (front, _):
        asked = full({"notifications": {"toolsListChanged": True}}, "modern")
        assert await said(front, asked, 1, "subscriptions/listen") == Reason.PROOF_MISSING
