"""The few netlink messages of a box's network: bringing `lo` up, making every address local, reading routes and sockets back.

Raw, because the half millisecond of a gate counts: a library for all of rtnetlink needed six times as long. And sockets are listed
here, because /proc/net/tcp walks the host's whole hash table, which took 8 ms. What makes and reads messages is pure. Every message is
acknowledged, and the first error is raised with the kernel's number. Sources: netlink(7), rtnetlink(7), sock_diag(7).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence

LO = 1  # the index of `lo` in every network namespace
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=8BI")
_LINK = struct.Struct("=BBHiII")
_ATTRIBUTE = struct.Struct("=HH")
_NEWLINK, _NEWROUTE, _GETROUTE, _SOCK_DIAG = 16, 24, 26, 20
_ERROR, _DONE = 2, 3
_SOCKETS = 4  # NETLINK_SOCK_DIAG
_REQUEST, _ACK, _DUMP, _CREATE, _EXCLUSIVE = 1, 4, 0x300, 0x400, 0x200
_IFF_UP = 1
_RTA_DST, _RTA_OIF, _RTA_TABLE = 1, 4, 15
_LOCAL_TABLE, _STATIC, _HOST_SCOPE, _LOCAL = 255, 4, 254, 2
_KINDS = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable"}
_DIAG_REQUEST, _DIAG_ADDRESS, _DIAG_INODE, _DIAG_BYTES = struct.Struct("=4BI48x"), 8, 68, 72
_LISTENING, _ANY_STATE = 1 << 10, 0xFFF
# Attributes that a route out of here would have: a gateway, several ways, a gateway of another family, an encapsulation.
_LEADS_ON = {5: "gateway", 9: "multipath", 18: "via", 22: "encapsulated"}


def link_up() -> bytes:
    """Bring `lo` up."""
    return _message(_NEWLINK, _REQUEST | _ACK, _LINK.pack(0, 0, 0, LO, _IFF_UP, _IFF_UP))


def local_default(family: int) -> bytes:
    """`ip route add local default dev lo table local`: every address of the family is this namespace's own (AnyIP)."""
    body = _ROUTE.pack(family, 0, 0, 0, _LOCAL_TABLE, _STATIC, _HOST_SCOPE, _LOCAL, 0)
    attribute = _ATTRIBUTE.pack(8, _RTA_OIF) + struct.pack("=I", LO)
    return _message(_NEWROUTE, _REQUEST | _ACK | _CREATE | _EXCLUSIVE, body + attribute)


def all_routes(family: int) -> bytes:
    """Ask for every route of every table."""
    return _message(_GETROUTE, _REQUEST | _DUMP, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))


def all_listeners(family: int, protocol: int) -> bytes:
    """Ask for every listening socket, or for UDP for every bound one."""
    states = _LISTENING if protocol == socket.IPPROTO_TCP else _ANY_STATE
    return _message(_SOCK_DIAG, _REQUEST | _DUMP, _DIAG_REQUEST.pack(family, protocol, 0, 0, states))


def listener_of(body: bytes) -> tuple[str, int, int]:
    """Address, port and inode of one socket."""
    if len(body) < _DIAG_BYTES:
        raise OSError("netlink: a socket is cut short")
    family = socket.AF_INET if body[0] == socket.AF_INET else socket.AF_INET6
    size = 4 if family == socket.AF_INET else 16
    address = socket.inet_ntop(family, body[_DIAG_ADDRESS : _DIAG_ADDRESS + size])
    return address, int.from_bytes(body[4:6], "big"), int(struct.unpack_from("=I", body, _DIAG_INODE)[0])


def told(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each message in what the kernel sent."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            raise OSError("netlink: a message is cut short")
        yield kind, data[at + _HEADER.size : at + length]
        at += -(-length // 4) * 4


def route_of(body: bytes) -> str:
    """One route as `kind destination/length table N dev INDEX`, with what leads out of here after it."""
    family, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
    attributes = _attributes(body[_ROUTE.size :])
    size = 4 if family == socket.AF_INET else 16
    destination = socket.inet_ntop(family, attributes.get(_RTA_DST, bytes(size)))
    (table,) = struct.unpack("=I", attributes.get(_RTA_TABLE, struct.pack("=I", table)))
    (device,) = struct.unpack("=i", attributes.get(_RTA_OIF, bytes(4)))
    onward = "".join(f" {name}" for number, name in _LEADS_ON.items() if number in attributes)
    return f"{_KINDS.get(kind, kind)} {destination}/{length} table {table} dev {device}{onward}"


def apply(messages: Sequence[bytes]) -> None:
    """Have the kernel do all of this in the calling thread's network namespace. Raises OSError."""
    with _open() as sock:
        sock.send(b"".join(messages))
        answered = 0
        while answered < len(messages):
            for kind, body in told(sock.recv(65536)):
                _raise_error(kind, body)
                answered += 1


def routes() -> list[str]:
    """Every route of the calling thread's network namespace, IPv4 first. Raises OSError."""
    with _open() as sock:
        bodies = [body for family in (socket.AF_INET, socket.AF_INET6) for body in _dump(sock, all_routes(family))]
    return [route_of(body) for body in bodies]


def listeners(protocol: int) -> list[tuple[str, int, int]]:
    """Address, port and inode of every socket that listens in the calling thread's network namespace. Raises OSError."""
    with _open(_SOCKETS) as sock:
        bodies = [body for family in (socket.AF_INET, socket.AF_INET6) for body in _dump(sock, all_listeners(family, protocol))]
    return [listener_of(body) for body in bodies]


def _dump(sock: socket.socket, request: bytes) -> list[bytes]:
    sock.send(request)
    found: list[bytes] = []
    while True:
        for kind, body in told(sock.recv(65536)):
            _raise_error(kind, body)
            if kind == _DONE:
                return found
            found.append(body)


def _open(protocol: int = 0) -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)


def _raise_error(kind: int, body: bytes) -> None:
    if kind == _ERROR:
        number = -struct.unpack_from("=i", body)[0]
        if number:
            raise OSError(number, f"netlink: {os.strerror(number)}")


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            raise OSError("netlink: an attribute is cut short")
        found[kind] = data[at + _ATTRIBUTE.size : at + length]
        at += -(-length // 4) * 4
    return found
