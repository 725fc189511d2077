"""`subscriptions/listen`: one client's stream of what has changed, as its request asked for it.

The SDK's own handler serves four kinds of events; the Tasks extension adds a fifth, `notifications/tasks` for the ids in
`taskIds`. Invariants: the acknowledgement is the first frame and names what will be told; nothing else is; a task is
acknowledged only to its sender; what waits to be told is bounded by what was asked for, because equal notes are one, and a
task's state is that of the moment it is told.

Sources: MCP 2026-07-28, "Subscriptions"; the extension io.modelcontextprotocol/tasks, "Task Status Notifications".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import anyio
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY

from fumehood.gateway.answering import Answering
from fumehood.gateway.events import Event
from fumehood.gateway.peer import Channel, Client
from fumehood.gateway.protocol import INVALID_PARAMS, MISSING_CAPABILITY, TASKS_EXTENSION, GatewayError, takes_tasks

MAX_NAMED = 256
LIST_CHANGED = {
    "tools": "notifications/tools/list_changed",
    "prompts": "notifications/prompts/list_changed",
    "resources": "notifications/resources/list_changed",
}
_OVER = frozenset({"completed", "failed", "cancelled"})


async def listen(
    gateway: Answering, client: Client, number: str | int, asked: Mapping[str, Any], channel: Channel
) -> NoReturn:
    """Serve one stream until it is cancelled. `asked` is the request's `notifications`. Raises `GatewayError`."""
    kinds = [kind for kind in LIST_CHANGED if asked.get(f"{kind}ListChanged") is True]
    uris, tasks = _named(asked, "resourceSubscriptions"), _named(asked, "taskIds")
    if tasks and not takes_tasks(client.capabilities):
        needed: dict[str, Any] = {"requiredCapabilities": {"extensions": {TASKS_EXTENSION: {}}}}
        raise GatewayError(MISSING_CAPABILITY, "Missing required client capability", needed)
    wanted = {*((kind, None) for kind in kinds), *(("resource", uri) for uri in uris), *(("task", task) for task in tasks)}
    stream = _Stream(gateway, client, channel, wanted, {SUBSCRIPTION_ID_META_KEY: number})
    unsubscribe = gateway.events.subscribe(stream.hear)
    try:
        honoured: dict[str, Any] = {f"{kind}ListChanged": True for kind in kinds}
        if uris:
            honoured["resourceSubscriptions"] = uris
        if known := [task for task in tasks if await stream.knows(task)]:
            honoured["taskIds"] = known
        await stream.send("notifications/subscriptions/acknowledged", {"notifications": honoured})
        while True:
            await stream.tell()
    finally:
        unsubscribe()


class _Stream:
    """What one client is still to be told."""

    def __init__(
        self, gateway: Answering, client: Client, channel: Channel, wanted: set[tuple[str, str | None]], meta: Mapping[str, Any]
    ) -> None:
        self._gateway = gateway
        self._client = client
        self._channel = channel
        self._wanted = wanted
        self._meta = meta
        self._waiting: dict[tuple[str, str | None], None] = {}
        self._more = anyio.Event()

    def hear(self, event: Event) -> None:
        """Take what was asked for and concerns this client."""
        if event.sender in (None, self._client.sender) and (event.kind, event.uri) in self._wanted:
            self._waiting[event.kind, event.uri] = None
            self._more.set()

    async def knows(self, task: str) -> bool:
        """Whether this is a task of the client's; one that is over already is told at once, for nothing else will happen to it."""
        found = await self._task(task)
        if found is None:
            self._wanted.discard(("task", task))
        elif found.get("status") in _OVER:
            self._waiting["task", task] = None
        return found is not None

    async def tell(self) -> None:
        """Tell one thing, when there is one."""
        while not self._waiting:
            self._more = anyio.Event()
            await self._more.wait()
        kind, name = next(iter(self._waiting))
        del self._waiting[kind, name]
        if name is None:
            await self.send(LIST_CHANGED[kind], {})
        elif kind == "resource":
            await self.send("notifications/resources/updated", {"uri": name})
        elif (found := await self._task(name)) is not None:
            await self.send("notifications/tasks", found)

    async def send(self, method: str, params: Mapping[str, Any]) -> None:
        """One frame of the stream."""
        await self._channel.notify(method, {**params, "_meta": self._meta})

    async def _task(self, task: str) -> dict[str, Any] | None:
        """What `tasks/get` says of it to this client's sender, or None."""
        try:
            found = await self._gateway.answer(self._client, "tasks/get", {"taskId": task}, self._channel)
        except GatewayError:
            return None
        return {member: value for member, value in found.items() if member not in {"resultType", "_meta"}}


def _named(asked: Mapping[str, Any], member: str) -> list[str]:
    given = asked.get(member)
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given) or len(given) > MAX_NAMED:
        raise GatewayError(INVALID_PARAMS, f"Invalid params: {member} is a list of at most {MAX_NAMED} strings")
    return list(dict.fromkeys(given))
