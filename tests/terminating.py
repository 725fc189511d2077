"""HTTP rules at work on loopback: a real TLS server with an own authority, the gate's handler, and whatever client a test brings.

What is the gate's own (accepting, dialling, logging) is stood in for: a name is dialled at the server here, entries are kept in a list.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fumehood.egress import terminate
from fumehood.egress.authority import Authority
from fumehood.egress.limits import Budget, Meter
from fumehood.egress.names import Names, Route
from fumehood.egress.refusals import Rejected
from fumehood.egress.task import GateTask, reset
from fumehood.egress.websocket import accept_for
from fumehood.model import Profile, SeccompPolicy, Secrets
from fumehood.ports import Outward
from fumehood.reach import (
    CredentialUse,
    EgressKind,
    EgressRule,
    Network,
    NetworkLimits,
    Secret,
    SecretForm,
    Supplies,
)

NAME = "api.example.org"
TOKEN = "ghs_S3cretOfTheOperator/+0123456789abcdef"  # noqa: S105 - a canary
USE = CredentialUse(name="github", source="github", header="Authorization", variable="GITHUB_TOKEN")
SECRET = Secret(form=SecretForm.TOKEN, parts={"token": TOKEN})
Handle = Callable[["Heard", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class FakeLeases:
    """Leases whose secrets a test takes away."""

    supplies = Supplies()

    def __init__(self, secrets: Mapping[str, Secret]) -> None:
        self.live: dict[str, Secret] = dict(secrets)

    def secret(self, credential: str) -> Secret | None:
        return self.live.get(credential)

    async def suspend(self) -> None:
        self.live.clear()

    async def renew(self) -> None:
        """Nothing comes back."""


@dataclass
class Heard:
    """A request as the server got it: `raw` is its head."""

    raw: bytes
    body: bytes = b""

    @property
    def target(self) -> str:
        return self.raw.split(b" ")[1].decode("latin-1")

    def header(self, name: str) -> list[str]:
        lines = self.raw.decode("latin-1").split("\r\n")[1:]
        return [line.split(":", 1)[1].strip() for line in lines if line.lower().startswith(name.lower() + ":")]


@dataclass
class Server:
    """An upstream: answers by path, and remembers what it heard."""

    heard: list[Heard] = field(default_factory=list)
    connections: int = 0
    bodies: int = 0
    answers: dict[str, Handle] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                heard = Heard(await reader.readuntil(b"\r\n\r\n"))
                self.heard.append(heard)
                answer = self.answers.get(heard.target.split("?")[0].rpartition("/")[2], echo)
                if answer is not upload and answer is not early:
                    heard.body = await self._body(heard, reader, writer)
                await answer(heard, reader, writer)
                await writer.drain()
        writer.close()

    async def _body(self, heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        if heard.header("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if heard.header("transfer-encoding"):
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass
            return body
        return await reader.readexactly(int((heard.header("content-length") or ["0"])[0]))


def plain(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def echo(heard: Heard, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say back everything, as debug pages do."""
    said = json.dumps({"head": heard.raw.decode("latin-1"), "body": heard.body.decode("latin-1")}).encode()
    writer.write(plain(b"" if heard.raw.startswith(b"HEAD ") else said, "200 OK", "Content-Type: application/json"))


async def upload(heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a body of any size, and say how long it was."""
    left = count = int(heard.header("content-length")[0])
    while left:
        left -= len(await reader.read(min(left, 2**18)))
    writer.write(plain(str(count).encode()))


async def early(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Refuse a body without reading it."""
    writer.write(plain(b"too much", "413 Content Too Large", "Connection: close"))
    await writer.drain()
    raise ConnectionResetError


async def websocket(heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Agree to a WebSocket, and echo bytes."""
    accept = accept_for(heard.header("sec-websocket-key")[0].encode()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}", "", ""]
    writer.write("\r\n".join(lines).encode())
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@dataclass
class Inside:
    """What a test has: where to connect, what to trust, what the server heard, what was logged."""

    port: int
    pem: bytes
    environment: Mapping[str, str]
    server: Server
    entries: list[tuple[str, dict[str, Any]]]
    leases: FakeLeases
    task: GateTask
    holdings: dict[str, Any]
    folder: Path

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [facts for each, facts in self.entries if each == kind]

    @property
    def refused(self) -> list[str]:
        return [facts["why"] for facts in self.of("refused")]

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.pem.decode())
        return context

    async def connect(self, *, context: ssl.SSLContext | None = None, name: str | None = NAME, tls: bool = True):  # type: ignore[no-untyped-def]  # noqa: ANN201
        if not tls:
            return await asyncio.open_connection("127.0.0.1", self.port)
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context or self.context(), server_hostname=name)

    async def say(self, text: str, body: bytes = b"", *, tls: bool = True) -> bytes:
        """Send a head written with `|` for CRLF (`HOST` stands for its Host line), and all that comes back until the end."""
        reader, writer = await self.connect(tls=tls)
        writer.write(self.head(text) + body)
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                answer = bytes(await reader.read(-1))
                writer.close()
                return answer
        return b""

    def head(self, text: str) -> bytes:
        return text.replace("HOST", f"Host: {NAME}:{self.port}").replace("|", "\r\n").encode("latin-1") + b"\r\n\r\n"


class _Entries:
    def __init__(self) -> None:
        self.kept: list[tuple[str, dict[str, Any]]] = []

    def add(self, kind: str, facts: Mapping[str, Any]) -> None:
        self.kept.append((kind, dict(facts)))


class _Dialer:
    def __init__(self, port: int) -> None:
        self._port = port

    async def dial(self, name: str, port: int, networks: object) -> socket.socket:
        del name, port, networks
        made = socket.create_connection(("127.0.0.1", self._port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        return made


@asynccontextmanager
async def terminated(
    folder: Path, *, allow: tuple[str, ...] | None = None, use: CredentialUse | None = None, secret: Secret = SECRET,
    insecure: bool = False, name: str = NAME, certified: str | None = None, trusted: bool = True, limits: NetworkLimits | None = None,
    credential: str | None = None, upstream: tuple[int, str] | None = None, secrets: Secrets | None = None,
) -> AsyncIterator[Inside]:  # fmt: skip
    """A gate's handler between a server that is certified for a name (or the one at `upstream`, a port and its authority), and the test."""
    certified = certified or name
    server = Server(answers={"upload": upload, "early": early, "ws": websocket})
    own = Authority("upstream", [certified])
    listening = await asyncio.start_server(
        server.serve, "127.0.0.1", 0, ssl=None if insecure else own.make_context(certified), limit=2**20
    )
    dialled, authorities = upstream or (listening.sockets[0].getsockname()[1], own.pem.decode())
    accepting = socket.create_server(("127.0.0.1", 0))
    accepting.setblocking(False)
    port = accepting.getsockname()[1]
    named = credential or (use.name if use is not None else None)
    rule = EgressRule(kind=EgressKind.HTTP, name=name, ports=(port,), allow=allow, credential=named, insecure=insecure)
    profile = Profile(
        name="p", digest="sha256:0", image="i", seccomp=SeccompPolicy(name="s", default_errno=1, rules=()),
        network=Network(rules=(rule,)), credentials=() if use is None else (use,),
        secrets=secrets or Secrets(),
    )  # fmt: skip
    entries, leases = _Entries(), FakeLeases({} if use is None else {use.name: secret})
    holdings: dict[str, Any] = {}
    outward = Outward(authorities=authorities if trusted else None)
    meter = Meter(limits or NetworkLimits(bytes_out=2**32, bytes_in=2**32))
    task = GateTask(
        task="01taskaaaaaaaaaaaaaaaaaaaa", box="01taskaaaaaaaaaaaaaaaaaaaa", profile=profile, leases=leases, outward=outward,
        names=Names((rule,)), dialer=_Dialer(dialled), meter=meter, budget=Budget(2**26),  # type: ignore[arg-type]
        log=entries, holdings=holdings, tool="say",  # type: ignore[arg-type]
    )  # fmt: skip
    supplies = terminate.supply(task)
    pem = supplies.files[0].content if supplies.files else b""
    (folder / "ca.pem").write_bytes(pem)
    route = Route(rule=rule, number=0, name=name, port=port)
    running: set[asyncio.Task[None]] = set()

    async def accept() -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(accepting)
            connection.setblocking(False)
            running.add(asyncio.create_task(handle(connection)))

    async def handle(connection: socket.socket) -> None:
        try:
            await terminate.serve(connection, route, task)
        except Rejected as rejected:
            task.refuse(rejected.why, route, **rejected.facts)
        except (OSError, TimeoutError) as error:
            task.log("close", route, error=type(error).__name__)
        finally:
            reset(connection)

    running.add(asyncio.create_task(accept()))
    try:
        yield Inside(port, pem, supplies.environment, server, entries.kept, leases, task, holdings, folder)
    finally:
        for each in running:
            each.cancel()
        faults = [fault for fault in await asyncio.gather(*running, return_exceptions=True) if isinstance(fault, Exception)]
        accepting.close()
        listening.close()
        assert faults == []
        assert task.budget.used_bytes == 0
