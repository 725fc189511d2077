"""What a tool can try against the network that its gate was given, on every engine; the gate itself is one of the tests' own."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fencing import GATE, LISTEN, WAYS, fenced, networks, seen, wish
from lab import Lab, gone, needs_oci, pids
from userlab import UserLab

PROBES = (Path(__file__).parent / "inside" / "fence.py").read_text()
NAME_SERVERS = ["127.0.0.53", "2001:4860:4860::8888", "8.8.8.8", "::1"]
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
FILES = (
    {"name": "fumehood/ca.pem", "text": "an authority", "over": BUNDLE},
    {"name": "fumehood/other.pem", "text": "for another distribution", "over": "/etc/pki/tls/certs/ca-bundle.crt"},
    {"name": "secrets/deep/token", "text": "a secret"},
)
METADATA = ["169.254.169.254", "fd00:ec2::254"]
ANYWHERE = {"v4": None, "v6": None}
LIES = {
    "a second gate": [],
    "an address of the host's": [{"v4": "127.0.0.1", "v6": "::1", "port": 80}],
    "the gate's DNS": [{**ANYWHERE, "port": 53}],
    "too many": [{**ANYWHERE, "port": port} for port in range(1000, 1061)],
    "two at one place": 2 * [{**ANYWHERE, "port": 80}],
}
STAYS = "import sys; print('up', flush=True); sys.stdin.read()  # {marker}"


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way[1] or way[0])
def way(request: pytest.FixtureRequest, lab: Lab, has_docker: bool) -> tuple[str, str]:
    """Engine and profile, one for each runtime."""
    engine, runtime = request.param
    if engine == "docker" and not has_docker:
        pytest.skip("no Docker engine answers")
    if engine == "oci":
        needs_oci()
    return engine, lab.profile(f"fence-{runtime or engine}", f"runtime: {runtime}\n" if runtime else "")


@pytest.fixture(scope="module")
def host() -> Iterator[dict[str, Any]]:
    """A listener on every address of the host's, and what a box could try to reach."""
    told = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        ours = [*told, "127.0.0.1", "::1", "172.17.0.1"]
        outside = [*METADATA, "10.0.0.1", "1.1.1.1", "2606:4700:4700::1111", "198.18.0.3", "fd53::3"]
        yield {
            "listener": listener, "listed": [["198.18.0.2", 443], ["fd53::2", 443], ["198.19.255.9", 443], ["fd53:0:0:ff::9", 443],
                                             ["1.2.3.4", 8443], ["2001:db8::1", 8443], ["198.18.0.4", 8444], ["fd53::4", 8444]],
            "refused": [*([address, port] for address in ours), *([address, number] for address in outside for number in (80, 443)),
                        ["198.18.0.2", 80], ["fd53::2", 8444]],
            "datagrams": [["198.18.0.2", 443], ["fd53::2", 443], ["1.1.1.1", 443], ["169.254.169.254", 80], ["2606:4700::1", 853]],
        }  # fmt: skip


@pytest.fixture(scope="module")
def tried(lab: Lab, way: tuple[str, str], host: dict[str, Any]) -> dict[str, Any]:
    """Every attempt's result, what the gate saw of them, and the record of it."""
    engine, profile = way
    wanted = json.dumps({name: host[name] for name in ("listed", "refused", "datagrams")})
    done = lab.attacked(GATE, engine, "python3", "-", wanted, profile=profile, input=PROBES, env=wish(FILES, LIES))
    assert done.status == 0, (done.stdout, done.stderr)
    assert lab.left() == []
    shown = lab.fumehood("task", done.said["task"], "--json").said
    return {**json.loads(done.told), "saw": seen(done), "record": shown, "host": host}


def _event(tried: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [event for event in tried["record"]["events"] if event["state"] == name]
    facts: dict[str, Any] = found["facts"]
    return facts


def test_a_listed_address_reaches_the_gate_which_is_told_it(tried: dict[str, Any]) -> None:
    assert tried["listed"] == {f"{address} {port}": f"ok {address} {port}" for address, port in tried["host"]["listed"]}


def test_hosts_metadata_literal_addresses_and_unlisted_ports_are_refused(tried: dict[str, Any]) -> None:
    assert set(tried["refused"].values()) == {"ECONNREFUSED"}
    assert len(tried["refused"]) > 10
    with pytest.raises(BlockingIOError):
        tried["host"]["listener"].accept()


def test_datagrams_and_with_them_quic_are_refused(tried: dict[str, Any]) -> None:
    assert set(tried["datagrams"].values()) == {"ECONNREFUSED"}


def test_every_refused_attempt_is_seen_and_nothing_else(tried: dict[str, Any]) -> None:
    expected = {("tcp", address, port) for address, port in tried["host"]["refused"] if not address.startswith("127.") and address != "::1"}
    expected |= {("udp", address, port) for address, port in tried["host"]["datagrams"]}
    assert {tuple(each) for each in tried["saw"]["refused"]} == expected
    assert 0 < tried["saw"]["longest"] <= 96


def test_name_servers_everywhere_are_the_gates_own(tried: dict[str, Any]) -> None:
    assert tried["dns"] == dict.fromkeys(tried["dns"], "ok answer")
    assert sorted(tried["saw"]["dns"]) == NAME_SERVERS
    assert tried["dns over TCP"] == "ok 9.9.9.9 53"


def test_nobody_binds_over_the_gates_sockets(tried: dict[str, Any]) -> None:
    assert len(tried["binds"]) == 63
    refusals = {"EADDRINUSE", "EACCES", "EADDRNOTAVAIL"}  # a low port is not a tool's on some engines, an IPv6 address of the gate's never
    assert {name: told for name, told in tried["binds"].items() if told not in refusals} == {}
    high = {told for name, told in tried["binds"].items() if name.split()[2] in {"8443", "8444"}}
    assert high <= {"EADDRINUSE", "EADDRNOTAVAIL"}


def test_no_socket_that_goes_round_the_gate_can_be_made(tried: dict[str, Any]) -> None:
    assert set(tried["families"].values()) <= {"EPERM", "EAFNOSUPPORT", "EACCES"}
    assert len(tried["families"]) == 14


def test_the_worker_serves_such_sockets_and_can_make_none(tried: dict[str, Any]) -> None:
    assert tried["saw"]["own"] == dict.fromkeys(("AF_PACKET", "AF_NETLINK"), errno.EAFNOSUPPORT)
    assert tried["saw"]["accepted"]
    assert tried["saw"]["refused"]


def test_a_taken_over_worker_gets_no_other_gate(tried: dict[str, Any]) -> None:
    assert tried["saw"]["lies"].keys() == LIES.keys()
    assert {reason for reason, _ in tried["saw"]["lies"].values()} == {"bad_request"}
    assert len({detail for _, detail in tried["saw"]["lies"].values()}) == len(LIES)  # each for its own reason


def test_routes_and_settings_are_not_the_tools_to_change(tried: dict[str, Any]) -> None:
    assert tried["route"] == "ok EPERM"
    assert tried["settings"] in {"EROFS", "EACCES", "EPERM"}


def test_the_read_back_before_the_first_instruction_holds_the_gate(tried: dict[str, Any]) -> None:
    readback = _event(tried, "running")["readback"]
    assert readback["interfaces"] == ["lo"]
    gate = readback["gate"]
    assert gate["network"] == readback["namespaces"]["net"] == tried["saw"]["facts"]["network"] != networks(os.getpid()).pop()
    assert sum(route.startswith("local 0.0.0.0/0") for route in gate["routes"]) == 1
    places = sorted(["packet", *(f"{kind} {address} 53" for kind in ("tcp", "udp") for address in ("0.0.0.0", "::"))])  # noqa: S104
    places += [f"tcp {each[name] or anywhere} {each['port']}" for each in LISTEN for name, anywhere in (("v4", "0.0.0.0"), ("v6", "::"))]  # noqa: S104
    assert sorted(gate["sockets"].values()) == sorted(places)


def test_supplied_files_are_the_tools_to_read_and_nobodys_to_change(tried: dict[str, Any]) -> None:
    found = tried["files"]
    assert found["/run/secrets/deep/token"] == ["0o400", True, "a secret"]
    assert found["/run/fumehood/ca.pem"] == found[BUNDLE] == ["0o400", True, "an authority"]
    assert (found["folder"], found["listed"]) == ("ok 0o500", "ok ['fumehood', 'secrets']")
    assert {found[name] for name in ("written", "added", "chmod", "chmod over", "removed")} <= {"EROFS", "EACCES"}
    names = {"/etc/group", "/etc/passwd"} if tried["record"]["engine"] == "docker" else set()
    assert sorted(found["mounts"]) == sorted({BUNDLE, "/run", *names})
    assert tried["variable"] == "yes"
    assert _event(tried, "bound")["supplied"]["swapped"] in {"never", "no swap"}


PING = """
import socket, struct, sys
for family, protocol, kind, address in ((2, 1, 8, "1.2.3.4"), (2, 1, 8, "198.18.0.2"), (10, 58, 128, "fd53::2"), (10, 58, 128, "::1")):
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        body = struct.pack("!BBHHH", kind, 0, 0, 7, 1)
        if family == 2:
            total = sum(struct.unpack("!4H", body)); total = (total & 0xffff) + (total >> 16)
            body = struct.pack("!BBHHH", kind, 0, ~total & 0xffff, 7, 1)
        sock.settimeout(0.1)
        sock.sendto(body, (address, 0))
        answers = []
        try:
            while True:
                data = sock.recv(200)
                answers.append(data[20 * (family == 2)])
        except TimeoutError:
            pass
        print(address, "answered" if {0, 129} & {*answers} else "silent")
"""
ALLOW = "for n in ('ipv4/icmp', 'ipv6/icmp/'): open(f'/proc/sys/net/{n}' + ('_' if n[3] == '4' else '') + 'echo_ignore_all', 'w').write('0')\n"


def _in_network_of(pid: int, code: str) -> list[str]:
    argv = ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[:-1]


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("victim", ["worker", "broker"])
def test_a_killed_process_of_ours_leaves_no_network_behind(lab: Lab, way: tuple[str, str], victim: str) -> None:
    engine, profile = way
    marker = f"fence-{victim}-{os.getpid()}-{profile[-12:-5]}"
    with fenced(lab, engine, STAYS.format(marker=marker), profile) as live:
        assert live.line() == "up"
        tool = lab.boxed(marker)
        network = networks(tool)
        ours = live.ours()
        # The thread that was in the box has ended there.
        assert networks(ours["broker"]) == networks(os.getpid())
        if victim == "worker":
            # A question of root's, who alone can ask it: no address answers an echo, unless told to.
            assert {line.split()[1] for line in _in_network_of(tool, PING)} == {"silent"}
            assert {line.split()[1] for line in _in_network_of(tool, ALLOW + PING)} == {"answered"}
        os.kill(ours[victim], signal.SIGKILL)
        assert all(gone(pid, 20) for pid in (tool, *ours.values()))
    assert not network & {each for pid in pids() for each in _networks_of(pid)}
    assert lab.python("oci", "print('swept')").told == "swept\n"  # a start removes what a killed broker could not


def _networks_of(pid: int) -> set[str]:
    try:
        return networks(pid)
    except OSError:
        return set()


def test_the_fence_stands_without_root(user_lab: UserLab, host: dict[str, Any]) -> None:
    wanted = json.dumps({name: host[name] for name in ("listed", "refused", "datagrams")})
    done = user_lab.attacked(GATE, "oci", "python3", "-", wanted, input=PROBES, env=wish(FILES))
    assert done.status == 0, (done.stdout, done.stderr)
    told, saw = json.loads(done.told), seen(done)
    assert told["listed"] == {f"{address} {port}": f"ok {address} {port}" for address, port in host["listed"]}
    assert {*told["refused"].values(), *told["datagrams"].values()} == {"ECONNREFUSED"}
    assert set(told["dns"].values()) == {"ok answer"}
    assert {"tcp", "udp"} == {kind for kind, _, _ in saw["refused"]}
    assert told["files"]["/run/secrets/deep/token"] == ["0o400", True, "a secret"]
    assert user_lab.left() == []
