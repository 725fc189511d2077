"""A network like a box's, without a box: a namespace with only `lo` where every address is local, and a gate's sockets in it.

What the privileged process does for a real box, in a child of the test; so the gate is tested end to end, with real programs
(`nsenter`) on one side and real servers on the other, in milliseconds. Runs as root.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import fakes
from fumehood.egress import gating
from fumehood.model import (
    Binding,
    Decision,
    Frame,
    Grant,
    Image,
    Kind,
    Plan,
    UserNamespace,
    Verdict,
    Verified,
    WorkspaceMode,
)
from fumehood.ports import Listen, Outward, Ports, Sockets
from fumehood.reach import (
    EgressKind,
    EgressRule,
    Network,
    NetworkLimits,
    Secret,
    Supplies,
)
from fumehood.residence import WayOut

DEADLINE_S = 20.0
_NEWNET = 0x40000000
_IPV6_FREEBIND, _IP_PKTINFO = 78, 8


class NetBox:
    """One such network, and the broker's verb for it."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, __file__, str(theirs.fileno())]
            actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 100)]
            self.pid = os.posix_spawn(sys.executable, [*argv[:2], "100"], os.environ, file_actions=actions)
        if self._ours.recv(16) != b"ready":
            raise OSError("the namespace was not made")

    def network(self, listen: Sequence[Listen]) -> Sockets:
        self._ours.send(json.dumps([asdict(each) for each in listen]).encode())
        _, fds, _, _ = socket.recv_fds(self._ours, 16, 253)
        pairs = list(zip(fds[0:-1:2], fds[1:-1:2], strict=True))
        return Sockets(dns_udp=pairs[0], dns_tcp=pairs[1], listeners=tuple(pairs[2:]), packets=fds[-1], facts={})

    async def run(self, *argv: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
        """Run a program in it: status, stdout and stderr."""
        process = await asyncio.create_subprocess_exec(
            "nsenter", f"--net=/proc/{self.pid}/ns/net", *argv, env={**os.environ, **(env or {})},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(DEADLINE_S):
                out, err = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def python(self, code: str, *args: str) -> str:
        """Run a few lines of Python in it: what they print."""
        status, out, err = await self.run(sys.executable, "-E", "-S", "-c", _PRELUDE + code, *args)
        assert status == 0, err
        return out.strip()

    def hold(self, code: str, *args: str) -> subprocess.Popen[str]:
        """Begin to run a few lines of Python in it, and return when they have printed a line, without a turn of the loop."""
        argv = ("nsenter", f"--net=/proc/{self.pid}/ns/net", sys.executable, "-E", "-S", "-c", _PRELUDE + code, *args)
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def close(self) -> None:
        self._ours.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


_PRELUDE = """
import errno, json, os, select, socket, struct, sys, time
socket.setdefaulttimeout(10)
def connect(name, port):
    family, kind, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
    s = socket.socket(family, kind); s.settimeout(10); s.connect(address); return s
def knock(name, port):
    # What comes first: a byte, or how the connection ends.
    return said(lambda: connect(name, port).recv(1))
def said(function, *args):
    try: return function(*args)
    except OSError as error: return type(error).__name__ if not error.errno or error.errno < 0 else errno.errorcode[error.errno]
"""


@contextmanager
def netbox() -> Iterator[NetBox]:
    made = NetBox()
    try:
        yield made
    finally:
        made.close()


class NetBroker(fakes.NoBroker):
    """The broker of one such network."""

    def __init__(self, box: NetBox) -> None:
        self.box = box
        self.asked: list[Sequence[Listen]] = []

    async def network(self, task: str, listen: Sequence[Listen]) -> Sockets:  # noqa: ARG002 - there is one box
        self.asked.append(listen)
        return self.box.network(listen)


@dataclass
class FakeLeases:
    """Leases that are live or not, and say when."""

    supplies: Supplies = field(default_factory=Supplies)
    secrets: dict[str, Secret] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)

    def secret(self, credential: str) -> Secret | None:
        return self.secrets.get(credential)

    async def suspend(self) -> None:
        self.steps.append("suspend")

    async def renew(self) -> None:
        self.steps.append("renew")


@dataclass
class FakeBox:
    """The part of a box that its gate needs."""

    way_out: WayOut | None = None
    standing: WayOut | None = None


def rule(kind: str, name: str, *ports: int, **fields: Any) -> EgressRule:
    """A rule whose upstreams may lie on this host's loopback, where the tests' servers are."""
    return EgressRule(**{"kind": EgressKind(kind), "name": name, "ports": ports, "addresses": ("127.0.0.0/8",), **fields})


def plan(*rules: EgressRule, kind: Kind = Kind.TOOL, session: str | None = None, **limits: Any) -> Plan:
    """The plan of a call whose profile has these rules and limits."""
    call = fakes.call()
    network = Network(rules=rules, limits=NetworkLimits(**limits))
    call = replace(call, kind=kind, session=session, profile=replace(call.profile, network=network))
    image = Image(name="python", digest="sha256:" + "2" * 64, docker_id=None)
    frame = Frame(
        image=image.digest, docker_image=None, engine=None, runtime=None, cpu=1, memory_bytes=1, pids=1, open_files=1, tmp_bytes=1,
        seccomp=call.profile.seccomp, user_namespace=UserNamespace.WHEN_POSSIBLE, accept_risk=(),
    )  # fmt: skip
    binding = Binding(
        workspace=WorkspaceMode.NONE, workspace_fd=None, workspace_path=None, disk_bytes=1, disk_unlimited=False, mounts=(), wall_s=9,
    )  # fmt: skip
    verified = Verified(call=call, image=image)
    return Plan(grant=Grant(verdict=Verdict(verified=verified, decision=Decision.ALLOW, rule="test")), frame=frame, binding=binding)


@dataclass
class Gated:
    """An open gate, and everything to look at it with."""

    box: NetBox
    ports: Ports
    ledger: fakes.FakeLedger
    leases: FakeLeases
    gate: gating.Gate
    plan: Plan

    async def log(self, kind: str, *, count: int = 1) -> list[Mapping[str, Any]]:
        """The facts of the first entries of a kind, when they are there."""
        await until(lambda: sum(entry.kind == kind for entry in self.entries()) >= count)
        return [dict(entry.facts) for entry in self.entries() if entry.kind == kind]

    def entries(self) -> list[Any]:
        written = self.ledger.egress_log.get(self.plan.call.task, [])
        task = self.gate._task  # type: ignore[attr-defined]
        return [*written, *(entry for entry, _ in task.egress_log._pending)]

    @property
    def task(self) -> Any:
        return self.gate._task  # type: ignore[attr-defined]


async def until(holds: Callable[[], bool]) -> None:
    """Return when something that the loop brings about has come about."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def gated(box: NetBox, *rules: EgressRule, outward: Outward | None = None, **limits: Any) -> AsyncIterator[Gated]:
    """A gate open in a network for the body; names are resolved as `nameserver` says, or as the host does."""
    ledger, leases, planned = fakes.FakeLedger(), FakeLeases(), plan(*rules, **limits)
    given = Ports(
        broker=NetBroker(box), ledger=ledger, images=fakes.NoImages(), clock=fakes.FakeClock(), owner_uid=0,
        outward=outward or Outward(),
    )  # fmt: skip
    async with gating.gate(planned, leases, FakeBox(), given) as gate:
        yield Gated(box, given, ledger, leases, gate, planned)


# The child.


def _child(control: socket.socket) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    _prepare()
    control.send(b"ready")
    wanted = control.recv(65536)
    if not wanted:
        return
    sockets = [_udp(socket.AF_INET), _udp(socket.AF_INET6), _tcp(socket.AF_INET, None, 53), _tcp(socket.AF_INET6, None, 53)]
    for each in json.loads(wanted):
        sockets += [_tcp(socket.AF_INET, each["v4"], each["port"]), _tcp(socket.AF_INET6, each["v6"], each["port"])]
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    packets.bind(("lo", 3))
    socket.send_fds(control, [b"sockets"], [each.fileno() for each in (*sockets, packets)])
    for each in (*sockets, packets):
        each.close()
    control.recv(1)  # until the test ends


def _prepare() -> None:
    for family in ("all", "lo"):
        with open(f"/proc/sys/net/ipv6/conf/{family}/disable_ipv6", "w") as file:
            file.write("0")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route:
        _ask(route, 16, 0, struct.pack("=BBHiII", 0, 0, 0, 1, 1, 1))
        for family in (socket.AF_INET, socket.AF_INET6):
            body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 255, 4, 254, 2, 0) + struct.pack("=HHI", 8, 4, 1)
            _ask(route, 24, 0x600, body)


def _ask(route: socket.socket, kind: int, flags: int, body: bytes) -> None:
    route.send(struct.pack("=IHHII", 16 + len(body), kind, flags | 5, 1, 0) + body)
    error = struct.unpack_from("=i", route.recv(8192), 16)[0]
    if error:
        raise OSError(-error, os.strerror(-error))


def _tcp(family: int, address: str | None, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    made.bind((address or ("::" if family == socket.AF_INET6 else "0.0.0.0"), port))  # noqa: S104 - of a namespace of its own
    made.listen(128)
    return made


def _udp(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    made.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 53))  # noqa: S104 - as above
    return made


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _control:
        _child(_control)
