"""A gate of the tests' own, in place of the real one: it answers whoever connects with the address that was meant, and tells what it saw.

The broker, the box, the worker with its filter and the rest of the path are the real ones. What it is to listen at and to supply is
in the environment variable FENCE; what it saw is the last line on stderr.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import Done, Lab, Live

WAYS = (("oci", "crun"), ("oci", "runc"), ("docker", None))
LISTEN = (
    {"v4": "198.18.0.2", "v6": "fd53::2", "port": 443},
    {"v4": "198.19.255.9", "v6": "fd53:0:0:ff::9", "port": 443},
    {"v4": "198.18.0.4", "v6": "fd53::4", "port": 8444},
    {"v4": None, "v6": None, "port": 8443},
)
GATE = """
import asyncio, contextlib, json, os, socket, sys
import fumehood.egress
from fumehood.faults import FumehoodError
from fumehood.reach import SuppliedFile, Supplies
from fumehood.ports import Listen

WANTED = json.loads(os.environ["FENCE"])

class Given:
    def __init__(self, supplies): self.supplies = supplies
    async def suspend(self): pass
    async def resume(self): pass

def answer(sock, saw):
    with contextlib.suppress(BlockingIOError):
        while True:
            data, beside, _, peer = sock.recvmsg(512, 256)
            saw["dns"].append(data.decode())
            sock.sendmsg([b"answer"], beside, 0, peer)

def accept(sock, saw):
    with contextlib.suppress(BlockingIOError):
        while True:
            made, _ = sock.accept()
            with made:
                address, port = made.getsockname()[:2]
                saw["accepted"].append([address, port])
                with contextlib.suppress(OSError):
                    made.send(f"{address} {port}".encode())

def note(sock, saw):
    with contextlib.suppress(BlockingIOError):
        while True:
            data, (_, protocol, *_) = sock.recvfrom(65536)
            six = protocol == 0x86DD
            header = 40 if six else 4 * (data[0] & 15)
            address = socket.inet_ntop(socket.AF_INET6, data[24:40]) if six else socket.inet_ntop(socket.AF_INET, data[16:20])
            kind = {6: "tcp", 17: "udp"}[data[6 if six else 9]]
            place = [kind, address, int.from_bytes(data[header + 2:header + 4], "big")]
            saw["longest"] = max(saw["longest"], len(data))
            if place not in saw["refused"]:
                saw["refused"].append(place)

def own(family, kind):
    try:
        socket.socket(family, kind).close()
    except OSError as error:
        return error.errno
    return 0

async def lie(broker, task, listen):
    try:
        _, fds = await broker._ask_fds("network", {"task": task, "listen": listen})
    except FumehoodError as error:
        return [error.reason.value, error.detail]
    return [len(fds), ""]

@contextlib.asynccontextmanager
async def gate(plan, leases, box, ports):
    loop = asyncio.get_running_loop()
    made = await ports.broker.network(plan.call.task, [Listen(**each) for each in WANTED["listen"]])
    saw = {"facts": dict(made.facts), "accepted": [], "dns": [], "refused": [], "longest": 0}
    saw["own"] = {name: own(getattr(socket, name), socket.SOCK_RAW) for name in ("AF_PACKET", "AF_NETLINK")}
    saw["lies"] = {name: await lie(ports.broker, plan.call.task, listen) for name, listen in WANTED["lies"].items()}
    readers = [(accept, fd) for pair in (made.dns_tcp, *made.listeners) for fd in pair] + [(answer, fd) for fd in made.dns_udp]
    sockets = [(read, socket.socket(fileno=fd)) for read, fd in (*readers, (note, made.packets))]
    for read, sock in sockets:
        loop.add_reader(sock, read, sock, saw)
    files = tuple(SuppliedFile(name=each["name"], content=each["text"].encode(), over=each.get("over")) for each in WANTED["files"])
    try:
        yield Given(Supplies(files=files, environment={"FENCED": "yes"}))
        await asyncio.sleep(0.05)
    finally:
        for _, sock in sockets:
            loop.remove_reader(sock)
            sock.close()
        sys.stderr.write("GATE " + json.dumps(saw) + "\\n")

fumehood.egress.gate = gate
"""


def wish(files: Sequence[Mapping[str, Any]] = (), lies: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The environment that tells the gate what to ask for; `lies` are lists that a taken-over worker could ask to listen at."""
    return {"FENCE": json.dumps({"listen": LISTEN, "files": [*files], "lies": lies or {}})}


def seen(done: Done) -> dict[str, Any]:
    """What the gate saw."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("GATE ")]
    assert lines, done.stderr
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("GATE "))
    return found


@contextmanager
def fenced(lab: Lab, engine: str, code: str, profile: str) -> Iterator[Live]:
    """As `Lab.live`, behind the gate of the tests."""
    program = f"{GATE}\nfrom fumehood.cli.main import main\nsys.argv[0] = 'fumehood'\nmain()"
    argv = ["run", "--profile", profile, "--engine", engine, "--", "python3", "-uc", code]
    process = subprocess.Popen(
        lab.as_user(sys.executable, "-c", program, *argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**lab.env, **wish()}, cwd=lab.cwd,
    )  # fmt: skip
    try:
        yield Live(process)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def networks(pid: int) -> set[str]:
    """The network namespaces that the threads of a process are in."""
    return {str((task / "ns/net").readlink()) for task in Path(f"/proc/{pid}/task").iterdir()}


