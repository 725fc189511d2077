"""What `scripts/bench egress` measures at: a gate as a call has it, servers behind it, haproxy beside it, and clients on both sides.

Each is a process of its own, as in life. The gate is `egress.gating.gate` with the broker's own sockets in a network namespace that has
only `lo`, as a box's; a client in that namespace finds it by name. What is compared runs in turns, so that it meets the same machine.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own helpers

from commands import CannotRunError
from namespaces import namespaces, pid_of
from way_client import PIECE

import fakes
from fumehood.broker import network
from fumehood.egress import gating
from fumehood.egress.authority import Authority
from fumehood.model import Plan
from fumehood.ports import Listen, Outward, Ports, Sockets
from fumehood.reach import CredentialUse, EgressRule, Secret, SecretForm
from nameserver import nameserver
from netbox import FakeBox, FakeLeases, plan, rule
from terminating import Heard, Server, plain, upload

PLAIN, WEB = "plain.example", "web.example"
BUSY_S = 0.05  # what a server elsewhere takes for an answer, the way there and back included
PLENTY = 2**50  # bytes that the call may have: the caps hold, and are not met
_USE = CredentialUse(name="github", source="github", header="Authorization", variable="GITHUB_TOKEN")
_SECRET = Secret(form=SecretForm.TOKEN, parts={"token": "ghs_" + "0123456789abcdef" * 3})
_HAPROXY = """
global
  nbthread 1
  user nobody
  group nogroup
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen relay
  bind 127.0.0.1:{port}
  server upstream 127.0.0.1:{upstream}
"""
Place: TypeAlias = list[Any]


class OwnBroker(fakes.NoBroker):
    """The broker's own code, for one namespace."""

    def __init__(self, pidfd: int) -> None:
        """Know the namespace by its process."""
        self._pidfd = pidfd

    async def network(self, task: str, listen: Sequence[Listen]) -> Sockets:  # noqa: ARG002 - there is one box
        """Make the sockets there."""
        made, fds = network.open_gate(self._pidfd, listen)
        pairs = list(zip(fds[0:-1:2], fds[1:-1:2], strict=True))
        return Sockets(
            dns_udp=pairs[0], dns_tcp=pairs[1], listeners=tuple(pairs[2:]), packets=fds[-1], facts=made.facts
        )


def call_of(*rules: EgressRule) -> Plan:
    """The plan of a call with these rules and enough of everything that is counted; http rules write a credential."""
    planned = plan(*rules, bytes_out=PLENTY, bytes_in=PLENTY)
    verified = planned.grant.verdict.verified
    profile = replace(verified.call.profile, credentials=(_USE,) if any(each.credential for each in rules) else ())
    verified = replace(verified, call=replace(verified.call, profile=profile))
    return replace(planned, grant=replace(planned.grant, verdict=replace(planned.grant.verdict, verified=verified)))


def ports_for(pidfd: int, outward: Outward) -> Ports:
    """What a gate needs of the runtime, in a namespace."""
    return Ports(
        broker=OwnBroker(pidfd),
        ledger=fakes.FakeLedger(),
        images=fakes.NoImages(),
        clock=fakes.FakeClock(),
        owner_uid=0,
        outward=outward,
    )


def leases() -> FakeLeases:
    """A live lease of the credential that `call_of` uses."""
    return FakeLeases(secrets={_USE.name: _SECRET})


@dataclass
class Client:
    """A client's process."""

    process: subprocess.Popen[str]

    def ask(self, verb: str, *arguments: Any) -> Any:
        """Have it do something; what it measured."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([verb, arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise CannotRunError(f"a client ended while asked for {verb}")
        return json.loads(line)


@dataclass
class WayOut:
    """All of it. `plain` and `web` are where clients connect, by who is on the way; `pem` is what they trust there."""

    inside: Client
    outside: Client
    plain: dict[str, Place]
    web: dict[str, Place]
    pem: dict[str, str]
    web_port: int
    gate_pid: int

    def client(self, who: str) -> Client:
        """Who measures this way."""
        return self.inside if who == "gate" else self.outside


@contextmanager
def way_out() -> Iterator[WayOut]:
    """Hold all of it for the body. Raises CannotRunError."""
    if shutil.which("haproxy", path="/usr/sbin:/usr/bin") is None:
        raise CannotRunError("haproxy is not installed; ./scripts/counterparts installs it")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fumehood-bench-")))
        (pidfd,) = stack.enter_context(namespaces(1))
        plain_port = stack.enter_context(process(_serve_plain))[0].recv()
        web_port, pem = stack.enter_context(process(_serve_web))[0].recv()
        gate, gate_pid = stack.enter_context(process(_gate, pidfd, plain_port, web_port, pem))
        own = gate.recv()
        haproxy = stack.enter_context(_haproxy(folder, plain_port))
        inside = stack.enter_context(_client("nsenter", f"--net=/proc/{pid_of(pidfd)}/ns/net"))
        outside = stack.enter_context(_client())
        yield WayOut(
            inside=inside, outside=outside, web_port=web_port, gate_pid=gate_pid,
            plain={
                "direct": ["127.0.0.1", plain_port], "haproxy": ["127.0.0.1", haproxy],
                "gate": inside.ask("where", PLAIN, plain_port)[:2],
            },
            web={"direct": ["127.0.0.1", web_port, WEB], "gate": inside.ask("where", WEB, web_port)},
            pem={"direct": pem, "gate": own},
        )  # fmt: skip


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[Connection, int]]:
    """A process of a function for the body: a pipe to it, and its pid."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    made = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    made.start()
    theirs.close()
    try:
        yield ours, made.pid or 0
    finally:
        made.terminate()
        made.join()


@contextmanager
def _client(*before: str) -> Iterator[Client]:
    words = [*before, sys.executable, "-E", "-S", str(Path(__file__).parent / "way_client.py")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as made:
        try:
            yield Client(made)
        finally:
            made.kill()


@contextmanager
def _haproxy(folder: Path, upstream: int) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    (folder / "haproxy.cfg").write_text(_HAPROXY.format(port=port, upstream=upstream))
    words = ["/usr/sbin/haproxy", "-db", "-q", "-f", str(folder / "haproxy.cfg")]
    with subprocess.Popen(words) as made:
        try:
            for _ in range(200):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.02)
            else:
                raise CannotRunError("haproxy did not start")
            yield port
        finally:
            made.kill()


def _serve_plain(pipe: Connection) -> None:
    """One connection after the other, without a thread, an event loop or a word more than is needed."""
    buffer = bytearray(2**18)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        pipe.send(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while order := connection.recv(1):
                    if order == b"e":
                        connection.sendall(order)
                        continue
                    left = int.from_bytes(connection.recv(8, socket.MSG_WAITALL))
                    if order == b"d":
                        for _ in range(left // len(PIECE)):
                            connection.sendall(PIECE)
                        continue
                    while left and (got := connection.recv_into(buffer)):
                        left -= got
                    connection.sendall(b"!")


async def _small(_: Heard, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(plain(b"x" * 300, "200 OK", "Content-Type: application/json"))


async def _busy(heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(BUSY_S)
    await _small(heard, reader, writer)


async def _pour(heard: Heard, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    size = int(heard.target.partition("?")[2])
    writer.write(
        f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()
    )
    for _ in range(size // len(PIECE)):
        writer.write(PIECE)
        await writer.drain()


def _serve_web(pipe: Connection) -> None:
    async def main() -> None:
        authority = Authority("bench", [WEB])
        answers = {"small": _small, "busy": _busy, "pour": _pour, "upload": upload}
        made = await asyncio.start_server(
            Server(answers=answers).serve, "127.0.0.1", 0, ssl=authority.make_context(WEB), limit=2**20
        )
        pipe.send((made.sockets[0].getsockname()[1], authority.pem.decode()))
        await asyncio.sleep(PLENTY)

    asyncio.run(main())


def _gate(pipe: Connection, pidfd: int, plain_port: int, web_port: int, pem: str) -> None:
    async def main() -> None:
        async with nameserver({PLAIN: ["127.0.0.1"], WEB: ["127.0.0.1"]}) as names:
            names.ttl_s = 300
            outward = Outward(resolvers=(names.place,), authorities=pem)
            rules = (rule("tcp", PLAIN, plain_port), rule("http", WEB, web_port, credential=_USE.name))
            async with gating.gate(call_of(*rules), leases(), FakeBox(), ports_for(pidfd, outward)) as opened:
                pipe.send(opened.supplies.files[0].content.decode())
                await asyncio.sleep(PLENTY)

    asyncio.run(main())
