"""A gate's end inside a box: every address made local, and the sockets that the worker serves from outside.

The box has `lo` and no other link, so nothing that it sends leaves its network namespace. With `local default dev lo` in both families
every destination is its own, and what connects is whatever listens there: the gate's DNS at port 53 of every address, the
gate's listeners, or nobody. Containment needs no cooperation, and no rule that could be wrong.

Invariants: sockets are made before anything of the image runs, without SO_REUSEADDR or SO_REUSEPORT, so that nobody in the box
can bind over them; each is close-on-exec and not blocking, and only its descriptor keeps it. The broker never reads from one. The
packet socket's filter is locked: whoever has the socket cannot ask for more. `Gate` says what must be found at the read-back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fumehood.broker import netlink
from fumehood.broker.network_thread import inside_network, own_network
from fumehood.broker.packet_filter import DNS_PORT, refused_attempts
from fumehood.faults import BoxFailed
from fumehood.ports import Listen
from fumehood.reasons import Reason

# An echo of every address would tell a box that the whole world is near.
SETTINGS = {"ipv6/conf/lo/disable_ipv6": "0", "ipv4/icmp_echo_ignore_all": "1", "ipv6/icmp/echo_ignore_all": "1"}
_ALL_IPV6 = "ipv6/conf/all/disable_ipv6"
_NET = "/proc/sys/net"
_EVERYWHERE = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104 - of a box
_BACKLOG = 64
_DNS_BUFFER_BYTES = 32 * 1024
_PACKETS_BUFFER_BYTES = 16 * 1024
_IPV6_RECVPKTINFO, _IPV6_FREEBIND, _IP_PKTINFO = 49, 78, 8
_SO_ATTACH_FILTER, _SO_LOCK_FILTER, _SOL_PACKET, _PACKET_IGNORE_OUTGOING, _ETH_P_ALL = 26, 44, 263, 23, 3
_OTHERS = ("raw", "raw6", "packet")  # tables of /proc/net


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the broker made: `namespace` as `net:[N]`, and every socket as kind and local address, by inode."""

    namespace: str
    sockets: Mapping[int, str]
    facts: Mapping[str, Any]


def open_gate(pidfd: int, listens: Sequence[Listen]) -> tuple[Gate, list[int]]:
    """Make the network of the box whose init the pidfd names, and the sockets in it, as descriptors that are the caller's.

    In order: DNS over UDP and over TCP, each of `listens`, IPv4 before IPv6, and the packet socket where there is one.
    Raises BoxFailed.
    """
    began = time.perf_counter()
    with ExitStack() as made:
        try:
            namespace, sockets, packets = inside_network(pidfd, lambda: _make(listens, made))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise BoxFailed(Reason.BAD_REQUEST, "two listeners of a gate ask for one place") from error
            raise BoxFailed(Reason.UNENFORCEABLE, f"no gate in the box's network: {error.strerror}") from error
        known = {os.fstat(each.fileno()).st_ino: _told(each.type, *each.getsockname()[:2]) for each in sockets}
        if packets is not None:
            sockets.append(packets)
            known[os.fstat(packets.fileno()).st_ino] = "packet"
        facts = {
            "network": namespace, "listeners": len(listens), "refusals_seen": packets is not None,
            "made_in_ms": round((time.perf_counter() - began) * 1000, 3),
        }  # fmt: skip
        gate = Gate(namespace=namespace, sockets=known, facts=facts)
        return gate, [each.detach() for each in sockets]


def close_packets(fd: int) -> None:
    """Close a packet socket, in a thread: the last who closes one waits 10 ms and more for the kernel.

    The broker keeps a descriptor of it for that, because the worker has but one loop to wait in.
    """
    threading.Thread(target=os.close, args=(fd,), name="closing").start()


def listening(pidfd: int) -> dict[int, str]:
    """Every socket that listens in the network of a process, by inode; for UDP every bound one. The caller holds the pidfd."""
    return inside_network(pidfd, _listening)


def gather_gate(pid: int, pidfd: int) -> dict[str, Any]:
    """What is found of a gate: routes, settings and sockets in the network of a process. The caller holds the pidfd."""

    def look() -> dict[str, Any]:
        settings = {name: _setting(name) for name in SETTINGS}
        return {"network": own_network(), "routes": netlink.routes(), "settings": settings, "sockets": _listening()}

    found = inside_network(pidfd, look)
    for name in _OTHERS:
        inodes = others_of(Path(f"/proc/{pid}/net/{name}").read_text(encoding="ascii"))
        found["sockets"].update(dict.fromkeys(inodes, name))
    return found


def _listening() -> dict[int, str]:
    return {
        inode: _told(kind, address, port)
        for protocol, kind in ((socket.IPPROTO_TCP, socket.SOCK_STREAM), (socket.IPPROTO_UDP, socket.SOCK_DGRAM))
        for address, port, inode in netlink.listeners(protocol)
    }


def judge_gate(gate: Gate, found: Mapping[str, Any]) -> list[str]:
    """Pure: what differs from the network that was made, a sentence each."""
    wrong: list[str] = []
    if found["network"] != gate.namespace:
        wrong.append(f"the network is {found['network']}, the gate is in {gate.namespace}")
    if found["settings"] != SETTINGS:
        wrong.append(f"network settings are {found['settings']!r}, planned {SETTINGS!r}")
    wrong.extend(f"unplanned route: {route}" for route in found["routes"] if not _is_planned(route))
    wrong.extend(f"there is no route `{route}`" for route in _OURS if found["routes"].count(route) != 1)
    there, ours = set(found["sockets"].items()), set(gate.sockets.items())
    wrong.extend(f"an unplanned socket: {told}" for _, told in sorted(there - ours))
    wrong.extend(f"a socket of the gate's is not there: {told}" for _, told in sorted(ours - there))
    return wrong


def others_of(table: str) -> list[int]:
    """The inode of every socket of /proc/net/packet, raw or raw6 (proc(5)); the column is named there, or is the tenth."""
    head, *rows = [line.split() for line in table.splitlines()]
    column = head.index("Inode") if "Inode" in head else 9
    return [int(row[column]) for row in rows]


_OURS = (f"local 0.0.0.0/0 table 255 dev {netlink.LO}", f"local ::/0 table 255 dev {netlink.LO}")
# What the kernel itself has for `lo`, and its answer for where there is no way at all.
_KERNELS = (
    "local 127.0.0.0/8 ", "local 127.0.0.1/32 ", "broadcast 127.0.0.0/32 ", "broadcast 127.255.255.255/32 ", "local ::1/128 ",
    "unicast ::1/128 ", "multicast ff00::/8 ", "unreachable ::/0 ",
)  # fmt: skip


def _is_planned(route: str) -> bool:
    return route in _OURS or (route.startswith(_KERNELS) and route.endswith(f" dev {netlink.LO}"))


def _make(listens: Sequence[Listen], made: ExitStack) -> tuple[str, list[socket.socket], socket.socket | None]:
    """In the box's network."""
    for name, value in SETTINGS.items():
        if name.endswith("disable_ipv6"):
            if _setting(name) != value:  # by Docker's `none` network; setting `all` sets each
                _set(_ALL_IPV6, value)
        else:
            _set(name, value)
    netlink.apply([netlink.link_up(), netlink.local_default(socket.AF_INET), netlink.local_default(socket.AF_INET6)])
    sockets = [_dns(made, socket.AF_INET), _dns(made, socket.AF_INET6)]
    for each in (Listen(v4=None, v6=None, port=DNS_PORT), *listens):
        sockets.append(_listener(made, socket.AF_INET, each.v4, each.port))
        sockets.append(_listener(made, socket.AF_INET6, each.v6, each.port))
    return own_network(), sockets, _packets(made, refused_attempts(tuple(listens)))


def _dns(made: ExitStack, family: socket.AddressFamily) -> socket.socket:
    """A UDP socket that is told which address was asked, and may answer from it."""
    sock = _socket(made, family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _DNS_BUFFER_BYTES)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    sock.bind((_EVERYWHERE[family], DNS_PORT))
    return sock


def _listener(made: ExitStack, family: socket.AddressFamily, address: str | None, port: int) -> socket.socket:
    sock = _socket(made, family, socket.SOCK_STREAM)
    sock.bind((address or _EVERYWHERE[family], port))
    sock.listen(_BACKLOG)
    return sock


def _socket(made: ExitStack, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
    sock = made.enter_context(socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC))
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # A local route makes no address that IPv6 lets a socket bind to, or answer from.
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    return sock


def _packets(made: ExitStack, program: bytes) -> socket.socket | None:
    """The packet socket on `lo`, which sees nothing before its filter is on; None for a kernel without CONFIG_PACKET.

    Datagrams begin with the IP header; the protocol is in the address beside them.
    """
    try:
        sock = _socket(made, socket.AF_PACKET, socket.SOCK_DGRAM)  # of no protocol, so nothing arrives yet
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    code = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)  # each packet on `lo` comes by twice
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PACKETS_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(code)))
    sock.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
    sock.bind(("lo", _ETH_P_ALL))
    return sock


def _set(name: str, value: str) -> None:
    fd = os.open(f"{_NET}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _setting(name: str) -> str:
    fd = os.open(f"{_NET}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip()
    finally:
        os.close(fd)


def _told(kind: int, address: str, port: int) -> str:
    return f"{'udp' if kind == socket.SOCK_DGRAM else 'tcp'} {address} {port}"
