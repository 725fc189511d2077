"""The conversation with a server inside a box: one call of a tool, or one reading of its list of tools.

Invariants (rule 9): ids and progress tokens are ours and random, so a line that something in the box writes to the
inherited standard output cannot pass for an answer; whatever does not match is dropped and counted. `_meta` is made
here from nothing, so no proof, token or header of the client's goes upstream. A server's own requests are refused,
except `ping` and `roots/list`, which shows /workspace and nothing else (rule 8). The conversation ends with the answer:
nobody waits for the server to shut down, its box is removed.

A modern server (2026-07-28) takes a call in one message. An older one wants its handshake first. Which of the two a
server is, the reading of its list finds out, once.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel

from fumehood.execution import ServerStreams
from fumehood.faults import ExchangeFailed
from fumehood.gateway import frames, strict_json
from fumehood.gateway.protocol import (
    CAPABILITIES_KEY,
    CLIENT_INFO_KEY,
    HANDSHAKE_VERSIONS,
    METHOD_NOT_FOUND,
    MODERN_VERSIONS,
    NAME,
    UNSUPPORTED_VERSION,
    VERSION_KEY,
    Era,
    printable,
)
from fumehood.reasons import Reason

MAX_STRAY_FRAMES = 10_000
MAX_FRAMES = 100_000
MAX_SERVER_REQUESTS = 100
MAX_PROGRESS = 10_000
MAX_MESSAGE_CHARS = 4096
PROBE_S = 5.0
# Messages of the protocol that nobody asked for: the list is pinned, and we declare no wish for logs.
UNHEARD = frozenset(
    {
        "notifications/message",
        "notifications/cancelled",
        "notifications/tools/list_changed",
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
        "notifications/resources/updated",
    }
)

Progress = Callable[[dict[str, Any]], Awaitable[None]]


class ServerAnsweredError(ExchangeFailed):
    """The server answered with a JSON-RPC error."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        """Carry its code and, fit for one line, its message."""
        code, message = error.get("code"), error.get("message")
        self.code = code if type(code) is int else 0
        super().__init__(Reason.SERVER_ERROR, f"{self.code}: {printable(str(message))}")


@dataclass(frozen=True, slots=True)
class Said:
    """What a call of a tool gave: the server's result as it came, and how many lines belonged to nothing."""

    result: dict[str, Any]
    stray_frames: int


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """What an upstream server is told about its client: the capabilities exactly as declared, and no name but ours."""

    capabilities: Mapping[str, Any]
    workspace: bool = False

    @property
    def info(self) -> dict[str, Any]:
        """Who we say we are. Never the client's own name: it would make the pinned list vary with it."""
        return {"name": NAME, "version": "1"}


class Conversation:
    """One server's messages. One request at a time."""

    def __init__(self, streams: ServerStreams, client: ClientFacts, progress: Progress | None = None) -> None:
        """Talk over `streams` on behalf of `client`; `progress` receives the parameters of progress notifications."""
        self._streams = streams
        self._client = client
        self._progress = progress
        self._token = secrets.token_hex(16)
        self._frames = 0
        self._reported = 0
        self._asked = 0
        self._understood = False
        self._first_stray = b""
        self.stray_frames = 0

    def envelope(self, *, modern: bool) -> dict[str, Any]:
        """A request's `_meta`: the protocol's own members and our progress token, made from nothing of the client's."""
        meta: dict[str, Any] = {}
        if modern:
            meta[VERSION_KEY] = MODERN_VERSIONS[-1]
            meta[CAPABILITIES_KEY] = dict(self._client.capabilities)
            meta[CLIENT_INFO_KEY] = self._client.info
        if self._progress is not None:
            meta["progressToken"] = self._token
        return meta

    async def notify(self, method: str) -> None:
        """Send a notification."""
        await self._streams.send(strict_json.dumps({"jsonrpc": "2.0", "method": method}))

    async def request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and read until its answer. Raises `ExchangeFailed`."""
        number = secrets.token_hex(16)
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        try:
            await self._streams.send(strict_json.dumps(message))
            while True:
                line = await self._streams.receive()
                if (answer := await self._take(line, number)) is not None:
                    break
                self._frames += 1
                if self._frames > MAX_FRAMES:
                    raise ExchangeFailed(Reason.SERVER_GARBAGE, f"more than {MAX_FRAMES} messages and no answer")
                # A server that writes without end must not keep the others' cancellations waiting.
                await anyio.lowlevel.checkpoint()
        except ExchangeFailed as error:
            raise self._explained(error) from error
        if answer.error is not None:
            raise ServerAnsweredError(answer.error)
        return answer.result or {}

    async def _take(self, line: bytes, number: str) -> frames.Answer | None:
        try:
            message = frames.read(line, repair_surrogates=True)
        except frames.FrameError as error:
            # Nobody else knows the number, so this was the answer, and no other will come.
            if number.encode() in line:
                raise ExchangeFailed(Reason.SERVER_GARBAGE, f"its answer is unusable: {error.message}") from error
            self._drop(line)
            return None
        match message:
            case frames.Answer(id=found) if found == number:
                self._understood = True
                return message
            case frames.Request():
                await self._refuse_or_answer(message)
            case frames.Notification(method="notifications/progress", params=dict() as params) if (
                self._progress is not None and params.get("progressToken") == self._token
            ):
                await self._report(self._progress, params)
            case frames.Notification(method=method) if method in UNHEARD:
                self._understood = True
            case _:
                self._drop(line)
        return None

    def _drop(self, line: bytes) -> None:
        self.stray_frames += 1
        self._first_stray = self._first_stray or line[:400]
        if self.stray_frames > MAX_STRAY_FRAMES:
            raise ExchangeFailed(Reason.SERVER_GARBAGE, f"more than {MAX_STRAY_FRAMES} lines that answer nothing")

    async def _refuse_or_answer(self, request: frames.Request) -> None:
        self._understood = True
        self._asked += 1
        if self._asked > MAX_SERVER_REQUESTS:
            raise ExchangeFailed(Reason.SERVER_GARBAGE, f"more than {MAX_SERVER_REQUESTS} requests of its own")
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request.id}
        if request.method == "ping":
            reply["result"] = {}
        elif request.method == "roots/list":
            root = {"uri": "file:///workspace", "name": "workspace"}
            reply["result"] = {"roots": [root] if self._client.workspace else []}
        else:
            reply["error"] = {"code": METHOD_NOT_FOUND, "message": f"{NAME} does not let servers ask their clients"}
        await self._streams.send(strict_json.dumps(reply))

    async def _report(self, progress: Progress, params: Mapping[str, Any]) -> None:
        self._understood = True
        self._reported += 1
        done, total, message = params.get("progress"), params.get("total"), params.get("message")
        if self._reported > MAX_PROGRESS or not _number(done):
            return
        told: dict[str, Any] = {"progress": done}
        if _number(total):
            told["total"] = total
        if isinstance(message, str) and len(message) <= MAX_MESSAGE_CHARS:
            told["message"] = message
        await progress(told)

    def _explained(self, error: ExchangeFailed) -> ExchangeFailed:
        if error.reason is not Reason.SERVER_DIED or self._understood or not self.stray_frames:
            return error
        quoted = printable(self._first_stray.decode("utf-8", "replace"))
        return ExchangeFailed(Reason.SERVER_GARBAGE, f"it ended after writing {quoted!r}")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


async def discover(conversation: Conversation, client: ClientFacts) -> Era:
    """Find out which era the server speaks, and be ready to ask it for its tools.

    The probe is the modern `server/discover`; an error, or silence, leads to the handshake. A modern server that was
    only slow refuses the handshake by naming the modern revision.
    """
    probe = {"_meta": conversation.envelope(modern=True)}
    with anyio.move_on_after(PROBE_S):
        try:
            found = await conversation.request("server/discover", probe)
        except ServerAnsweredError:
            found = {}
        versions = found.get("supportedVersions")
        if isinstance(versions, list) and MODERN_VERSIONS[-1] in versions:
            return Era(MODERN_VERSIONS[-1])
    try:
        return await shake_hands(conversation, client, HANDSHAKE_VERSIONS[-1])
    except ServerAnsweredError as error:
        if error.code != UNSUPPORTED_VERSION:
            raise
        return Era(MODERN_VERSIONS[-1])


async def shake_hands(conversation: Conversation, client: ClientFacts, version: str) -> Era:
    """Open a conversation of the older kind, offering `version`."""
    offer = {"protocolVersion": version, "capabilities": client.capabilities, "clientInfo": client.info}
    chosen = (await conversation.request("initialize", offer)).get("protocolVersion")
    if chosen not in HANDSHAKE_VERSIONS:
        detail = f"it wants the unknown revision {printable(str(chosen))!r}"
        raise ExchangeFailed(Reason.SERVER_GARBAGE, detail)
    await conversation.notify("notifications/initialized")
    return Era(chosen)


async def call_tool(
    streams: ServerStreams,
    *,
    client: ClientFacts,
    era: Era,
    name: str,
    arguments: Mapping[str, Any],
    progress: Progress | None,
) -> Said:
    """Call one tool. Raises `ExchangeFailed`."""
    conversation = Conversation(streams, client, progress)
    if not era.modern:
        await shake_hands(conversation, client, era.version)
    params: dict[str, Any] = {"name": name, "arguments": arguments}
    if meta := conversation.envelope(modern=era.modern):
        params["_meta"] = meta
    result = await conversation.request("tools/call", params)
    kind = result.get("resultType", "complete")
    if kind == "input_required":
        raise ExchangeFailed(Reason.INPUT_REQUIRED)
    if kind != "complete" or not isinstance(result.get("content"), list):
        raise ExchangeFailed(Reason.SERVER_GARBAGE, "its answer is no result of a tool")
    return Said(result, conversation.stray_frames)
