"""What a tool tries against the fence around its network, from inside its box. Prints one JSON object."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
from collections.abc import Callable

HOST = json.loads(sys.argv[1])


def said(attempt: Callable[[], object]) -> str:
    """What came of it: the error's name, or `ok` and what it gave."""
    try:
        return f"ok {attempt()}"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))


def connect(address: str, port: int) -> str:
    """Connect and read what is said."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(3)
        sock.connect((address, port))
        return sock.recv(100).decode()


def ask(address: str, port: int, data: bytes = b"question") -> str:
    """Send a datagram and wait for the answer."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.connect((address, port))
        sock.send(data)
        return sock.recv(100).decode()


def bind(family: int, kind: int, address: str, port: int, *options: tuple[int, int]) -> str:
    """Bind, and listen if that can be done."""
    with socket.socket(family, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for level, name in options:
            sock.setsockopt(level, name, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(1)
        return "bound"


REUSE_PORT = (socket.SOL_SOCKET, socket.SO_REUSEPORT)
FREE_BIND = (socket.IPPROTO_IP, 15)
TCP, UDP, V4, V6 = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.AF_INET, socket.AF_INET6

BINDS = {
    f"{kind} {address} {port} {len(options)}": said(lambda f=family, k=kind, a=address, p=port, o=options: bind(f, k, a, p, *o))
    for kind, family, address, port in (
        *((TCP, V6 if ":" in each else V4, each, 8444) for each in ("198.18.0.4", "0.0.0.0", "fd53::4", "::", "::ffff:198.18.0.4", "::ffff:0.0.0.0")),  # noqa: S104
        (TCP, V4, "198.18.0.2", 443), (TCP, V4, "0.0.0.0", 443), (TCP, V6, "fd53::2", 443), (TCP, V6, "::", 443),  # noqa: S104
        (TCP, V6, "::ffff:198.18.0.2", 443), (TCP, V4, "198.18.0.77", 8443), (TCP, V4, "127.0.0.1", 8443), (TCP, V6, "::1", 8443),
        (TCP, V4, "127.0.0.53", 53), (TCP, V6, "::1", 53), (UDP, V4, "127.0.0.53", 53), (UDP, V4, "8.8.8.8", 53), (UDP, V6, "::1", 53),
        (UDP, V6, "::", 53), (UDP, V4, "0.0.0.0", 53),  # noqa: S104
    )
    for options in ((), (REUSE_PORT,), (REUSE_PORT, FREE_BIND))
}  # fmt: skip

FAMILIES = {
    "AF_VSOCK": (40, TCP, 0), "AF_PACKET": (17, socket.SOCK_RAW, 0x300), "AF_PACKET datagrams": (17, UDP, 0x300),
    "AF_ALG": (38, socket.SOCK_SEQPACKET, 0), "raw TCP": (V4, socket.SOCK_RAW, 6), "raw ICMP": (V4, socket.SOCK_RAW, 1),
    "raw IPv6": (V6, socket.SOCK_RAW, 58), "ping": (V4, UDP, 1), "ping IPv6": (V6, UDP, 58), "SCTP": (V4, TCP, 132), "MPTCP": (V4, TCP, 262),
    "AF_XDP": (44, socket.SOCK_RAW, 0), "NETLINK_SOCK_DIAG": (16, socket.SOCK_RAW, 4), "AF_UNIX": (1, TCP, 0),
}  # fmt: skip


def made(family: int, kind: int, protocol: int) -> str:
    """Make a socket of this kind."""
    with socket.socket(family, kind, protocol):
        return "made"


def new_route() -> str:
    """Take the routes away: RTM_DELROUTE of the local default."""
    import struct

    with socket.socket(16, socket.SOCK_RAW, 0) as sock:
        body = struct.pack("=8BI", V4, 0, 0, 0, 255, 4, 254, 2, 0)
        sock.send(struct.pack("=IHHII", 16 + len(body), 25, 5, 1, 0) + body)
        (number,) = struct.unpack_from("=i", sock.recv(4096), 16)
        return errno.errorcode.get(-number, str(number))


def files() -> dict[str, object]:
    """What of the supplied files the tool sees, and can do to them."""
    found: dict[str, object] = {}
    for name in ("/run/secrets/deep/token", "/run/fumehood/ca.pem", "/etc/ssl/certs/ca-certificates.crt"):
        try:
            told = os.stat(name)
            with open(name, encoding="ascii") as file:
                found[name] = [oct(stat.S_IMODE(told.st_mode)), told.st_uid == os.getuid(), file.read()]
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
    found["folder"] = said(lambda: oct(stat.S_IMODE(os.stat("/run/secrets").st_mode)))
    found["listed"] = said(lambda: sorted(os.listdir("/run")))
    found["written"] = said(lambda: open("/run/secrets/deep/token", "w"))
    found["added"] = said(lambda: open("/run/new", "w"))
    found["chmod"] = said(lambda: os.chmod("/run/secrets/deep/token", 0o777))
    found["chmod over"] = said(lambda: os.chmod("/etc/ssl/certs/ca-certificates.crt", 0o777))
    found["removed"] = said(lambda: os.unlink("/run/secrets/deep/token"))
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        found["mounts"] = [line.split()[4] for line in table if line.split()[4].startswith(("/run", "/etc"))]
    return found


sys.stdout.write(json.dumps({
    "binds": BINDS,
    "families": {name: said(lambda a=arguments: made(*a)) for name, arguments in FAMILIES.items()},
    "listed": {f"{address} {port}": said(lambda a=address, p=port: connect(a, p)) for address, port in HOST["listed"]},
    "refused": {f"{address} {port}": said(lambda a=address, p=port: connect(a, p)) for address, port in HOST["refused"]},
    "datagrams": {f"{address} {port}": said(lambda a=address, p=port: ask(a, p)) for address, port in HOST["datagrams"]},
    "dns": {address: said(lambda a=address: ask(a, 53, a.encode())) for address in ("8.8.8.8", "127.0.0.53", "2001:4860:4860::8888", "::1")},
    "dns over TCP": said(lambda: connect("9.9.9.9", 53)),
    "own loopback": said(lambda: connect("127.0.0.1", 9)),
    "route": said(new_route),
    "settings": said(lambda: open("/proc/sys/net/ipv4/icmp_echo_ignore_all", "w")),
    "files": files(),
    "variable": os.environ.get("FENCED"),
}))  # fmt: skip
