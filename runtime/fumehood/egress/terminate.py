"""HTTP rules: TLS ends at the gate, and each judged request goes upstream over a connection that the gate made and verified itself.

Invariants: one upstream connection belongs to one connection of the box, so nothing of one call, lease or task is ever seen on
another's; requests go one after the other, whatever the client sends ahead; the head that was judged is what is sent, written anew by
h11; a credential is written only after the upstream's certificate was verified for the name that was judged, at the address
that was judged, and only while its lease lives. An `insecure` rule has none of this, so it never gets a credential.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from http import HTTPStatus

import h11

from fumehood.egress import inject, trust
from fumehood.egress.authority import Authority
from fumehood.egress.http_exchange import BAD_GATEWAY, BAD_UPSTREAM, Exchange, NotAnswered
from fumehood.egress.http_judge import HeadReader, Place, Refusal, Request, judge
from fumehood.egress.http_stream import Stream
from fumehood.egress.inject import Placeholders
from fumehood.egress.limits import HEAD_S
from fumehood.egress.names import Route
from fumehood.egress.refusals import Rejected, Why
from fumehood.egress.task import GateTask, reset_transport
from fumehood.reach import CredentialUse, Delivery, EgressKind, Supplies

TLS_INSIDE = Why(
    "tls_inside",
    "the client did not complete TLS",
    "Let it trust /run/fumehood/ca.pem, and ask for the name it connects to.",
)
TLS_UPSTREAM = Why(
    "tls_upstream",
    "the server did not prove that it is this name",
    "Name its authority in `egress.authorities` of fumehood.yaml, if it is an own one.",
)
CLIENT_SLOW = Why("http_slow", "no whole head came in time", "Send a head at once.")

KEEP_ALIVE_S = 60.0
UPSTREAM_TLS_S = 10.0
_LINGER_S = 0.5
_LINGER_BYTES = 2**20
_AUTHORITY, _PLACEHOLDERS, _UPSTREAM = "http.authority", "http.placeholders", "http.upstream"


def supply(task: GateTask) -> Supplies:
    """What a box needs for its HTTP rules: an authority, and placeholders. Once a box. Raises FumehoodError."""
    rules = [rule for rule in task.profile.network.rules if rule.kind is EgressKind.HTTP]
    used = {rule.credential for rule in rules}
    uses = [use for use in task.profile.credentials if use.name in used and use.deliver is Delivery.GATE]
    lengths = {use.name: inject.length(secret) for use in uses if (secret := task.leases.secret(use.name)) is not None}
    placeholders = task.holdings[_PLACEHOLDERS] = Placeholders(uses, lengths)
    names = [rule.name for rule in rules if not rule.insecure]
    if not names:
        return Supplies(environment=placeholders.environment)
    authority = task.holdings[_AUTHORITY] = Authority(task.box, names)
    trusted = trust.supplies(authority.pem, task.outward.authorities, task.java_store)
    return Supplies(environment={**trusted.environment, **placeholders.environment}, files=trusted.files)


async def serve(connection: socket.socket, route: Route, task: GateTask) -> None:
    """Serve one connection of the box until it is closed. Raises Rejected, OSError."""
    inside = await _accept(connection, route, task)
    conversation = _Conversation(inside, route, task)
    try:
        await conversation.run()
        inside.close()
        await inside.closed()
    except BaseException:
        reset_transport(inside.transport)
        raise
    finally:
        conversation.end()


async def _accept(connection: socket.socket, route: Route, task: GateTask) -> Stream:
    loop = asyncio.get_running_loop()
    stream = Stream(task.budget)
    # asyncio does so only for sockets that know their protocol's number; without it small answers wait 40 ms for an acknowledgement.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if route.rule.insecure:
        await loop.connect_accepted_socket(lambda: stream, connection)
        return stream
    authority = task.holdings[_AUTHORITY]
    context = await authority.context(route.name)
    try:
        await loop.connect_accepted_socket(lambda: stream, connection, ssl=context, ssl_handshake_timeout=HEAD_S)
    except ssl.SSLError as error:
        raise Rejected(TLS_INSIDE, error=_said(error)) from error
    except (ConnectionError, TimeoutError) as error:
        raise Rejected(TLS_INSIDE, error=type(error).__name__) from error
    return stream


def _said(error: ssl.SSLError) -> str:
    # OpenSSL's short name; a certificate's own text is a stranger's.
    message = getattr(error, "verify_message", None)
    return str(message or error.reason or type(error).__name__)[:100]


class _Conversation:
    """One connection of the box, and the one upstream that belongs to it."""

    def __init__(self, inside: Stream, route: Route, task: GateTask) -> None:
        self._inside = inside
        self._outside: Stream | None = None
        self._route = route
        self._task = task
        self._place = Place(name=route.name, port=route.port, rule=route.rule)
        self._placeholders: Placeholders = task.holdings[_PLACEHOLDERS]
        inside.on_lost = self._hang_up

    async def run(self) -> None:
        """Carry requests, one after the other, as long as both sides keep the connection."""
        leftover: bytes | None = b""
        first = True
        while leftover is not None:
            received = await self._head(leftover, first=first)
            first = False
            if received is None:
                return
            judged = received if isinstance(received, Refusal) else judge(received, self._place)
            if isinstance(judged, Refusal):
                await self._refuse(judged)
                return
            leftover = await self._carry(*judged)

    def end(self) -> None:
        """Let go of everything that is not passed on."""
        self._inside.on_lost = None
        self._inside.forget()
        self._hang_up()

    def _hang_up(self) -> None:
        outside, self._outside = self._outside, None
        if outside is not None:
            outside.on_lost = None
            outside.transport.abort()
            outside.forget()

    async def _head(self, leftover: bytes, *, first: bool) -> bytes | Refusal | None:
        """All that came of the next request, its head whole; None when there is no next one."""
        reader = HeadReader(leftover)
        try:
            if reader.empty and not first:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    reader.feed(await self._inside.read())
            # One deadline for the whole head: a byte a second would hold a connection for ever.
            async with asyncio.timeout(HEAD_S):
                while not (ready := reader.ready()):
                    if not (data := await self._inside.read()):
                        return None
                    reader.feed(data)
        except TimeoutError:
            if reader.empty:
                return None
            raise Rejected(CLIENT_SLOW) from None
        return ready if isinstance(ready, Refusal) else reader.take()

    async def _carry(self, request: Request, wire: h11.Connection) -> bytes | None:
        """Carry one request and its answer; what came of the next request, None when there is to be none."""
        exchange = Exchange(request, wire, self._use(), self._placeholders, self._route, self._task)
        try:
            exchange.judge()
            outside = await self._connect(request)
            leftover = await exchange.run(self._inside, outside)
        except NotAnswered as stop:
            await self._refuse(stop.refusal, answered=exchange.answered)
        except h11.ProtocolError as error:
            refusal = Refusal(BAD_GATEWAY, BAD_UPSTREAM, type(error).__name__, request.asked)
            await self._refuse(refusal, answered=exchange.answered)
        else:
            if not exchange.reusable():
                self._hang_up()
            return leftover
        return None

    async def _refuse(self, refusal: Refusal, *, answered: bool = False) -> None:
        """Say why, to the log and to the client, and end the connection."""
        cause = refusal.cause
        remedy = refusal.remedy or cause.remedy
        said = {"why": cause.code, "asked": refusal.asked, "detail": refusal.detail or cause.meaning, "remedy": remedy}
        self._task.log("refused", self._route, **said)
        self._hang_up()
        if answered:
            reset_transport(self._inside.transport)
            return
        body = json.dumps({"error": "refused by fumehood", "rule": self._route.label, **said}).encode() + b"\n"
        head = (
            f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._task.received(len(head) + len(body))
        await self._inside.write([head.encode(), body])
        try:
            # Closing with unread bytes would reset the connection, and the client might never see why.
            async with asyncio.timeout(_LINGER_S):
                left = _LINGER_BYTES
                while left > 0 and (data := await self._inside.read()):
                    left -= len(data)
        except TimeoutError:
            pass

    def _use(self) -> CredentialUse | None:
        wanted = self._route.rule.credential
        # `insecure` and a credential is no valid profile; if it comes this far, it still gets none.
        if wanted is None or self._route.rule.insecure:
            return None
        return next(
            (use for use in self._task.profile.credentials if use.name == wanted and use.deliver is Delivery.GATE), None
        )

    async def _connect(self, request: Request) -> Stream:
        if self._outside is not None and not self._outside.ended:
            return self._outside
        self._hang_up()
        try:
            connection = await self._task.dial(self._route)
        except Rejected as rejected:
            detail = ", ".join(f"{name} {value}" for name, value in rejected.facts.items())
            raise NotAnswered(Refusal(BAD_GATEWAY, rejected.why, detail, request.asked)) from rejected
        try:
            self._outside = await self._over(connection)
        except ssl.SSLError as error:
            raise NotAnswered(Refusal(BAD_GATEWAY, TLS_UPSTREAM, _said(error), request.asked)) from error
        except (ConnectionError, TimeoutError) as error:
            raise NotAnswered(Refusal(BAD_GATEWAY, TLS_UPSTREAM, type(error).__name__, request.asked)) from error
        return self._outside

    async def _over(self, connection: socket.socket) -> Stream:
        """The upstream connection, verified unless the rule is `insecure`. Raises ssl.SSLError, OSError."""
        loop = asyncio.get_running_loop()
        stream = Stream(self._task.budget)
        try:
            if self._route.rule.insecure:
                await loop.create_connection(lambda: stream, sock=connection)
                return stream
            context = self._task.holdings.get(_UPSTREAM)
            if context is None:
                context = await asyncio.to_thread(trust.upstream_context, self._task.outward.authorities)
                self._task.holdings[_UPSTREAM] = context
            await loop.create_connection(
                lambda: stream, sock=connection, ssl=context, server_hostname=self._route.name,
                ssl_handshake_timeout=UPSTREAM_TLS_S,
            )  # fmt: skip
        except BaseException:
            connection.close()
            raise
        return stream
