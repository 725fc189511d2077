from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.egress.names import Names
from fumehood.egress.packets import MOST_DESTINATIONS, Attempt, Attempts, parse
from fumehood.reach import EgressKind, EgressRule

SYN = struct.pack("!HHIIBBHHH", 40000, 8443, 0, 0, 0x50, 0x02, 0, 0, 0)
UDP = struct.pack("!HHHH", 40000, 443, 8, 0)


def v4(payload: bytes, protocol: int = socket.IPPROTO_TCP, to: str = "203.0.113.9", offset: int = 0, options: bytes = b"") -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, 0, 0, offset, 64, protocol, 0)
    return head + socket.inet_aton("198.18.0.2") + socket.inet_aton(to) + options + payload


def v6(payload: bytes, protocol: int = socket.IPPROTO_TCP, to: str = "2001:db8::9") -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + bytes(16) + socket.inet_pton(socket.AF_INET6, to) + payload


@pytest.mark.parametrize(
    ("packet", "attempt"),
    [
        (v4(SYN), Attempt("tcp", "203.0.113.9", 8443)),
        (v4(SYN, options=bytes(8)), Attempt("tcp", "203.0.113.9", 8443)),
        (v6(SYN), Attempt("tcp", "2001:db8::9", 8443)),
        (v6(bytes([socket.IPPROTO_TCP, 0]) + bytes(6) + SYN, protocol=0), Attempt("tcp", "2001:db8::9", 8443)),
        (v4(UDP, socket.IPPROTO_UDP), Attempt("udp", "203.0.113.9", 443)),
        (v4(b"\x08\0\0\0", socket.IPPROTO_ICMP), Attempt("icmp", "203.0.113.9", 0)),
        (v4(bytes(8), 132), Attempt("132", "203.0.113.9", 0)),
        (v4(b"\x03\x03\0\0", socket.IPPROTO_ICMP), None),  # port unreachable: the kernel's
        (v4(SYN[:13] + b"\x12" + SYN[14:]), None),  # SYN and ACK: an answer
        (v4(SYN[:13] + b"\x10" + SYN[14:]), None),
        (v4(SYN, offset=1), None),
        (v4(b"\0\x35" + UDP[2:], socket.IPPROTO_UDP), None),  # our own answer to a question
        (v4(SYN)[:25], None),
        (b"", None),
        (b"\x00" * 40, None),
    ],
)
def test_what_a_packet_tells(packet: bytes, attempt: Attempt | None) -> None:
    assert parse(packet) == attempt


@given(st.binary(max_size=120))
def test_no_packet_makes_it_fail(data: bytes) -> None:
    parse(data)
    parse(b"\x45" + data)
    parse(b"\x60" + data)


class Packets:
    """A packet socket with these in it."""

    type = socket.SOCK_DGRAM

    def __init__(self, packets: list[bytes], kind: int = 0) -> None:
        self.packets = packets
        self.kind = kind

    def recvfrom(self, size: int) -> tuple[bytes, tuple[object, ...]]:
        if not self.packets:
            raise BlockingIOError
        return self.packets.pop(0)[:size], ("lo", 0x800, self.kind, 772, b"")


def attempts(packets: list[bytes], kind: int = 0) -> Attempts:
    rules = [EgressRule(kind=EgressKind.TLS, name="api.example", ports=(443, 8443))]
    return Attempts(Packets(packets, kind), Names(rules))  # type: ignore[arg-type]


def everything(found: Attempts) -> tuple[list[Attempt], int]:
    new: list[Attempt] = []
    total = 0
    while (read := found.read()) != ([], 0):
        new += read[0]
        total += read[1]
    return new, total


def test_a_port_scan_is_counted_whole_and_logged_up_to_a_bound() -> None:
    packets = [v4(SYN, to=f"10.{number >> 8}.{number & 255}.1") for number in range(1000)]
    new, total = everything(attempts(packets * 2))
    assert (len(new), len(set(new)), total) == (MOST_DESTINATIONS, MOST_DESTINATIONS, 2000)


def test_what_is_served_speaks_for_itself_and_a_boxs_own_loopback_is_its_own() -> None:
    served = [v4(SYN, to="198.18.0.2"), v6(SYN, to="fd53::2"), v4(SYN, to="127.0.0.1"), v6(SYN, to="::1")]
    assert everything(attempts(served)) == ([], 0)
    assert everything(attempts([v4(SYN)], kind=4)) == ([], 0), "on its way out; it is seen again on its way in"


def test_the_name_that_was_meant_is_told() -> None:
    found = attempts([v4(UDP, socket.IPPROTO_UDP, to="198.18.0.2")])
    ((attempt,), _) = found.read()
    assert found.facts(attempt) == {"name": "api.example", "protocol": "udp", "address": "198.18.0.2", "port": 443}
