"""The gate of a call to a remote server: no sockets for a box, but one origin that the call's own requests go to.

Invariants: the name is resolved by us, the address that was judged is the address that is dialled, and the certificate is verified
for the name; the credential is written here, into exactly one header, after everything of the caller's with that name was refused, and
only onto such a connection; redirects are not followed; what is sent, received and open at once is bounded; a connection never
outlives the lease that it was used with; when the call is left, or parked, nothing more goes out.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

import anyio

from fumehood.egress.client import Connection, failure, secured
from fumehood.egress.dial import dialer_of
from fumehood.egress.limits import Meter
from fumehood.egress.log import EgressLog
from fumehood.egress.refusals import Rejected
from fumehood.egress.scrub import Scrubber
from fumehood.egress.trust import upstream_context
from fumehood.faults import ExchangeFailed
from fumehood.model import Plan
from fumehood.ports import Leases, Origin, Ports, Reply
from fumehood.reach import CredentialUse, Scheme, SecretForm, Supplies
from fumehood.reasons import Reason
from fumehood.residence import WayOut
from fumehood.screening.spellings import Spellings, spellings_of

LOG_S = 2.0
# What a conversation says in its heads; everything else is the gate's to say.
_ALLOWED = re.compile(r"accept|content-type|last-event-id|mcp-[a-z0-9!#$%&'*+.^_`|~-]+", re.IGNORECASE)
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_LABEL = "fumehood"
_INSTEAD = b"removed"


@runtime_checkable
class RemoteBox(Protocol):
    """The part of a remote server's box that its gate needs."""

    way_out: WayOut | None

    def lead_to(self, origin: Origin) -> None:
        """Be told where the gate leads."""
        ...


class RemoteGate:
    """The gate, and the origin that it leads to. Made by `remote_gate`."""

    supplies = Supplies()

    def __init__(self, plan: Plan, leases: Leases, ports: Ports) -> None:
        profile = plan.call.profile
        url = urlsplit(profile.upstream or "")
        (self._rule,) = profile.network.rules
        self._use: CredentialUse | None = next(iter(profile.credentials), None)
        (self._port,) = self._rule.ports
        self._host = self._rule.name if self._port == 443 else f"{self._rule.name}:{self._port}"
        self._target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._leases = leases
        self._dialer = dialer_of(ports.outward)
        self._authorities = ports.outward.authorities
        self._open = True
        self._connections: set[Connection] = set()
        self._meter = Meter(profile.network.limits)
        self._log = EgressLog(plan.call.task, ports.ledger, ports.clock)
        self._log.keep_flushing()

    async def ask(self, method: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """Send a request and wait for the head of its answer. Raises ExchangeFailed."""
        head = [("Host", self._host), ("User-Agent", _LABEL), ("Accept-Encoding", "identity"), *self._theirs(headers)]
        if method == "POST":
            head.append(("Content-Length", str(len(body))))
        self._check_open()
        connection = await self._connection()
        began_s = time.monotonic()
        try:
            secret = self._secret()  # only now: the call may have been parked, and the lease revoked, while we dialled
            if secret is not None:
                head.append(("Authorization", f"Bearer {secret}"))
            await connection.send(method, self._target, head, body)
            status, found = await connection.head()
        except BaseException:
            connection.close()
            raise
        ms = round((time.monotonic() - began_s) * 1000, 1)
        self.note("request", method=method, path=urlsplit(self._target).path, status=status, ms=ms)
        spellings = [] if secret is None else spellings_of([(secret, None)])
        return RemoteReply(self, connection, status, found, Scrubber(Spellings(spellings, _INSTEAD)))

    async def suspend(self) -> None:
        """Let nothing more out, and revoke the leases."""
        self._open = False
        for connection in list(self._connections):
            if connection.idle:
                self._drop(connection)
            connection.retire()  # an answer under way may end, and then its connection does
        await self._leases.suspend()

    async def resume(self) -> None:
        """Renew the leases, and let requests out again."""
        await self._leases.renew()
        self._open = True

    def close(self) -> None:
        """Let nothing more out, and end what is open."""
        self._open = False
        for connection in list(self._connections):
            self._drop(connection)

    async def written(self) -> None:
        """Write what is left of the call's egress log."""
        self._log.counters.update(bytes_in=self._meter.bytes_in, bytes_out=self._meter.bytes_out)
        await self._log.finish()

    def done(self, connection: Connection) -> None:
        """Be told that nobody reads from a connection any more."""
        if not (connection.idle and self._open):
            self._drop(connection)

    def note(self, kind: str, **facts: str | float) -> None:
        """Write a line of the call's egress log."""
        self._log.add(kind, facts)

    def _theirs(self, headers: Mapping[str, str]) -> list[tuple[str, str]]:
        for name in headers:
            if _ALLOWED.fullmatch(name) is None:
                raise ExchangeFailed(Reason.INTERNAL, f"the header {name!r} is the gate's to write")
        return list(headers.items())

    def _check_open(self) -> None:
        if not self._open:
            raise ExchangeFailed(Reason.UPSTREAM_UNAUTHORIZED, "the call stands still: nothing goes out")

    def _secret(self) -> str | None:
        """What the gate says for us, None where nothing is configured. Raises ExchangeFailed."""
        self._check_open()
        if self._use is None:
            return None
        secret = self._leases.secret(self._use.name)
        if secret is None:
            raise ExchangeFailed(Reason.UPSTREAM_UNAUTHORIZED, f"there is no live lease of the credential {self._use.source}")
        token = secret.parts.get("token", "")
        if secret.form is not SecretForm.TOKEN or self._use.scheme is not Scheme.BEARER or not _VISIBLE.fullmatch(token):
            # Never with the value: this text is shown.
            raise ExchangeFailed(Reason.UPSTREAM_UNAUTHORIZED, f"the credential {self._use.source} gives no bearer token")
        return token

    async def _connection(self) -> Connection:
        for known in list(self._connections):
            if known.idle:
                return known
            if known.closed:
                self._drop(known)
        most = self._meter.connections_most
        if len(self._connections) >= most:
            raise ExchangeFailed(Reason.UPSTREAM_LIMIT, f"more than {most} connections at once (`network.limits.connections`)")
        name, port = self._rule.name, self._port
        try:
            await anyio.to_thread.run_sync(upstream_context, self._authorities)  # it is kept, and takes 40 ms the first time
            connected = await self._dialer.dial(name, port, self._rule.addresses)
        except Rejected as error:
            self.note("refused", **{"reason": error.why.code, "name": name, "port": port, **error.facts})
            raise failure(error) from error
        self.note("connect", name=name, port=port, address=connected.getpeername()[0])
        connection = await secured(connected, name, upstream_context(self._authorities), self._meter)
        self._connections.add(connection)
        return connection

    def _drop(self, connection: Connection) -> None:
        connection.close()
        self._connections.discard(connection)


class RemoteReply:
    """One answer. `ports.Reply`."""

    def __init__(
        self, gate: RemoteGate, connection: Connection, status: int, headers: Mapping[str, str], scrubber: Scrubber
    ) -> None:
        self.status = status
        self.headers: Mapping[str, str] = {
            name: scrubber.text(value.encode("latin-1")).decode("latin-1") for name, value in headers.items()
        }
        self._gate = gate
        self._connection = connection
        self._scrubber = scrubber
        self._over = False

    async def read(self) -> bytes:
        """The next piece of the body, empty at its end. Raises ExchangeFailed."""
        while not self._over:
            piece = await self._connection.piece()
            if not piece:
                self.close()
                return self._scrubber.end()
            if clean := self._scrubber.feed(piece):
                return clean
        return b""

    def close(self) -> None:
        """Be done with it. Idempotent."""
        if not self._over:
            self._over = True
            if self._scrubber.found:
                self._gate.note("alarm", what="the server sent the credential back", spelled=", ".join(self._scrubber.found))
            if not self._connection.idle:
                self._connection.close()
            self._gate.done(self._connection)


@asynccontextmanager
async def remote_gate(plan: Plan, leases: Leases, box: RemoteBox, ports: Ports) -> AsyncIterator[RemoteGate]:
    """Hold the gate of a call to a remote server for the body."""
    gate = RemoteGate(plan, leases, ports)
    box.way_out = gate
    box.lead_to(gate)
    try:
        yield gate
    finally:
        box.way_out = None
        gate.close()
        with anyio.move_on_after(LOG_S, shield=True):
            await gate.written()
