"""An issuer's keys by URL: whom the gateway may be led to ask, how often, and what it goes on believing when it hears nothing good."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from http_door import Answer
from oauth_door import Clock, OAuthDoor, denied, oauth_door
from remote_world import LOOPBACK, Asked, Say, Script, answer, authority, scripted

from fake_issuer import FakeIssuer, generated, oauth_config
from fumehood.gateway.oauth import fetching, keys
from fumehood.gateway.oauth.given import OAuthFront
from fumehood.oauth_config import Binding, KeysConfig
from fumehood.ports import Outward
from nameserver import nameserver

pytestmark = pytest.mark.anyio


def by_url(issuer: FakeIssuer, url: str, addresses: tuple[str, ...] = LOOPBACK) -> OAuthFront:
    source = KeysConfig(url=url, addresses=addresses)
    return OAuthFront(config=oauth_config(issuer.config(keys=source), binding=Binding.NONE), uid=0)


def publishing(issuer: FakeIssuer) -> Say:
    async def say(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(issuer.jwks().encode()))

    return say


@asynccontextmanager
async def published(say: Say, issuer: FakeIssuer) -> AsyncIterator[tuple[OAuthDoor, Script]]:
    async with scripted(say) as script, oauth_door(by_url(issuer, script.url)) as door:
        yield door, script


def unheard(said: Answer) -> None:
    """That nobody was believed, and that it is no fault of the token's."""
    assert (said.status, said.headers.get("retry-after")) == (503, "5"), said
    assert "keys cannot be read" in said.message["error"]["message"]


async def test_keys_are_read_once_and_asked_for_as_a_stranger() -> None:
    issuer = FakeIssuer()
    async with published(publishing(issuer), issuer) as (door, script):
        for _ in range(5):
            assert (await door.with_token(issuer.token())).status == 200
        (asked,) = script.asked
        assert (asked.method, asked.body) == ("GET", b"")
        assert set(asked.headers) == {"host", "user-agent", "accept", "accept-encoding"}


@pytest.mark.parametrize(
    ("address", "addresses"),
    [("169.254.169.254", ()), ("10.0.0.5", ()), ("127.0.0.1", ()), ("192.168.1.1", ("10.0.0.0/8",)), ("0.0.0.0", ())],  # noqa: S104 - attacks
)
async def test_a_url_that_leads_to_a_private_or_metadata_address(
    address: str, addresses: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    issuer = FakeIssuer()
    async with nameserver({"login.example.org": [address]}) as names:
        outward = Outward(resolvers=(names.place,), authorities=authority().pem)
        async with oauth_door(by_url(issuer, "https://login.example.org/jwks", addresses), outward=outward) as door:
            unheard(await door.with_token(issuer.token()))
    assert "upstream_not_allowed" in caplog.text
    assert address in caplog.text


async def test_unknown_key_ids_in_a_flood_ask_the_issuer_no_more_often() -> None:
    issuer = FakeIssuer()
    async with published(publishing(issuer), issuer) as (door, script):
        assert (await door.with_token(issuer.token())).status == 200
        statuses = []

        async def guess(number: int) -> None:
            statuses.append((await door.with_token(issuer.token({"kid": f"k-{number}"}))).status)

        for _ in range(4):
            async with anyio.create_task_group() as tasks:
                for number in range(16):
                    tasks.start_soon(guess, number)
        assert statuses == [401] * 64
        assert len(script.asked) == 1
        door.clock.ahead_s = fetching.AGAIN_S + 1
        async with anyio.create_task_group() as tasks:
            for number in range(16):
                tasks.start_soon(guess, number)
        assert len(script.asked) == 2
        assert (await door.with_token(issuer.token())).status == 200


async def test_a_rotated_key_is_found_and_the_old_one_no_longer_believed() -> None:
    issuer = FakeIssuer()
    async with published(publishing(issuer), issuer) as (door, script):
        before = issuer.token()
        assert (await door.with_token(before)).status == 200
        issuer.rotate("k2")
        denied(await door.with_token(issuer.token()), 401, "invalid_token", "does not publish")
        door.clock.ahead_s = fetching.AGAIN_S + 1
        assert (await door.with_token(issuer.token())).status == 200
        denied(await door.with_token(before), 401, "invalid_token", "does not publish")
        assert len(script.asked) == 2


async def test_what_was_good_stays_for_a_while_when_nothing_good_comes() -> None:
    issuer, says = FakeIssuer(), [answer(b"")]

    async def say(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(says[0])

    says[0] = answer(issuer.jwks().encode())
    async with published(say, issuer) as (door, script):
        assert (await door.with_token(issuer.token())).status == 200
        bad = [answer(b"{}"), answer(b"", "500 Broken"), answer(b"", "302 Found", Location="https://evil.example/"), b"garbage"]
        for number, each in enumerate(bad, 1):
            says[0] = each
            door.clock.ahead_s = number * (fetching.OLD_S + 1)
            now = await _aged(door, issuer)
            assert now.status == 200, each
            assert len(script.asked) == 1 + number
        door.clock.ahead_s = fetching.DEAD_S + 10
        unheard(await _aged(door, issuer))


async def _aged(door: OAuthDoor, issuer: FakeIssuer) -> Answer:
    """A token of the clock's own time."""
    claims = issuer.claims()
    return await door.with_token(issuer.token(iat=claims["iat"] + door.clock.ahead_s, exp=claims["exp"] + door.clock.ahead_s))


def _redirect(issuer: FakeIssuer) -> bytes:
    return answer(issuer.jwks().encode(), "307 Temporary Redirect", Location="https://localhost/elsewhere")


def _large(issuer: FakeIssuer) -> bytes:
    return answer((issuer.jwks()[:-1] + ', "x": "' + "x" * keys.SET_BYTES + '"}').encode())


def _many(issuer: FakeIssuer) -> bytes:
    (key,) = json.loads(issuer.jwks())["keys"]
    return answer({"keys": [{**key, "kid": str(number)} for number in range(keys.MAX_KEYS + 1)]})


def _compressed(issuer: FakeIssuer) -> bytes:
    return answer(issuer.jwks().encode(), Content_Encoding="gzip")


def _twice(issuer: FakeIssuer) -> bytes:
    (key,) = json.loads(issuer.jwks())["keys"]
    other = {**generated("ES256").as_dict(private=False), "kid": "k1"}
    return answer({"keys": [key, other]})


def _others(issuer: FakeIssuer) -> bytes:
    (key,) = json.loads(issuer.jwks())["keys"]
    _, own = issuer.keys["k1"]
    return answer({
        "keys": [
            {**key, "use": "enc"}, {**key, "alg": "ES384"}, {**key, "key_ops": ["sign"]}, {**key, "kid": 1}, {"kid": "k1"}, 1, None,
            {**key, "crv": "P-521"}, {**own.as_dict(private=True), "kid": "k1"}, {"kty": "oct", "k": "AAAA", "kid": "k1"},
        ]
    })  # fmt: skip


@pytest.mark.parametrize("said", [_redirect, _large, _many, _compressed, _twice, _others], ids=lambda said: str(said.__name__))
async def test_a_set_that_is_none(said: Any) -> None:
    issuer = FakeIssuer()

    async def say(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(said(issuer))

    async with published(say, issuer) as (door, script):
        unheard(await door.with_token(issuer.token()))
        unheard(await door.with_token(issuer.token()))
        assert len(script.asked) == 1, "nor is it asked again at once"


async def test_an_issuer_of_another_authority() -> None:
    issuer = FakeIssuer()
    async with scripted(publishing(issuer)) as script, oauth_door(by_url(issuer, script.url), outward=Outward()) as door:
        unheard(await door.with_token(issuer.token()))
        assert script.asked == []


async def test_an_issuer_that_does_not_answer_holds_up_nobody_else_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 0.5)
    issuer, other = FakeIssuer(), FakeIssuer("https://login.example.net")

    async def silent(_asked: Asked, _writer: asyncio.StreamWriter) -> None:
        await anyio.sleep_forever()

    async with scripted(silent) as script:
        front = by_url(issuer, script.url)
        front = replace(
            front, config=replace(front.config, issuers=(*front.config.issuers, other.config())), key_sets={other.issuer: other.jwks()}
        )
        async with oauth_door(front) as door, anyio.create_task_group() as tasks:
            with anyio.fail_after(10):
                tasks.start_soon(door.with_token, issuer.token())
                while not script.asked:  # noqa: ASYNC110 - another task's progress
                    await anyio.sleep(0.01)
                assert (await door.with_token(other.token())).status == 200
                unheard(await door.with_token(issuer.token()))


async def test_who_asked_first_cannot_keep_the_keys_from_others_by_leaving() -> None:
    issuer, go_on = FakeIssuer(), anyio.Event()

    async def slow(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(answer(issuer.jwks().encode()))

    async with scripted(slow) as script:
        (config,) = by_url(issuer, script.url).config.issuers
        store = fetching.KeyStore(config, None, Outward(authorities=authority().pem), Clock())
        async with anyio.create_task_group() as first:
            first.start_soon(store.freshen, ("x", "ES256"))
            with anyio.fail_after(10):
                while not script.asked:  # noqa: ASYNC110 - another task's progress
                    await anyio.sleep(0.01)
            first.cancel_scope.cancel()
            go_on.set()
        assert store.find(("k1", "ES256")) is not None
        assert len(script.asked) == 1


def test_a_key_verifies_only_what_it_is_for() -> None:
    short = {"kty": "RSA", "n": "u1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0g", "e": "AQAB", "kid": "short"}
    rsa = {**generated("RS256").as_dict(private=False), "kid": "r"}
    edwards = {**generated("EdDSA").as_dict(private=False), "kid": "e", "alg": "EdDSA"}
    curve = {**generated("ES256").as_dict(private=False), "kid": "c"}
    huge = {"kty": "RSA", "n": "A" * 40_000, "e": "AQAB", "kid": "huge"}
    text = json.dumps({"keys": [short, huge, rsa, edwards, curve]}).encode()
    assert set(keys.keys_of(text, ("RS256", "EdDSA", "Ed25519", "ES256"))) == {
        ("r", "RS256"), ("e", "EdDSA"), ("e", "Ed25519"), ("c", "ES256"),
    }  # fmt: skip
    assert set(keys.keys_of(text, ("ES256",))) == {("c", "ES256")}
    for unfit in (b"", b"[]", b'{"keys": {}}', b'{"keys": []}', b'{"keys": [], "keys": []}', b"\xff"):
        with pytest.raises(keys.NoKeysError):
            keys.keys_of(unfit, ("ES256",))
