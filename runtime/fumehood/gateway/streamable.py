"""A remote server's streams: each of our messages a request over Streamable HTTP, what the answer's body holds a line of the server's.

Both eras. A request of 2026-07-28 is complete in itself: what it is stands in its headers too, and closing its answer cancels it. Of
an older server the session is one call's: opened by its handshake, sent back with every request, ended with DELETE; a request
given up is told to it; an answer that breaks off goes on where the server allows that (`Last-Event-ID`).

Invariants: a call's session id goes to the server that gave it and dies with the call; nothing of the client's is in any head but the
names and arguments that the protocol wants there, in an encoding that cannot end a line; every status but success is
either an error of the protocol or ends the conversation with a code; a session that is gone is begun again once, and only for
a request that the server has thereby said it did not take. What lines mean is for `exchange` to judge.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc

from fumehood.faults import ExchangeFailed
from fumehood.gateway import frames, strict_json
from fumehood.gateway.protocol import HANDSHAKE_VERSIONS, METHOD_NOT_FOUND, VERSION_KEY, printable
from fumehood.gateway.sse import Events, Text
from fumehood.gateway.statuses import failure, protocol_error
from fumehood.memory import Memory
from fumehood.ports import Origin, Reply
from fumehood.reasons import Reason

FRAME_SLACK_BYTES = 64 * 1024
CLOSING_S = 2.0
DRAIN_S = 0.1
RETRY_MS = 1000
LEAST_RETRY_MS = 50
MAX_RESUMED = 100
LISTEN_S = 1.0
MAX_ASIDE = 256
_SESSION = re.compile(r"[\x21-\x7e]{1,1024}")
# What an older server may say of a method that it does not know before any handshake.
_UNKNOWN_THERE = frozenset({400, 404, 405, 406, 415, 422, 501})


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How one server is spoken to: the longest message of its, by what name its credential goes, and a tool's input schema.

    With `listens`, an older server's standing stream is read too: some put their questions there and not into the answer.
    """

    result_bytes: int
    credential: str | None = None
    listens: bool = False
    schema: Mapping[str, Any] | None = field(default=None, repr=False)


class Streamable:
    """`residence.ServerStreams` over an origin. Make it with `speak`."""

    def __init__(self, origin: Origin, manner: Manner, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._aside: deque[bytes] = deque(maxlen=MAX_ASIDE)
        self._reading: anyio.CancelScope | None = None
        self._origin = origin
        self._manner = manner
        self._longest = manner.result_bytes + FRAME_SLACK_BYTES
        self._session: str | None = None
        self._version: str | None = None
        self._opening: frames.Request | None = None
        self._asked: frames.Request | None = None
        self._answered = True
        self._renewed = False
        self._modern = False
        self._reply: Reply | None = None
        self._events: Events | None = None
        self._text: Text | None = None
        self._resumed = 0
        self._waiting: bytes | None = None

    async def send(self, frame: bytes) -> None:
        """Ask, or tell. Raises ExchangeFailed."""
        match frames.read(frame):
            case frames.Request() as request:
                await self._leave()
                if request.method == "initialize":
                    self._opening, self._session, self._version = request, None, None
                await self._ask(request, frame)
            case frames.Notification(method="notifications/initialized") if self._manner.listens:
                await self._tell(frame)
                opened = anyio.Event()
                self._tasks.start_soon(self._listen, opened)
                with anyio.move_on_after(LISTEN_S):  # what is asked before it is open is lost
                    await opened.wait()
            case _:
                await self._tell(frame)

    async def receive(self) -> bytes:
        """The next message. Raises ExchangeFailed."""
        line = await self._next(None)
        assert isinstance(line, bytes)  # noqa: S101 - nothing is long without a most
        return line

    async def receive_long(self, most_bytes: int) -> bytes | Memory:
        """The next message, however long. Raises ExchangeFailed."""
        return await self._next(most_bytes)

    async def end(self) -> None:
        """Give up what is still asked, and end the session."""
        with suppress(ExchangeFailed):
            if self._session is not None and not self._answered and self._asked is not None:
                told = {"requestId": self._asked.id, "reason": "cancelled"}
                await self._tell(strict_json.dumps({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": told}))
        with suppress(ExchangeFailed):
            await self._leave()
            if self._session is not None:
                (await self._origin.ask("DELETE", self._heads())).close()

    def drop(self) -> None:
        """Cut off whatever is open."""
        if self._reply is not None:
            self._reply.close()
        if self._events is not None:
            self._events.drop()
        if self._text is not None:
            self._text.drop()
        self._reply = self._events = self._text = None

    async def _ask(self, request: frames.Request, frame: bytes) -> None:
        self._asked, self._answered, self._resumed = request, False, 0
        heads = self._heads() | self._of_request(request)
        reply = await self._origin.ask("POST", heads, frame)
        try:
            if reply.status == 404 and self._session is not None and not self._renewed:
                self._renewed = True  # the server forgot the session, and so has not taken the request
                reply.close()
                await self._begin_again()
                await self._ask(request, frame)
            elif reply.status == 200:
                self._take(request, reply)
            else:
                self._answered = True  # there is nothing to give up
                self._waiting = await self._refusal(request, reply)
        except BaseException:
            reply.close()
            raise

    async def _begin_again(self) -> None:
        opening = self._opening
        if opening is None:
            raise ExchangeFailed(Reason.UPSTREAM_REFUSED, "it knows no session before one was begun")
        self._session = self._version = None
        message = {"jsonrpc": "2.0", "id": opening.id, "method": opening.method, "params": opening.params}
        await self._ask(opening, strict_json.dumps(message))
        while not self._answered:
            await self.receive()
        await self._leave()
        await self._tell(strict_json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}))

    def _take(self, request: frames.Request, reply: Reply) -> None:
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            self._events = Events(self._longest)
        elif kind != "application/json":
            raise ExchangeFailed(Reason.SERVER_GARBAGE, f"it answered with the content type {printable(kind, 80)!r}")
        self._reply = reply
        if request.method == "initialize" and (given := reply.headers.get("mcp-session-id")) is not None:
            if not _SESSION.fullmatch(given):
                raise ExchangeFailed(Reason.SERVER_GARBAGE, "its session id is none")
            self._session = given

    async def _tell(self, frame: bytes) -> None:
        """Send what has no answer."""
        reply = await self._origin.ask("POST", self._heads(), frame)
        try:
            if reply.status in (401, 403, 429) or not 200 <= reply.status < 300:
                raise failure(reply, credential=self._manner.credential, in_session=self._session is not None)
            with anyio.move_on_after(DRAIN_S):
                while await reply.read():
                    pass
        finally:
            reply.close()

    async def _next(self, most: int | None) -> bytes | Memory:
        while True:
            if self._waiting is not None:
                line, self._waiting = self._waiting, None
                self._answered = True
                return line
            if self._aside:
                return self._aside.popleft()
            if self._reply is None:
                raise ExchangeFailed(Reason.SERVER_DIED, "it ended its answer without answering")
            found = await (self._whole(self._reply, most) if self._events is None else self._event(self._reply, self._events, most))
            if found is not None:
                self._note(found)
                return found

    async def _whole(self, reply: Reply, most: int | None) -> bytes | Memory | None:
        text = self._text = self._text or Text(self._longest, most)
        piece = await self._piece(reply)
        if piece:
            text.add(piece)
        if piece != b"":
            return None
        found = text.taken()
        self.drop()
        return found

    async def _event(self, reply: Reply, events: Events, most: int | None) -> bytes | Memory | None:
        events.most = most
        if (event := events.next()) is not None:
            return event.data
        piece = await self._piece(reply)
        if piece:
            events.feed(piece)
        elif piece is not None:
            await self._go_on(events)
        return None

    async def _piece(self, reply: Reply) -> bytes | None:
        """The next piece, or None when something came beside it: what there is of a piece is then read later."""
        piece: bytes | None = None
        with anyio.CancelScope() as self._reading:
            piece = await reply.read()
        self._reading = None
        return piece

    async def _listen(self, opened: anyio.Event) -> None:
        """Read what an older server says outside its answers, for as long as the call lasts. That there is none is no fault."""
        reply: Reply | None = None
        events = Events(self._longest)
        try:
            reply = await self._origin.ask("GET", self._heads() | {"Accept": "text/event-stream"})
            opened.set()
            if reply.status != 200 or not reply.headers.get("content-type", "").lower().startswith("text/event-stream"):
                return
            while piece := await reply.read():
                events.feed(piece)
                while (event := events.next()) is not None:
                    assert isinstance(event.data, bytes)  # noqa: S101 - nothing is long without a most
                    self._aside.append(event.data)
                    if self._reading is not None:
                        self._reading.cancel()
        except ExchangeFailed:
            return  # the answer to what was asked is what counts
        finally:
            opened.set()
            events.drop()
            if reply is not None:
                reply.close()

    async def _go_on(self, events: Events) -> None:
        """Fetch the rest of an answer that broke off, if its server keeps it."""
        self.drop()
        self._resumed += 1
        if self._modern or events.last_id is None or self._resumed > MAX_RESUMED:
            raise ExchangeFailed(Reason.SERVER_DIED, "it ended its answer without answering")
        retry_ms = RETRY_MS if events.retry_ms is None else max(LEAST_RETRY_MS, events.retry_ms)
        await anyio.sleep(retry_ms / 1000)
        heads = self._heads() | {"Accept": "text/event-stream", "Last-Event-ID": events.last_id}
        reply = await self._origin.ask("GET", heads)
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        if reply.status != 200 or kind != "text/event-stream":
            reply.close()
            raise ExchangeFailed(Reason.SERVER_DIED, "it ended its answer, and does not go on with it")
        self._reply, self._events = reply, Events(self._longest)
        self._events.last_id, self._events.retry_ms = events.last_id, events.retry_ms

    async def _leave(self) -> None:
        """Be done with the answer before: read its end if that is there, so that its connection can be used again."""
        if (reply := self._reply) is not None and self._answered:
            with anyio.move_on_after(DRAIN_S), suppress(ExchangeFailed):
                await reply.read()
                await reply.read()
        self.drop()
        self._waiting = None

    def _note(self, line: bytes | Memory) -> None:
        """See whether this can be the answer, and what a handshake agreed on."""
        request = self._asked
        if request is None or (isinstance(line, bytes) and strict_json.dumps(request.id) not in line):
            return
        self._answered = True
        if request.method == "initialize" and isinstance(line, bytes):
            with suppress(frames.FrameError):
                answer = frames.read(line, repair_surrogates=True)
                chosen = (answer.result or {}).get("protocolVersion") if isinstance(answer, frames.Answer) else None
                if chosen in HANDSHAKE_VERSIONS:
                    self._version = chosen

    def _heads(self) -> dict[str, str]:
        heads = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        if self._session is not None:
            heads["Mcp-Session-Id"] = self._session
        if self._version is not None:
            heads["Mcp-Protocol-Version"] = self._version
        return heads

    def _of_request(self, request: frames.Request) -> dict[str, str]:
        """What of a request of 2026-07-28 stands in its head as well."""
        params = request.params or {}
        version = (params.get("_meta") or {}).get(VERSION_KEY)
        self._modern = isinstance(version, str)
        if not isinstance(version, str):
            return {}
        from mcp.shared import inbound

        heads = {"Mcp-Protocol-Version": version, "Mcp-Method": request.method}
        name = params.get(inbound.NAME_BEARING_METHODS.get(request.method, ""))
        if isinstance(name, str):
            heads["Mcp-Name"] = inbound.encode_header_value(name)
        schema = self._manner.schema
        if request.method == "tools/call" and schema is not None and inbound.find_invalid_x_mcp_header(schema) is None:
            heads |= inbound.mcp_param_headers(inbound.x_mcp_header_map(schema), params.get("arguments") or {})
        return heads

    async def _refusal(self, request: frames.Request, reply: Reply) -> bytes:
        """The error of the protocol that an answer without success holds, as a line. Raises ExchangeFailed when it holds none."""
        if reply.status not in (401, 403, 429) and reply.status >= 400:
            error = await protocol_error(request, reply)
            if error is None and request.method == "server/discover" and reply.status in _UNKNOWN_THERE:
                error = {"code": METHOD_NOT_FOUND, "message": f"HTTP status {reply.status}"}
            if error is not None:
                reply.close()
                return strict_json.dumps({"jsonrpc": "2.0", "id": request.id, "error": error})
        raise failure(reply, credential=self._manner.credential, in_session=self._session is not None)


@asynccontextmanager
async def speak(origin: Origin, *, manner: Manner) -> AsyncIterator[Streamable]:
    """A remote server's streams for the body; what was asked is given up, and its session ended, however the body is left."""
    async with anyio.create_task_group() as tasks:
        streams = Streamable(origin, manner, tasks)
        try:
            yield streams
        finally:
            with anyio.move_on_after(CLOSING_S, shield=True):
                await streams.end()
            streams.drop()
            tasks.cancel_scope.cancel()
