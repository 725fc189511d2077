"""HTTPS before a gateway that believes a FAKE issuer's tokens: the door of `http_door` with TLS, over the FAKE spine and ledger."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from http_door import TOKENS, Answer, Door, listener
from local_gateway import gateway
from local_runner import FakeSpine
from raw_client import PEER
from remote_world import authority, context

from fake_issuer import FakeIssuer, Holder, oauth_config
from fakes import FakeLedger
from fumehood.app import SystemClock
from fumehood.gateway import http_server
from fumehood.gateway.http_head import Rules
from fumehood.gateway.oauth.given import OAuthFront
from fumehood.ports import Ledger, Outward, Ports
from signed import proofs

HOSTS = frozenset({"127.0.0.1", "localhost"})


@dataclass
class Clock(SystemClock):
    """The host's clocks, and what a test adds to them."""

    ahead_s: float = 0.0

    def wall_s(self) -> float:
        return super().wall_s() + self.ahead_s

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


@dataclass
class OAuthDoor(Door):
    """A door with TLS. `identity` are the files of the client's certificate and key."""

    rules: Rules = field(kw_only=True)
    ledger: Any = field(kw_only=True)
    clock: Clock = field(kw_only=True)
    identity: tuple[Path, Path] | None = None

    async def connect(self) -> Any:
        tls = ssl.create_default_context(cadata=authority().pem)
        if self.identity is not None:
            tls.load_cert_chain(*self.identity)
        return await anyio.connect_tcp("127.0.0.1", self.port, tls=True, ssl_context=tls, tls_hostname="localhost", tls_standard_compatible=False)

    async def with_token(self, token: str, scheme: str = "Bearer", **headers: str | None) -> Answer:
        """A request that any sender may make, with this token."""
        return await self.ask("server/discover", authorization=f"{scheme} {token}", **headers)

    async def by(self, holder: Holder, **changes: Any) -> Answer:
        """A request of a holder's, who learns the nonce that comes back; changed are its proof's claims."""
        answer = await self.ask("server/discover", **holder.headers(**changes))
        holder.nonce = answer.headers.get("dpop-nonce", holder.nonce)
        return answer

    async def ready(self, issuer: FakeIssuer, **changes: Any) -> Holder:
        """A holder who has a nonce of the gateway's."""
        holder = Holder(issuer, self.rules.oauth.config.url if self.rules.oauth else "", **changes)
        assert (await self.by(holder)).status == 401
        assert holder.nonce is not None
        return holder


def front_of(issuer: FakeIssuer, *others: FakeIssuer, **config: Any) -> OAuthFront:
    """What a worker is given by an operator who keeps these issuers' keys in files."""
    every = (issuer, *others)
    made = oauth_config(*(each.config() for each in every), **config)
    return OAuthFront(config=made, uid=0, key_sets={each.issuer: each.jwks() for each in every})


@asynccontextmanager
async def oauth_door(front: OAuthFront, ledger: Ledger | None = None, outward: Outward | None = None) -> AsyncIterator[OAuthDoor]:
    """A gateway on HTTPS before our `peer`."""
    spine, socket_, clock = FakeSpine(), listener(), Clock()
    ledger = ledger or FakeLedger()
    ports: Ports = replace(spine.ports, ledger=ledger, clock=clock, outward=outward or Outward(authorities=authority().pem))
    rules = Rules(authenticate=TOKENS.get, hosts=HOSTS, oauth=front)
    tls = context("localhost") if not front.config.binding.takes_certificates else _own_context()
    front.ask_certificates(tls)
    async with AsyncExitStack() as held:
        inner = await held.enter_async_context(gateway((*PEER, "modern"), spine))
        tasks = await held.enter_async_context(anyio.create_task_group())
        tasks.start_soon(http_server.serve, inner, socket_, rules, proofs(), tls, ports)
        yield OAuthDoor(socket_.getsockname()[1], spine, rules=rules, ledger=ledger, clock=clock)
        tasks.cancel_scope.cancel()


def _own_context() -> ssl.SSLContext:
    """Not the one that tests share: it is changed."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return authority().certify("localhost").server_context(Path(folder))


def denied(answer: Answer, status: int, error: str, words: str = "") -> None:
    """That this was refused as RFC 6750 and RFC 9449 have it, and why."""
    told = answer.headers.get("www-authenticate", "")
    assert answer.status == status, answer
    assert f'error="{error}"' in told, told
    assert "resource_metadata=" in told, told
    assert words in answer.message["error"]["message"], answer


