"""Attempts that no listener took: read from a packet socket, and logged once a destination.

The kernel refuses them by itself; this only tells the operator. Invariants: what is kept is bounded (rule 18): the first 128
destinations have an entry each, and everything is counted; a packet is a stranger's bytes, read here and nowhere with privilege.
Parsing is pure.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any

from fumehood.egress.addresses import Address
from fumehood.egress.names import DNS_PORT, Names
from fumehood.egress.refusals import Why

NO_LISTENER = Why(
    "no_listener", "nothing of the profile is at this address and port",
    "Address servers by the names of the profile, and add the port to the rule's `ports` if it is right.",
)  # fmt: skip

MOST_DESTINATIONS = 128
_READ_BYTES = 256
_AT_ONCE = 64
_OUTGOING = 4  # PACKET_OUTGOING: on a loopback each packet is seen on its way out, and on its way in
_ETHERNET_BYTES = 14
_PROTOCOLS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp", socket.IPPROTO_ICMP: "icmp", socket.IPPROTO_ICMPV6: "icmp"}
_ECHO = {socket.IPPROTO_ICMP: 8, socket.IPPROTO_ICMPV6: 128}
_EXTENSIONS = frozenset({0, 43, 60})  # IPv6 headers with a length of their own
_SYN, _ACK = 0x02, 0x10


@dataclass(frozen=True, slots=True)
class Attempt:
    """Something that a program in the box tried to reach. `port` is 0 for protocols without one."""

    protocol: str
    address: str
    port: int


def parse(packet: bytes) -> Attempt | None:
    """The attempt that an IP packet begins; None for any other packet, and for one that is cut off."""
    try:
        found = _payload(packet)
        if found is None:
            return None
        address, protocol, payload = found
        if not _begins(protocol, payload):
            return None
        has_port = protocol in {socket.IPPROTO_TCP, socket.IPPROTO_UDP}
        return Attempt(_PROTOCOLS.get(protocol, str(protocol)), str(address), payload[2] << 8 | payload[3] if has_port else 0)
    except (IndexError, ValueError):
        return None


def _payload(packet: bytes) -> tuple[Address, int, bytes] | None:
    """Where an IP packet goes, what is in it, and that; None for later fragments and what is no IP."""
    if packet[0] >> 4 == 4:
        start = (packet[0] & 15) * 4
        if start < 20 or int.from_bytes(packet[6:8]) & 0x1FFF:
            return None
        return ipaddress.IPv4Address(packet[16:20]), packet[9], packet[start:]
    if packet[0] >> 4 == 6:
        start, protocol = 40, packet[6]
        for _ in range(4):
            if protocol in _EXTENSIONS:
                start, protocol = start + 8 * (packet[start + 1] + 1), packet[start]
        return ipaddress.IPv6Address(packet[24:40]), protocol, packet[start:]
    return None


def _begins(protocol: int, payload: bytes) -> bool:
    if protocol == socket.IPPROTO_TCP:
        return payload[13] & (_SYN | _ACK) == _SYN
    if protocol == socket.IPPROTO_UDP:
        # Only our own answers come from port 53: a box cannot bind it, because we have.
        return payload[0] << 8 | payload[1] != DNS_PORT
    # Others of ICMP are the kernel's own notices.
    return protocol not in _ECHO or payload[0] == _ECHO[protocol]


class Attempts:
    """What one box tried in vain."""

    def __init__(self, packets: socket.socket, names: Names) -> None:
        """Read from the socket, when it can be read."""
        self._packets = packets
        self._has_link_header = packets.type == socket.SOCK_RAW
        self._names = names
        self._listens = {(each.v4, each.port) for each in names.listens()} | {(each.v6, each.port) for each in names.listens()}
        self._seen: set[Attempt] = set()

    def read(self) -> tuple[list[Attempt], int]:
        """Destinations that are new, and how many packets there were in all."""
        new, count = [], 0
        for _ in range(_AT_ONCE):
            try:
                packet, source = self._packets.recvfrom(_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                break
            attempt = None if source[2] == _OUTGOING else parse(packet[_ETHERNET_BYTES if self._has_link_header else 0 :])
            if attempt is None or self._is_served(attempt):
                continue
            count += 1
            if attempt not in self._seen and len(self._seen) < MOST_DESTINATIONS:
                self._seen.add(attempt)
                new.append(attempt)
        return new, count

    def facts(self, attempt: Attempt) -> dict[str, Any]:
        """An attempt for the log, with the name that was meant."""
        name = self._names.name_at(attempt.address)
        facts = {"protocol": attempt.protocol, "address": attempt.address, "port": attempt.port}
        return facts if name is None else {"name": name, **facts}

    def _is_served(self, attempt: Attempt) -> bool:
        """Whether it has a listener, which speaks for itself, or is the tool's own affair on its own loopback."""
        if ipaddress.ip_address(attempt.address).is_loopback:
            return True
        if attempt.port == DNS_PORT and attempt.protocol in {"tcp", "udp"}:
            return True
        places = {(attempt.address, attempt.port), (None, attempt.port)}
        return attempt.protocol == "tcp" and not places.isdisjoint(self._listens)
