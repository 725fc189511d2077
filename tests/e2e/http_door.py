"""HTTP by hand, and a gateway before it over the FAKE spine of `local_runner`: the real door, in the test's own process."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
from local_gateway import gateway
from local_runner import FakeSpine
from raw_client import ENVELOPE, PEER

from fumehood.gateway import http_server
from fumehood.gateway.answering import Answering
from fumehood.gateway.http_head import Rules
from fumehood.gateway.proofs import Proofs
from fumehood.model import Sender
from signed import proofs

ALICE = Sender(uid=0, name="http:alice")
BOB = Sender(uid=0, name="http:bob")
TOKENS = {"a" * 40: ALICE, "b" * 40: BOB}
LEGACY = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        """The JSON-RPC message that ends it, plain or the last of a stream."""
        return self.messages[-1]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All its messages."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            lines = self.body.decode().splitlines()
            return [json.loads(line[5:]) for line in lines if line.startswith("data:") and line[5:].strip()]
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return [found]


@dataclass
class Door:
    """Where a gateway listens."""

    port: int
    spine: FakeSpine
    token: str = "a" * 40
    version: str | None = "2026-07-28"
    extra: dict[str, str] = field(default_factory=dict)

    async def connect(self) -> anyio.abc.SocketStream:
        return await anyio.connect_tcp("127.0.0.1", self.port)

    def head(self, method: str = "POST", path: str = "/mcp", /, **headers: str | None) -> bytes:
        """A good request's head, but for what is given; None leaves a header out, `_` stands for `-`."""
        chosen: dict[str, str | None] = {
            "host": f"127.0.0.1:{self.port}",
            "authorization": f"Bearer {self.token}",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": self.version,
            **self.extra,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in chosen.items() if value is not None)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    async def send(self, body: bytes, method: str = "POST", path: str = "/mcp", **headers: str | None) -> Answer:
        """Send one request and read its answer."""
        async with await self.connect() as stream:
            await stream.send(self.head(method, path, **{"content_length": str(len(body)), **headers}) + body)
            return await answer_of(stream)

    async def ask(self, method: str, params: Mapping[str, Any] | None = None, number: object = 1, **headers: str | None) -> Answer:
        """A request in the door's era."""
        given = dict(params or {})
        if self.version == "2026-07-28":
            given["_meta"] = {**ENVELOPE, **given.get("_meta", {})}
            headers = {"mcp_method": method, **({"mcp_name": str(given["name"])} if "name" in given else {}), **headers}
        body = {"jsonrpc": "2.0", "id": number, "method": method, "params": given}
        return await self.send(json.dumps(body).encode(), **headers)

    async def call(self, tool: str, number: object = 1, arguments: Mapping[str, Any] | None = None, **headers: str | None) -> Answer:
        """Call a tool."""
        return await self.ask("tools/call", {"name": tool, "arguments": dict(arguments or {})}, number, **headers)

    async def older(self, **changes: Any) -> Door:
        """The door as an older client with a session of its own sees it."""
        opened = Door(self.port, self.spine, self.token, None)
        answer = await opened.ask("initialize", {**LEGACY, **changes})
        assert answer.status == 200, answer
        session = Door(
            self.port, self.spine, self.token, "2025-11-25", {"mcp-session-id": answer.headers["mcp-session-id"]}
        )
        body = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode()
        assert (await session.send(body)).status == 202
        return session

    def of(self, token: str) -> Door:
        """The same with another token."""
        return Door(self.port, self.spine, token, self.version, self.extra)


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that happens in the gateway, which has no event for it."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def answer_of(stream: anyio.abc.ByteReceiveStream) -> Answer:
    """Read one answer: its length, its chunks, or until the end."""
    with anyio.fail_after(20):
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive()
        head, _, body = data.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        if "content-length" in headers:
            while len(body) < int(headers["content-length"]):
                body += await stream.receive()
        elif headers.get("transfer-encoding") == "chunked":
            while not body.endswith(b"0\r\n\r\n"):
                body += await stream.receive()
            body = unchunked(body)
        return Answer(int(first.split()[1]), headers, body)


def unchunked(data: bytes) -> bytes:
    whole = b""
    while True:
        size, _, rest = data.partition(b"\r\n")
        if not (length := int(size, 16)):
            return whole
        whole, data = whole + rest[:length], rest[length + 2 :]


def listener() -> socket.socket:
    """A listening socket on a free port of loopback."""
    made = socket.create_server(("127.0.0.1", 0))
    made.setblocking(False)
    return made


@asynccontextmanager
async def opened(
    *argv: str, mode: str = "modern", behind: Answering | None = None, proving: Proofs | None = None, **changes: object
) -> AsyncIterator[Door]:
    """A gateway on HTTP before a command (our `peer` by default), or before `behind`."""
    spine, socket_ = FakeSpine(), listener()
    rules = Rules(authenticate=TOKENS.get, hosts=frozenset({"127.0.0.1", "localhost"}), origins=frozenset({"https://good.example"}))
    async with AsyncExitStack() as held:
        front = behind or await held.enter_async_context(gateway(argv or (*PEER, mode), spine, **changes))
        tasks = await held.enter_async_context(anyio.create_task_group())
        tasks.start_soon(http_server.serve, front, socket_, rules, proving or proofs())
        yield Door(socket_.getsockname()[1], spine)
        tasks.cancel_scope.cancel()
