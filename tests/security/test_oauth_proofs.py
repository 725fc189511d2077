"""DPoP: a token without its key, and proofs that are stolen, sent twice, made in advance, or made for something else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from http_door import Answer
from oauth_door import OAuthDoor, denied, front_of, oauth_door

from fake_issuer import FakeIssuer, Holder, b64, generated, signed
from fakes import FakeLedger
from fumehood.gateway.oauth import resource
from fumehood.model import Proof
from fumehood.oauth_config import Binding
from ledgers import client, running

pytestmark = pytest.mark.anyio
PROOF = "invalid_dpop_proof"


async def refused(changes: dict[str, Any], error: str, words: str, *, header: dict[str, Any] | None = None, sign: Any = None) -> None:
    """A holder's proof with these changes is refused, and its nonce is not taken."""
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        holder = await door.ready(issuer)
        answer = await door.ask("server/discover", **holder.headers(header=header, key=sign, **changes))
        denied(answer, 401, error, words)
        assert door.ledger.spent == {}
        assert answer.headers["www-authenticate"].startswith("DPoP algs=")


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "Ed25519"])
async def test_a_holder_is_let_in_and_its_calls_say_what_it_showed(algorithm: str) -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        holder = await door.ready(issuer, algorithm=algorithm)
        assert (await door.by(holder)).status == 200
        answer = await door.call("echo", **holder.headers(jti="the-call"))
        assert answer.status == 200
        (call,) = [call for call in door.spine.ledger.calls.values() if call.front_door == "gateway"]
        assert call.sender.name == "oauth:alice@login.example.org"
        assert call.proof is not None
        assert (call.proof.method, call.proof.key, call.proof.nonce) == ("dpop", holder.thumbprint, "the-call")
        assert (holder.thumbprint, "the-call") in door.ledger.spent
        assert abs(call.proof.until_s - time.time() - 60) < 5


@pytest.mark.parametrize("binding", [Binding.DPOP, Binding.EITHER, Binding.NONE])
async def test_a_bound_token_sent_as_if_it_were_none(binding: Binding) -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer, binding=binding)) as door:
        holder = Holder(issuer, door.rules.oauth.config.url if door.rules.oauth else "")
        answer = await door.with_token(holder.token)
        denied(answer, 401, "invalid_token", "bound to a key")
        # With a proof beside it too: the scheme says by what rules it is judged.
        holder.nonce = answer.headers["dpop-nonce"]
        denied(await door.with_token(holder.token, "Bearer", dpop=holder.proof()), 401, "invalid_token", "bound to a key")
        denied(await door.with_token(holder.token, "DPoP"), 401, PROOF, "a DPoP proof is needed")


@pytest.mark.parametrize("binding", [Binding.DPOP, Binding.EITHER])
async def test_an_unbound_token_where_tokens_have_to_be_bound(binding: Binding) -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer, binding=binding)) as door:
        denied(await door.with_token(issuer.token()), 401, "invalid_token", "not bound")
        denied(await door.with_token(issuer.token(cnf={"kid": "x"})), 401, "invalid_token", "in a way that is not known")
        denied(await door.with_token(issuer.token(cnf={})), 401, "invalid_token", "bound to nothing")
        denied(await door.with_token(issuer.token(cnf="x")), 401, "invalid_token", "in a way that is not known")
        holder = await door.ready(issuer)
        holder.token = issuer.token()
        denied(await door.by(holder), 401, "invalid_token", "not bound")


async def test_a_proof_for_an_unbound_token_shows_nothing() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer, binding=Binding.NONE)) as door:
        holder = await door.ready(issuer)
        holder.token = issuer.token()
        denied(await door.by(holder), 401, "invalid_token", "bound to no key")


async def test_a_stolen_token_with_a_proof_of_the_thiefs_own_key() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        victim, thief = await door.ready(issuer), await door.ready(issuer)
        thief.token = victim.token
        denied(await door.by(thief), 401, "invalid_token", "another key")
    # With the victim's public key in the header, and no private one to sign with.
    await refused({}, PROOF, "signature does not verify", sign=generated("ES256"))


@pytest.mark.parametrize(
    "url", ["https://localhost/other", "https://localhost/MCP", "https://localhost/mcp/", "https://localhost//mcp", "https://localhost/%6dcp",
            "https://localhost:444/mcp", "http://localhost/mcp", "https://evil.example/mcp", "https://evil@localhost/mcp",
            "https://localhost.evil.example/mcp", "https://localhost:0/mcp", "https://localhost/m\ncp", " https://localhost/mcp", "/mcp", "https://[::1/mcp", "https://localhost:x/mcp", 1, None, ["https://localhost/mcp"]],
)  # fmt: skip
async def test_a_proof_for_another_url(url: object) -> None:
    await refused({"htu": url}, PROOF, "another method or URL")


async def test_our_url_written_in_another_way_is_ours() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        holder = await door.ready(issuer)
        for url in ("https://localhost:443/mcp", "HTTPS://LOCALHOST/mcp", "https://localhost/mcp?x=1#y"):
            assert (await door.by(holder, htu=url)).status == 200, url


@pytest.mark.parametrize("method", ["GET", "post", "DELETE", "", None])
async def test_a_proof_for_another_method(method: object) -> None:
    await refused({"htm": method}, PROOF, "another method or URL")


async def test_a_proof_for_another_token_of_the_same_key() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        holder = await door.ready(issuer)
        proof, before = holder.proof(), holder.token
        holder.token = issuer.token(cnf={"jkt": holder.thumbprint}, sub="b-1")
        assert holder.token != before
        denied(await door.with_token(holder.token, "DPoP", dpop=proof), 401, PROOF, "for another token")
    for wrong in (None, "", b64(b"x" * 32), 1):
        await refused({"ath": wrong}, PROOF, "for another token")


@pytest.mark.parametrize("seconds", [-61, -86_400, 11, 3600])
async def test_a_proof_that_was_not_made_now(seconds: float) -> None:
    await refused({"iat": time.time() + seconds}, PROOF, "not made now")


@pytest.mark.parametrize("claim", [None, "now", True])
async def test_a_proof_without_a_time(claim: object) -> None:
    await refused({"iat": claim}, PROOF, "not made now")


@pytest.mark.parametrize("number", [None, "", "x" * 129, 1, "\u00e9", "a\nb", ["x"]])
async def test_a_proof_without_a_number_that_can_be_remembered(number: object) -> None:
    await refused({"jti": number}, PROOF, "no `jti`")


@pytest.mark.parametrize("nonce", [None, "", "AAAA", "A" * 32, "\u00e9" * 32, 1, "A" * 5000])
async def test_a_proof_made_in_advance_without_our_nonce(nonce: object) -> None:
    if nonce == "A" * 5000:
        await refused({"nonce": nonce}, PROOF, "over 4096 characters")
    else:
        await refused({"nonce": nonce}, "use_dpop_nonce", "must have the nonce of this answer")


async def test_a_nonce_gets_old_and_a_new_one_comes_before_that() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        holder = await door.ready(issuer)
        assert "dpop-nonce" not in (await door.by(holder)).headers
        first = holder.nonce
        door.clock.ahead_s = 151
        answer = await door.by(holder, iat=time.time() + 151)
        assert (answer.status, holder.nonce != first) == (200, True)
        assert (await door.by(holder, iat=time.time() + 151)).status == 200
        door.clock.ahead_s = 302
        denied(await door.by(holder, iat=time.time() + 302, nonce=first), 401, "use_dpop_nonce")


async def test_a_proof_sent_twice() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        holder = await door.ready(issuer)
        headers = holder.headers()
        assert (await door.ask("server/discover", **headers)).status == 200
        denied(await door.ask("server/discover", **headers), 401, PROOF, "taken before")
        # Many at once: one of them is the first.
        headers, statuses = holder.headers(), []

        async def send() -> None:
            statuses.append((await door.ask("server/discover", **headers)).status)

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(send)
        assert sorted(statuses) == [200] + [401] * 7


async def test_a_proof_sent_again_to_a_second_gateway_that_would_know_its_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource.dpop.secrets, "token_bytes", lambda size: b"k" * size)  # so that the ledger alone refuses
    issuer, ledger = FakeIssuer(), FakeLedger()
    front = front_of(issuer)
    async with oauth_door(front, ledger) as door, oauth_door(front, ledger) as second:
        holder = await door.ready(issuer)
        headers = holder.headers()
        assert (await door.ask("server/discover", **headers)).status == 200
        denied(await second.ask("server/discover", **headers), 401, PROOF, "taken before")
        assert (await second.by(holder)).status == 200


async def test_a_proof_sent_again_after_everything_was_killed_by_a_ledger_that_is_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resource.dpop.secrets, "token_bytes", lambda size: b"k" * size)
    issuer = FakeIssuer()
    front = front_of(issuer)
    with running(tmp_path / "ledger") as first:
        async with client(first) as ledger, oauth_door(front, ledger) as door:
            holder = await door.ready(issuer)
            headers = holder.headers()
            assert (await door.ask("server/discover", **headers)).status == 200
            first.process.kill()
            first.process.wait()
            await unheard(door, holder)
    with running(tmp_path / "ledger", runtime="r2") as second:
        async with client(second) as ledger, oauth_door(front, ledger) as door:
            denied(await door.ask("server/discover", **headers), 401, PROOF, "taken before")
            assert (await door.by(holder)).status == 200


async def test_a_nonce_of_another_gateway_or_of_before_a_restart() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door, oauth_door(front_of(issuer)) as second:
        holder = await door.ready(issuer)
        denied(await second.by(holder), 401, "use_dpop_nonce")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"typ": "JWT"}, "no dpop+jwt"),
        ({"typ": "at+jwt"}, "no dpop+jwt"),
        ({"alg": "ES384"}, "no dpop+jwt"),
        ({"jwk": None}, "no dpop+jwt"),
        ({"jwk": "x"}, "no dpop+jwt"),
        ({"jwk": {"kty": "oct", "k": "AAAA"}}, "private key"),
        ({"jwk": {"kty": "RSA", "n": "AAAA", "e": "AQAB"}}, "no key that is known"),
        ({"jwk": {"kty": "EC", "crv": "P-256", "x": "A" * 65, "y": "A"}}, "no key that is known"),
        ({"crit": ["x"]}, "not understood"),
    ],
)
async def test_a_proof_whose_header_is_something_else(header: dict[str, Any], words: str) -> None:
    await refused({}, PROOF, words, header=header)


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
async def test_a_proof_that_nobody_signed(algorithm: str) -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        holder = await door.ready(issuer)
        header = {"typ": "dpop+jwt", "alg": algorithm, "jwk": holder.key.as_dict(private=False)}
        denied(await door.with_token(holder.token, "DPoP", dpop=signed(header, {}, None)), 401, PROOF, "no dpop+jwt")


async def test_a_client_that_sends_its_private_key_is_told() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        holder = await door.ready(issuer)
        answer = await door.by(holder, header={"jwk": holder.key.as_dict(private=True)})
        denied(answer, 401, PROOF, "replace that key")


async def test_two_proofs() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        holder = await door.ready(issuer)
        answer = await door.ask("server/discover", **{**holder.headers(), "DPOP": holder.proof()})
        assert answer.status == 400


async def unheard(door: OAuthDoor, holder: Holder) -> Answer:
    answer = await door.by(holder)
    assert (answer.status, "retry-after" in answer.headers) == (503, True), answer
    assert door.spine.pids == []
    return answer


async def test_a_ledger_that_is_gone_full_or_silent_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from fumehood.store import nonces

    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        holder = await door.ready(issuer)
        door.ledger.gone = True
        await unheard(door, holder)
        door.ledger.gone = False
        with monkeypatch.context() as full:
            full.setattr(nonces, "NONCES_OF_A_KEY", 0)
            await unheard(door, holder)
        with monkeypatch.context() as silent:
            silent.setattr(resource, "SPEND_S", 0.05)
            silent.setattr(door.ledger, "spend", lambda *_: anyio.sleep_forever())
            await unheard(door, holder)
        assert (await door.by(holder)).status == 200


async def test_bad_proofs_of_a_good_number_do_not_burn_it() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        holder = await door.ready(issuer)
        for changes in ({"key": generated("ES256")}, {"ath": "x"}, {"htu": "https://evil.example"}, {"nonce": "A" * 32}):
            assert (await door.ask("server/discover", **holder.headers(jti="mine", **changes))).status == 401
        stranger = Holder(issuer, holder.url, changes={"sub": "c-1"}, nonce=holder.nonce)
        assert (await door.by(stranger, jti="theirs")).status == 403
        assert door.ledger.spent == {}, "nobody who is not admitted fills the store"
        assert (await door.by(holder, jti="mine")).status == 200


async def test_a_session_is_its_senders_whatever_key_he_has() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer)) as door:
        alice, bob = await door.ready(issuer), await door.ready(issuer, changes={"sub": "b-1"})
        older = OAuthDoor(door.port, door.spine, door.token, None, rules=door.rules, ledger=door.ledger, clock=door.clock)
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
        opened = await older.ask("initialize", hello, **alice.headers())
        session = {"mcp-session-id": opened.headers["mcp-session-id"], "mcp_protocol_version": "2025-11-25"}
        assert (await older.ask("ping", **session, **bob.headers())).status == 404
        assert (await older.ask("ping", **session)).status == 404, "nor a sender of the tokens file"
        assert (await older.ask("ping", **session, **alice.headers())).status == 200
        again = Holder(issuer, alice.url, nonce=alice.nonce)
        assert (await older.ask("ping", **session, **again.headers())).status == 200
        assert (await older.send(b"", "DELETE", **session, **alice.headers())).status == 401, "a proof for POST"
        assert (await older.send(b"", "DELETE", **session, **alice.headers("DELETE"))).status == 200


def test_the_thumbprint_is_that_of_rfc_7638() -> None:
    holder = Holder(FakeIssuer(), "https://localhost/mcp")
    assert resource.dpop.thumbprint_of(holder.key.as_dict(private=False)) == holder.thumbprint
    shown = Proof(method="dpop", key=holder.thumbprint, nonce="n", until_s=0)
    assert len(shown.key) == 43
