"""The gate and the fence together: a tool in a real box of each engine, what reaches the world, and what the log says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lab import Lab

PROBES = (Path(__file__).parent / "inside" / "gate.py").read_text()
# Where names lead: `inside.example` to where clouds keep their metadata, all others to this host.
NAMES = """
import ipaddress
from fumehood.egress import resolver
places = {"inside.example": "169.254.169.254"}
resolver._from_hosts = lambda name: (ipaddress.ip_address(places.get(name, "127.0.0.1")),)
"""
PROFILE = """
network:
  egress:
    - {tcp: "echo.example:PORT", addresses: [127.0.0.0/8]}
    - {tcp: "inside.example:PORT", addresses: [127.0.0.0/8]}
    - {tls: "*.wild.example", ports: [NEXT], addresses: [127.0.0.0/8]}
"""


@pytest.fixture(autouse=True)
def _nothing_left(nothing_left: None) -> None:
    pass


@pytest.fixture(scope="module")
def outside() -> Iterator[dict[str, Any]]:
    """An echo, and beside it a server that keeps what it is sent and answers with an alert."""
    seen: dict[str, Any] = {"echo": 0, "hellos": []}
    echo, other = _two_ports()

    def serve(listener: socket.socket, first: str) -> None:
        with suppress(OSError):
            while True:
                with listener.accept()[0] as connection:
                    data = connection.recv(4096)
                    if first == "echo":
                        seen["echo"] += 1
                        connection.sendall(data)
                    else:
                        seen["hellos"].append(data)
                        connection.sendall(b"\x15\x03\x03\x00\x02\x02\x28")

    threads = [threading.Thread(target=serve, args=each) for each in ((echo, "echo"), (other, "tls"))]
    for thread in threads:
        thread.start()
    yield {**seen, "seen": seen, "port": echo.getsockname()[1]}
    for listener in (echo, other):
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


def _two_ports() -> tuple[socket.socket, socket.socket]:
    while True:
        first = socket.create_server(("127.0.0.1", 0))
        try:
            return first, socket.create_server(("127.0.0.1", first.getsockname()[1] + 1))
        except OSError:
            first.close()


def test_what_is_listed_works_and_nothing_else_gets_out_or_hangs(lab: Lab, engine: str, outside: dict[str, Any]) -> None:
    seen = outside["seen"]
    seen.update(echo=0, hellos=[])
    port = outside["port"]
    profile = lab.profile("gate", PROFILE.replace("PORT", str(port)).replace("NEXT", str(port + 1)))
    done = lab.attacked(NAMES, engine, "python3", "-", str(port), profile=profile, input=PROBES)
    assert done.status == 0, (done.stdout, done.stderr)
    told = json.loads(done.told)
    assert told["listed"] == "hello"
    assert set(told["literal"].values()) == {"ECONNREFUSED"}
    assert told["unlisted name"] == "gaierror"
    assert told["other port"] == "ECONNREFUSED"
    assert told["inside"] == "ECONNRESET"
    assert told["questions"] == {"1": [0, 1], "16": [0, 0], "255": [0, 0], "65": [0, 0]}
    assert told["exfiltration"] == [3, 0]
    assert told["other server name"] == told["no server name"] == "ECONNRESET"
    assert told["right server name"] == "SSLError", "the server's own alert"
    assert seen["echo"] == 1
    (hello,) = seen["hellos"]
    assert b"tls.wild.example" in hello
    log = lab.fumehood("task", done.said["task"], "--egress", "--json").said
    refused = [entry["facts"] for entry in log["entries"] if entry["kind"] == "refused"]
    assert {facts["why"] for facts in refused} == {"no_listener", "name_not_listed", "address_not_allowed", "sni_mismatch", "sni_absent"}
    assert all(facts["remedy"] for facts in refused)
    assert {entry["kind"] for entry in log["entries"]} == {"dns", "connect", "request", "refused", "close"}
    assert log["counters"]["bytes_in"] == 5 + 7


def test_a_box_without_a_rule_has_no_gate_and_its_worker_no_parser_of_names(lab: Lab, engine: str) -> None:
    code = """
import sys
from fumehood.evidence.client import LedgerClient
close = LedgerClient.close
async def closing(self, outcome):
    sys.stderr.write(f"LOADED {[name for name in ('dns', 'cryptography', 'h11', 'fumehood.egress.doors') if name in sys.modules]}\\n")
    await close(self, outcome)
LedgerClient.close = closing
"""
    done = lab.attacked(code, engine, "true")
    assert done.status == 0, done.stderr
    assert "LOADED []" in done.stderr
