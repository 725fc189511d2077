"""Roles of one call on a real PostgreSQL: what they may, what the server learns, and that nothing of them is left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import anyio
import psycopg
import pytest

from fumehood.credentials.kinds import find
from fumehood.faults import FumehoodError
from fumehood.ports import CredentialProvider, Issued, LeaseRequest
from fumehood.reach import SecretForm
from fumehood.reasons import Reason
from postgres_server import PostgresServer, postgres_server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server(log_statement="all", max_prepared_transactions="5") as found:
        for statement in (
            "CREATE ROLE reporting", "CREATE ROLE writing", "CREATE TABLE orders (id int)", "GRANT SELECT ON orders TO reporting",
            "GRANT INSERT ON orders TO writing", "GRANT CREATE ON SCHEMA public TO writing",
            # The least that an operator's role needs: it is no superuser.
            "CREATE ROLE keeper LOGIN CREATEROLE PASSWORD 'canary-keeper'", "CREATE DATABASE second",
        ):  # fmt: skip
            found.sql(statement)
        found.sql("GRANT CREATE ON SCHEMA public TO writing", "second")
        yield found


@pytest.fixture(params=["superuser", "keeper"])
def provider(server: PostgresServer, request: pytest.FixtureRequest) -> CredentialProvider:
    return made(server, *((server.user, server.password) if request.param == "superuser" else ("keeper", "canary-keeper")))


def made(server: PostgresServer, user: str, password: str, **more: Any) -> CredentialProvider:
    options = {
        "host": "127.0.0.1", "port": server.port, "admin_user": user, "sslmode": "disable",
        "allow": {"roles": ["reporting", "writing"]}, **more,
    }  # fmt: skip
    return find("postgres").make("db", options, {"admin_password": password})


_count = iter(range(10**6))


def request(scope: Mapping[str, Any] | None = None) -> LeaseRequest:
    return LeaseRequest(lease=f"{next(_count):026d}", task="1" * 26, credential="db", scope=scope or {}, seconds=60)


async def issued(provider: CredentialProvider, scope: Mapping[str, Any] | None = None) -> tuple[Mapping[str, Any], Issued]:
    asked = request(scope)
    handle = await provider.handle(asked)
    return handle, await provider.issue(asked, handle)


def login(server: PostgresServer, got: Issued, database: str = "postgres") -> psycopg.Connection[Any]:
    parts = got.secret.parts
    return psycopg.connect(
        host="127.0.0.1", port=server.port, user=parts["user"], password=parts["password"], dbname=database, autocommit=True
    )


def roles_of_calls(server: PostgresServer) -> set[str]:
    return {role for role in server.roles if role.startswith("fh_")}


async def test_a_role_may_what_its_template_may_and_its_session_ends_with_it(server: PostgresServer, provider: CredentialProvider) -> None:
    handle, got = await issued(provider, {"roles": ["reporting"]})
    assert got.secret.form is SecretForm.PASSWORD
    with login(server, got) as session:
        session.execute("SELECT * FROM orders")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("INSERT INTO orders VALUES (1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("CREATE ROLE another")
        assert session.execute("SHOW statement_timeout").fetchone() == ("1min",)
        proof = await provider.revoke(handle, {})
        assert proof.gone
        assert "1 sessions ended" in proof.answer
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        login(server, got)
    assert roles_of_calls(server) == set()
    again = await provider.revoke(handle, {})
    assert again.gone
    assert "gone already" in again.answer


async def test_everything_that_a_role_left_behind_goes_with_it(server: PostgresServer, provider: CredentialProvider) -> None:
    handle, got = await issued(provider)
    for database in ("postgres", "second"):
        with login(server, got, database) as session:
            session.execute("CREATE TABLE left_behind (id int)")
            session.execute("GRANT SELECT ON left_behind TO PUBLIC")
            session.execute("CREATE FUNCTION stays() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    with login(server, got, "second") as session:
        for number in range(2):  # holds its locks after its session is gone
            session.execute("BEGIN; INSERT INTO left_behind VALUES (1)")
            session.execute(f"PREPARE TRANSACTION 'it''s {handle['role']} {number}'")
    held = login(server, got, "second")
    held.execute("BEGIN; LOCK TABLE left_behind IN ACCESS SHARE MODE")
    proof = await provider.revoke(handle, {})
    held.close()
    assert "2 prepared transactions rolled back, 2 databases cleared" in proof.answer
    assert roles_of_calls(server) == set()
    for database in ("postgres", "second"):
        assert server.sql("SELECT 1 FROM pg_class WHERE relname = 'left_behind'", database) == []
        assert server.sql("SELECT 1 FROM pg_proc WHERE proname = 'stays'", database) == []
    assert server.sql("SELECT 1 FROM pg_prepared_xacts") == []


async def test_the_server_never_learns_a_password(server: PostgresServer, provider: CredentialProvider) -> None:
    handle, got = await issued(provider)
    (stored,) = server.sql("SELECT rolpassword, rolconnlimit, rolvaliduntil > now() FROM pg_authid WHERE rolname LIKE 'fh!_%' ESCAPE '!'")
    assert stored[0].startswith("SCRAM-SHA-256$")
    assert stored[1:] == (4, True)
    await provider.revoke(handle, {})
    assert handle["role"] in server.log
    assert got.secret.parts["password"] not in server.log
    assert got.secret.parts["password"] not in f"{got!r}{handle}{got.facts}{got.sealed}"


async def test_a_sessions_flood_ends_with_the_role(server: PostgresServer, provider: CredentialProvider) -> None:
    """Attack: sessions that begin again as fast as they are ended, until the role may not log in any more."""
    handle, got = await issued(provider)
    stop = False

    def flood() -> int:
        ended = 0
        while not stop:
            try:
                login(server, got).execute("SELECT pg_sleep(5)")
            except psycopg.OperationalError:
                ended += 1
        return ended

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(anyio.to_thread.run_sync, flood)
        await anyio.sleep(0.1)
        try:
            assert (await provider.revoke(handle, {})).gone
            assert server.sql("SELECT 1 FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename IS NULL") == []
        finally:
            stop = True
    assert roles_of_calls(server) == set()


async def test_many_at_once(server: PostgresServer) -> None:
    provider = made(server, "keeper", "canary-keeper")
    handles: list[Mapping[str, Any]] = []

    async def one() -> None:
        handles.append((await issued(provider))[0])

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(one)
    assert len(roles_of_calls(server)) == 6
    async with anyio.create_task_group() as tasks:
        for handle in handles:
            tasks.start_soon(provider.revoke, handle, {})
    assert roles_of_calls(server) == set()


async def test_a_connection_that_was_ended_meanwhile_is_replaced(server: PostgresServer) -> None:
    provider = made(server, "keeper", "canary-keeper")
    handle, _ = await issued(provider)
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'keeper'")
    assert (await provider.revoke(handle, {})).gone


async def test_a_role_is_made_whole_or_not_at_all(server: PostgresServer) -> None:
    provider = made(server, "keeper", "canary-keeper", grants=["GRANT SELECT ON nowhere TO {role}"])
    with pytest.raises(FumehoodError, match="nowhere") as error:
        await issued(provider)
    assert error.value.reason is Reason.LEASE_FAILED
    assert roles_of_calls(server) == set()


async def test_a_server_that_refuses_us_is_told_without_the_password(server: PostgresServer) -> None:
    for provider in (made(server, "keeper", "canary-wrong"), made(server, "nobody", "canary-wrong", port=1)):
        with pytest.raises(FumehoodError) as error:
            await issued(provider)
        assert "canary" not in str(error.value)
        assert error.value.__suppress_context__


async def test_a_lease_of_another_server_is_not_taken_for_gone(server: PostgresServer) -> None:
    provider = made(server, "keeper", "canary-keeper")
    with pytest.raises(FumehoodError, match="another server"):
        await provider.revoke({"server": "db.example:5432", "role": "fh_x"}, {})


async def test_issue_and_revoke_are_quick(server: PostgresServer) -> None:
    """The figures of docs/benchmarks.md are 40 and 30 ms; what is asserted leaves room for a machine that has other work."""
    provider = made(server, "keeper", "canary-keeper")
    spent: dict[str, list[float]] = {"issue": [], "revoke": []}
    for _ in range(10):
        began = time.perf_counter()
        handle, _ = await issued(provider)
        between = time.perf_counter()
        await provider.revoke(handle, {})
        spent["issue"].append(between - began)
        spent["revoke"].append(time.perf_counter() - between)
    assert sorted(spent["issue"])[2] < 0.2, spent
    assert sorted(spent["revoke"])[2] < 0.2, spent
