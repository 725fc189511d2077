"""Access tokens at a running gateway: real boxes, the real ledger, HTTPS, the SDK's client; the issuer is a FAKE of our own."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from mcp import Client
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client

from certificates import Authority
from fake_issuer import DPoP, FakeIssuer, Holder, b64, served
from lab import Lab, lab_for
from live_gateway import META, LiveGateway, configure, live_gateway, napping

pytestmark = [pytest.mark.root, pytest.mark.anyio]


@pytest.fixture(scope="module")
def oauth_lab() -> Iterator[Lab]:
    """A state folder and a configuration of this file's own; the image store is shared."""
    with lab_for("python", "o") as made:
        yield made
        assert made.left() == []


@dataclass
class World:
    """What the operator has: an authority for certificates, and an address for the gateway."""

    lab: Lab
    authority: Authority
    issuer: FakeIssuer
    port: int

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/mcp"

    def put(self, name: str, text: str) -> Path:
        path = self.lab.folder / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    def configure(self, *, more: str = "", port: int | None = None, senders: str = "{alice: {sub: a-1}}", **oauth: str) -> Path:
        """The gateway's configuration; the issuer's keys are in a file unless `jwks` says otherwise."""
        server, _ = napping(self.lab, "nap")
        keys = oauth.pop("jwks", f"{{file: {self.put('issuer.jwks', self.issuer.jwks())}}}")
        issuer = f"{{issuer: '{self.issuer.issuer}', jwks: {keys}, algorithms: [ES256], senders: {senders}}}"
        fields = {"resource": f"'{self.url}'", "binding": "dpop", "issuers": f"[{issuer}]", **oauth}
        section = ", ".join(f"{name}: {value}" for name, value in fields.items())
        tls = f"{{certificate: {self.lab.folder}/server.crt, key: {self.lab.folder}/server.key}}"
        http = f"listen: '127.0.0.1:{port or self.port}', tls: {tls}, oauth: {{{section}}}"
        return configure(self.lab, f"{{servers: {{{server}}}, http: {{{http}}}}}", more)

    def http(self, auth: httpx2.Auth | None = None, identity: tuple[Path, Path] | None = None, **named: Any) -> httpx2.AsyncClient:
        tls = ssl.create_default_context(cadata=self.authority.pem)
        if identity is not None:
            tls.load_cert_chain(*identity)
        return httpx2.AsyncClient(auth=auth, timeout=60, verify=tls, **named)

    @asynccontextmanager
    async def client(self, auth: httpx2.Auth, era: str = "2026-07-28") -> AsyncIterator[Client]:
        """The SDK's client."""
        async with self.http(auth) as http, Client(streamable_http_client(self.url, http_client=http), mode=era) as client:
            yield client

    async def ask(self, headers: Mapping[str, str], port: int | None = None) -> httpx2.Response:
        """One plain request for the list of tools."""
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}}
        usual = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/list"}
        async with self.http() as http:
            return await http.post(self.url.replace(str(self.port), str(port or self.port)), json=body, headers={**usual, **headers})

    async def ready(self, **changes: Any) -> Holder:
        """A holder with a nonce of the running gateway's."""
        holder = Holder(self.issuer, self.url, changes=changes)
        answer = await self.ask(holder.headers())
        assert answer.status_code == 401
        holder.nonce = answer.headers["dpop-nonce"]
        return holder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def world(oauth_lab: Lab) -> World:
    authority, port = Authority(), free_port()
    authority.certify("localhost").write(oauth_lab.folder)
    return World(oauth_lab, authority, FakeIssuer(resource=f"https://localhost:{port}/mcp"), port)


def listening(gateway: LiveGateway) -> None:
    gateway.logged("listening on https")


@pytest.mark.parametrize("era", ["2026-07-28", "2025-11-25"])
async def test_the_sdks_client_calls_with_a_bound_token_and_the_record_says_whose_and_how(world: World, era: str) -> None:
    holder = Holder(world.issuer, world.url)
    with live_gateway(world.lab, world.configure()) as gateway:
        listening(gateway)
        async with world.client(DPoP(holder), "auto" if era == "2026-07-28" else "legacy") as client:
            result = await client.call_tool("nap", {})
            assert result.content[0].text == "nap"  # type: ignore[union-attr] # a text
            task = (result.meta or {})["fumehood/task"]
        assert holder.token.split(".")[1] not in gateway.log.read_text()
    record = world.lab.record("task", task)
    proof = json.loads(record["proof"])
    assert record["sender"] == f"oauth:alice@{world.issuer.issuer.removeprefix('https://')}"
    assert (proof["method"], proof["key"]) == ("dpop", holder.thumbprint)


async def test_a_replayed_proof_at_the_same_a_second_and_a_restarted_gateway(world: World) -> None:
    second_port = free_port()
    with live_gateway(world.lab, world.configure()) as gateway:
        listening(gateway)
        holder = await world.ready()
        captured = holder.headers()
        assert (await world.ask(captured)).status_code == 200
        again = await world.ask(captured)
        assert (again.status_code, "taken before" in again.text) == (401, True)
        with live_gateway(world.lab, world.configure(port=second_port, resource=f"'{world.url}'")) as second:
            listening(second)
            assert (await world.ask(captured, second_port)).status_code == 401
    with live_gateway(world.lab, world.configure()) as gateway:
        listening(gateway)
        assert (await world.ask(captured)).status_code == 401
        holder.nonce = (await world.ask(holder.headers())).headers["dpop-nonce"]
        assert (await world.ask(holder.headers())).status_code == 200


async def test_a_subject_that_a_reload_takes_away_is_refused_at_once_and_a_broken_file_changes_nothing(world: World) -> None:
    with live_gateway(world.lab, world.configure(senders="{alice: {sub: a-1}, bob: {sub: b-1}}")) as gateway:
        listening(gateway)
        alice, bob = await world.ready(), await world.ready(sub="b-1")
        assert [(await world.ask(each.headers())).status_code for each in (alice, bob)] == [200, 200]
        world.configure(senders="{bob: {sub: b-1}}")
        assert "served now" in gateway.reload()
        assert [(await world.ask(each.headers())).status_code for each in (alice, bob)] == [403, 200]
        world.configure(jwks=f"{{file: {world.put('other.jwks', '{}')}}}")
        assert "is no JWK Set to verify with" in gateway.reload()
        assert [(await world.ask(each.headers())).status_code for each in (alice, bob)] == [403, 200]
        # The issuer's key is replaced in the file: what it signed before opens nothing any more.
        world.issuer.rotate("k2")
        world.configure(senders="{bob: {sub: b-1}}")
        assert "served now" in gateway.reload()
        assert (await world.ask(bob.headers())).status_code == 401
        fresh = await world.ready(sub="b-1")
        assert (await world.ask(fresh.headers())).status_code == 200


@dataclass
class Memory:
    """Where the SDK keeps what it got."""

    tokens: Any = None
    about: Any = None

    async def get_tokens(self) -> Any:
        return self.tokens

    async def set_tokens(self, tokens: Any) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> Any:
        return self.about

    async def set_client_info(self, client_info: Any) -> None:
        self.about = client_info


async def test_the_sdks_client_finds_the_issuer_by_itself_and_its_keys_are_read_by_url(world: World) -> None:
    authorities = world.put("authorities.pem", world.authority.pem)
    tls = world.authority.certify("localhost").server_context(world.lab.folder)
    with served(world.issuer, tls) as issuer:
        keys = f"{{url: '{issuer.issuer}/jwks', addresses: [127.0.0.0/8]}}"
        file = world.configure(more=f"egress: {{authorities: {authorities}}}", jwks=keys, binding="none", scopes="[mcp]")
        with live_gateway(world.lab, file) as gateway:
            listening(gateway)
            provider = ClientCredentialsOAuthProvider(
                world.url, Memory(), client_id="tests", client_secret="not one", issuer=issuer.issuer  # noqa: S106 - a fake's
            )
            async with world.client(provider) as client:
                result = await client.call_tool("nap", {})
                assert result.content[0].text == "nap"  # type: ignore[union-attr] # a text
            assert [asked["resource"] for asked in issuer.asked] == [[world.url]]
            assert [asked["scope"] for asked in issuer.asked] == [["mcp"]]
        # The same URL without its network is not asked.
        world.configure(more=f"egress: {{authorities: {authorities}}}", jwks=f"{{url: '{issuer.issuer}/jwks'}}", binding="none")
        with live_gateway(world.lab, file) as gateway:
            listening(gateway)
            answer = await world.ask({"authorization": f"Bearer {issuer.token()}"})
            assert answer.status_code == 503
            assert "upstream_not_allowed" in gateway.logged("could not be read")


async def test_the_sdks_client_calls_with_its_certificate_and_another_with_the_same_token_does_not(world: World) -> None:
    clients = Authority("clients")
    alice, bob = (clients.certify(name, usage=ExtendedKeyUsageOID.CLIENT_AUTH).write(world.lab.folder, name) for name in ("alice", "bob"))
    shown = b64(hashlib.sha256(ssl.PEM_cert_to_DER_cert(alice[0].read_text())).digest())
    bearer = {"authorization": f"Bearer {world.issuer.token(cnf={'x5t#S256': shown})}"}
    authorities = world.put("clients.pem", clients.pem)
    with live_gateway(world.lab, world.configure(binding="mtls", client_authorities=str(authorities))) as gateway:
        listening(gateway)
        async with world.http(headers=bearer, identity=alice) as http, Client(streamable_http_client(world.url, http_client=http)) as client:
            result = await client.call_tool("nap", {})
            assert result.content[0].text == "nap"  # type: ignore[union-attr] # a text
            task = (result.meta or {})["fumehood/task"]
        for identity in (bob, None):
            async with world.http(headers=bearer, identity=identity) as http:
                assert (await http.post(world.url, json={})).status_code == 401
    proof = json.loads(world.lab.record("task", task)["proof"])
    assert (proof["method"], proof["key"]) == ("mtls", shown)


async def test_what_only_a_start_can_do_is_refused_by_a_reload(world: World) -> None:
    first, second = Authority("first"), Authority("second")
    clients = world.put("clients.pem", first.pem)
    with live_gateway(world.lab, world.configure(binding="mtls", client_authorities=str(clients))) as gateway:
        listening(gateway)
        world.put("clients.pem", first.pem + second.pem)
        assert "what `gateway.http.oauth.client_authorities` holds was changed" in gateway.reload()
        world.put("clients.pem", first.pem)
        assert "served now" in gateway.reload()

