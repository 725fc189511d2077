"""What the transports need of the gateway: one method that answers, and what it has to tell without being asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, cast

from fumehood.gateway import frames, front
from fumehood.gateway.peer import Channel, Client
from fumehood.model import Sender


@dataclass(frozen=True, slots=True)
class Event:
    """Something changed. `sender` None is everybody; `connections` None every connection of theirs."""

    kind: Literal["tools", "prompts", "resources", "resource"]
    uri: str | None = None
    sender: Sender | None = None
    connections: frozenset[str] | None = None


class Events(Protocol):
    """Where changes are told."""

    def subscribe(self, listener: Callable[[Any], None]) -> Callable[[], None]:
        """Call `listener` with each `Event` until the function that is returned is called."""
        ...


class Answering(Protocol):
    """The gateway, as transports see it."""

    @property
    def methods(self) -> frozenset[str]:
        """The methods that `answer` knows."""
        ...

    @property
    def events(self) -> Events:
        """What changed since a client asked."""
        ...

    def capabilities(self, client: Client) -> dict[str, Any]:
        """The capabilities for this client's `initialize` or `server/discover`."""
        ...

    async def answer(
        self, client: Client, method: str, params: Mapping[str, Any], channel: Channel
    ) -> dict[str, Any]:
        """The result of a request. Raises `GatewayError`."""
        ...

    async def ended(self, connection: str) -> None:
        """A connection or session is over."""
        ...


class _Silent:
    def subscribe(self, _listener: Callable[[Any], None]) -> Callable[[], None]:
        return lambda: None


class _ToolsOnly:
    """A gateway that lists and calls tools, and keeps nothing between requests."""

    methods = frozenset({"tools/list", "tools/call"})
    events: Events = _Silent()

    def __init__(self, gateway: front.Gateway) -> None:
        self._gateway = gateway

    def capabilities(self, _client: Client) -> dict[str, Any]:
        return {"tools": {}}

    async def answer(
        self, client: Client, method: str, params: Mapping[str, Any], channel: Channel
    ) -> dict[str, Any]:
        asking = front.Client(client.era, client.capabilities)
        if method == "tools/list":
            return await self._gateway.list_tools(asking, params)
        token = (params.get("_meta") or {}).get("progressToken")
        if not frames.valid_id(token):
            return await self._gateway.call_tool(asking, params, None)
        return await self._gateway.call_tool(asking, params, partial(self._progress, channel, token))

    async def ended(self, _connection: str) -> None:
        pass

    @staticmethod
    async def _progress(channel: Channel, token: Any, told: Mapping[str, Any]) -> None:
        await channel.notify("notifications/progress", {"progressToken": token, **told})


def answering(gateway: Any) -> Answering:
    """The gateway as transports see it."""
    return _ToolsOnly(gateway) if not hasattr(gateway, "answer") else cast("Answering", gateway)
