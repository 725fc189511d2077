"""The one module that touches the mcp SDK: it speaks every era of the protocol with the client.

The SDK decides the era, shakes hands, checks envelopes and the shapes of parameters, answers `ping` and
`server/discover`, refuses methods that we do not offer, and cancels a request's task on `notifications/cancelled`. What
it must not do: read the client's bytes (it has no limit on a line, and takes `{"id": true}` for a notification), or
write a result (it drops members that it does not know). So `frames` reads before it, and a middleware gives it raw
results after its own gates have passed a request with an empty one.

Invariants: no two requests under way have one id, or cancelling and answering would hit the wrong one; only the
notifications listed here reach the SDK; only one task writes, so frames never mix; when the client's stream ends or
nobody reads any more, every call is cancelled, which removes its box.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import Any

import anyio
import mcp_types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.dispatcher import coerce_request_id
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

from fumehood.gateway import frames, results, strict_json
from fumehood.gateway.front import METHODS, Gateway
from fumehood.gateway.peer import Client
from fumehood.gateway.protocol import (
    CAPABILITIES_KEY,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    TOO_MANY_REQUESTS,
    Era,
    GatewayError,
)
from fumehood.gateway.stdio import CLIENT_FRAME_BYTES, FrameSink, read_frames
from fumehood.model import Sender

MAX_REQUESTS = 64
NOTIFICATIONS = frozenset({"notifications/cancelled", "notifications/initialized"})
_log = logging.getLogger("fumehood")


async def serve(gateway: Gateway, sender: Sender, source: int, sink: int) -> None:
    """Serve one client on two descriptors until its stream ends, or until nobody reads the answers."""
    await _Front(gateway, sender).serve(source, FrameSink(sink))


class _Front:
    """One client's connection."""

    def __init__(self, gateway: Gateway, sender: Sender) -> None:
        self._gateway = gateway
        self._sender = sender
        self._connection = secrets.token_urlsafe(16)
        self._declared: Mapping[str, Any] = {}  # an older client's capabilities, from its handshake
        self._under_way: set[frames.Id] = set()
        self._dropped = 0
        # The SDK's answers, and those that it never sees the request of.
        self._out: MemoryObjectSendStream[SessionMessage]
        self._out, self._outgoing = anyio.create_memory_object_stream[SessionMessage](0)

    async def serve(self, source: int, sink: FrameSink) -> None:
        incoming, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        server: Server[Any] = Server(
            results.SERVER_INFO["name"],
            version=results.SERVER_INFO["version"],
            on_list_tools=_empty_list,
            on_call_tool=_empty_result,
        )
        server.middleware.append(self._relay)
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
            with anyio.CancelScope(shield=True):
                await self._gateway.ended(self._connection)
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
            case frames.Notification(method=method) if method in NOTIFICATIONS:
                if method == "notifications/cancelled":
                    self._forget((message.params or {}).get("requestId"))
                return mcp_types.JSONRPCNotification(jsonrpc="2.0", **_set(message, "method", "params"))
            case _:
                # We never ask the client anything, so an answer belongs to nothing.
                return None

    def _forget(self, request_id: Any) -> None:
        if frames.valid_id(request_id):
            self._under_way.discard(coerce_request_id(request_id))

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
                    await sink.send(strict_json.dumps(_plain(message)))
                    if isinstance(message, mcp_types.JSONRPCResponse | mcp_types.JSONRPCError):
                        self._forget(message.id)
        except BrokenPipeError:
            everything.cancel()

    async def _relay(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        passed = await call_next(ctx)  # the SDK's gates; for our methods an empty result
        params = ctx.params or {}
        if ctx.method == "initialize":
            declared = params.get("capabilities")
            self._declared = declared if isinstance(declared, dict) else {}
        if ctx.request_id is None or ctx.method not in METHODS:
            return passed
        try:
            return await self._gateway.answer(self._client(ctx), ctx.method, params, self)
        except GatewayError as error:
            raise MCPError(error.code, error.message, error.data) from error
        except Exception as error:
            _log.exception("a fault in the gateway")
            raise MCPError(INTERNAL_ERROR, "Internal error") from error

    def _client(self, ctx: ServerRequestContext[Any, Any]) -> Client:
        era = Era(ctx.protocol_version)
        declared: Any = self._declared
        if era.modern:
            declared = ((ctx.params or {}).get("_meta") or {}).get(CAPABILITIES_KEY)
        capabilities = declared if isinstance(declared, dict) else {}
        return Client(era=era, capabilities=capabilities, sender=self._sender, connection=self._connection)

    can_ask = False

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        notification = mcp_types.JSONRPCNotification(jsonrpc="2.0", method=method, params=dict(params))
        await self._out.send(SessionMessage(notification))

    async def ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - the protocol's
        raise GatewayError(INTERNAL_ERROR, "the client cannot be asked")


async def _empty_list(_ctx: Any, _params: Any) -> mcp_types.ListToolsResult:
    return mcp_types.ListToolsResult(tools=[])


async def _empty_result(_ctx: Any, _params: Any) -> mcp_types.CallToolResult:
    return mcp_types.CallToolResult(content=[])


def _set(message: frames.Message, *names: str) -> dict[str, Any]:
    """The members that are there: an explicit null would be written and read as another message."""
    return {name: value for name in names if (value := getattr(message, name)) is not None}


def _plain(message: mcp_types.JSONRPCMessage) -> dict[str, Any]:
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
