"""Access tokens that must open nothing: forged, borrowed from elsewhere, out of time, of nobody we know, or in the wrong place."""

from __future__ import annotations

import hmac
import json
import logging
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from http_door import Answer, answer_of
from oauth_door import denied, front_of, oauth_door

from fake_issuer import FakeIssuer, b64, generated, signed
from fumehood.oauth_config import Binding

pytestmark = pytest.mark.anyio
INVALID = "invalid_token"


async def opened_by(issuer: FakeIssuer, token: str, **headers: str | None) -> Answer:
    """What a gateway that takes unbound tokens says to this one; nothing must have been started for it."""
    async with oauth_door(front_of(issuer, binding=Binding.NONE)) as door:
        answer = await door.with_token(token, **headers)
        assert door.spine.pids == []
        assert door.ledger.calls == {}
        return answer


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "Ed25519", "RS256", "PS256"])
async def test_an_honest_token_is_let_in_and_the_same_with_another_byte_is_not(algorithm: str) -> None:
    issuer = FakeIssuer(algorithm=algorithm)
    token = issuer.token()
    assert (await opened_by(issuer, token)).status == 200
    head, claims, signature = token.split(".")
    other = "B" if signature[9] != "B" else "C"
    denied(await opened_by(issuer, f"{head}.{claims}.{signature[:9]}{other}{signature[10:]}"), 401, INVALID, "signature")
    moved = b64(json.dumps(issuer.claims(sub="b-1")).encode())
    denied(await opened_by(issuer, f"{head}.{moved}.{signature}"), 401, INVALID, "signature")


@pytest.mark.parametrize(
    "audience", ["https://other.example.org/mcp", "https://localhost/", "https://localhost/mcp/", [], ["https://evil.example"], {"https://localhost/mcp": 1}, None]
)  # fmt: skip
async def test_a_token_for_another_audience(audience: Any) -> None:
    issuer = FakeIssuer()
    denied(await opened_by(issuer, issuer.token(aud=audience)), 401, INVALID, "for another resource")


async def test_one_of_several_audiences_is_ours() -> None:
    issuer = FakeIssuer()
    assert (await opened_by(issuer, issuer.token(aud=["https://other.example.org", issuer.resource]))).status == 200


async def test_another_issuers_key_under_the_same_key_id() -> None:
    honest, evil = FakeIssuer(), FakeIssuer("https://evil.example")
    denied(await opened_by(honest, evil.token()), 401, INVALID, "issuer that is not believed")
    denied(await opened_by(honest, evil.token(iss=honest.issuer)), 401, INVALID, "signature does not verify")
    # Believed, but for its own subjects and not for those of the other.
    async with oauth_door(front_of(honest, evil, binding=Binding.NONE)) as door:
        denied(await door.with_token(evil.token(iss=honest.issuer)), 401, INVALID, "signature does not verify")
        assert (await door.with_token(evil.token())).status == 200


async def test_two_issuers_subjects_of_one_name_are_two_senders() -> None:
    first, second = FakeIssuer(), FakeIssuer("https://login.example.net")
    async with oauth_door(front_of(first, second, binding=Binding.NONE)) as door:
        for issuer in (first, second):
            assert (await door.call("echo", authorization=f"Bearer {issuer.token()}")).status == 200
        called = [call.sender.name for call in door.spine.ledger.calls.values() if call.front_door == "gateway"]
        assert called == ["oauth:alice@login.example.org", "oauth:alice@login.example.net"]


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, 1, ["ES256"]])
async def test_a_token_without_a_signature(algorithm: object) -> None:
    issuer = FakeIssuer()
    header = {"typ": "at+jwt", "alg": algorithm, "kid": "k1"}
    for tail in ("", "AAAA"):
        denied(await opened_by(issuer, signed(header, issuer.claims(), None) + tail), 401, INVALID, "algorithm")


async def test_the_public_key_taken_for_a_shared_secret() -> None:
    issuer = FakeIssuer(algorithm="RS256")
    _, public = issuer.keys["k1"]
    for secret in (public.as_pem(private=False), issuer.jwks().encode(), json.dumps(public.as_dict(private=False)).encode()):
        # By hand: the library knows the attack, and makes no such secret.
        unsigned = signed({"typ": "at+jwt", "alg": "HS256", "kid": "k1"}, issuer.claims(), None)
        tag = hmac.digest(secret, unsigned[:-1].encode(), "sha256")
        denied(await opened_by(issuer, unsigned + b64(tag)), 401, INVALID, "algorithm")


@pytest.mark.parametrize(("signs", "says"), [("RS256", "ES256"), ("ES256", "RS256"), ("ES256", "EdDSA"), ("RS256", "PS256"), ("EdDSA", "ES256")])
async def test_a_signature_of_one_kind_said_to_be_of_another(signs: str, says: str) -> None:
    issuer = FakeIssuer(algorithm=signs)
    both = FakeIssuer(algorithm=signs, keys={**issuer.keys, "k2": (says, generated(says))})
    # The operator believes both algorithms here, and the token still is what its key is.
    front = front_of(both, binding=Binding.NONE)
    wide = replace(front.config.issuers[0], algorithms=(signs, says))
    front = replace(front, config=replace(front.config, issuers=(wide,)))
    header, claims, signature = issuer.token().split(".")
    for name in ("k1", "k2"):
        lied = b64(json.dumps({"typ": "at+jwt", "alg": says, "kid": name}).encode())
        async with oauth_door(front) as door:
            denied(await door.with_token(f"{lied}.{claims}.{signature}"), 401, INVALID)
    assert header != lied
    # And pinned to one, the other is not even looked for.
    denied(await opened_by(issuer, f"{lied}.{claims}.{signature}"), 401, INVALID, "algorithm")


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"exp": timedelta(seconds=-31)}, "expired"),
        ({"exp": timedelta(seconds=-86_400), "iat": timedelta(seconds=-86_500)}, "expired"),
        ({"nbf": timedelta(seconds=120)}, "not valid yet"),
        ({"iat": timedelta(seconds=120)}, "not valid yet"),
        ({"exp": None}, "when it expires"),
        ({"iat": None}, "when it expires"),
        ({"exp": "9999999999"}, "`exp` is no time"),
        ({"exp": True}, "`exp` is no time"),
        ({"exp": timedelta(seconds=7200)}, "longer than"),
        ({"exp": 1e300}, "longer than"),
    ],
)
async def test_a_token_out_of_time_or_without_an_end(claims: dict[str, Any], words: str) -> None:
    issuer, now_s = FakeIssuer(), time.time()  # not when the cases were collected
    said = {name: now_s + value.total_seconds() if isinstance(value, timedelta) else value for name, value in claims.items()}
    denied(await opened_by(issuer, issuer.token(**said)), 401, INVALID, words)


async def test_a_token_that_expires_while_it_is_used() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer, binding=Binding.NONE)) as door:
        token = issuer.token()
        assert (await door.with_token(token)).status == 200
        door.clock.ahead_s = 300 + 31
        denied(await door.with_token(token), 401, INVALID, "expired")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"typ": "JWT"}, "no access token"),  # an id token
        ({"typ": None}, "no access token"),
        ({"typ": "dpop+jwt"}, "no access token"),
        ({"crit": ["exp"]}, "not understood"),
        ({"crit": []}, "not understood"),
        ({"b64": False}, "not understood"),
        ({"jku": "https://evil.example/jwks"}, "not understood"),
        ({"x5u": "https://evil.example/x"}, "not understood"),
        ({"kid": None}, "does not name its key"),
        ({"kid": "k" * 257}, "does not name its key"),
        ({"kid": "unknown"}, "does not publish"),
        ({"kid": "../../etc/passwd"}, "does not publish"),
    ],
)
async def test_a_header_that_would_have_us_believe_otherwise(header: dict[str, Any], words: str) -> None:
    issuer = FakeIssuer()
    denied(await opened_by(issuer, issuer.token(header)), 401, INVALID, words)


async def test_a_header_that_brings_its_own_key() -> None:
    issuer, evil = FakeIssuer(), generated("ES256")
    forged = issuer.token({"jwk": evil.as_dict(private=False)}, key=evil)
    denied(await opened_by(issuer, forged), 401, INVALID, "signature")


async def test_two_members_of_one_name() -> None:
    issuer = FakeIssuer()
    _, key = issuer.keys["k1"]
    twice = json.dumps(issuer.claims(sub="b-1"))[:-1] + ', "sub": "a-1"}'
    denied(await opened_by(issuer, signed({"typ": "at+jwt", "alg": "ES256", "kid": "k1"}, twice.encode(), key)), 401, INVALID, "no compact JWS")


@pytest.mark.parametrize("subject", ["c-1", "A-1", "a-1 ", "", ["a-1"], 1, None, {"a-1": 1}])
async def test_a_subject_that_the_operator_did_not_name(subject: Any) -> None:
    issuer = FakeIssuer()
    answer = await opened_by(issuer, issuer.token(sub=subject))
    assert (answer.status, "www-authenticate" in answer.headers) == (403, False), "no other token would help"
    assert "not admitted" in answer.message["error"]["message"]


async def test_a_token_that_is_not_good_for_this() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer, binding=Binding.NONE, scopes=("mcp", "admin"))) as door:
        for scope in ("mcp", "mcpadmin", "mcp admins", "", ["mcp", "admin"], None):
            answer = await door.with_token(issuer.token(scope=scope))
            denied(answer, 403, "insufficient_scope", "not good for mcp admin")
            assert 'scope="mcp admin"' in answer.headers["www-authenticate"]
        assert (await door.with_token(issuer.token(scope="admin x mcp"))).status == 200


async def test_a_token_and_headers_that_are_too_large() -> None:
    issuer = FakeIssuer()
    denied(await opened_by(issuer, issuer.token(more="x" * 8192)), 401, INVALID, "over 8192 characters")
    assert (await opened_by(issuer, issuer.token(more="x" * 20_000))).status in (400, 431)
    deep = "[" * 200 + "]" * 200
    _, key = issuer.keys["k1"]
    nested = json.dumps(issuer.claims())[:-1] + f', "deep": {deep}}}'
    denied(await opened_by(issuer, signed({"typ": "at+jwt", "alg": "ES256", "kid": "k1"}, nested.encode(), key)), 401, INVALID)


@pytest.mark.parametrize("text", ["x", "..", "a.b", "a.b.c.d", "e30.e30.", "e30=.e30.e30", "W10.W10.AAAA", "bnVsbA.e30.AAAA", "\u00e9.e30.e30"])
async def test_what_is_no_token_at_all(text: str) -> None:
    answer = await opened_by(FakeIssuer(), text)
    assert answer.status == 401


async def test_a_token_in_the_query_or_the_body_opens_nothing() -> None:
    issuer = FakeIssuer()
    token = issuer.token()
    async with oauth_door(front_of(issuer, binding=Binding.NONE)) as door:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {}, "access_token": token}).encode()
        answer = await door.send(body, "POST", f"/mcp?access_token={token}", authorization=None)
        assert answer.status == 401
        told = answer.headers["www-authenticate"]
        assert told.startswith('Bearer realm="fumehood", resource_metadata=')
        assert "error=" not in told, "nothing was presented that could be wrong (RFC 6750 section 3.1)"


async def test_a_token_twice_or_beside_another() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer, binding=Binding.NONE)) as door:
        head = door.head(content_length="2", authorization=f"Bearer {issuer.token()}")
        head = head.replace(b"authorization:", b"authorization: Bearer wrong\r\nauthorization:")
        async with await door.connect() as stream:
            await stream.send(head + b"{}")
            assert (await answer_of(stream)).status == 400


async def test_tokens_of_the_file_are_taken_beside_and_never_mistaken() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer, binding=Binding.DPOP)) as door:
        assert (await door.call("echo")).status == 200
        assert [call.sender.name for call in door.spine.ledger.calls.values() if call.front_door == "gateway"] == ["http:alice"]


async def test_no_token_is_logged_or_shown_to_the_server_behind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    issuer = FakeIssuer()
    token, wrong = issuer.token(), issuer.token(sub="c-1")
    async with oauth_door(front_of(issuer, binding=Binding.NONE)) as door:
        answer = await door.call("wire", authorization=f"Bearer {token}")
        assert answer.status == 200
        refused = await door.with_token(wrong)
        for shown in (caplog.text, answer.body.decode(), refused.body.decode(), str(refused.headers)):
            assert not any(part in shown for each in (token, wrong) for part in each.split("."))
    async with oauth_door(front_of(issuer)) as door:
        holder = await door.ready(issuer)
        headers = holder.headers()
        answer = await door.call("wire", **headers)
        assert answer.status == 200
        sent = (*holder.token.split("."), *headers["dpop"].split("."))
        assert not any(part in shown for part in sent for shown in (caplog.text, answer.body.decode()))


async def test_a_description_that_a_host_header_would_poison() -> None:
    issuer = FakeIssuer()
    async with oauth_door(front_of(issuer, scopes=("mcp",))) as door:
        found = []
        for path in ("/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"):
            for host in ("localhost:1", "127.0.0.1", f"localhost:{door.port}"):
                answer = await door.send(b"", "GET", path, host=host, authorization=None, x_forwarded_host="evil.example", forwarded="host=evil.example")
                assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
                found.append(answer.body)
            assert (await door.send(b"", "GET", path, host="evil.example", authorization=None)).status == 421
            assert (await door.send(b"", "GET", path, origin="https://evil.example", authorization=None)).status == 403
            assert (await door.send(b"{}", "POST", path, authorization=None)).status == 405
        assert len(set(found)) == 1
        assert json.loads(found[0]) == {
            "resource": "https://localhost/mcp", "authorization_servers": [issuer.issuer], "bearer_methods_supported": ["header"],
            "scopes_supported": ["mcp"], "dpop_signing_alg_values_supported": ["ES256", "EdDSA", "Ed25519"],
            "dpop_bound_access_tokens_required": True, "tls_client_certificate_bound_access_tokens": False,
        }  # fmt: skip
        for path in ("/.well-known/oauth-protected-resource/", "/.well-known/oauth-protected-resource/mcp/x", "/.well-known/%6fauth-protected-resource"):
            assert (await door.send(b"", "GET", path, authorization=None)).status == 404


