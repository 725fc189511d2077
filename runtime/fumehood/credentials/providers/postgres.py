"""A PostgreSQL role of one call: made with the rights of template roles, and ended with its sessions and everything that it owned.

Issue, in one transaction: a role named after the lease (so that a lost answer changes nothing: the handle has the name), with a
random password of which the server sees only the SCRAM verifier, made here (rule 19: it would else be in the server's log), an end, a
limit of connections, and membership in the template roles. What it may do is decided by those grants alone; `statement_timeout` is a
default that its session can change.

Revocation, each step idempotent: NOLOGIN, so that no session begins; end the sessions; in each database that the server's own
dependency catalog names, roll back what the role prepared and drop what it owns; drop the role; and look once more for a session that
was just logging in.
"""

from __future__ import annotations

import asyncio
import os
import secrets as random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
from pydantic import Field

from fumehood.credentials.kinds import extra_missing
from fumehood.credentials.options import Options, Text, Texts, maximum_of, parsed
from fumehood.faults import FumehoodError
from fumehood.ports import Issued, LeaseRequest, Revoked
from fumehood.reach import Secret, SecretForm
from fumehood.reasons import Reason

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    Connection = AsyncConnection[tuple[Any, ...]]

CONNECT_S = 8
IDLE_S = 10.0
END_SESSIONS_S = 3.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_TOLD_CHARS = 200
Role = Annotated[str, Field(min_length=1, max_length=63)]


class Allow(Options):
    """The template roles that a profile's `scope` may choose from; without a scope, all of them."""

    roles: list[Role] = Field(min_length=1, max_length=32)


class PostgresOptions(Options):
    """Which server, as whom, and what the roles of calls get. `grants` are statements in which `{role}` is the new role."""

    host: Text
    port: int = Field(default=5432, ge=1, le=65535)
    dbname: Role = "postgres"
    admin_user: Role
    sslmode: Literal["verify-full", "verify-ca", "require", "disable"] = "verify-full"
    grants: Texts = Field(default_factory=list)
    connection_limit: int = Field(default=4, ge=1, le=100)
    statement_timeout_s: int = Field(default=60, ge=1, le=86400)
    allow: Allow


OPTIONS = PostgresOptions
SECRETS = ("admin_password", "ca")
REQUIRED: tuple[str, ...] = ()  # the server may know the operator by other means


class Postgres:
    """Makes and ends roles on one server."""

    kind = "postgres"
    revocable = True
    least_s = 0.0

    def __init__(self, options: PostgresOptions, secrets: Mapping[str, str]) -> None:
        self._options = options
        self._password = secrets.get("admin_password")
        self._authorities = secrets.get("ca")
        self._server = f"{options.host}:{options.port}"
        self._idle: Connection | None = None
        self.maximum: Mapping[str, Any] = maximum_of(options.allow)

    async def handle(self, request: LeaseRequest) -> Mapping[str, Any]:
        """The role's name, which is ours to choose."""
        return {"server": self._server, "role": f"fh_{request.lease}"}

    async def issue(self, request: LeaseRequest, handle: Mapping[str, Any]) -> Issued:
        """Make the role."""
        from psycopg import sql

        role, password = str(handle["role"]), random.token_urlsafe(24)
        named = request.scope.get("roles", self._options.allow.roles)
        templates = [named] if isinstance(named, str) else list(named)
        ends_s = datetime.now(UTC).timestamp() + request.seconds
        async with self._connected(self._options.dbname) as connection:
            verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
            name = sql.Identifier(role)
            statements = [
                # We are a member of it: who is no superuser may else not end its sessions, or drop what it owns.
                sql.SQL(
                    "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT PASSWORD {}"
                    " VALID UNTIL {} CONNECTION LIMIT {} IN ROLE {} ROLE CURRENT_USER"
                ).format(
                    name, sql.Literal(verifier), sql.Literal(datetime.fromtimestamp(ends_s, UTC).isoformat()),
                    sql.Literal(self._options.connection_limit), sql.SQL(", ").join(map(sql.Identifier, templates)),
                ),
                sql.SQL("ALTER ROLE {} SET statement_timeout = {}").format(
                    name, sql.Literal(self._options.statement_timeout_s * 1000)
                ),
                *(sql.SQL(_checked_grant(grant)).format(role=name) for grant in self._options.grants),
            ]  # fmt: skip
            # One message, so one transaction: all of it or nothing.
            await connection.execute(sql.SQL("; ").join(statements))
        return Issued(
            secret=Secret(form=SecretForm.PASSWORD, parts={"user": role, "password": password}),
            expires_at_s=ends_s,
            facts={"role": role, "in": templates},
        )

    async def revoke(self, handle: Mapping[str, Any], sealed: Mapping[str, str]) -> Revoked:
        """End the role and everything of it."""
        del sealed
        if handle.get("server") != self._server:
            raise FumehoodError(Reason.LEASE_FAILED, "it was issued by another server than is configured now")
        role = str(handle["role"])
        async with self._connected(self._options.dbname) as connection:
            found = await _one(connection, "SELECT oid::bigint FROM pg_catalog.pg_roles WHERE rolname = %s", role)
            if found is None:
                return Revoked(gone=True, asked=f"pg_roles for {role}", answer="there is no such role (gone already)")
            oid = int(found[0])
            await _run(connection, "ALTER ROLE {} NOLOGIN", role)
            ended = await _end_sessions(connection, oid)
            prepared, databases = await self._empty(connection, role, oid)
            await _run(connection, "DROP ROLE {}", role)
            ended += await _end_sessions(connection, oid)
        answer = f"dropped; {ended} sessions ended, {prepared} prepared transactions rolled back, {databases} databases cleared"
        return Revoked(gone=True, asked="NOLOGIN, pg_terminate_backend, ROLLBACK PREPARED, DROP OWNED, DROP ROLE", answer=answer)

    async def _empty(self, connection: Connection, role: str, oid: int) -> tuple[int, int]:
        """Roll back and drop what the role left, wherever the server says it left something."""
        query = (
            "SELECT datname::text FROM pg_catalog.pg_database WHERE oid IN"
            " (SELECT dbid FROM pg_catalog.pg_shdepend WHERE refclassid = 'pg_catalog.pg_authid'::regclass AND refobjid = %s::oid)"
            " OR datname IN (SELECT database FROM pg_catalog.pg_prepared_xacts WHERE owner = %s)"
        )
        names = {str(row[0]) for row in await (await connection.execute(query, (oid, role))).fetchall()}
        # What belongs to no database (rights on a database itself) is dropped from any.
        names.add(self._options.dbname)
        prepared = 0
        for name in sorted(names - {self._options.dbname}):
            async with self._connected(name) as other:
                prepared += await _empty_one(other, role)
        prepared += await _empty_one(connection, role)
        return prepared, len(names)

    @asynccontextmanager
    async def _connected(self, dbname: str) -> AsyncIterator[Connection]:
        """Our own connection to one database. Raises FumehoodError, with the server's words and nobody's password.

        The last one to our usual database is kept for a moment: logging in costs more than all that a lease asks.
        """
        import psycopg

        usual = dbname == self._options.dbname
        try:
            connection = (await self._taken() if usual else None) or await self._connect(dbname)
            try:
                yield connection
            except BaseException:
                await connection.close()
                raise
            if usual and self._idle is None:
                self._idle = connection
                asyncio.get_running_loop().call_later(IDLE_S, self._let_go, connection)
            else:
                await connection.close()
        except psycopg.Error as error:
            raise FumehoodError(Reason.LEASE_FAILED, f"PostgreSQL at {self._server}: {_told(error)}") from None

    async def _connect(self, dbname: str) -> Connection:
        import psycopg

        options = self._options
        with _readable(self._authorities) as authorities:
            trust: dict[str, Any] = {} if authorities is None else {"sslrootcert": authorities}
            if authorities is None and options.sslmode == "verify-full":
                trust = {"sslrootcert": "system"}
            return await psycopg.AsyncConnection.connect(
                host=options.host, port=options.port, dbname=dbname, user=options.admin_user, password=self._password,
                sslmode=options.sslmode, connect_timeout=CONNECT_S, application_name="fumehood", autocommit=True,
                options="-c statement_timeout=8s -c lock_timeout=5s -c search_path=pg_catalog", passfile=os.devnull, **trust,
            )  # fmt: skip

    async def _taken(self) -> Connection | None:
        """The kept connection, if it still answers."""
        import psycopg

        connection, self._idle = self._idle, None
        if connection is not None:
            try:
                await connection.execute("SELECT")
            except psycopg.Error:
                await connection.close()
                return None
        return connection

    def _let_go(self, connection: Connection) -> None:
        """End a kept connection that nobody used meanwhile."""
        if self._idle is connection:
            self._idle = None
            connection.pgconn.finish()

    def __del__(self) -> None:
        if self._idle is not None:
            self._idle.pgconn.finish()


async def _end_sessions(connection: Connection, oid: int) -> int:
    """End every session that the role began, and wait until they have; how many there were."""
    # Not with the server's own timeout: it looks every 100 ms.
    query = "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE usesysid = %s::oid"
    most, pause_s, until_s = 0, 0.001, time.monotonic() + END_SESSIONS_S
    while found := (await connection.execute(query, (oid,))).rowcount:
        most = max(most, found)
        if time.monotonic() > until_s:
            raise FumehoodError(Reason.LEASE_FAILED, f"{found} sessions of the role do not end")
        await anyio.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.1)
    return most


async def _empty_one(connection: Connection, role: str) -> int:
    query = "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE owner = %s AND database = pg_catalog.current_database()"
    prepared = [str(row[0]) for row in await (await connection.execute(query, (role,))).fetchall()]
    if prepared:
        # Only who prepared it, or a superuser, may.
        await _run(connection, "SET ROLE {}", role)
        for gid in prepared:
            await _run(connection, "ROLLBACK PREPARED {}", gid, literal=True)
        await connection.execute("RESET ROLE")
    await _run(connection, "DROP OWNED BY {}", role)
    return len(prepared)


async def _one(connection: Connection, query: str, value: str) -> tuple[Any, ...] | None:
    return await (await connection.execute(query.encode(), (value,))).fetchone()


async def _run(connection: Connection, statement: str, name: str, *, literal: bool = False) -> None:
    from psycopg import sql

    await connection.execute(sql.SQL(statement).format(sql.Literal(name) if literal else sql.Identifier(name)))


def _checked_grant(statement: str) -> Any:
    """An operator's statement, whose only placeholder is `{role}`: `make` has looked."""
    return statement


@contextmanager
def _readable(text: str | None) -> Iterator[str | None]:
    """PEM as a file that libpq can open, for the length of the body: in memory, because the worker may write nowhere."""
    if text is None:
        yield None
        return
    fd = os.memfd_create("authorities", os.MFD_CLOEXEC)
    try:
        os.write(fd, text.encode())
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _told(error: Any) -> str:
    """The server's words, or libpq's: neither quotes what was sent as a password, and a statement is never among them."""
    words = getattr(getattr(error, "diag", None), "message_primary", None) or str(error).splitlines()[0:1] or type(error).__name__
    line = words if isinstance(words, str) else str(words[0])
    code = f" ({error.sqlstate})" if error.sqlstate else ""
    return line[:_TOLD_CHARS] + code


def make(name: str, options: Mapping[str, Any], secrets: Mapping[str, str]) -> Postgres:
    """The provider. Raises FumehoodError."""
    import importlib.util

    if importlib.util.find_spec("psycopg") is None:
        raise extra_missing("postgres", "postgres")
    found = parsed(name, PostgresOptions, options)
    if found.sslmode == "disable" and found.host not in _LOOPBACK and not found.host.startswith("/"):
        raise FumehoodError(Reason.CONFIG_INVALID, f"credentials.{name}.sslmode: `disable` is for a server on this host")
    for number, grant in enumerate(found.grants):
        try:
            grant.format(role="")
        except (KeyError, IndexError, ValueError):
            detail = f"credentials.{name}.grants.{number}: expected no braces but those of {{role}}"
            raise FumehoodError(Reason.CONFIG_INVALID, detail) from None
    return Postgres(found, secrets)
