"""The SDK's server with the gateway's answers: eras, handshakes and gates are the SDK's, results are ours and raw.

The SDK decides the era, shakes hands, checks envelopes and the shapes of parameters, answers `ping` and
`server/discover`, refuses methods that we do not offer, serves `subscriptions/listen`, and cancels a request's task
on `notifications/cancelled`. What it must not do is write a result, because it drops members that it does not know: so
a middleware gives it raw results, after its own gates have passed the request with an empty one.

Invariants: who asks is what the transport says (`identify`), never the client; a client is asked and told only on its
own connection; ids of our requests are random; what a client does not take in time is dropped, not kept.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import anyio.abc
import mcp_types
from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.dispatcher import DispatchContext
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import validate_mcp_param_headers

from fumehood.gateway import listening, results
from fumehood.gateway.answering import Answering
from fumehood.gateway.events import Event
from fumehood.gateway.peer import Client
from fumehood.gateway.proofs import Proofs
from fumehood.gateway.protocol import CAPABILITIES_KEY, INTERNAL_ERROR, INVALID_PARAMS, Era, GatewayError
from fumehood.model import Proof, Sender

REQUEST_CANCELLED = -32800
MAX_TOLD = 256
TELL_S = 10.0
ENDED_S = 4.0
Context = ServerRequestContext[Any, Any]
Made = TypeVar("Made")
_DECLARED = "fumehood.capabilities"
_SENDERS = "fumehood.senders"
# Who asks, for a handler that the SDK calls itself: in the request's own task.
_CLIENT: ContextVar[Client] = ContextVar("fumehood.client")
_log = logging.getLogger("fumehood")


@dataclass(frozen=True, slots=True)
class Party:
    """Who asks, by the transport's word. Cancelling `scope` ends the request: its client is gone.

    `withdraws`: whether the client has sent `notifications/cancelled` for it.
    """

    sender: Sender
    connection: str | None
    proof: Proof | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    withdraws: Callable[[], bool] = lambda: False


Identify = Callable[[Context], Party]
Opened = Callable[[Party], Callable[[], Awaitable[None]]]


@asynccontextmanager
async def server(
    gateway: Answering, identify: Identify, proofs: Proofs, opened: Opened | None = None
) -> AsyncIterator[Server[Any]]:
    """The SDK's server over `gateway`, telling its clients of changes, for the length of the body.

    `proofs` is what this front door asks of a request's origin. `opened` is told of each session that a handshake opens, and gives
    what to run at that session's end.
    """
    async with anyio.create_task_group() as tasks:
        try:
            yield _Bridge(gateway, identify, proofs, opened, tasks).server
        finally:
            tasks.cancel_scope.cancel()


def connection_of(ctx: Context) -> Connection:
    """The connection that a request came on."""
    return ctx.session._connection  # noqa: SLF001 - the SDK has no public way, and it alone knows when a session ends


class _Bridge:
    def __init__(
        self, gateway: Answering, identify: Identify, proofs: Proofs, opened: Opened | None, tasks: anyio.abc.TaskGroup
    ) -> None:
        self._gateway = gateway
        self._identify = identify
        self._proofs = proofs
        self._opened = opened
        self._tasks = tasks
        self.server: Server[Any] = Server(
            results.SERVER_INFO["name"],
            version=results.SERVER_INFO["version"],
            on_subscriptions_listen=self._listen,
            # The SDK would list every server's tools before each call over HTTP; `_check_headers` asks for one.
            get_tool_input_schema=lambda _name: None,
        )
        for method in gateway.methods:
            params, empty = _GATES.get(method, (mcp_types.RequestParams, None))
            self.server.add_request_handler(method, params, _giving(empty))
        self.server.middleware.append(self._relay)

    async def _relay(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        if ctx.request_id is None:
            return await call_next(ctx)
        party = self._identify(ctx)
        # Before the SDK looks at it: nothing at all is done for a request whose origin is not what it must be.
        client = await _told(self._admitted(ctx, party))
        _CLIENT.set(client)
        passed = await call_next(ctx)  # the SDK's gates; for our methods an empty result
        if ctx.method == "initialize":
            return self._initialized(ctx, party, passed)
        if ctx.method == "server/discover" and isinstance(passed, dict):
            return self._greeting(passed, client, party)
        if ctx.method not in self._gateway.methods:
            return passed
        with party.scope:
            return await _told(self._answered(ctx, client))
        raise MCPError(REQUEST_CANCELLED, "Request cancelled")

    async def _answered(self, ctx: Context, client: Client) -> dict[str, Any]:
        await self._check_headers(ctx, client)
        return await self._gateway.answer(client, ctx.method, ctx.params or {}, _Channel(ctx))

    async def _check_headers(self, ctx: Context, client: Client) -> None:
        """Refuse a call whose `Mcp-Param-*` headers are not its arguments: a proxy would judge other ones than we."""
        params = ctx.params or {}
        if ctx.method != "tools/call" or ctx.request is None or not client.era.modern:
            return
        schema = await self._gateway.input_schema(client, str(params.get("name")))
        wrong = None if schema is None else validate_mcp_param_headers(schema, params.get("arguments") or {}, ctx.request.headers)
        if wrong is not None:
            raise GatewayError(wrong.code, wrong.message, wrong.data)

    def _initialized(self, ctx: Context, party: Party, passed: HandlerResult) -> HandlerResult:
        if not isinstance(passed, dict):
            return passed
        declared = (ctx.params or {}).get("capabilities")
        connection = connection_of(ctx)
        if _DECLARED not in connection.state:
            if self._opened is not None:
                connection.exit_stack.push_async_callback(self._opened(party))
            telling = _Telling(connection, party)
            connection.state[_SENDERS] = telling.senders
            connection.exit_stack.callback(self._gateway.events.subscribe(telling.note))
            self._tasks.start_soon(telling.run)
            connection.exit_stack.callback(telling.scope.cancel)
        connection.state[_DECLARED] = declared if isinstance(declared, dict) else {}
        client = Client(
            era=Era(str(passed.get("protocolVersion"))),
            capabilities=connection.state[_DECLARED],
            sender=party.sender,
            connection=party.connection,
        )
        return self._greeting(passed, client, party)

    def _greeting(self, passed: dict[str, Any], client: Client, party: Party) -> dict[str, Any]:
        """The answer to a handshake or a discovery: what there is, and what requests are signed for."""
        meta = {**(passed.get("_meta") or {}), **self._proofs.told(party.sender, party.connection)}
        return {**passed, "capabilities": self._gateway.capabilities(client), **({"_meta": meta} if meta else {})}

    async def _admitted(self, ctx: Context, party: Party) -> Client:
        """The client of a request whose origin is as this front door wants it. Raises `GatewayError`."""
        origin = await self._proofs.admit(party.sender, party.connection, ctx.method, ctx.params or {})
        era = Era(ctx.protocol_version)
        if era.modern:
            declared = ((ctx.params or {}).get("_meta") or {}).get(CAPABILITIES_KEY)
        else:
            state = connection_of(ctx).state
            declared = state.get(_DECLARED)
            state.get(_SENDERS, set()).add(origin.sender)  # who signs here hears here
        return Client(
            era=era,
            capabilities=declared if isinstance(declared, dict) else {},
            sender=origin.sender,
            connection=party.connection,
            request_digest=origin.digest,
            proof=origin.proof or party.proof,
            has_left=lambda: party.connection is None or party.scope.cancel_called,
            withdraws=party.withdraws,
        )

    async def _listen(
        self, ctx: Context, _params: mcp_types.SubscriptionsListenRequestParams
    ) -> mcp_types.SubscriptionsListenResult:
        number, asked = ctx.request_id, (ctx.params or {}).get("notifications")
        if number is None or not isinstance(asked, Mapping):
            raise MCPError(INVALID_PARAMS, "Invalid params: a request with notifications is needed")
        try:
            await listening.listen(self._gateway, _CLIENT.get(), number, asked, _Channel(ctx))
        except GatewayError as error:
            raise MCPError(error.code, error.message, error.data) from error


async def _told(doing: Awaitable[Made]) -> Made:
    """What is done, its failure told as the protocol tells it."""
    try:
        return await doing
    except GatewayError as error:
        raise MCPError(error.code, error.message, error.data) from error
    except Exception as error:
        _log.exception("a fault in the gateway")
        raise MCPError(INTERNAL_ERROR, "Internal error") from error


class _Channel:
    """`peer.Channel` over the SDK's way back of one request."""

    def __init__(self, ctx: Context) -> None:
        # The typed methods re-model what they send, and number our requests 1, 2, 3.
        self._way: DispatchContext[Any] = ctx.session._request_outbound  # noqa: SLF001

    @property
    def can_ask(self) -> bool:
        return self._way.can_send_request

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        await self._way.notify(method, params)

    async def ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self._way.send_raw_request(method, params, {"request_id": f"ask-{secrets.token_hex(16)}"})
        except MCPError as error:
            raise GatewayError(error.error.code, error.error.message, error.error.data) from error


class _Telling:
    """What an older client is still to be told. Equal notes are one; beyond `MAX_TOLD` they are dropped."""

    def __init__(self, connection: Connection, party: Party) -> None:
        self._connection = connection
        self._party = party
        self.senders = {party.sender}
        self._notes: dict[tuple[str, str | None], None] = {}
        self._more = anyio.Event()
        self.scope = anyio.CancelScope()

    def note(self, event: Event) -> None:
        if event.kind == "task" or event.sender not in (None, *self.senders) or len(self._notes) >= MAX_TOLD:
            return  # the older eras have no Tasks extension
        named = event.connections if event.connections is not None or event.kind != "resource" else frozenset[str]()
        if named is not None and self._party.connection not in named:
            return  # an older client hears of a resource only if it subscribed to it
        self._notes[event.kind, event.uri] = None
        self._more.set()

    async def run(self) -> None:
        with self.scope:
            while True:
                await self._more.wait()
                self._more = anyio.Event()
                while self._notes:
                    kind, uri = next(iter(self._notes))
                    del self._notes[kind, uri]
                    with anyio.move_on_after(TELL_S):
                        if kind == "resource":
                            await self._connection.notify("notifications/resources/updated", {"uri": uri})
                        else:
                            await self._connection.notify(listening.LIST_CHANGED[kind], None)


def _giving(empty: mcp_types.Result | None) -> Any:
    async def handler(_ctx: Any, _params: Any) -> mcp_types.Result | dict[str, Any]:
        return {} if empty is None else empty

    return handler


# Per method the SDK's model of its parameters, and the emptiest result that its own checks let through.
_GATES: dict[str, tuple[type[mcp_types.RequestParams], mcp_types.Result | None]] = {
    "tools/list": (mcp_types.PaginatedRequestParams, mcp_types.ListToolsResult(tools=[])),
    "tools/call": (mcp_types.CallToolRequestParams, mcp_types.CallToolResult(content=[])),
    "prompts/list": (mcp_types.PaginatedRequestParams, mcp_types.ListPromptsResult(prompts=[])),
    "prompts/get": (mcp_types.GetPromptRequestParams, mcp_types.GetPromptResult(messages=[])),
    "resources/list": (mcp_types.PaginatedRequestParams, mcp_types.ListResourcesResult(resources=[])),
    "resources/templates/list": (
        mcp_types.PaginatedRequestParams,
        mcp_types.ListResourceTemplatesResult(resource_templates=[]),
    ),
    "resources/read": (mcp_types.ReadResourceRequestParams, mcp_types.ReadResourceResult(contents=[])),
    "resources/subscribe": (mcp_types.SubscribeRequestParams, mcp_types.EmptyResult()),
    "resources/unsubscribe": (mcp_types.UnsubscribeRequestParams, mcp_types.EmptyResult()),
    "completion/complete": (
        mcp_types.CompleteRequestParams,
        mcp_types.CompleteResult(completion=mcp_types.Completion(values=[])),
    ),
    "logging/setLevel": (mcp_types.SetLevelRequestParams, mcp_types.EmptyResult()),
}
