"""The conversation with a server inside a box: one request of a client's, or one reading of what the server has.

Invariants (rule 9): ids and progress tokens are ours and random, so a line that something in the box writes to the
inherited standard output cannot pass for an answer; whatever does not match is dropped and counted. `_meta` is made
here from nothing, so no proof, token or header of the client's goes upstream. Of a server's own requests we answer
`ping` and `roots/list`, which shows /workspace and nothing else; what it asks the client goes through `relay`, which
refuses unless the profile allows it (rule 8), and its box stands still for as long as that takes. The conversation
ends with the answer: nobody waits for the server to shut down, its box is removed.

A modern server (2026-07-28) takes a call in one message. An older one wants its handshake first. Which of the two a
server is, the reading of its list finds out, once.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from fumehood.execution import Parking, Streams
from fumehood.faults import ExchangeFailed
from fumehood.gateway import frames, long, strict_json
from fumehood.gateway.long import Long
from fumehood.gateway.protocol import (
    CAPABILITIES_KEY,
    CLIENT_INFO_KEY,
    HANDSHAKE_VERSIONS,
    LOG_LEVEL_KEY,
    METHOD_NOT_FOUND,
    MODERN_VERSIONS,
    NAME,
    VERSION_KEY,
    Era,
    ServerError,
    printable,
)
from fumehood.memory import Memory
from fumehood.reasons import Reason

MAX_STRAY_FRAMES = 10_000
MAX_FRAMES = 100_000
MAX_SERVER_REQUESTS = 100
MAX_PROGRESS = 10_000
MAX_MESSAGE_CHARS = 4096
PROBE_S = 5.0
MAX_ROUNDS = 100
# Messages of the protocol that nobody asked for.
UNHEARD = frozenset({"notifications/cancelled", "notifications/elicitation/complete"})
RELISTED = frozenset(
    {
        "notifications/tools/list_changed",
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
    }
)
ROOTS = "roots/list"
ASKING = frozenset({"elicitation/create", "sampling/createMessage"})

Questions = Mapping[str, Mapping[str, Any]]


class Relay(Protocol):
    """What of a server's own messages reaches its client. `Silent` lets nothing through."""

    @property
    def wants_progress(self) -> bool:
        """Whether the client asked for progress."""
        ...

    @property
    def asks_for_roots(self) -> bool:
        """Whether the client is asked before a server is shown its workspace."""
        ...

    async def progress(self, told: dict[str, Any]) -> None:
        """A report of progress, checked."""
        ...

    async def message(self, params: Mapping[str, Any]) -> None:
        """A line of the server's log."""
        ...

    async def updated(self, uri: str) -> None:
        """A resource that the server says has changed."""
        ...

    async def relisted(self) -> None:
        """The server says that one of its lists has changed."""
        ...

    async def ask(self, streams: Parking, questions: Questions) -> dict[str, Any]:
        """The client's answers, by the questions' names; the box is parked meanwhile. Raises `ExchangeFailed`."""
        ...


class Silent:
    """A conversation without a client: the reading of a catalogue, the greeting of a session."""

    wants_progress = False
    asks_for_roots = False

    async def progress(self, told: dict[str, Any]) -> None:
        """Drop it."""

    async def message(self, params: Mapping[str, Any]) -> None:
        """Drop it."""

    async def updated(self, uri: str) -> None:
        """Drop it."""

    async def relisted(self) -> None:
        """Drop it."""

    async def ask(self, streams: Parking, questions: Questions) -> dict[str, Any]:  # noqa: ARG002 - the protocol's
        """Refuse."""
        raise ExchangeFailed(Reason.INPUT_REQUIRED, "nobody is there to be asked")


class ServerAnsweredError(ExchangeFailed):
    """The server answered with a JSON-RPC error, which is `value`."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        """Carry its code and, fit for one line, its message."""
        code, message = error.get("code"), error.get("message")
        self.code = code if type(code) is int else 0
        super().__init__(Reason.SERVER_ERROR, f"{self.code}: {printable(str(message))}")
        self.value = ServerError(self.code, str(message), error.get("data"))


@dataclass(frozen=True, slots=True)
class Said:
    """What a request gave: the server's result as it came, and how many lines belonged to nothing.

    Of a `long` one there is only what is kept of it: `result` is empty.
    """

    result: dict[str, Any]
    stray_frames: int
    long: Long | None = None


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """What an upstream server is told about its client: the capabilities exactly as declared, and no name but ours."""

    capabilities: Mapping[str, Any]
    workspace: bool = False
    log_level: str | None = None

    @property
    def info(self) -> dict[str, Any]:
        """Who we say we are. Never the client's own name: it would make the pinned list vary with it."""
        return {"name": NAME, "version": "1"}


@dataclass(frozen=True, slots=True)
class Spill:
    """What becomes of an answer over `limits.result`: `keep` is given it when it is ours. Raises `ExchangeFailed`."""

    most_bytes: int
    keep: Callable[[Memory, Long], Awaitable[None]]


class Conversation:
    """One server's messages. One request at a time."""

    def __init__(self, streams: Streams, client: ClientFacts, relay: Relay | None = None) -> None:
        """Talk over `streams` on behalf of `client`; what the server says by the way goes to `relay`."""
        self._streams = streams
        self._client = client
        self._relay: Relay = Silent() if relay is None else relay
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
            if self._client.log_level is not None:
                meta[LOG_LEVEL_KEY] = self._client.log_level
        if self._relay.wants_progress:
            meta["progressToken"] = self._token
        return meta

    async def notify(self, method: str) -> None:
        """Send a notification."""
        await self._streams.send(strict_json.dumps({"jsonrpc": "2.0", "method": method}))

    async def request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and read until its answer. Raises `ExchangeFailed`."""
        answer = await self.request_long(method, params, None)
        assert not isinstance(answer, Long)  # noqa: S101 - nothing spills without a `Spill`
        return answer

    async def request_long(self, method: str, params: Mapping[str, Any], spill: Spill | None) -> dict[str, Any] | Long:
        """As `request`; with `spill`, an answer that is too long is kept and only told of. Raises `ExchangeFailed`."""
        number = secrets.token_hex(16)
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        try:
            await self._streams.send(strict_json.dumps(message))
            while True:
                line = await (self._streams.receive() if spill is None else self._streams.receive_long(spill.most_bytes))
                if isinstance(line, Memory):
                    assert spill is not None  # noqa: S101 - as above
                    # Ours, or the end: a second one there is not, so what a conversation spills is bounded.
                    with line:
                        found = await long.find(line, number, _MEMBER[method])
                        await spill.keep(line, found)
                    return found
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
                self._relay.wants_progress and params.get("progressToken") == self._token
            ):
                await self._report(params)
            case frames.Notification(method="notifications/message", params=dict() as params):
                self._understood = True
                await self._relay.message(self._streams.passing(params))
            case frames.Notification(method="notifications/resources/updated", params={"uri": str() as uri}):
                self._understood = True
                await self._relay.updated(uri)
            case frames.Notification(method=method) if method in RELISTED:
                self._understood = True
                await self._relay.relisted()
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
        elif request.method == ROOTS and not self._relay.asks_for_roots:
            reply["result"] = self._roots()
        elif request.method in ASKING | {ROOTS}:
            try:
                question = {"method": request.method, "params": request.params or {}}
                name = request.method.partition("/")[0]
                reply["result"] = (await self._put({name: question}))[name]
            except ExchangeFailed as error:
                if error.reason is not Reason.INPUT_REQUIRED:
                    raise
                # The server goes on without an answer; that it asked is its own affair.
                reply["error"] = {"code": METHOD_NOT_FOUND, "message": error.detail or error.reason.meaning}
        else:
            reply["error"] = {"code": METHOD_NOT_FOUND, "message": f"{NAME} knows no request {printable(request.method, 80)!r}"}
        await self._streams.send(strict_json.dumps(reply))

    async def answers(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The client's answers to an `input_required` result, as the parameters of the next round have them."""
        questions, state = result.get("inputRequests"), result.get("requestState")
        if questions is None and isinstance(state, str):
            return {"requestState": state}  # it only wants to be asked again
        if not isinstance(questions, dict) or not all(_is_question(each) for each in questions.values()):
            raise ExchangeFailed(Reason.SERVER_GARBAGE, "what it asks for is no question")
        ours = set() if self._relay.asks_for_roots else {name for name, each in questions.items() if each["method"] == ROOTS}
        answers: dict[str, Any] = {name: self._roots() for name in ours}
        if wanted := {name: each for name, each in questions.items() if name not in ours}:
            answers |= await self._put(wanted)
        return {"inputResponses": answers} | ({"requestState": state} if isinstance(state, str) else {})

    async def _put(self, questions: Questions) -> dict[str, Any]:
        """The client's answers as the server may have them: of its roots no more than whether there are any (rule 8)."""
        answers = await self._relay.ask(self._streams, {name: self._streams.passing(each) for name, each in questions.items()})
        for name, each in questions.items():
            if each["method"] == ROOTS:
                answers[name] = self._roots(shown=bool(answers[name].get("roots")))
        return answers

    def _roots(self, *, shown: bool = True) -> dict[str, Any]:
        return {"roots": [{"uri": "file:///workspace", "name": "workspace"}] if shown and self._client.workspace else []}

    async def _report(self, params: Mapping[str, Any]) -> None:
        self._understood = True
        self._reported += 1
        done, total, message = params.get("progress"), params.get("total"), params.get("message")
        if self._reported > MAX_PROGRESS or not _number(done):
            return
        told: dict[str, Any] = {"progress": done}
        if _number(total):
            told["total"] = total
        if isinstance(message, str) and len(message) <= MAX_MESSAGE_CHARS:
            told["message"] = self._streams.passing(message)
        await self._relay.progress(told)

    def _explained(self, error: ExchangeFailed) -> ExchangeFailed:
        if error.reason is not Reason.SERVER_DIED or self._understood or not self.stray_frames:
            return error
        quoted = printable(self._first_stray.decode("utf-8", "replace"))
        return ExchangeFailed(Reason.SERVER_GARBAGE, f"it ended after writing {quoted!r}")


def _is_question(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("method") in ASKING | {ROOTS}
        and isinstance(value.get("params", {}), dict)
    )


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a server says of itself: the era that it speaks, and the capabilities that it declares."""

    era: Era
    capabilities: Mapping[str, Any]


async def discover(conversation: Conversation, client: ClientFacts) -> Greeting:
    """Find out whether the server speaks 2026-07-28, and be ready to ask it for what it has.

    The probe is `server/discover`; an error, or silence, leads to the handshake. A modern server that was only slow
    refuses the handshake by naming the modern revision.
    """
    with anyio.move_on_after(PROBE_S):
        if (found := await _probe(conversation)) is not None:
            return found
    return await greeted(conversation, client)


async def greeted(conversation: Conversation, client: ClientFacts) -> Greeting:
    """Open the conversation by the handshake, unless the server knows only 2026-07-28."""
    try:
        return await shake_hands(conversation, client, HANDSHAKE_VERSIONS[-1])
    except ServerAnsweredError:
        if (found := await _probe(conversation)) is not None:
            return found
        raise


async def _probe(conversation: Conversation) -> Greeting | None:
    try:
        found = await conversation.request("server/discover", {"_meta": conversation.envelope(modern=True)})
    except ServerAnsweredError:
        return None
    versions = found.get("supportedVersions")
    if isinstance(versions, list) and MODERN_VERSIONS[-1] in versions:
        return Greeting(Era(MODERN_VERSIONS[-1]), _map(found.get("capabilities")))
    return None


async def shake_hands(conversation: Conversation, client: ClientFacts, version: str) -> Greeting:
    """Open a conversation of the older kind, offering `version`."""
    offer = {"protocolVersion": version, "capabilities": client.capabilities, "clientInfo": client.info}
    answer = await conversation.request("initialize", offer)
    chosen = answer.get("protocolVersion")
    if chosen not in HANDSHAKE_VERSIONS:
        detail = f"it wants the unknown revision {printable(str(chosen))!r}"
        raise ExchangeFailed(Reason.SERVER_GARBAGE, detail)
    await conversation.notify("notifications/initialized")
    return Greeting(Era(chosen), _map(answer.get("capabilities")))


async def greet(streams: Streams, *, client: ClientFacts, era: Era) -> None:
    """Open the conversation with a server whose era is known; a modern one needs no opening. Raises `ExchangeFailed`."""
    if not era.modern:
        await shake_hands(Conversation(streams, client), client, era.version)


async def awaken(streams: Streams, *, client: ClientFacts, era: Era) -> None:
    """As `greet`, and return when a server that needs no opening has answered once, too. Raises `ExchangeFailed`."""
    conversation = Conversation(streams, client)
    if not era.modern:
        await shake_hands(conversation, client, era.version)
    elif await _probe(conversation) is None:
        raise ExchangeFailed(Reason.SERVER_GARBAGE, "it does not speak the revision that it spoke before")
    if conversation.stray_frames:
        raise ExchangeFailed(Reason.NOT_QUIET, "it wrote lines that are no messages")


async def request(
    streams: Streams,
    *,
    client: ClientFacts,
    greeting: Greeting,
    method: str,
    params: Mapping[str, Any],
    relay: Relay,
    greeted: bool = False,
    spill: Spill | None = None,
) -> Said:
    """Make one request, through as many rounds as the server and the profile want. Raises `ExchangeFailed`."""
    conversation = Conversation(streams, client, relay)
    era = greeting.era
    if not era.modern:
        if not greeted:
            await shake_hands(conversation, client, era.version)
        if client.log_level is not None and "logging" in greeting.capabilities:
            await conversation.request("logging/setLevel", {"level": client.log_level})
    told: Mapping[str, Any] = params
    for _ in range(MAX_ROUNDS):
        meta = conversation.envelope(modern=era.modern)
        result = await conversation.request_long(method, {**told, "_meta": meta} if meta else told, spill)
        if isinstance(result, Long):
            return Said({}, conversation.stray_frames, result)
        match result.get("resultType", "complete"):
            case "complete":
                if not isinstance(result.get(_MEMBER[method], _ABSENT), _SHAPE[method]):
                    break
                return Said(result, conversation.stray_frames)
            case "input_required" if method in _MAY_ASK:
                told = {**params, **await conversation.answers(result)}
            case _:
                break
    else:
        raise ExchangeFailed(Reason.INPUT_REQUIRED, f"it asked more than {MAX_ROUNDS} times")
    raise ExchangeFailed(Reason.SERVER_GARBAGE, f"its answer is no result of {method}")


_MAY_ASK = frozenset({"tools/call", "prompts/get", "resources/read"})
_ABSENT = object()
# The member by which a result is known for what it is; an empty result has none.
_MEMBER = {
    "tools/call": "content",
    "prompts/get": "messages",
    "resources/read": "contents",
    "completion/complete": "completion",
    "resources/subscribe": "",
    "resources/unsubscribe": "",
}
_SHAPE: Mapping[str, type] = {
    "tools/call": list,
    "prompts/get": list,
    "resources/read": list,
    "completion/complete": dict,
    "resources/subscribe": object,
    "resources/unsubscribe": object,
}


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
