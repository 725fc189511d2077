"""A gate's end inside a network: messages, the packet filter and the read-back, tried on the real kernel where root allows it."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxlike import needs_root
from fumehood.broker import netlink, network
from fumehood.broker.network import Gate, judge_gate, open_gate, others_of
from fumehood.broker.network_thread import inside_network, own_network
from fumehood.broker.packet_filter import KEPT_BYTES, refused_attempts
from fumehood.faults import BoxFailed
from fumehood.ports import Listen
from fumehood.reasons import Reason

LISTENS = (
    Listen(v4="198.18.0.2", v6="fd53::2", port=443),
    Listen(v4="198.18.0.3", v6="fd53::3", port=443),
    Listen(v4="198.18.0.3", v6="fd53::3", port=80),
    Listen(v4=None, v6=None, port=8443),
)
MANY = tuple(Listen(v4=f"198.18.{n}.2", v6=f"fd53::{n:x}:2", port=1000 + n % 7) for n in range(60))


@contextmanager
def box() -> Iterator[int]:
    """The pidfd of a process that has a network of its own."""
    code = "import ctypes, sys; assert ctypes.CDLL(None).unshare(0x40000000) == 0; print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-Sc", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        pidfd = os.pidfd_open(process.pid)
        try:
            yield pidfd
        finally:
            os.close(pidfd)
            process.kill()


@contextmanager
def gate(pidfd: int, listens: tuple[Listen, ...] = LISTENS) -> Iterator[tuple[Gate, list[int]]]:
    made, fds = open_gate(pidfd, listens)
    try:
        yield made, fds
    finally:
        for fd in fds:
            os.close(fd)


def pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return int(next(line.split()[1] for line in file if line.startswith("Pid:")))


# ---- messages --------------------------------------------------------------------------------------------------------


def test_the_messages_are_those_of_ip_route() -> None:
    # strace of `ip link set lo up` and `ip -6 route add local default dev lo`, in words
    assert struct.unpack("=IHHII", netlink.link_up()[:16])[:3] == (32, 16, 0x5)
    assert struct.unpack("=BBHiII", netlink.link_up()[16:]) == (0, 0, 0, 1, 1, 1)
    route = netlink.local_default(socket.AF_INET6)
    assert struct.unpack("=IHHII", route[:16])[:3] == (36, 24, 0x605)
    assert struct.unpack("=8BI", route[16:28]) == (10, 0, 0, 0, 255, 4, 254, 2, 0)
    assert struct.unpack("=HHI", route[28:]) == (8, 4, 1)


def test_a_route_out_of_here_is_told_as_one() -> None:
    body = struct.pack("=8BI", 2, 0, 0, 0, 254, 4, 0, 1, 0)
    attributes = struct.pack("=HHI", 8, 4, 3) + struct.pack("=HH4s", 8, 5, bytes([10, 0, 0, 1]))
    assert netlink.route_of(body + attributes) == "unicast 0.0.0.0/0 table 254 dev 3 gateway"


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_of_the_kernels_are_messages_or_an_error(data: bytes) -> None:
    try:
        for _, body in netlink.told(data):
            netlink.listener_of(body)
    except OSError:
        pass


def test_the_tables_of_odd_sockets_are_read_by_their_head() -> None:
    head = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n"
    assert others_of(head) == []
    assert others_of(head + "00000000dc 3 2 0003 1 1 0 0 4158\n") == [4158]
    raw = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n"
    assert others_of(raw + "  1: 00000000:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 77 2 0000 0\n") == [77]


# ---- the packet filter -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listens", [(), LISTENS, MANY])
def test_the_filter_is_short_and_ends_everywhere(listens: tuple[Listen, ...]) -> None:
    code = list(struct.iter_unpack("=HBBI", refused_attempts(listens)))
    assert len(code) < 1024
    for at, (operation, if_true, if_false, value) in enumerate(code):
        reached = [at + 1 + value] if operation == 0x05 else [at + 1 + if_true, at + 1 + if_false] if operation & 7 == 5 else []
        assert all(target < len(code) for target in reached)
    assert code[-1] == (0x06, 0, 0, KEPT_BYTES)


def attempts(fd: int) -> set[tuple[str, str, int]]:
    """What the packet socket saw: protocol, address and port."""
    found = set()
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            while True:
                data, (_, kind, *_) = sock.recvfrom(65536)
                assert len(data) <= KEPT_BYTES
                six = kind == 0x86DD
                header = 40 if six else 4 * (data[0] & 15)
                address = socket.inet_ntop(socket.AF_INET6, data[24:40]) if six else socket.inet_ntop(socket.AF_INET, data[16:20])
                found.add(({6: "tcp", 17: "udp"}[data[6 if six else 9]], address, int.from_bytes(data[header + 2 : header + 4], "big")))
        except BlockingIOError:
            return found


def knock(kind: socket.SocketKind, address: str, port: int, options: bytes = b"") -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as sock:
        sock.settimeout(2)
        if options:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
        try:
            sock.connect((address, port))
            if kind == socket.SOCK_DGRAM:
                sock.send(b"x" * 1000)
                sock.recv(10)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, repr(error))
        return "connected"


@needs_root
@pytest.mark.parametrize("listens", [LISTENS, (*LISTENS, *MANY[:56])])
def test_refused_attempts_are_seen_and_nothing_else(listens: tuple[Listen, ...]) -> None:
    refused = [("1.1.1.1", 443), ("198.18.0.2", 80), ("198.18.0.4", 443), ("fd53::2", 80), ("fd53:0:0:1::2", 443), ("2001:db8::1", 443)]
    served = [("198.18.0.2", 443), ("fd53::2", 443), ("198.18.0.3", 80), ("9.9.9.9", 8443), ("2001:db8::1", 8443), ("8.8.8.8", 53)]

    def tool() -> None:
        for place in refused:
            assert knock(socket.SOCK_STREAM, *place) == "ECONNREFUSED"
            assert knock(socket.SOCK_DGRAM, *place) == "ECONNREFUSED"
        for place in served:
            assert knock(socket.SOCK_STREAM, *place) == "connected"
        assert knock(socket.SOCK_STREAM, "1.2.3.4", 99, b"\x01" * 8) == "ECONNREFUSED"  # with IP options before the header's end
        for own in ("127.0.0.1", "::1"):
            assert knock(socket.SOCK_STREAM, own, 99) == "ECONNREFUSED"
            assert knock(socket.SOCK_DGRAM, own, 99) == "ECONNREFUSED"

    with box() as pidfd, gate(pidfd, listens) as (_, fds):
        inside_network(pidfd, tool)
        expected = {(kind, *place) for kind in ("tcp", "udp") for place in refused}
        assert attempts(fds[-1]) == expected | {("tcp", "1.2.3.4", 99)}


@needs_root
def test_a_flood_of_refused_attempts_fills_one_small_buffer() -> None:
    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(5000):
                sock.sendto(b"x" * 1400, ("10.0.0.1", 1 + number))

    with box() as pidfd, gate(pidfd) as (_, fds):
        inside_network(pidfd, flood)
        assert 0 < len(attempts(fds[-1])) < 200
        with socket.socket(fileno=os.dup(fds[-1])) as sock:
            packets, dropped = struct.unpack("=II", sock.getsockopt(263, 6, 8))
    assert dropped > 4000
    assert packets == 4999  # port 53 is the gate's own


@needs_root
def test_the_filter_cannot_be_taken_off_by_who_has_the_socket() -> None:
    with box() as pidfd, gate(pidfd) as (_, fds), socket.socket(fileno=os.dup(fds[-1])) as sock:
        with pytest.raises(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER
        with pytest.raises(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, 44, 0)  # SO_LOCK_FILTER


# ---- entering --------------------------------------------------------------------------------------------------------


@needs_root
def test_the_thread_that_enters_a_box_ends_there_whatever_happens_in_it() -> None:
    before, threads = own_network(), threading.active_count()

    def fail() -> None:
        raise OSError(errno.EIO, "as the test asked")

    with box() as pidfd:
        assert inside_network(pidfd, own_network) != before
        with pytest.raises(OSError, match="as the test asked"):
            inside_network(pidfd, fail)
    assert (own_network(), threading.active_count()) == (before, threads)


@needs_root
def test_the_hosts_own_network_is_never_made_into_a_boxs() -> None:
    with subprocess.Popen([sys.executable, "-Sc", "input()"], stdin=subprocess.PIPE) as process:
        pidfd = os.pidfd_open(process.pid)
        try:
            with pytest.raises(BoxFailed) as failed:
                open_gate(pidfd, ())
        finally:
            os.close(pidfd)
            process.kill()
    assert failed.value.reason is Reason.READBACK_MISMATCH
    assert not [route for route in netlink.routes() if route.startswith("local 0.0.0.0/0")]


@needs_root
def test_a_box_that_ended_meanwhile_gets_no_gate() -> None:
    with box() as pidfd:
        process = pid_of(pidfd)

        def die() -> None:
            os.kill(process, 9)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)

        with pytest.raises(BoxFailed) as failed:
            inside_network(pidfd, die)
        assert failed.value.reason is Reason.BOX_DIED


# ---- the read-back ---------------------------------------------------------------------------------------------------


def looked(pidfd: int) -> dict[str, Any]:
    return network.gather_gate(pid_of(pidfd), pidfd)


@needs_root
def test_a_network_as_it_was_made_is_as_planned_also_where_ipv6_was_off() -> None:
    def off() -> None:
        for name in ("all", "lo"):
            with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w", encoding="ascii") as file:
                file.write("1")

    for before in (lambda: None, off):
        with box() as pidfd:
            inside_network(pidfd, before)
            with gate(pidfd) as (made, fds):
                assert judge_gate(made, looked(pidfd)) == []
                assert len(fds) == 5 + 2 * len(LISTENS)


def listening() -> socket.socket:
    return socket.create_server(("198.18.0.9", 9))


def datagrams() -> socket.socket:
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.bind(("::1", 9))
    return made


def setting() -> None:
    with open("/proc/sys/net/ipv6/icmp/echo_ignore_all", "w", encoding="ascii") as file:
        file.write("0")


ADDED: dict[str, tuple[Callable[[], Any], str]] = {
    "another listener": (listening, "an unplanned socket: tcp 198.18.0.9 9"),
    "a bound datagram socket": (datagrams, "an unplanned socket: udp ::1 9"),
    "a raw socket": (lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1), "an unplanned socket: raw"),
    "another packet socket": (lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0), "an unplanned socket: packet"),
    "echoes": (setting, "network settings are"),
}


@needs_root
@pytest.mark.parametrize("added", ADDED)
def test_what_was_added_to_a_network_is_found(added: str) -> None:
    work, words = ADDED[added]
    with box() as pidfd, gate(pidfd) as (made, _):
        kept = inside_network(pidfd, work)
        try:
            assert [wrong for wrong in judge_gate(made, looked(pidfd)) if wrong.startswith(words)]
        finally:
            if kept is not None:
                kept.close()


@needs_root
def test_a_listener_that_is_gone_or_another_of_its_name_is_found() -> None:
    with box() as pidfd, gate(pidfd) as (made, fds):
        os.close(fds.pop(4))
        assert judge_gate(made, looked(pidfd)) == ["a socket of the gate's is not there: tcp 198.18.0.2 443"]
        other = inside_network(pidfd, lambda: socket.create_server(("198.18.0.2", 443)))
        assert len(judge_gate(made, looked(pidfd))) == 2  # the same place, another socket
        other.close()


def found(**changed: Any) -> dict[str, Any]:
    routes = ["local 0.0.0.0/0 table 255 dev 1", "local 127.0.0.0/8 table 255 dev 1", "local ::/0 table 255 dev 1", "local ::1/128 table 255 dev 1"]
    return {"network": "net:[7]", "routes": routes, "settings": dict(network.SETTINGS), "sockets": {5: "packet"}, **changed}


ROUTES = [
    "unicast 0.0.0.0/0 table 254 dev 2 gateway", "unicast 10.0.0.0/8 table 254 dev 1", "local 127.0.0.0/8 table 255 dev 2",
    "local 0.0.0.0/0 table 255 dev 1", "unicast ::/0 table 254 dev 1 via", "local ::/0 table 254 dev 1",
]  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
def test_a_route_that_is_not_ours_is_found(route: str) -> None:
    made = Gate(namespace="net:[7]", sockets={5: "packet"}, facts={})
    assert judge_gate(made, found()) == []
    assert judge_gate(made, found(routes=[*found()["routes"], route]))


def test_a_missing_route_another_network_and_other_sockets_are_found() -> None:
    made = Gate(namespace="net:[7]", sockets={5: "packet"}, facts={})
    assert len(judge_gate(made, found(routes=[]))) == 2
    assert judge_gate(made, found(network="net:[8]")) == ["the network is net:[8], the gate is in net:[7]"]
    assert len(judge_gate(made, found(sockets={6: "packet"}))) == 2


@needs_root
def test_two_listeners_at_one_place_are_a_bad_request() -> None:
    with box() as pidfd, pytest.raises(BoxFailed) as failed:
        open_gate(pidfd, (Listen(v4=None, v6=None, port=80), Listen(v4="198.18.0.2", v6="fd53::2", port=80)))
    assert failed.value.reason is Reason.BAD_REQUEST


@needs_root
def test_a_kernel_without_ipv6_gets_no_gate_and_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "SETTINGS", {"ipv6/there/is/none": "1"})
    with box() as pidfd, pytest.raises(BoxFailed) as failed:
        open_gate(pidfd, ())
    assert failed.value.reason is Reason.UNENFORCEABLE


@needs_root
def test_nothing_of_a_network_outlives_its_sockets_and_its_box() -> None:
    with box() as pidfd, gate(pidfd) as (made, _):
        number = made.namespace
    alive = {str(path) for pid in os.listdir("/proc") if pid.isdigit() for path in _network_of(pid)}
    assert number not in alive


def _network_of(pid: str) -> list[str]:
    try:
        return [os.readlink(f"/proc/{pid}/ns/net")]
    except OSError:
        return []
