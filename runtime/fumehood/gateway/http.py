"""Streamable HTTP: bounded, checked requests to the SDK's session manager, which speaks every era of it.

A request passes, in this order: its head (`http_head`), its sender's share of requests under way, its body (bounded in
bytes and seconds), our strict reader, and the checks of headers against the body. Only then the SDK sees it, as
we read it, not as it came. Older revisions have sessions, each bound to the sender who opened it.

Invariants: nothing of a request without a good token is read but its head; a session answers its own sender alone, and
to others does not exist; no two requests under way in one session have one id; a client that hangs up cancels what it
asked, in every era: there is no replay, so the answer could reach nobody.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import anyio
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.inbound import NAME_BEARING_METHODS, decode_header_value

from fumehood.gateway import bridge, frames, http_head, strict_json
from fumehood.gateway.answering import Answering
from fumehood.gateway.callback import MOST_BYTES, Callback
from fumehood.gateway.http_head import Answered, Claimant, Document, Head, Refusal, Rules
from fumehood.gateway.proofs import Proofs
from fumehood.gateway.protocol import (
    HANDSHAKE_VERSIONS,
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    TOO_MANY_REQUESTS,
    VERSION_KEY,
)
from fumehood.gateway.stdio import CLIENT_FRAME_BYTES
from fumehood.model import Proof, Sender
from fumehood.ports import Ports

if TYPE_CHECKING:
    from fumehood.gateway.oauth.resource import ResourceServer

MAX_REQUESTS = 64
MAX_SENDER_SESSIONS = 32
MAX_SESSIONS = 256
SESSION_IDLE_S = 30 * 60
BODY_S = 15.0
CERTIFICATE = "fumehood.certificate"
"""Where a connection's state has the digest of the certificate that its client showed."""
_EXCHANGE = "fumehood.exchange"
# The SDK keeps an older session's standing stream among its requests, under this id.
_STANDING_STREAM = "_GET_stream"
_NOTIFICATIONS = frozenset({"notifications/cancelled", "notifications/initialized"})
_log = logging.getLogger("fumehood")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class _RefusedError(Exception):
    """The request ends here. `number` is whom the JSON-RPC error answers."""

    def __init__(self, refusal: Refusal, number: frames.Id | None = None) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.number = number


@dataclass(slots=True)
class _Exchange:
    """One HTTP request: who sent it, and what runs for it."""

    sender: Sender
    proof: Proof | None = None
    scopes: list[anyio.CancelScope] = field(default_factory=list)
    withdrawn: bool = False

    def hung_up(self) -> None:
        for scope in self.scopes:
            scope.cancel()


@asynccontextmanager
async def application(gateway: Answering, rules: Rules, proofs: Proofs, ports: Ports | None = None) -> AsyncIterator[App]:
    """The ASGI application that serves `gateway` by `rules`, for the length of the body. Rules with `oauth` need `ports`."""
    sessions: dict[str, Sender] = {}

    def identify(ctx: bridge.Context) -> bridge.Party:
        exchange: _Exchange = ctx.request.scope["state"][_EXCHANGE]  # type: ignore[union-attr] # every request has one
        session = bridge.connection_of(ctx).session_id
        party = bridge.Party(exchange.sender, session, exchange.proof, withdraws=lambda: exchange.withdrawn)
        exchange.scopes.append(party.scope)
        return party

    def opened(party: bridge.Party) -> Callable[[], Awaitable[None]]:
        name = str(party.connection)
        sessions[name] = party.sender

        async def ended() -> None:
            del sessions[name]
            await gateway.ended(name)

        return ended

    async with bridge.server(gateway, identify, proofs, opened) as server:
        manager = StreamableHTTPSessionManager(
            server,
            session_idle_timeout=SESSION_IDLE_S,
            max_sessions=MAX_SESSIONS,
            max_request_body_size=2 * CLIENT_FRAME_BYTES,  # ours is stricter, and written anew may be longer
        )
        async with manager.run():
            yield _Door(manager.handle_request, rules, sessions, ports)


class _Door:
    """What stands between the socket and the SDK."""

    def __init__(self, inner: App, rules: Rules, sessions: dict[str, Sender], ports: Ports | None) -> None:
        self._inner = inner
        self._rules = rules
        self._sessions = sessions
        self._ports = ports
        self._resource: ResourceServer | None = None
        self._callback: Callback | None = None
        if ports is not None and ports.approvals.callback is not None:
            rules.callback = ports.approvals.callback
            self._callback = Callback(ports)
        if rules.oauth is not None:
            self._resource_server()  # imported before it is served, and not in somebody's request
        self._busy: Counter[Sender] = Counter()
        self._under_way: dict[tuple[str, str], _Exchange] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._admit(scope, receive, watched)
        except _RefusedError as error:
            await _refuse(send, error.refusal, error.number)
        except Exception:
            _log.exception("a fault in the gateway's HTTP")
            if started:
                raise  # the connection is closed: half an answer must not look whole
            await _refuse(send, Refusal(500, "Internal error", code=INTERNAL_ERROR))

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["raw_path"] == scope["path"].encode() else ""  # written in one way
        head = http_head.judge(scope["method"], path, scope["headers"], self._rules)
        if isinstance(head, Document):
            await _publish(send, head)
            return
        if isinstance(head, Answered):
            await self._take_answer(head, receive, send)
            return
        if isinstance(head, Claimant):
            head = await self._resource_server().introduce(replace(head, certificate=scope["state"].get(CERTIFICATE)))
        if isinstance(head, Refusal):
            raise _RefusedError(head)
        sender = head.sender
        if self._busy[sender] >= MAX_REQUESTS:
            wait = ((b"retry-after", b"1"),)
            raise _RefusedError(Refusal(429, f"{MAX_REQUESTS} requests are under way", wait, TOO_MANY_REQUESTS))
        self._busy[sender] += 1
        exchange = _Exchange(sender, head.proof)
        try:
            await self._serve(head, exchange, scope, receive, _with(head.extra, send))
        finally:
            exchange.hung_up()
            self._busy[sender] -= 1
            if not self._busy[sender]:
                del self._busy[sender]

    async def _take_answer(self, head: Answered, receive: Receive, send: Send) -> None:
        """Give what an approver signed to the ledger; what became of it is told by the status alone."""
        assert self._callback is not None  # noqa: S101 - only then there is such a path
        if head.method != "POST":
            raise _RefusedError(Refusal(405, "POST", ((b"allow", b"POST"),)))
        with self._callback.one_more() as may:
            if not may:
                raise _RefusedError(Refusal(429, "too many answers at once", ((b"retry-after", b"1"),), TOO_MANY_REQUESTS))
            with anyio.move_on_after(BODY_S) as reading:
                body = await _body(head, receive, MOST_BYTES)
            if reading.cancelled_caught:
                raise _RefusedError(Refusal(408, f"the body took over {BODY_S:.0f} s"))
            if body is None:
                return
            status = await self._callback.take(body)
        if status != 204:
            raise _RefusedError(Refusal(status, "the answer cannot be accepted"))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def _resource_server(self) -> ResourceServer:
        """What judges access tokens by the rules as they are now."""
        front = self._rules.oauth
        assert front is not None  # noqa: S101 - only then there are claimants
        assert self._ports is not None  # noqa: S101 - who serves such rules gives them
        if self._resource is None or self._resource.front is not front:
            from fumehood.gateway.oauth.resource import ResourceServer

            self._resource = ResourceServer(front, self._ports, self._resource)
        return self._resource

    async def _serve(self, head: Head, exchange: _Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        session = head.headers.get("mcp-session-id")
        modern = head.headers.get("mcp-protocol-version", HANDSHAKE_VERSIONS[0]) not in HANDSHAKE_VERSIONS
        if not modern and session is not None and self._sessions.get(session) != head.sender:
            # Before its body, and as if it did not exist: others' sessions are nobody's business.
            raise _RefusedError(Refusal(404, "there is no such session"))
        _prepare(scope, exchange)
        if head.method != "POST":
            if not modern and session is None:
                raise _RefusedError(Refusal(400, "Mcp-Session-Id is needed"))
            await self._inner(scope, receive, send)
            return
        with anyio.move_on_after(BODY_S) as reading:
            body = await _body(head, receive)
        if reading.cancelled_caught:
            raise _RefusedError(Refusal(408, f"the body took over {BODY_S:.0f} s"))
        if body is None:
            return
        message = _checked(body, head, modern=modern)
        if isinstance(message, frames.Notification) and (modern or message.method not in _NOTIFICATIONS):
            await _accepted(send)
            return
        if not modern and session is None:
            self._check_opening(message, head.sender)
        self._note_cancelled(session, message)
        with self._running(session, message, exchange):
            await self._inner(scope, _replay(_plain(message), receive), send)

    @contextmanager
    def _running(self, session: str | None, message: frames.Message, exchange: _Exchange) -> Iterator[None]:
        """Hold a request's id in its session for the body. Raises `_RefusedError` when another has it."""
        if not isinstance(message, frames.Request) or session is None:
            yield
            return
        key = (session, str(message.id))
        if key in self._under_way or key[1] == _STANDING_STREAM:
            raise _RefusedError(Refusal(400, "a request under way has this id"), message.id)
        self._under_way[key] = exchange
        try:
            yield
        finally:
            del self._under_way[key]

    def _note_cancelled(self, session: str | None, message: frames.Message) -> None:
        """Know of a request that is about to be cancelled that its client wanted it so."""
        if isinstance(message, frames.Notification) and message.method == "notifications/cancelled" and session is not None:
            cancelled = self._under_way.get((session, str((message.params or {}).get("requestId"))))
            if cancelled is not None:
                cancelled.withdrawn = True

    def _check_opening(self, message: frames.Message, sender: Sender) -> None:
        """Keep from the SDK what would make it open a session only to close it again, or one too many."""
        if not isinstance(message, frames.Request) or message.method != "initialize":
            raise _RefusedError(Refusal(400, "Mcp-Session-Id is needed"), _number(message))
        if sum(owner == sender for owner in self._sessions.values()) >= MAX_SENDER_SESSIONS:
            refusal = Refusal(429, f"{MAX_SENDER_SESSIONS} sessions are open", (), TOO_MANY_REQUESTS)
            raise _RefusedError(refusal, _number(message))


def _prepare(scope: Scope, exchange: _Exchange) -> None:
    """Tell the SDK and ourselves whose request this is, and keep the token from everything behind the door."""
    sender = exchange.sender
    name = f"{sender.tenant}/{sender.uid}/{sender.name}"
    # The SDK binds a session to this user too.
    scope["user"] = AuthenticatedUser(AccessToken(token="-", client_id=name, scopes=[]))  # noqa: S106 - none
    scope["state"] = {_EXCHANGE: exchange}
    # Without a store of events there is no replay, and the SDK would answer nothing at all.
    scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in (b"last-event-id", b"authorization", b"dpop")]


def _checked(body: bytes, head: Head, *, modern: bool) -> frames.Message:
    """The message, strictly read, and equal to what its headers say of it."""
    try:
        message = frames.read(body)
    except frames.FrameError as error:
        raise _RefusedError(Refusal(400, error.message, (), error.code), error.id) from error
    if not isinstance(message, frames.Request):
        return message
    params = message.params or {}
    fault = None
    if head.headers.get("mcp-method", message.method) != message.method:
        fault = "Mcp-Method is not the body's method"
    named = NAME_BEARING_METHODS.get(message.method)
    if named and "mcp-name" in head.headers and decode_header_value(head.headers["mcp-name"]) != params.get(named):
        fault = "Mcp-Name is not the body's"
    meta = params.get("_meta")
    if not modern and message.method != "initialize" and isinstance(meta, dict) and VERSION_KEY in meta:
        fault = "MCP-Protocol-Version is not the body's"
    if fault is not None:
        raise _RefusedError(Refusal(400, fault, (), HEADER_MISMATCH), message.id)
    return message


async def _body(head: Head | Answered, receive: Receive, most: int = CLIENT_FRAME_BYTES) -> bytes | None:
    """The whole body, or None when the client left. Raises `_RefusedError`."""
    too_large = Refusal(413, f"a message is over {most} bytes")
    length = head.headers.get("content-length", "0")
    if len(length) > len(str(most)) or not length.isdecimal() or int(length) > most:
        raise _RefusedError(too_large)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > most:
            raise _RefusedError(too_large)
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replaying() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying


def _plain(message: frames.Message) -> bytes:
    """The message as we read it: two parsers cannot differ about what one of them wrote."""
    made: dict[str, Any] = {"jsonrpc": "2.0"}
    for name in ("id", "method", "params", "result", "error"):
        value = getattr(message, name, None)
        if value is not None:
            made[name] = value
    return strict_json.dumps(made)


def _number(message: frames.Message) -> frames.Id | None:
    return message.id if isinstance(message, frames.Request) else None


def _with(extra: tuple[tuple[bytes, bytes], ...], send: Send) -> Send:
    """Send answers with these headers more."""
    if not extra:
        return send

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return sending


async def _publish(send: Send, document: Document) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(document.body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": document.body})


async def _accepted(send: Send) -> None:
    await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(send: Send, refusal: Refusal, number: frames.Id | None = None) -> None:
    error = {"code": refusal.code, "message": f"fumehood: {refusal.message}"}
    body = strict_json.dumps({"jsonrpc": "2.0", "id": number, "error": error})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # The rest of what the client sends is not read.
        (b"connection", b"close"),
        *refusal.headers,
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
