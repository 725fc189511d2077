"""What the transports need of the gateway: one method that answers, and what it has to tell without being asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fumehood.gateway.events import Event
from fumehood.gateway.peer import Channel, Client


class Listened(Protocol):
    """Where changes are told."""

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` with each `Event` until the function that is returned is called."""
        ...


class Answering(Protocol):
    """The gateway, as transports see it."""

    @property
    def methods(self) -> frozenset[str]:
        """The methods that `answer` knows."""
        ...

    @property
    def events(self) -> Listened:
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

    async def input_schema(self, client: Client, name: str) -> Mapping[str, Any] | None:
        """The input schema of a tool that may be called; None where `answer` says what is wrong."""
        ...

    async def ended(self, connection: str) -> None:
        """A connection or session is over."""
        ...
