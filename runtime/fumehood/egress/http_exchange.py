"""One request and its answer, passed on in both directions at once: bodies as they come, in memory that does not grow with them.

Invariants: every byte is counted before it goes on; what a client sends is looked at for placeholders, and what comes back from a
server that was sent a credential is scrubbed; an answer that breaks off breaks off for the client too, never ends as if it were whole.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import h11

from fumehood.egress import inject
from fumehood.egress.http_judge import FORBIDDEN, MALFORMED, MAX_HEAD_BYTES, Headers, Place, Refusal, Request
from fumehood.egress.http_stream import Stream
from fumehood.egress.inject import CannotInject, Placeholders
from fumehood.egress.names import Route
from fumehood.egress.refusals import Why
from fumehood.egress.scrub import Scrubber
from fumehood.egress.task import GateTask
from fumehood.egress.websocket import is_agreed
from fumehood.model import OnSecret
from fumehood.reach import CredentialUse, Scheme, Secret
from fumehood.screening.flowing import Flow
from fumehood.screening.judging import bodies_rule, heard_in
from fumehood.screening.search import spans
from fumehood.screening.spellings import Spellings

CREDENTIAL_GONE = Why("credential_gone", "the credential is not live", "Ask again while a call is under way.")
CREDENTIAL_UNFIT = Why(
    "credential_unfit",
    "the credential cannot be written into this request",
    "Correct its use in the profile, or the request.",
)
BAD_UPSTREAM = Why(
    "http_upstream", "the server's answer is not HTTP/1.1 that can be passed on", "Report it to the server's operator."
)

SECRET_IN_REQUEST = Why(
    "secret_in_request",
    "a secret in a request that a credential is written into",
    "Leave it out; if it is none, name its rule and tool in `secrets.allow` of the profile.",
)

BAD_GATEWAY = 502
_SPELLINGS = "http.spellings"
SIGNED_BODY_BYTES = 4 * 2**20
_BODY_ENDS_S = 1.0
_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"te", b"trailer", b"upgrade", b"transfer-encoding",
     b"alt-svc"}  # it points clients at HTTP/3, which has no way out
)  # fmt: skip


class NotAnswered(Exception):
    """A request that gets a refusal for an answer, as far as none has begun."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.cause.code)
        self.refusal = refusal


class _ClientGone(ConnectionResetError):
    """The box's side ended too early."""


class Exchange:
    """One request of a box on its way. `wire` is h11's view of the client, with the request's body still in it."""

    def __init__(
        self, request: Request, wire: h11.Connection, use: CredentialUse | None, placeholders: Placeholders,
        route: Route, task: GateTask,
    ) -> None:  # fmt: skip
        self.answered = False
        self._request = request
        self._wire = wire
        self._up = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._use = use
        self._placeholders = placeholders
        self._route = route
        self._place = Place(name=route.name, port=route.port, rule=route.rule)
        self._task = task
        self._scrubber: Scrubber | None = None
        secrets = task.profile.secrets
        self._heard = heard_in(secrets, secrets.bodies, task.tool)
        self._flow = None if use is None else Flow(task.known, lambda rule: self._heard(rule, ""), keeps_length=True)
        self._due: list[h11.Event] = []
        self._ahead: list[h11.Event] = []
        self._corked: list[bytes] = []  # of the answer: goes out with what has come with it already
        self._looked = 0
        self._tail = b""
        self._status: int | None = None
        self._sent = self._received = 0
        self._unscrubbed: str | None = None

    def judge(self) -> None:
        """Refuse what only this box's placeholders tell, and secrets beside the credential. Raises NotAnswered."""
        if refused := self._placeholders.misplaced(self._request, self._use):
            raise NotAnswered(refused)
        if self._use is None:
            return
        for where, text in inject.beside(self._request, self._use):
            for span in spans(text, self._task.known):
                # Also where secrets are to be redacted: a head was judged, and is not changed afterwards.
                if self._heard(span.rule, ""):
                    raise self._refused(SECRET_IN_REQUEST, f"{span.rule} in {where}")

    async def run(self, inside: Stream, outside: Stream) -> bytes | None:
        """Pass request and answer on; what came of the next request, None when the connection must end.

        Raises NotAnswered, Rejected, OSError, h11.ProtocolError.
        """
        self._inside, self._outside = inside, outside
        try:
            await self._send_head()
            if self._request.length == 0:
                self._wire.next_event()
                await self._send([self._up.send(h11.EndOfMessage()) or b""])
                switched = await self._answer()
            else:
                switched = await self._both_ways()
            if switched:
                await self._relay()
                return None
        finally:
            self._note()
        return self._leftover()

    def reusable(self) -> bool:
        """Whether the upstream connection may take another request: it said what it was asked for, and nothing else."""
        return self._up.our_state is h11.DONE and self._up.their_state is h11.DONE and not self._up.trailing_data[0]

    def _leftover(self) -> bytes | None:
        if self._wire.our_state is h11.DONE and self._wire.their_state is h11.DONE:
            return self._wire.trailing_data[0]
        return None

    # Out of the box.

    async def _send_head(self) -> None:
        request = self._request
        target, headers = request.target, request.headers
        if self._use is not None:
            target, headers = await self._with_credential(self._use)
        framing = [(b"host", self._place.host)]
        if request.length is None:
            framing.append((b"transfer-encoding", b"chunked"))
        if request.key is not None:
            framing += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
        event = h11.Request(method=request.method, target=target, headers=[*framing, *headers])
        await self._send([self._up.send(event) or b""])

    async def _with_credential(self, use: CredentialUse) -> tuple[bytes, Headers]:
        is_signed = use.scheme is Scheme.SIGV4
        digest = await self._digest() if is_signed else None
        # Read at the last moment, with nothing awaited between here and the write: a lease may end at any other.
        secret = self._task.leases.secret(use.name)
        if secret is None:
            self._task.holdings.pop(_SPELLINGS, None)
            raise self._refused(CREDENTIAL_GONE, use.name)
        self._scrubber = Scrubber(self._spellings(use, secret))
        try:
            if is_signed:
                return self._request.target, inject.signed(self._request, secret, self._place.host, digest)
            return inject.written(self._request, use, secret)
        except CannotInject as error:
            raise self._refused(CREDENTIAL_UNFIT, str(error)) from error

    def _spellings(self, use: CredentialUse, secret: Secret) -> Spellings:
        # Kept with the box's gate, for the one secret that a credential is at a time: the next replaces it.
        kept = self._task.holdings.setdefault(_SPELLINGS, {})
        if use.name not in kept or kept[use.name][0] is not secret:
            kept[use.name] = (secret, inject.spellings(use, secret, self._placeholders.token(use.name)))
        found: Spellings = kept[use.name][1]
        return found

    def _refused(self, why: Why, detail: str) -> NotAnswered:
        return NotAnswered(Refusal(FORBIDDEN, why, detail, self._request.asked))

    async def _digest(self) -> str | None:
        """The body's digest, where SigV4 needs it and the client does not say it (what it says, the server checks)."""
        try:
            if not inject.needs_digest(self._request, self._place.host):
                return None
        except CannotInject as error:
            raise self._refused(CREDENTIAL_UNFIT, str(error)) from error
        digest, size = hashlib.sha256(), 0
        if self._wire.they_are_waiting_for_100_continue:
            await self._tell(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        while True:
            event = await self._next_screened()
            self._ahead.append(event)
            if not isinstance(event, h11.Data):
                return digest.hexdigest()
            digest.update(event.data)
            size += len(event.data)
            if size > SIGNED_BODY_BYTES:
                raise self._refused(
                    CREDENTIAL_UNFIT, f"a body over {SIGNED_BODY_BYTES} bytes whose digest the client does not say"
                )

    async def _next_from_client(self) -> h11.Event:
        while True:
            try:
                event = self._wire.next_event()
            except h11.RemoteProtocolError as error:
                refusal = Refusal(400, MALFORMED, "the body's framing", self._request.asked)
                raise NotAnswered(refusal) from error
            if event is h11.NEED_DATA:
                self._wire.receive_data(await self._inside.read())
            elif isinstance(event, h11.Data | h11.EndOfMessage):
                return event
            else:
                raise _ClientGone("the client ended in the middle of a request")

    async def _next_screened(self) -> h11.Event:
        """The next of the body without secrets, as long as it was; nothing, where the profile refuses them. Raises NotAnswered."""
        if self._due:
            return self._due.pop(0)
        event = await self._next_from_client()
        if self._flow is None:
            return event
        if isinstance(event, h11.Data):
            data = self._flow.feed(bytes(event.data))
        elif data := self._flow.end():
            self._due.append(event)
        secrets = self._task.profile.secrets
        for rule in self._flow.found:
            if bodies_rule(secrets, rule) is not OnSecret.REDACT:
                raise self._refused(SECRET_IN_REQUEST, f"{rule} in the body")
        return event if not data and not isinstance(event, h11.Data) else h11.Data(data=data)

    async def _send_body(self) -> None:
        while True:
            event = self._ahead.pop(0) if self._ahead else await self._next_screened()
            if isinstance(event, h11.Data):
                self._look_at(event.data)
                await self._send(self._up.send_with_data_passthrough(h11.Data(data=event.data)) or [])
                continue
            trailers = [] if self._use is not None else list(event.headers)  # type: ignore[attr-defined]
            for _, value in trailers:
                self._look_at(value)
            await self._send([self._up.send(h11.EndOfMessage(headers=trailers)) or b""])
            return

    def _look_at(self, data: bytes) -> None:
        """Look for placeholders in the beginning of a body. Those further on are worth nothing either: nothing swaps them."""
        if self._looked >= inject.LOOK_BYTES:
            return
        self._looked += len(data)
        text = self._tail + bytes(data)
        if refused := self._placeholders.misplaced_in(text, self._request.asked):
            raise NotAnswered(refused)
        self._tail = text[-inject.MAX_LENGTH :]

    async def _send(self, pieces: Sequence[bytes]) -> None:
        count = sum(map(len, pieces))
        if count:
            self._sent += count
            wait = self._task.sent(count)
            await self._outside.write(pieces)
            if wait:
                await asyncio.sleep(wait)

    async def _both_ways(self) -> bool:
        sending = asyncio.create_task(self._send_body())
        answering = asyncio.create_task(self._answer())
        try:
            await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() and answering.exception() is None:
                # An answer before the end of the body, often a refusal: the client may be about to end it.
                await asyncio.wait({sending}, timeout=_BODY_ENDS_S)
            failed = sending.exception() if sending.done() else None
            if failed is not None and (isinstance(failed, _ClientGone) or not isinstance(failed, OSError)):
                raise failed
            # A server that refuses a body closes its ear first: what it says counts.
            return await answering
        finally:
            for task in (sending, answering):
                task.cancel()
            await asyncio.gather(sending, answering, return_exceptions=True)

    # Into the box.

    async def _answer(self) -> bool:
        """Pass the answer on; whether the connection is a WebSocket from here on."""
        while True:
            event = self._up.next_event()
            if event is h11.NEED_DATA:
                await self._uncork()  # nothing of a stream waits for what comes after it
                data = await self._outside.read()
                if not data and self._status is None:
                    raise ConnectionResetError("the server closed without an answer")
                self._up.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return await self._switch(event)
                await self._tell(
                    h11.InformationalResponse(
                        status_code=event.status_code, headers=self._cleaned(event), reason=self._reason(event)
                    )
                )
            elif isinstance(event, h11.Response):
                self._status = event.status_code
                # Not alone: a write is half of what a small answer costs, and the client would wake up twice.
                head = h11.Response(
                    status_code=event.status_code, headers=self._cleaned(event), reason=self._reason(event)
                )
                self.answered = True
                self._corked.append(self._wire.send(head) or b"")
            elif isinstance(event, h11.Data):
                await self._pass_data(
                    bytes(event.data) if self._scrubber is None else self._scrubber.feed(bytes(event.data))
                )
            elif isinstance(event, h11.EndOfMessage):
                if self._scrubber is not None:
                    await self._pass_data(self._scrubber.end())
                await self._tell(h11.EndOfMessage(headers=[] if self._use is not None else list(event.headers)))
                await self._uncork()
                return False
            else:
                raise ConnectionResetError("the server ended in the middle of an answer")

    def _cleaned(self, event: h11.Response | h11.InformationalResponse) -> Headers:
        found = [(name, value) for name, value in event.headers if name not in _HOP]
        if any(name == b"transfer-encoding" for name, _ in event.headers):
            found = [(name, value) for name, value in found if name != b"content-length"]
        if self._scrubber is None:
            return found
        encoding = dict(found).get(b"content-encoding", b"identity").lower()
        if encoding != b"identity":
            self._unscrubbed = encoding.decode("latin-1")[:32]
        return [(name, self._scrubber.text(value)) for name, value in found]

    def _reason(self, event: h11.Response | h11.InformationalResponse) -> bytes:
        return event.reason if self._scrubber is None else self._scrubber.text(event.reason)

    async def _tell(self, event: h11.Event) -> None:
        await self._pass([self._wire.send(event) or b""])

    async def _pass_data(self, data: bytes) -> None:
        if data:
            await self._pass(self._wire.send_with_data_passthrough(h11.Data(data=data)) or [])

    async def _uncork(self) -> None:
        if self._corked:
            await self._pass([])

    async def _pass(self, pieces: Sequence[bytes]) -> None:
        if self._corked:
            pieces, self._corked = [*self._corked, *pieces], []
        count = sum(map(len, pieces))
        if count:
            self._received += count
            wait = self._task.received(count)
            await self._inside.write(pieces)
            if wait:
                await asyncio.sleep(wait)

    # A WebSocket.

    async def _switch(self, event: h11.InformationalResponse) -> bool:
        key, headers = self._request.key, list(event.headers)
        if key is None or not is_agreed(key, headers):
            raise NotAnswered(Refusal(BAD_GATEWAY, BAD_UPSTREAM, "a 101 that is no WebSocket's", self._request.asked))
        self._status = 101
        self.answered = True
        kept = [*self._cleaned(event), (b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
        await self._tell(h11.InformationalResponse(status_code=101, headers=kept, reason=self._reason(event)))
        return True

    async def _relay(self) -> None:
        """Pass frames both ways as bytes, until either side ends. What comes back is scrubbed: frames keep their lengths."""

        async def outward() -> None:
            data = self._wire.trailing_data[0]
            while data or (data := await self._inside.read()):
                await self._send([data])
                data = b""

        async def inward() -> None:
            data = self._up.trailing_data[0]
            while data or (data := await self._outside.read()):
                await self._pass([data if self._scrubber is None else self._scrubber.feed(data)])
                data = b""
            if self._scrubber is not None:
                await self._pass([self._scrubber.end()])

        ways = {asyncio.create_task(outward()), asyncio.create_task(inward())}
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in ways:
                task.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def _note(self) -> None:
        """Into the log: what was asked and answered, and whether a secret came back."""
        facts: dict[str, object] = {
            "asked": self._request.asked,
            "status": self._status,
            "sent": self._sent,
            "received": self._received,
        }
        if self._flow is not None and self._flow.found:
            self._task.log("alarm", self._route, what="secret_sent", asked=self._request.asked, found=self._flow.found)
        if self._use is not None and self._scrubber is not None:
            facts["credential"] = self._use.name
            if self._unscrubbed is not None:
                facts["unscrubbed"] = self._unscrubbed
            if self._scrubber.found:
                self._task.log(
                    "alarm",
                    self._route,
                    what="secret_echoed",
                    credential=self._use.name,
                    asked=self._request.asked,
                    found=self._scrubber.found,
                )
        self._task.log("request", self._route, **facts)
