"""`postgres:` rules with a real server and real clients: the gate authenticates, the box does not."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from certificates import Authority
from fumehood.egress import pg_messages, postgres
from fumehood.ports import Outward
from fumehood.reach import EgressKind, EgressRule, Secret, SecretForm
from gated import Gated, eventually, gated
from postgres_server import PostgresServer, postgres_server
from upstreams import LOOPBACK, ConnectProxy, NameServer, connect_proxy, name_server

PASSWORD = "canary-42-of-the-lease"  # noqa: S105
NAME = "db.internal"


@dataclass
class World:
    """A server with TLS, known as db.internal, and roles that prove themselves in different ways."""

    server: PostgresServer
    names: NameServer
    authority: Authority

    @property
    def rule(self) -> EgressRule:
        return EgressRule(
            kind=EgressKind.POSTGRES, name=NAME, ports=(self.server.port,), addresses=("127.0.0.0/8",), credential="db"
        )

    @property
    def outward(self) -> Outward:
        return Outward(resolvers=(self.names.place,), authorities=self.authority.pem)

    @contextmanager
    def gate(self, user: str = "leased", password: str = PASSWORD, **changed: object) -> Iterator[Gated]:
        secret = Secret(form=SecretForm.PASSWORD, parts={"user": user, "password": password})
        rule = dataclasses.replace(self.rule, **{name: value for name, value in changed.items() if name != "outward"})  # type: ignore[arg-type]
        with gated(rule, changed.get("outward", self.outward), secret) as each:  # type: ignore[arg-type]
            yield each


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        authority = Authority()
        server = stack.enter_context(postgres_server(certified=authority.certify(NAME)))
        names = stack.enter_context(name_server({NAME: [LOOPBACK], "other.internal": [LOOPBACK]}))
        server.sql(f"CREATE ROLE leased LOGIN PASSWORD '{PASSWORD}'")
        server.sql("CREATE DATABASE app")
        for role in ("wants_cleartext", "wants_nothing"):
            server.sql(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
        server.sql(f"SET password_encryption = md5; CREATE ROLE wants_md5 LOGIN PASSWORD '{PASSWORD}'")
        yield World(server, names, authority)


def connect(gate: Gated, **more: object) -> psycopg.Connection:
    """What a tool does: no password, any user."""
    given = {"host": LOOPBACK, "port": gate.port, "user": "anybody", "dbname": "app", "connect_timeout": 10, "autocommit": True}
    return psycopg.connect(**{**given, **more})  # type: ignore[arg-type]


def psql(gate: Gated, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["psql", "-XAtq", "-h", LOOPBACK, "-p", str(gate.port), "-U", "whoever", *words]
    given = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return subprocess.run(command, env={**given, **environment}, capture_output=True, text=True, timeout=30, check=False)


def why(gate: Gated) -> str:
    """The code of the one refusal."""
    eventually(lambda: gate.log.of("refused"))
    (facts,) = gate.log.of("refused")
    assert facts["remedy"].endswith(".")
    assert PASSWORD not in repr(gate.log.entries)
    return str(facts["why"])


def test_the_box_connects_without_a_password_and_is_the_leased_role(world: World) -> None:
    with world.gate() as gate:
        with connect(gate) as connection:
            assert connection.execute("SELECT session_user, current_database()").fetchone() == ("leased", "app")
            used = connection.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
            assert used == (True, "TLSv1.3")
            assert connection.info.parameter_status("session_authorization") == "leased"
        done = psql(gate, "-d", "app", "-c", "SELECT session_user")
        assert (done.stdout, done.stderr) == ("leased\n", "")
        eventually(lambda: len(gate.log.of("close")) == 2)
        for facts in gate.log.of("request"):
            assert facts["mechanism"] == "SCRAM-SHA-256-PLUS", "the login is bound to its TLS"
            assert (facts["role"], facts["database"], facts["tls"]) == ("leased", "app", True)
        assert PASSWORD not in repr(gate.log.entries)
        assert gate.task.holdings["postgres"] == {}, "no session is left that could be cancelled"


@pytest.mark.parametrize(("mode", "works"), [("disable", True), ("prefer", True), ("require", False), ("verify-full", False)])
def test_the_boxs_own_request_for_tls_is_answered_with_no(world: World, mode: str, works: bool) -> None:
    with world.gate() as gate:
        done = psql(gate, "-d", "app", "-c", "SELECT 1", PGSSLMODE=mode)
        assert (done.stdout == "1\n") is works, done.stderr
        if not works:
            assert "server does not support SSL" in done.stderr
            assert gate.log.of("connect") == [], "and nothing was dialled"


def test_what_a_session_begins_with_reaches_the_server(world: World) -> None:
    with world.gate() as gate, connect(gate, options="-c statement_timeout=7s", application_name="a tool") as connection:
        shown = connection.execute("SELECT current_setting('statement_timeout'), current_setting('application_name')")
        assert shown.fetchone() == ("7s", "a tool")


def test_megabytes_pass_in_both_directions_and_are_counted(world: World) -> None:
    size = 3 * 2**20
    with world.gate() as gate:
        with connect(gate) as connection:
            row = connection.execute("SELECT length(%s::text), repeat('y', %s)", ["x" * size, size]).fetchone()
        assert row == (size, "y" * size)
        eventually(lambda: gate.log.of("close"))
        (counts,) = gate.log.of("close")
        assert size < counts["bytes_out"] < size + 10_000
        assert size < counts["bytes_in"] < size + 10_000


def test_a_statement_is_cancelled_through_the_gate(world: World) -> None:
    with world.gate() as gate, connect(gate) as connection:
        timer = threading.Timer(0.3, connection.cancel_safe)  # `cancel` holds the interpreter's lock, and the gate is in this process
        timer.start()
        began = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(20)")
        assert time.monotonic() - began < 5
        timer.join()
        assert connection.execute("SELECT 1").fetchone() == (1,), "the session goes on"
        assert {"what": "cancel"}.items() <= gate.log.of("request")[-1].items()


def test_a_cancel_request_reaches_no_session_but_with_its_key(world: World) -> None:
    with world.gate() as gate, connect(gate) as connection:
        ours = next(iter(gate.task.holdings["postgres"].items()))
        real, own_key = ours[1].pid, ours[1].own_key
        pids = world.server.sql("SELECT pid FROM pg_stat_activity WHERE usename = 'leased'")
        assert (real,) in pids
        assert connection.info.backend_pid == ours[0] != real, "the server's own number never reaches the box"
        for pid, key in ((ours[0], b"\0\0\0\0"), (real, own_key), (real, ours[1].key), (1, own_key)):
            with socket.create_connection((LOOPBACK, gate.port), timeout=5) as raw:
                raw.sendall(pg_messages.cancel(pid, key))
                assert raw.recv(1) == b""
        assert [facts["why"] for facts in gate.log.of("refused")] == ["postgres_cancel"] * 4
        with world.gate() as another, socket.create_connection((LOOPBACK, another.port), timeout=5) as raw:
            raw.sendall(pg_messages.cancel(ours[0], own_key))
            assert raw.recv(1) == b""
            assert why(another) == "postgres_cancel", "another box's gate does not know the session"


def test_a_wrong_password_is_said_clearly_with_the_rule_and_a_remedy(world: World) -> None:
    with world.gate(password="another-canary") as gate:  # noqa: S106
        done = psql(gate, "-d", "app", "-c", "SELECT 1")
        assert done.returncode == 2
        assert 'password authentication failed for user "leased"' in done.stderr
        assert f"Rule: network.egress[0] postgres: {NAME}." in done.stderr
        assert "HINT:" in done.stderr
        assert "another-canary" not in done.stderr + repr(gate.log.entries)
        assert why(gate) == "postgres_refused"


@pytest.mark.parametrize(("role", "word"), [("wants_md5", "MD5"), ("wants_cleartext", "cleartext"), ("wants_nothing", "trust")])
def test_a_server_that_wants_the_password_itself_does_not_get_it(world: World, role: str, word: str) -> None:
    with world.gate(user=role) as gate:
        with pytest.raises(psycopg.OperationalError, match=f"wants.*{word}.*not SCRAM-SHA-256"):
            connect(gate)
        assert why(gate) == "postgres_not_scram"


def test_a_database_that_is_not_there_is_told_in_the_servers_words(world: World) -> None:
    with world.gate() as gate:
        done = psql(gate, "-d", "nowhere", "-c", "SELECT 1")
        assert 'FATAL:  database "nowhere" does not exist' in done.stderr


@pytest.mark.parametrize("options", ["-c local_preload_libraries=x", "-c session_authorization=owner", "-E"])
def test_start_up_parameters_that_are_rights_are_refused(world: World, options: str) -> None:
    with world.gate() as gate:
        with pytest.raises(psycopg.OperationalError, match="start-up parameter"):
            connect(gate, options=options)
        assert why(gate) == "postgres_start_up"


def test_replication_is_refused(world: World) -> None:
    with world.gate() as gate:
        with pytest.raises(psycopg.OperationalError, match="replication is refused"):
            connect(gate, replication="database")
        assert gate.log.of("connect") == [], "nothing was dialled"


def test_a_call_whose_lease_is_over_logs_in_nowhere(world: World) -> None:
    with world.gate() as gate:
        gate.leases.secrets.clear()
        with pytest.raises(psycopg.OperationalError, match="no live credential"):
            connect(gate)
        assert why(gate) == "postgres_no_lease"
        assert gate.log.of("connect") == []


@pytest.mark.parametrize("case", ["authority", "name"])
def test_a_server_whose_certificate_does_not_hold_sees_no_login(world: World, case: str) -> None:
    stranger = Outward(resolvers=(world.names.place,), authorities=Authority("a stranger").pem)
    changed: dict[str, object] = {"outward": stranger} if case == "authority" else {"name": "other.internal"}
    before = world.server.log.count("connection authorized")
    with world.gate(**changed) as gate:  # type: ignore[arg-type]
        with pytest.raises(psycopg.OperationalError, match="certificate does not hold"):
            connect(gate)
        assert why(gate) == "postgres_unverified"
    assert world.server.log.count("connection authorized") == before


def test_a_rebound_name_is_refused_before_anything_is_sent(world: World) -> None:
    with world.gate(addresses=("10.0.0.0/8",)) as gate:
        with pytest.raises(psycopg.OperationalError, match="Rule: network"):
            connect(gate)
        assert why(gate) == "address_not_allowed"


def test_without_tls_only_loopback_is_spoken_to(world: World) -> None:
    world.server.sql("ALTER SYSTEM SET ssl = off")
    world.server.sql("SELECT pg_reload_conf()")
    try:
        with world.gate() as gate:
            eventually(lambda: not _uses_tls(gate))
            assert gate.log.of("request")[-1]["mechanism"] == "SCRAM-SHA-256"
    finally:
        world.server.sql("ALTER SYSTEM RESET ssl")
        world.server.sql("SELECT pg_reload_conf()")


def _uses_tls(gate: Gated) -> bool:
    with connect(gate) as connection:
        found = connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        assert found is not None
        return bool(found[0])


def _own_address() -> str:
    """An address of this host that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host has no network at all")
        address: str = probe.getsockname()[0]
        return address


@contextmanager
def pretender(address: str, *answers: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server that is none: it answers what comes with what it was given, then closes. The port, and what it got."""
    got: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                for answer in answers:
                    got.append(connection.recv(4096))
                    connection.sendall(answer)
                got.append(connection.recv(4096))

    listener = socket.create_server((address, 0))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], got
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize("insecure", [False, True])
def test_a_server_on_the_network_without_tls_is_refused_unless_the_rule_says_so(world: World, insecure: bool) -> None:
    address = _own_address()
    world.names.answers["plain.internal"] = [address]
    with pretender(address, b"N") as (port, got):
        rule = {"name": "plain.internal", "ports": (port,), "addresses": (f"{address}/32",), "insecure": insecure}
        with world.gate(**rule) as gate, pytest.raises(psycopg.OperationalError):  # type: ignore[arg-type]
            connect(gate)
        assert why(gate) == ("postgres_garbage" if insecure else "postgres_unencrypted")
        assert got[0] == pg_messages.request(pg_messages.SSL)
        assert (b"leased" in b"".join(got)) is insecure, "not even the role's name without TLS"


@pytest.mark.parametrize(
    "answer",
    [
        b"S" + struct.pack("!cI", b"R", 8) + b"\0\0\0\0",  # plain text smuggled behind the answer
        b"E\0\0\0\x05\0",
        b"",
        b"\x15\x03\x01\0\x02\x02\x28",
    ],
)
def test_a_server_that_answers_the_request_for_tls_oddly_is_left(world: World, answer: bytes) -> None:
    with pretender(LOOPBACK, *filter(None, [answer])) as (port, got):
        with world.gate(ports=(port,)) as gate, pytest.raises(psycopg.OperationalError):
            connect(gate)
        assert why(gate) == "postgres_garbage"
        assert b"leased" not in b"".join(got)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0", pg_messages.request(pg_messages.SSL) * 2]
)
def test_what_is_not_postgresql_is_refused_and_nothing_is_dialled(world: World, data: bytes) -> None:
    with world.gate() as gate, socket.create_connection((LOOPBACK, gate.port), timeout=5) as raw:
        raw.sendall(data)
        while raw.recv(4096):
            pass
        assert why(gate) == "postgres_client"
        assert gate.log.of("connect") == []


def test_a_box_that_says_nothing_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "HEAD_S", 0.2)
    with world.gate() as gate, socket.create_connection((LOOPBACK, gate.port), timeout=5) as raw:
        raw.sendall(pg_messages.request(pg_messages.SSL))
        assert raw.recv(1) == b"N"
        raw.sendall(struct.pack("!II", 4096, 3 << 16))
        for _ in range(100):  # a byte at a time keeps nothing alive
            time.sleep(0.01)
            try:
                raw.sendall(b"a")
            except ConnectionError:
                break
        else:
            pytest.fail("the gate still listens")
        assert why(gate) == "head_too_slow"


def test_a_newer_client_is_told_which_protocol_it_gets(world: World) -> None:
    body = b"user\0me\0database\0app\0_pq_.something\0x\0\0"
    with world.gate() as gate, socket.create_connection((LOOPBACK, gate.port), timeout=5) as raw:
        raw.sendall(struct.pack("!II", 8 + len(body), 3 << 16 | 2) + body)
        data = b""
        while (found := pg_messages.message(data)) is None:
            data += raw.recv(4096)
        assert found[0].encoded() == pg_messages.negotiate(["_pq_.something"])


def test_without_a_credential_the_box_authenticates_itself_with_tls_of_its_own(world: World, tmp_path: object) -> None:
    world.server.sql("CREATE ROLE own LOGIN PASSWORD 'own'")
    roots = f"{tmp_path}/roots.pem"
    with open(roots, "w") as file:
        file.write(world.authority.pem)
    with world.gate(credential=None) as gate:
        given = {"host": NAME, "hostaddr": LOOPBACK, "user": "own", "sslmode": "verify-full", "sslrootcert": roots}
        with connect(gate, password="own", **given) as connection:  # noqa: S106
            assert connection.execute("SELECT session_user").fetchone() == ("own",)
        with pytest.raises(psycopg.OperationalError, match="password"):
            connect(gate, password="wrong", **given)  # noqa: S106
        assert gate.log.of("refused") == []
        with socket.create_connection((LOOPBACK, gate.port), timeout=5) as raw:
            raw.sendall(b"SSH-2.0-OpenSSH\r\n")
            with pytest.raises(ConnectionError):
                raw.recv(1)
        assert why(gate) == "postgres_client", "no tunnel for something else"


@pytest.mark.parametrize("case", ["authority", "name"])
def test_without_a_credential_the_box_itself_finds_out_another_server(world: World, tmp_path: Path, case: str) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_text(Authority("a stranger").pem if case == "authority" else world.authority.pem)
    host, said = (NAME, "certificate verify failed") if case == "authority" else ("other.internal", "does not match host name")
    with world.gate(credential=None) as gate:
        given = {"host": host, "hostaddr": LOOPBACK, "user": "leased", "sslmode": "verify-full", "sslrootcert": str(roots)}
        with pytest.raises(psycopg.OperationalError, match=said):
            connect(gate, password=PASSWORD, **given)


@pytest.fixture
def proxied(world: World) -> Iterator[tuple[ConnectProxy, Outward]]:
    with connect_proxy() as proxy:
        yield proxy, dataclasses.replace(world.outward, proxy=proxy.place)


def test_through_the_operators_proxy_the_server_is_verified_and_the_login_bound_to_its_tls(
    world: World, proxied: tuple[ConnectProxy, Outward]
) -> None:
    proxy, outward = proxied
    with world.gate(outward=outward) as gate, connect(gate) as connection:
        found = connection.execute("SELECT session_user, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        assert found == ("leased", True)
        assert gate.log.of("request")[-1]["mechanism"] == "SCRAM-SHA-256-PLUS"
        timer = threading.Timer(0.3, connection.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(20)")
        timer.join()
    assert proxy.asked == [f"{LOOPBACK}:{world.server.port}"] * 2, "the address that was judged, for the session and its cancelling"
    with world.gate(outward=outward, name="other.internal") as gate:
        with pytest.raises(psycopg.OperationalError, match="certificate does not hold"):
            connect(gate)
        assert why(gate) == "postgres_unverified"


def test_a_proxy_that_does_not_connect_is_told_to_the_box(world: World, proxied: tuple[ConnectProxy, Outward]) -> None:
    proxy, outward = proxied
    proxy.refuses = True
    with world.gate(outward=outward) as gate:
        with pytest.raises(psycopg.OperationalError, match="proxy did not connect"):
            connect(gate)
        assert why(gate) == "proxy_refused"


def test_behind_a_proxy_no_server_is_taken_for_one_on_loopback(world: World, proxied: tuple[ConnectProxy, Outward]) -> None:
    _, outward = proxied
    with pretender(LOOPBACK, b"N") as (port, got):
        with world.gate(ports=(port,), outward=outward) as gate, pytest.raises(psycopg.OperationalError):
            connect(gate)
        assert why(gate) == "postgres_unencrypted"
        assert b"leased" not in b"".join(got), "the address is where the proxy is, and says nothing of the way there"
