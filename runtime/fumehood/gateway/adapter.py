"""One client on two descriptors (stdio, a unix socket), in whichever era it opens with.

`bridge` and the SDK behind it speak the protocol. What they must not do is read the client's bytes (the SDK has no
limit on a line, and takes `{"id": true}` for a notification), so `frames` reads before them.

Invariants: no two requests under way have one id, or cancelling and answering would hit the wrong one; only the
notifications listed here reach the SDK, and only answers to what we asked; only one task writes, so frames never mix;
when the client's stream ends or nobody reads any more, every call is cancelled, which removes its box.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any

import anyio
import mcp_types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel import Server
from mcp.shared.dispatcher import coerce_request_id
from mcp.shared.message import SessionMessage

from fumehood.gateway import bridge, frames, strict_json
from fumehood.gateway.answering import Answering
from fumehood.gateway.proofs import Proofs
from fumehood.gateway.protocol import INVALID_REQUEST, TOO_MANY_REQUESTS
from fumehood.gateway.stdio import CLIENT_FRAME_BYTES, FrameSink, read_frames
from fumehood.model import Sender

MAX_REQUESTS = 64
_log = logging.getLogger("fumehood")


async def serve(gateway: Answering, source: int, sink: int, sender: Sender, proofs: Proofs) -> None:
    """Serve one client on two descriptors until its stream ends, or until nobody reads the answers."""
    name = secrets.token_hex(16)
    front = _Front()
    try:
        async with bridge.server(gateway, lambda ctx: front.party(sender, name, ctx), proofs) as server:
            await front.serve(server, source, FrameSink(sink))
    finally:
        with anyio.move_on_after(bridge.ENDED_S, shield=True):
            await gateway.ended(name)


class _Front:
    """One client's connection."""

    def __init__(self) -> None:
        self._under_way: set[frames.Id] = set()
        self._asked: set[frames.Id] = set()
        self._cancelled: dict[frames.Id, list[bool]] = {}
        self._initialized = False
        self._dropped = 0
        # The SDK's answers, and those that it never sees the request of.
        self._out: MemoryObjectSendStream[SessionMessage]
        self._out, self._outgoing = anyio.create_memory_object_stream[SessionMessage](0)

    def party(self, sender: Sender, connection: str, ctx: bridge.Context) -> bridge.Party:
        """Who asks one request, which its client may cancel: what that looks like otherwise is a client that hung up."""
        cancelled = self._cancelled.setdefault(coerce_request_id(ctx.request_id or ""), [])
        return bridge.Party(sender, connection, withdraws=lambda: bool(cancelled))

    async def serve(self, server: Server[Any], source: int, sink: FrameSink) -> None:
        incoming, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, self._outgoing, sink, tasks.cancel_scope)
                tasks.start_soon(self._read, source, incoming)
                await server.run(received, self._out.clone(), server.create_initialization_options())
                self._out.close()
        finally:
            for stream in (self._out, self._outgoing, incoming, received):
                stream.close()
            sink.close()
            if self._dropped:
                _log.warning("%d messages of the client's were dropped", self._dropped)

    async def _read(self, source: int, incoming: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        async with incoming:
            async for line in read_frames(source):
                try:
                    message = self._admitted(line)
                except frames.FrameError as error:
                    self._dropped += 1
                    await self._answer(error)
                    continue
                if message is None:
                    self._dropped += 1
                    continue
                try:
                    await incoming.send(SessionMessage(message))
                except anyio.BrokenResourceError:
                    return

    def _admitted(self, line: bytes | None) -> mcp_types.JSONRPCMessage | None:
        """The message for the SDK, or None to drop it. Raises `FrameError`."""
        if line is None:
            raise frames.FrameError(INVALID_REQUEST, f"a message is over {CLIENT_FRAME_BYTES} bytes")
        message = frames.read(line)
        match message:
            case frames.Request():
                key = coerce_request_id(message.id)
                if key in self._under_way:
                    # No id in the answer: it would end the honest request that has it.
                    raise frames.FrameError(INVALID_REQUEST, "a request under way has this id")
                if len(self._under_way) >= MAX_REQUESTS:
                    raise frames.FrameError(TOO_MANY_REQUESTS, f"{MAX_REQUESTS} requests are under way", message.id)
                self._under_way.add(key)
                return mcp_types.JSONRPCRequest(jsonrpc="2.0", **_set(message, "id", "method", "params"))
            case frames.Notification() if self._wanted(message):
                return mcp_types.JSONRPCNotification(jsonrpc="2.0", **_set(message, "method", "params"))
            case frames.Answer() if message.id is not None and coerce_request_id(message.id) in self._asked:
                self._asked.discard(coerce_request_id(message.id))
                return _answer(message)
            case _:
                return None

    def _wanted(self, message: frames.Notification) -> bool:
        """Whether a notification means anything: a flood of those that mean nothing must not cost a task each."""
        match message.method:
            case "notifications/cancelled":
                number = (message.params or {}).get("requestId")
                if number is None or not self._forget(number):
                    return False
                self._cancelled.pop(coerce_request_id(number), []).append(True)
                return True
            case "notifications/initialized":
                first, self._initialized = not self._initialized, True
                return first
            case _:
                return False

    def _forget(self, request_id: Any) -> bool:
        if not frames.valid_id(request_id) or (key := coerce_request_id(request_id)) not in self._under_way:
            return False
        self._under_way.discard(key)
        return True

    def _answered(self, request_id: Any) -> None:
        """A request is over: its id may come again, for another."""
        if self._forget(request_id):
            self._cancelled.pop(coerce_request_id(request_id), None)

    def _withdraw(self, notification: mcp_types.JSONRPCNotification) -> None:
        """Expect no answer any more to what we asked and cancelled."""
        if notification.method == "notifications/cancelled":
            self._asked.discard((notification.params or {}).get("requestId", ""))

    async def _answer(self, error: frames.FrameError) -> None:
        data = mcp_types.ErrorData(code=error.code, message=error.message)
        await self._out.send(SessionMessage(mcp_types.JSONRPCError(jsonrpc="2.0", id=error.id, error=data)))

    async def _write(
        self, outgoing: MemoryObjectReceiveStream[SessionMessage], sink: FrameSink, everything: anyio.CancelScope
    ) -> None:
        try:
            async with outgoing:
                async for each in outgoing:
                    message = each.message
                    if isinstance(message, mcp_types.JSONRPCRequest):
                        self._asked.add(coerce_request_id(message.id))
                    elif isinstance(message, mcp_types.JSONRPCNotification):
                        self._withdraw(message)
                    await sink.send(strict_json.dumps(as_sent(message)))
                    if isinstance(message, mcp_types.JSONRPCResponse | mcp_types.JSONRPCError):
                        self._answered(message.id)
        except BrokenPipeError:
            everything.cancel()


def _answer(message: frames.Answer) -> mcp_types.JSONRPCMessage | None:
    """A client's answer for the SDK; None when its error is none."""
    number = message.id
    assert number is not None  # noqa: S101 - only answers to what we asked come here
    if message.error is None:
        return mcp_types.JSONRPCResponse(jsonrpc="2.0", id=number, result=message.result or {})
    code, text = message.error.get("code"), message.error.get("message")
    error = mcp_types.ErrorData(
        code=code if type(code) is int else 0,
        message=text if isinstance(text, str) else "",
        data=message.error.get("data"),
    )
    return mcp_types.JSONRPCError(jsonrpc="2.0", id=number, error=error)


def _set(message: frames.Message, *names: str) -> dict[str, Any]:
    """The members that are there: an explicit null would be written and read as another message."""
    return {name: value for name in names if (value := getattr(message, name)) is not None}


def as_sent(message: mcp_types.JSONRPCMessage) -> dict[str, Any]:
    """A message as it goes on the wire, its result untouched: the SDK's own dump would re-model it."""
    made: dict[str, Any] = {"jsonrpc": "2.0"}
    match message:
        case mcp_types.JSONRPCResponse():
            made |= {"id": message.id, "result": message.result}
        case mcp_types.JSONRPCError():
            made |= {"id": message.id, "error": message.error.model_dump(mode="json", exclude_unset=True)}
        case mcp_types.JSONRPCNotification() | mcp_types.JSONRPCRequest():
            made |= message.model_dump(mode="json", exclude_unset=True)
    return made
