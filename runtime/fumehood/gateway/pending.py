"""How a client hears that its call waits for a person, in each era; what it answers is never an approval (rule 23).

It is told by a line of the log, by progress that keeps its patience, by its task's status, and, when it declares elicitation, by a
form: a newer client gets it as an `input_required` result, whose retry goes on waiting, an older one as a request in mid-call. The
form is ours and says so: it begins with our name, where a server's question begins with the server's.

The requester's own client answers it, without its person if it likes. So an accepted form means nothing, but where the rule lets the
requester confirm, and is recorded as that; a declined one takes the request back, which is a client's to do anyway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

from fumehood.approvals.prompt import lines
from fumehood.gateway.exchange import Questions, Relay
from fumehood.gateway.peer import Channel, Client
from fumehood.gateway.protocol import NAME, SERVER_KEY, GatewayError

ARGUMENTS_CHARS = 2048
REPORT_S = 10.0
QUESTION = "fumehood-approval"
# Progress must grow, and the server's own, which comes after, may begin at zero and a bit.
_STEP = 1e-6
_CONFIRM = {
    "type": "object",
    "properties": {"confirm": {"type": "boolean", "title": "Confirm", "description": "Whether you want this done."}},
    "required": ["confirm"],
}
_NOTICE: dict[str, Any] = {"type": "object", "properties": {}}

AskRound = Callable[[Questions], Awaitable[Mapping[str, Any]]]


class Telling:
    """`ports.Requester` of one request. `round_trip` puts a form to a client that takes it as a result, None where none can be."""

    def __init__(
        self, client: Client, channel: Channel, relay: Relay, *, round_trip: AskRound | None, waits: Callable[[str], None],
        withdrawn: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Say nothing yet. `waits` hears what a task's status is to say; `withdrawn`: whether its client cancelled the task."""
        self._client = client
        self._channel = channel
        self._relay = relay
        self._round_trip = round_trip
        self._waits = waits
        self._withdrawn = withdrawn

    @property
    def withdraws(self) -> bool:
        """Whether the client said that it does not want the call any more; one that is only gone did not."""
        return self._client.withdraws() or self._withdrawn()

    async def pending(self, waiting: Mapping[str, Any]) -> bool | None:
        """Tell it, and take what it says to the form."""
        text = "\n".join([f"{NAME}: this call waits for a person's approval.", *lines(waiting, ARGUMENTS_CHARS)])
        line = f"waits for the approval {waiting['id']}"
        self._waits(line)
        try:
            return await self._tell(waiting, text, line)
        finally:
            self._waits("")

    async def _tell(self, waiting: Mapping[str, Any], text: str, line: str) -> bool | None:
        await self._relay.message({"level": "notice", "logger": NAME, "data": text})
        answer: bool | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._report, line)
            answer = await self._asked(text, confirms=waiting["need"]["requester"])
            if answer is None:
                await anyio.sleep_forever()  # it is told for as long as its call waits
            tasks.cancel_scope.cancel()
        return answer

    async def _report(self, line: str) -> None:
        if not self._relay.wants_progress:
            return
        done = 0.0
        while True:
            await self._relay.progress({"progress": done, "message": line})
            done += _STEP
            await anyio.sleep(REPORT_S)

    async def _asked(self, text: str, *, confirms: bool) -> bool | None:
        if not takes_forms(self._client.capabilities):
            return None
        params = {
            "mode": "form", "message": text, "requestedSchema": _CONFIRM if confirms else _NOTICE, "_meta": {SERVER_KEY: NAME},
        }  # fmt: skip
        try:
            if self._round_trip is not None:
                said = (await self._round_trip({QUESTION: {"method": "elicitation/create", "params": params}})).get(QUESTION)
            elif self._channel.can_ask:
                said = await self._channel.ask("elicitation/create", params)
            else:
                return None
        except GatewayError:
            return None  # a client that cannot is one that was not asked
        return _meant(said, confirms=confirms)


def takes_forms(capabilities: Mapping[str, Any]) -> bool:
    """Whether a client declares that its person can be shown a form."""
    declared = capabilities.get("elicitation")
    return isinstance(declared, dict) and (not declared or "form" in declared)


def _meant(said: Any, *, confirms: bool) -> bool | None:
    if not isinstance(said, dict):
        return None
    match said.get("action"):
        case "decline":
            return False
        case "accept" if confirms:
            content = said.get("content")
            confirmed = content.get("confirm") if isinstance(content, dict) else None
            # Only a word of its own: an empty form that is sent off confirms nothing.
            return confirmed if isinstance(confirmed, bool) else None
        case _:
            return None
