"""A client's stdio on one side, a gateway that wants signed requests on the other: signs what an unmodified client sends.

Both eras. What comes from the client is read by the strict reader, so what is signed is what the gateway reads; the challenge is
taken from the answer to the client's `initialize`, or asked for with a `server/discover` of our own. A request that is refused
because its challenge is old is signed anew, with a new nonce, and sent again under its own id: the refusal says that nothing was done.

Invariants: no request but `FREE` ones leaves unsigned, also when the gateway would take it so; the key signs nothing but envelopes
for the one audience and sender that this proxy was started for; ids of our own requests are random and never reach the client.
"""

from __future__ import annotations

import logging
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import mcp_types
from mcp.shared import inbound
from mcp.shared.message import ClientMessageMetadata, SessionMessage

from fumehood.gateway import envelope, frames, strict_json
from fumehood.gateway.adapter import as_sent
from fumehood.gateway.envelope import Claims
from fumehood.gateway.proofs import CHALLENGE_KEY, FREE
from fumehood.gateway.protocol import CAPABILITIES_KEY, INVALID_REQUEST, NAME, VERSION_KEY
from fumehood.gateway.sender_keys import PrivateKey
from fumehood.gateway.stdio import CLIENT_FRAME_BYTES, FrameSink, read_frames
from fumehood.reasons import Reason

CHALLENGE_S = 30.0
SIGNED_FOR_S = 30
MAX_PENDING = 256
MAX_SCHEMAS = 4096
_AGAIN = frozenset({Reason.CHALLENGE_STALE.value, Reason.PROOF_MISSING.value})
_log = logging.getLogger("fumehood")

Send = Callable[[dict[str, Any], dict[str, str]], Awaitable[None]]
Way = tuple[Send, AsyncIterator[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who signs, and for which front door. Without a `sender` it is the one that the gateway says the token belongs to."""

    key: PrivateKey
    audience: str
    sender: str | None = None


@dataclass(slots=True)
class _Asked:
    """A request of the client's that is not answered yet."""

    request: frames.Request
    tries: int = 0


async def carry(identity: Identity, source: int, sink: int, way: Way) -> None:
    """Carry one client's messages until it hangs up, or the gateway does."""
    proxy = _Proxy(identity, FrameSink(sink), way[0])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(proxy.take, way[1], tasks.cancel_scope)
        await proxy.give(source)
        tasks.cancel_scope.cancel()


class _Proxy:
    def __init__(self, identity: Identity, sink: FrameSink, send: Send) -> None:
        self._identity = identity
        self._sink = sink
        self._way = send
        self._writing, self._sending = anyio.Lock(), anyio.Lock()
        self._asked: dict[frames.Id, _Asked] = {}
        self._schemas: dict[str, Mapping[str, Any]] = {}
        self._version: str | None = None
        self._challenge: Mapping[str, Any] | None = None
        self._told = anyio.Event()
        self._discovery: str | None = None

    async def give(self, source: int) -> None:
        """Sign and pass on what the client sends."""
        async for line in read_frames(source):
            try:
                if line is None:
                    raise frames.FrameError(INVALID_REQUEST, f"a message is over {CLIENT_FRAME_BYTES} bytes")
                message = frames.read(line)
            except frames.FrameError as error:
                await self._say({"jsonrpc": "2.0", "id": error.id, "error": {"code": error.code, "message": error.message}})
                continue
            if isinstance(message, frames.Request):
                await self._request(message)
                continue
            if isinstance(message, frames.Notification) and message.method == "notifications/cancelled":
                given = (message.params or {}).get("requestId", "")
                if frames.valid_id(given):
                    self._asked.pop(given, None)  # its answer, if there is one, is passed on all the same
            await self._send(strict_json.parse(line or b""), self._heads(None))

    async def take(self, messages: AsyncIterator[dict[str, Any]], everything: anyio.CancelScope) -> None:
        """Pass on what the gateway sends, but what is ours."""
        async for message in messages:
            asked = None if "method" in message else self._asked.get(message.get("id", ""))
            if "method" not in message and self._discovery is not None and message.get("id") == self._discovery:
                self._learn(message)
                self._told.set()
                continue
            if asked is not None:
                self._note(asked.request, message)
                if await self._again(asked, message):
                    continue
                del self._asked[asked.request.id]
            await self._say(message)
        everything.cancel()

    async def _request(self, request: frames.Request) -> None:
        if request.id in self._asked:
            await self._refuse(request, "a request under way has this id")
            return
        if len(self._asked) >= MAX_PENDING:
            await self._refuse(request, f"{MAX_PENDING} requests are under way")
            return
        asked = self._asked[request.id] = _Asked(request)
        if request.method in FREE:
            await self._send(_message(request, request.params), self._heads(request))
            return
        if self._challenge is None:
            await self._discover(request)
        await self._signed(asked)

    async def _signed(self, asked: _Asked) -> None:
        """Send a request with a signature of this moment; or tell the client why it cannot be signed."""
        request = asked.request
        params = dict(request.params or {})
        sender = self._identity.sender or (self._challenge or {}).get("sender")
        why = None
        if self._challenge is None:
            why = "the gateway hands out no challenge: it takes no signed requests, or is none"
        elif self._challenge.get("audience") != self._identity.audience:
            why = f"the gateway's audience is {self._challenge.get('audience')!r:.80}, and --audience another"
        elif not isinstance(sender, str):
            why = "the gateway does not say whose connection this is: name yourself with --sender"
        else:
            try:
                text = self._envelope(sender, request.method, params)
            except ValueError as error:
                why = f"the request cannot be signed: {error}"
        if why is not None:
            self._asked.pop(request.id, None)
            await self._refuse(request, why)
            return
        meta = params.get("_meta")
        params["_meta"] = {**(meta if isinstance(meta, dict) else {}), envelope.KEY: text}
        asked.tries += 1
        await self._send(_message(request, params), self._heads(request))

    def _envelope(self, sender: str, method: str, params: Mapping[str, Any]) -> str:
        now_s = int(time.time())
        claims = Claims(
            iss=sender, aud=self._identity.audience, iat=now_s, exp=now_s + SIGNED_FOR_S, jti=secrets.token_urlsafe(24),
            chal=str((self._challenge or {}).get("challenge")), bd=envelope.digest(method, params),
        )  # fmt: skip
        return envelope.write(self._identity.key.kid, claims, self._identity.key.sign)

    async def _discover(self, request: frames.Request) -> None:
        """Ask for a challenge, as the client that sends this request would."""
        given = (request.params or {}).get("_meta")
        meta = {name: given[name] for name in (VERSION_KEY, CAPABILITIES_KEY) if isinstance(given, dict) and name in given}
        self._discovery, self._told = f"{NAME}-{secrets.token_hex(16)}", anyio.Event()
        discovery = frames.Request(self._discovery, "server/discover", {"_meta": meta})
        await self._send(_message(discovery, discovery.params), self._heads(discovery))
        with anyio.move_on_after(CHALLENGE_S):
            await self._told.wait()
        self._discovery = None

    async def _again(self, asked: _Asked, message: Mapping[str, Any]) -> bool:
        """Whether a refusal was of the signature's age only, and the request is sent again with a new one."""
        data = (message.get("error") or {}).get("data")
        if not isinstance(data, dict) or data.get("reason") not in _AGAIN or asked.tries != 1:
            return False
        await self._signed(asked)
        return True

    def _note(self, request: frames.Request, message: Mapping[str, Any]) -> None:
        """Take what we must know from an answer."""
        self._learn(message)
        result = message.get("result")
        if not isinstance(result, dict):
            return
        if request.method == "initialize" and isinstance(result.get("protocolVersion"), str):
            self._version = result["protocolVersion"]
        if request.method == "tools/list" and isinstance(result.get("tools"), list):
            for tool in result["tools"]:
                if len(self._schemas) < MAX_SCHEMAS and isinstance(tool, dict) and isinstance(tool.get("inputSchema"), dict):
                    self._schemas[str(tool.get("name"))] = tool["inputSchema"]

    def _learn(self, message: Mapping[str, Any]) -> None:
        result, error = message.get("result"), message.get("error")
        held = result.get("_meta") if isinstance(result, dict) else error.get("data") if isinstance(error, dict) else None
        found = held.get(CHALLENGE_KEY) if isinstance(held, dict) else None
        if isinstance(found, dict) and isinstance(found.get("challenge"), str):
            self._challenge = found

    def _heads(self, request: frames.Request | None) -> dict[str, str]:
        """What of a message stands in its head as well: of an older session its revision, of a request of 2026-07-28 its names."""
        params = (None if request is None else request.params) or {}
        meta = params.get("_meta")
        version = meta.get(VERSION_KEY) if isinstance(meta, dict) else None
        if request is None or not isinstance(version, str):
            return {} if self._version is None else {"mcp-protocol-version": self._version}
        heads = {"mcp-protocol-version": version, "mcp-method": request.method}
        name = params.get(inbound.NAME_BEARING_METHODS.get(request.method, ""))
        if isinstance(name, str):
            heads["mcp-name"] = inbound.encode_header_value(name)
        schema = self._schemas.get(str(name)) if request.method == "tools/call" else None
        if schema is not None and inbound.find_invalid_x_mcp_header(schema) is None:
            heads |= inbound.mcp_param_headers(inbound.x_mcp_header_map(schema), params.get("arguments") or {})
        return heads

    async def _refuse(self, request: frames.Request, why: str) -> None:
        _log.warning("%s", why)
        error = {"code": INVALID_REQUEST, "message": f"{NAME} sign-proxy: {why}"}
        await self._say({"jsonrpc": "2.0", "id": request.id, "error": error})

    async def _send(self, message: dict[str, Any], heads: dict[str, str]) -> None:
        async with self._sending:  # what is sent again is sent by who reads
            await self._way(message, heads)

    async def _say(self, message: Mapping[str, Any]) -> None:
        async with self._writing:
            await self._sink.send(strict_json.dumps(message))


@asynccontextmanager
async def over_http(url: str, token: str | None, trusted: ssl.SSLContext) -> AsyncIterator[Way]:
    """The way to a gateway over Streamable HTTP, by the SDK's client. Raises OSError or httpx2.HTTPError, in groups."""
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    async def told(response: httpx2.Response) -> None:
        if (status := response.status_code) in (401, 403, 404, 421):
            _log.warning("the gateway answers HTTP %d: check --url, --token-file and the gateway's allowed hosts", status)

    heads = {} if token is None else {"Authorization": f"Bearer {token}"}
    timeout = httpx2.Timeout(30.0, read=None)  # a call may take its time, and a listening client waits for ever
    async with (
        httpx2.AsyncClient(headers=heads, verify=trusted, timeout=timeout, event_hooks={"response": [told]}) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=None) as (received, sent),
    ):

        async def send(message: dict[str, Any], more: dict[str, str]) -> None:
            made = mcp_types.jsonrpc_message_adapter.validate_python(message, by_name=False)
            await sent.send(SessionMessage(made, metadata=ClientMessageMetadata(headers=more)))

        async def messages() -> AsyncIterator[dict[str, Any]]:
            async for each in received:
                if isinstance(each, SessionMessage):
                    yield as_sent(each.message)
                else:
                    _log.warning("what the gateway sent cannot be read: %s", type(each).__name__)

        yield send, messages()


@asynccontextmanager
async def over_unix(path: str) -> AsyncIterator[Way]:
    """The way to a gateway on a unix socket: a message a line. Raises OSError."""
    async with await anyio.connect_unix(path) as stream:
        fd: int = stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno()  # noqa: S610 - anyio's, not Django's
        sink = FrameSink(fd)

        async def send(message: dict[str, Any], _more: dict[str, str]) -> None:
            await sink.send(strict_json.dumps(message))

        async def messages() -> AsyncIterator[dict[str, Any]]:
            async for line in read_frames(fd, 2**26):
                if line is not None:
                    yield strict_json.parse(line, repair_surrogates=True)

        try:
            yield send, messages()
        finally:
            sink.close()


def _message(request: frames.Request, params: Mapping[str, Any] | None) -> dict[str, Any]:
    made = {"jsonrpc": "2.0", "id": request.id, "method": request.method}
    return made if params is None else {**made, "params": dict(params)}
