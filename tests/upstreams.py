"""Real servers on loopback for what a box reaches through its gate: DNS, HTTPS, git, sshd, S3. Each is a context manager.

All of them run beside the test, not in a box, on ports of their own; their names are what `NameServer` says, which a test gives to
the gate as `Outward.resolvers`, and loopback is a range that a rule has to name (`addresses: [127.0.0.0/8]`).
"""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

LOOPBACK = "127.0.0.1"


@dataclass
class NameServer:
    """A DNS server. `answers` maps a name to its addresses, and may be changed at any time; `asked` is every question.

    A name with several lists (`turns`) gives them one after the other, and the last one from then on: a name that is rebound.
    """

    place: str
    ttl_s: int = 0
    answers: dict[str, list[str]] = field(default_factory=dict)
    turns: dict[str, list[list[str]]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, wire: bytes) -> bytes:
        """The answer to one question."""
        query = dns.message.from_wire(wire)
        reply = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if kind == "A" and self.turns.get(name):
            self.answers[name] = self.turns[name].pop(0)
        if name not in self.answers:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        found = [each for each in self.answers.get(name, []) if kind == ("AAAA" if ":" in each else "A")]
        if found:
            reply.answer.append(dns.rrset.from_text_list(question.name, self.ttl_s, "IN", kind, found))
        return reply.to_wire()


@contextmanager
def name_server(answers: dict[str, list[str]] | None = None) -> Iterator[NameServer]:
    """Hold a DNS server, on UDP and TCP of one port."""

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            wire, sock = self.request
            sock.sendto(served.answer(wire), self.client_address)

    class Stream(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            (length,) = struct.unpack("!H", self.rfile.read(2))
            reply = served.answer(self.rfile.read(length))
            self.wfile.write(struct.pack("!H", len(reply)) + reply)

    with socketserver.ThreadingUDPServer((LOOPBACK, 0), Datagram) as udp:
        port = udp.server_address[1]
        with socketserver.ThreadingTCPServer((LOOPBACK, port), Stream) as tcp:
            served = NameServer(f"{LOOPBACK}:{port}", answers=dict(answers or {}))
            with serving(udp), serving(tcp):
                yield served


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Serve from a thread for the body."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def free_port() -> int:
    """A port of loopback that nobody listens at, now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: Any = probe.getsockname()[1]
        return int(port)
