"""Remote MCP servers on loopback, with certificates of an authority of the tests' own, and a gateway before them.

Real: the path of a call, gate, TLS, the SDK's servers. FAKE: the ledger, the broker (which nobody may reach), and what issues tokens
(`Tokens`). `scripted` is a server that says, byte for byte, what a test wants.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import anyio
from front_client import Told, client

from certificates import Authority
from fakes import FakeLedger, NoBroker, NoImages, all_senders, new_task
from fumehood import evidence
from fumehood.app import SystemClock
from fumehood.call import run_call
from fumehood.execution import Work
from fumehood.gateway.front import Gateway, open_gateway
from fumehood.gateway.peer import Client
from fumehood.gateway.reading import remote_profile
from fumehood.gateway.served import Served
from fumehood.gateway_config import UpstreamConfig
from fumehood.model import ArgumentBounds, Ask, Deny, Limits, Outcome, Profile, SeccompPolicy, ToolCall
from fumehood.ports import Issued, LeaseRequest, Outward, Ports, Revoked
from fumehood.reach import Network, NetworkLimits, Secret, SecretForm

EVERYTHING = Path(__file__).resolve().parents[1] / "peers" / "everything"
LOOPBACK = ("127.0.0.0/8",)
OLDER_ONLY = b'{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Unsupported protocol version"}}'


@cache
def authority() -> Authority:
    return Authority()


@cache
def context(*names: str) -> ssl.SSLContext:
    with tempfile.TemporaryDirectory() as folder:
        return authority().certify(*names).server_context(Path(folder))


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


@dataclass
class Tokens:
    """A FAKE of what issues tokens: each is new, and revoked when it is asked for."""

    kind: str = "fake"
    revocable: bool = True
    least_s: float = 0.0
    maximum: Mapping[str, Any] = field(default_factory=lambda: {"resource": "**"})
    asked: list[LeaseRequest] = field(default_factory=list)
    live: dict[str, str] = field(default_factory=dict)
    revoked: list[str] = field(default_factory=list)

    async def handle(self, request: LeaseRequest) -> Mapping[str, Any]:
        return {"lease": request.lease}

    async def issue(self, request: LeaseRequest, handle: Mapping[str, Any]) -> Issued:
        self.asked.append(request)
        token = self.live[handle["lease"]] = f"secret-token-{len(self.asked)}-{'x' * 20}"
        return Issued(secret=Secret(form=SecretForm.TOKEN, parts={"token": token}), expires_at_s=None)

    async def revoke(self, handle: Mapping[str, Any], sealed: Mapping[str, str]) -> Revoked:  # noqa: ARG002 - the port's
        if token := self.live.pop(handle["lease"], None):
            self.revoked.append(token)
        return Revoked(gone=True, asked="the fake", answer="gone")


class Spine:
    """`run` and `refuse` for a gateway: the real path of a call."""

    def __init__(self, outward: Outward) -> None:
        self.ledger = FakeLedger()
        self.outcomes: list[tuple[ToolCall, Outcome]] = []
        self.ports = Ports(
            broker=NoBroker(), ledger=self.ledger, images=NoImages(), clock=SystemClock(), owner_uid=os.getuid(), outward=outward,
            policies=all_senders(),
        )  # fmt: skip

    async def run(self, call: ToolCall, work: Work) -> Outcome:
        outcome = await run_call(call, work, self.ports)
        self.outcomes.append((call, outcome))
        return outcome

    async def refuse(self, call: ToolCall, deny: Deny) -> Outcome:
        async with evidence.record(call, self.ports) as log:
            await log.note(deny)
        self.outcomes.append((call, log.outcome))
        return log.outcome

    def egress(self, kind: str) -> list[Mapping[str, Any]]:
        """What the calls' egress logs say of one kind, in order."""
        return [entry.facts for log in self.ledger.egress_log.values() for entry in log if entry.kind == kind]


@dataclass
class World:
    """A gateway before one remote server."""

    front: Gateway
    spine: Spine

    async def ask(self, method: str, asking: Client | None = None, channel: Told | None = None, **params: Any) -> dict[str, Any]:
        with anyio.fail_after(20):
            return await self.front.answer(asking or client(), method, params, channel or Told())

    async def call(self, tool: str, asking: Client | None = None, channel: Told | None = None, **arguments: Any) -> dict[str, Any]:
        return await self.ask("tools/call", asking, channel, name=tool, arguments=arguments)

    async def told(self, tool: str, asking: Client | None = None, **arguments: Any) -> str:
        """The text of a call's result."""
        return str((await self.call(tool, asking, **arguments))["content"][0]["text"])

    @property
    def last(self) -> Outcome:
        return self.spine.outcomes[-1][1]


def profile(**changes: Any) -> Profile:
    """A profile with `remote: true`, as it is loaded; every tool allowed."""
    limits = Limits(wall_s=changes.pop("wall_s", 10.0), idle_s=changes.pop("idle_s", None), result_bytes=changes.pop("result_bytes", 2**20))
    network = Network(limits=changes.pop("network", NetworkLimits()))
    return Profile(
        name="remote", digest="", image="", seccomp=SeccompPolicy(name="default", default_errno=1, rules=()),
        **{"tools": None, "arguments": ArgumentBounds(open=("*",)), "limits": limits, "network": network, "ask": Ask(), **changes},
    )  # fmt: skip


@asynccontextmanager
async def world(
    url: str, *, tokens: Tokens | None = None, addresses: tuple[str, ...] = LOOPBACK, trusted: bool = True,
    resource: str | None = None, outward: Outward | None = None, **changes: Any,
) -> AsyncIterator[World]:  # fmt: skip
    """A gateway before the remote server at `url`."""
    base = outward or Outward()
    base = replace(base, authorities=authority().pem if trusted else None, providers={} if tokens is None else {"issuer": tokens})
    upstream = UpstreamConfig(url=url, credential=None if tokens is None else "issuer", resource=resource, addresses=addresses)
    spine = Spine(base)
    served = Served(name="far", profile=remote_profile(profile(**changes), upstream), argv=())
    async with open_gateway([served], spine.run, spine.refuse, new_task, spine.ports) as front:
        yield World(front, spine)


@asynccontextmanager
async def everything(*, older: bool = False, seen: list[Asked] | None = None) -> AsyncIterator[str]:
    """The SDK's own server over HTTPS, both eras or the older ones alone; its URL."""
    import uvicorn

    sys.path[:0] = [path for path in (str(EVERYTHING),) if path not in sys.path]
    from events import Events
    from server import make

    app = make().streamable_http_app(event_store=Events(), retry_interval=100)

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        if seen is not None:
            seen.append(Asked(scope["method"], scope["path"], headers, b""))
        if older and headers.get("mcp-protocol-version") == "2026-07-28":
            await send({"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"application/json")]})
            await send({"type": "http.response.body", "body": OLDER_ONLY})
            return
        await app(scope, receive, send)

    config = uvicorn.Config(watched, log_level="error", timeout_graceful_shutdown=1)
    config.load()
    config.ssl = context("localhost")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server._serve(sockets=[listening]))
        while not server.started:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
        try:
            yield f"https://localhost:{listening.getsockname()[1]}/mcp"
        finally:
            server.should_exit = server.force_exit = True
            with suppress(asyncio.CancelledError):
                await serving


@dataclass
class Script:
    """A server that a test writes."""

    url: str
    port: int
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0


Say = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(say: Say, *names: str, tls: bool = True) -> AsyncIterator[Script]:
    """A TLS server whose answers `say` writes; each connection is closed after it, unless the answer keeps it."""
    script = Script("", 0)
    open_: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_.add(task)
        script.connections += 1
        try:
            asked = await _read(reader)
            if asked is not None:
                script.asked.append(asked)
                await say(asked, writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the gate hung up
        finally:
            open_.discard(task)
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context(*(names or ("localhost",))) if tls else None)
    script.port = server.sockets[0].getsockname()[1]
    script.url = f"https://{(names or ('localhost',))[0]}:{script.port}/mcp"
    try:
        yield script
    finally:
        server.close()
        for task in list(open_):
            task.cancel()
        await asyncio.gather(*open_, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rest = head.rstrip().split("\r\n")
    method, target, _ = line.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
    return Asked(method, target, headers, await reader.readexactly(int(headers.get("content-length", 0))))


def answer(body: bytes | dict[str, Any], status: str = "200 OK", kind: str = "application/json", **more: str) -> bytes:
    """A whole response; one whose body has still to be filled in ends with its connection."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    heads = {"Content-Type": kind, "Connection": "close"} | ({} if b"@ID@" in data else {"Content-Length": str(len(data))})
    heads |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in heads.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + data


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(message: dict[str, Any]) -> bytes:
    return b"event: message\ndata: " + json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n\n"


def result(asked: Asked, **members: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": asked.message["id"], "result": {"resultType": "complete", **members}}


def modern(on_call: Say, **tool: Any) -> Say:
    """A server of 2026-07-28 with one tool, `t`, which `on_call` answers."""

    async def say(asked: Asked, writer: asyncio.StreamWriter) -> None:
        match asked.message["method"]:
            case "server/discover":
                writer.write(answer(result(asked, supportedVersions=["2026-07-28"], capabilities={"tools": {}})))
            case "tools/list":
                writer.write(answer(result(asked, tools=[{"name": "t", "inputSchema": {"type": "object"}, **tool}])))
            case _:
                await on_call(asked, writer)

    return say


def older_server(on_call: Say, session: str = "s-1") -> Say:
    """A server of 2025-11-25 with one tool, `t`, which `on_call` answers."""

    async def say(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.method != "POST":
            writer.write(answer(b""))
            return
        match asked.message["method"]:
            case "initialize":
                about = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "o", "version": "1"}}
                writer.write(answer(result(asked, **about), Mcp_Session_Id=session))
            case "notifications/initialized":
                writer.write(answer(b"", "202 Accepted"))
            case "tools/list":
                writer.write(answer(result(asked, tools=[{"name": "t", "inputSchema": {"type": "object"}}])))
            case "tools/call":
                await on_call(asked, writer)
            case _:
                writer.write(answer(b"", "400 Bad Request"))

    return say


def text(words: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": words}]}
