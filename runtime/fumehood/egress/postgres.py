"""`postgres:` rules: a connection that the gate authenticates, and then passes on.

With a credential, the box connects in plain text with any user name and no password; what it asks for is judged and written anew
(`pg_login`), the gate proves itself to the server by SCRAM-SHA-256 as the leased role, and from `ReadyForQuery` on bytes are relayed.
Requests for encryption by the box are answered with "no": its connection ends here and never leaves the host (`sslmode=disable`, or
libpq's default `prefer`). Outside there is TLS, verified for the rule's name against the system's roots and the operator's
authorities, and bound to the login where the server offers it (SCRAM-SHA-256-PLUS). A server without TLS is spoken to in plain text
only on loopback, or where the rule says `insecure`: SCRAM would still not give the password away, but the session would be anybody's.

Without a credential the box authenticates itself: its first packet must be PostgreSQL's, and everything is passed on as it is, its
own TLS included; nothing of it can be judged then.

Invariants: nothing is sent to a server before the box has asked for something that is allowed; the number and key of a session that a
box gets are the gate's own, and a cancel request reaches only a session of the same box that is open, at its server.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass, field

from fumehood.egress import pg_messages, scram
from fumehood.egress.limits import HEAD_S
from fumehood.egress.names import Route
from fumehood.egress.pg_connect import Inbox, Server, connect
from fumehood.egress.pg_login import NOT_A_SERVER, Login, Unacceptable, parameters
from fumehood.egress.pg_messages import Cancel, Encryption, Malformed, Startup
from fumehood.egress.refusals import Rejected, Why
from fumehood.egress.relay import HEAD_TOO_SLOW, join, relay
from fumehood.egress.task import GateTask, reset_transport
from fumehood.reach import Secret, SecretForm

NOT_POSTGRES = Why(
    "postgres_client", "what the box says is not PostgreSQL's protocol",
    "Use sslmode=disable or prefer and no sslnegotiation=direct; for another protocol use a `tcp:` rule.",
)  # fmt: skip
NO_LEASE = Why(
    "postgres_no_lease", "the call has no live credential for this rule", "Check the `credential` that the rule names."
)
NO_SESSION = Why(
    "postgres_cancel", "there is no open session of this box with this key", "Cancel with the key of an open session."
)

LOGIN_S = 15.0  # to connect, agree on TLS, and authenticate
_TELL_S = 1.0
_STATES = {NOT_POSTGRES: "08P01", NO_LEASE: "57P03"}


async def serve(connection: socket.socket, route: Route, task: GateTask) -> None:
    """Serve one connection of the box's. Raises Rejected, OSError, TimeoutError."""
    if route.rule.credential is None:
        await _pass_through(connection, route, task)
        return
    try:
        asked = await _opening(connection)
        if asked is None:
            connection.close()
        elif isinstance(asked.packet, Cancel):
            await _cancel(asked.packet, route, task)
            connection.close()
        else:
            await _session(connection, asked.packet, asked.rest, route, task)
    except _Told as told:
        task.refuse(told.error.why, route, **told.error.facts)
        await _tell(connection, told.error, route)


class _Told(Exception):
    """A refusal before the session began, so that the box can read why."""

    def __init__(self, error: Rejected) -> None:
        self.error = error


@dataclass(frozen=True, slots=True)
class _Asked:
    packet: Cancel | Startup
    rest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Open:
    """A session that can be cancelled: our key, and the server's number, key and address."""

    route: Route
    own_key: bytes = field(repr=False)
    pid: int
    key: bytes = field(repr=False)
    address: str | None


async def _pass_through(connection: socket.socket, route: Route, task: GateTask) -> None:
    """Relay a connection that the box authenticates itself, once it has begun as PostgreSQL does. Raises Rejected."""
    data = b""
    try:
        async with asyncio.timeout(HEAD_S):
            while _read(data) is None:
                data += await _more(connection)
    except EOFError:
        connection.close()
        return
    except TimeoutError:
        raise Rejected(HEAD_TOO_SLOW, bytes=len(data)) from None
    task.log("request", route, note="authenticated by the box itself, not judged")
    await relay(connection, await task.dial(route), route, task, first=data)


async def _opening(connection: socket.socket) -> _Asked | None:
    """What the box wants; None when it left. Raises _Told."""
    data, refused = b"", set[Encryption]()
    try:
        async with asyncio.timeout(HEAD_S):
            while True:
                found = _read(data)
                if found is None:
                    data += await _more(connection)
                    continue
                packet, length = found
                if not isinstance(packet, Encryption):
                    return _Asked(packet, data[length:])
                if packet in refused:
                    raise Rejected(NOT_POSTGRES, what="it asks for encryption twice")
                refused.add(packet)
                data = data[length:]
                await asyncio.get_running_loop().sock_sendall(connection, b"N")
    except EOFError:
        return None
    except TimeoutError:
        raise Rejected(HEAD_TOO_SLOW, bytes=len(data)) from None
    except Rejected as error:
        raise _Told(error) from error


def _read(data: bytes) -> tuple[pg_messages.Opening, int] | None:
    try:
        return pg_messages.opening(data)
    except Malformed as error:
        raise Rejected(NOT_POSTGRES, what=str(error)) from error


async def _more(connection: socket.socket) -> bytes:
    data = await asyncio.get_running_loop().sock_recv(connection, 4096)
    if not data:
        raise EOFError
    return data


async def _session(connection: socket.socket, asked: Startup, rest: bytes, route: Route, task: GateTask) -> None:
    """Begin the session that the box asked for and carry it to its end. Raises _Told, and Rejected once it has begun."""
    open_sessions = _sessions(task)
    own_pid = secrets.randbelow(2**31 - 1) + 1
    while own_pid in open_sessions:
        own_pid = secrets.randbelow(2**31 - 1) + 1
    try:
        secret = _leased(route, task)
        wanted = parameters(asked, secret)
        task.sent(len(pg_messages.startup(wanted)))
        async with asyncio.timeout(LOGIN_S):
            server = await connect(route, task)
            try:
                login = await _log_in(server, wanted, secret, own_pid)
            except BaseException:
                reset_transport(server.transport)
                raise
    except (OSError, TimeoutError) as error:
        raise _Told(Rejected(NOT_A_SERVER, error=type(error).__name__)) from error
    except Rejected as error:
        raise _Told(error) from error
    try:
        role, database = secret.parts["user"], wanted["database"].decode("utf-8", "replace")
        task.log("request", route, role=role, database=database, tls=server.is_tls, mechanism=login.mechanism)
        inbound = _negotiated(asked) + bytes(login.inbound)
        if login.key is None or server.inbox.ended:  # an error in the server's own words was its last
            task.received(len(inbound))
            await _last(connection, inbound)
            return
        open_sessions[own_pid] = _Open(route, login.own_key, *login.key, server.address)
        inside, inbox = await asyncio.get_running_loop().create_connection(Inbox, sock=connection)
        # From here to `join` there is no wait, so neither end can close without being told of it.
        await join(
            inside, server.transport, route, task, outgoing=rest + inbox.take(), incoming=inbound + server.inbox.take()
        )
    finally:
        open_sessions.pop(own_pid, None)
        reset_transport(server.transport)


def _leased(route: Route, task: GateTask) -> Secret:
    secret = task.leases.secret(route.rule.credential or "")
    if secret is None:
        raise Rejected(NO_LEASE)
    if secret.form is not SecretForm.PASSWORD:
        raise Rejected(NO_LEASE, form=secret.form.value, wanted=SecretForm.PASSWORD.value)
    return secret


def _negotiated(asked: Startup) -> bytes:
    """We speak 3.0: a newer client is told so, as servers tell it."""
    unknown = [name for name in asked.parameters if name.startswith("_pq_.")]
    return pg_messages.negotiate(unknown) if asked.minor or unknown else b""


async def _log_in(server: Server, wanted: dict[str, bytes], secret: Secret, own_pid: int) -> Login:
    """Authenticate as the leased role. Raises Unacceptable, OSError."""
    client = scram.Client(secret.parts["password"], secrets.token_urlsafe(18), server.binding, encrypted=server.is_tls)
    login = Login(wanted, client, own_pid, secrets.token_bytes(4))
    while not login.ready:
        server.transport.write(login.outbound())
        try:
            login.receive(await server.inbox.some())
        except EOFError as error:
            raise Unacceptable(NOT_A_SERVER, "08001", "the server closed the connection") from error
        if login.challenge is not None:
            await asyncio.to_thread(login.prove)
    return login


def _sessions(task: GateTask) -> dict[int, _Open]:
    """The open sessions of this box, by the number that it knows."""
    found: dict[int, _Open] = task.holdings.setdefault("postgres", {})
    return found


async def _cancel(asked: Cancel, route: Route, task: GateTask) -> None:
    """Pass a cancel request on to the session's own server. The box learns nothing either way, as with PostgreSQL."""
    session = _sessions(task).get(asked.pid)
    if session is None or session.route != route or not hmac.compare_digest(session.own_key, asked.key):
        task.refuse(NO_SESSION, route)
        return
    try:
        async with asyncio.timeout(LOGIN_S):
            server = await connect(route, task, session.address)
            try:
                server.transport.write(pg_messages.cancel(session.pid, session.key))
                task.log("request", route, what="cancel")
                with suppress(EOFError):  # the server closes when it has passed the request on
                    await server.inbox.some()
            finally:
                server.transport.abort()
    except Rejected as error:
        task.refuse(error.why, route, **error.facts)


async def _last(connection: socket.socket, data: bytes) -> None:
    """The last that the box gets, and the end of its connection, so that it can read it: a reset might overtake it."""
    loop = asyncio.get_running_loop()
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_TELL_S):
            await loop.sock_sendall(connection, data)
            connection.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(connection, 4096):
                pass
    connection.close()


async def _tell(connection: socket.socket, error: Rejected, route: Route) -> None:
    """Say in PostgreSQL's own words why there is no session: what, which rule, and what to do."""
    state, said, remedy = _STATES.get(error.why, "08001"), error.why.meaning, error.why.remedy
    if isinstance(error, Unacceptable):
        state, said, remedy = error.sqlstate, error.detail, error.remedy
    elif "what" in error.facts:
        said = f"{said}: {error.facts['what']}"
    await _last(connection, pg_messages.fatal(state, f"fumehood: {said}", f"Rule: {route.label}.", remedy))
