"""What of one call's server reaches its client: progress, log lines, changed resources, and questions (rule 8).

A question is put only when the profile allows its kind and the client declared that it takes such; it is counted, it
says which server asks, and its text cannot drive a terminal, so that nobody takes it for one of ours. Which way it goes
depends on the client: an older one is sent a request, a newer one gets an `input_required` result. The server's own
era does not matter here: `exchange` makes the same questions of both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

from fumehood.execution import Parking
from fumehood.faults import ExchangeFailed
from fumehood.gateway.exchange import Questions
from fumehood.gateway.peer import Channel, Client
from fumehood.gateway.protocol import LOG_LEVELS, SERVER_KEY, GatewayError, printable
from fumehood.model import Ask
from fumehood.reasons import Reason

MAX_MESSAGES = 1000
MAX_QUESTION_CHARS = 8192
MAX_NAME_CHARS = 128
GRACE_S = 1.0
_NEEDS = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}

AskRound = Callable[[Questions], Awaitable[Mapping[str, Any]]]


class ClientRelay:
    """The relay of one call."""

    def __init__(
        self,
        client: Client,
        channel: Channel,
        *,
        server: str,
        ask: Ask,
        progress_token: str | int | None,
        log_level: str | None,
        round_trip: AskRound | None,
        on_updated: Callable[[str], None],
        on_relisted: Callable[[], None],
    ) -> None:
        """`round_trip` puts questions to a client that takes them as a result; None for one that does not."""
        self._client = client
        self._channel = channel
        self._server = server
        self._ask = ask
        self._token = progress_token
        self._level = log_level
        self._round_trip = round_trip
        self._on_updated = on_updated
        self._on_relisted = on_relisted
        self._asked = 0
        self._used: set[str] = set()
        self._messages = 0

    @property
    def wants_progress(self) -> bool:
        """Whether the client gave a token."""
        return self._token is not None

    @property
    def asks_for_roots(self) -> bool:
        """Whether the profile has the client asked, and the client has roots."""
        return self._ask.roots and isinstance(self._client.capabilities.get("roots"), dict)

    async def progress(self, told: dict[str, Any]) -> None:
        """Pass a report on under the client's own token."""
        if self._token is not None:
            await self._channel.notify("notifications/progress", {"progressToken": self._token, **told})

    async def message(self, params: Mapping[str, Any]) -> None:
        """Pass a log line on to a client that wants its level: a newer one says so in each request."""
        level = params.get("level")
        if level not in LOG_LEVELS or (self._client.era.modern and self._level is None):
            return
        if self._level is not None and LOG_LEVELS.index(level) < LOG_LEVELS.index(self._level):
            return
        self._messages += 1
        if self._messages <= MAX_MESSAGES:
            told = {name: params[name] for name in ("level", "logger", "data") if name in params}
            await self._channel.notify("notifications/message", told)

    async def updated(self, uri: str) -> None:
        """Tell whoever subscribed."""
        self._on_updated(uri)

    async def relisted(self) -> None:
        """Have its lists read again."""
        self._on_relisted()

    async def ask(self, streams: Parking, questions: Questions) -> dict[str, Any]:
        """The client's answers; the box stands still until they are there. Raises `ExchangeFailed`."""
        names = {self._name(theirs): theirs for theirs in questions}
        self._asked += len(questions)
        if self._asked > self._ask.most:
            raise ExchangeFailed(Reason.INPUT_REQUIRED, f"it asked more than {self._ask.most} questions")
        put = {ours: self._labelled(questions[theirs]) for ours, theirs in names.items()}
        self._used |= put.keys()
        if self._round_trip is None and not self._channel.can_ask:
            raise ExchangeFailed(Reason.INPUT_REQUIRED, "the client cannot be asked")
        answers: Mapping[str, Any] | None = None
        async with streams.parked(self._ask.wait_s):
            # The box is ended at its deadline by the broker; a moment later nobody waits for its answer either.
            with anyio.move_on_after(self._ask.wait_s + GRACE_S):
                try:
                    answers = await self._put(put)
                except GatewayError as error:
                    raise ExchangeFailed(Reason.INPUT_REQUIRED, f"the client: {printable(error.message)}") from error
            if answers is None:
                raise ExchangeFailed(Reason.PARKED)
        if not all(isinstance(answers.get(name), dict) for name in put):
            raise ExchangeFailed(Reason.INPUT_REQUIRED, "the client did not answer every question")
        # `_meta` of a client's is never passed on.
        return {
            theirs: {key: value for key, value in answers[ours].items() if key != "_meta"}
            for ours, theirs in names.items()
        }

    def _name(self, theirs: str) -> str:
        """The server's own name for a question, unless it came before in this call: a client may think it has answered it."""
        fits = len(theirs) <= MAX_NAME_CHARS and theirs.isprintable() and theirs not in self._used
        return theirs if fits else f"{theirs[:MAX_NAME_CHARS] if theirs.isprintable() else 'question'}-{len(self._used) + 1}"

    async def _put(self, questions: Questions) -> Mapping[str, Any]:
        if self._round_trip is not None:
            return await self._round_trip(questions)
        return {name: await self._channel.ask(each["method"], each["params"]) for name, each in questions.items()}

    def _labelled(self, question: Mapping[str, Any]) -> dict[str, Any]:
        kind = _NEEDS[question["method"]]
        if not getattr(self._ask, kind):
            raise ExchangeFailed(Reason.INPUT_REQUIRED, f"the profile does not allow {kind}")
        declared = self._client.capabilities.get(kind)
        if not isinstance(declared, dict):
            raise ExchangeFailed(Reason.INPUT_REQUIRED, f"the client declares no {kind}")
        given = {name: value for name, value in question.get("params", {}).items() if name not in {"_meta", "task"}}
        if kind == "elicitation":
            if given.get("mode", "form") == "url" and "url" not in declared:
                raise ExchangeFailed(Reason.INPUT_REQUIRED, "the client takes no links")
            text = given.get("message")
            lines = text[:MAX_QUESTION_CHARS].splitlines() if isinstance(text, str) else []
            given["message"] = "\n".join([f"[{self._server}] asks:", *map(printable, lines)])
        return {"method": question["method"], "params": {**given, "_meta": {SERVER_KEY: self._server}}}
