"""A FAKE gateway behind the real transports: it answers every method, asks its clients, and publishes events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fumehood.gateway.events import Event
from fumehood.gateway.peer import Channel, Client
from fumehood.gateway.protocol import GatewayError

METHODS = frozenset(
    {
        "tools/list", "tools/call", "prompts/list", "prompts/get", "resources/list", "resources/templates/list",
        "resources/read", "resources/subscribe", "resources/unsubscribe", "completion/complete", "logging/setLevel",
        "tasks/get", "tasks/update", "tasks/cancel",
    }
)  # fmt: skip


@dataclass
class Bell:
    """Events, rung by the test."""

    listeners: list[Callable[[Any], None]] = field(default_factory=list)

    def subscribe(self, listener: Callable[[Any], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def ring(self, event: Event) -> None:
        for listener in list(self.listeners):
            listener(event)


@dataclass
class FakeFront:
    """Notes who asks what."""

    methods: frozenset[str] = METHODS
    events: Bell = field(default_factory=Bell)
    asked: list[tuple[str, Client]] = field(default_factory=list)
    over: list[str] = field(default_factory=list)

    def capabilities(self, client: Client) -> dict[str, Any]:
        return {"tools": {"listChanged": True}, "x-era": client.era.version}

    async def answer(
        self, client: Client, method: str, params: Mapping[str, Any], channel: Channel
    ) -> dict[str, Any]:
        self.asked.append((method, client))
        made: dict[str, Any] = {"resultType": "complete"} if client.era.modern else {}
        match method:
            case "tools/call" if params["name"] == "ask":
                if not channel.can_ask:
                    raise GatewayError(-32019, "no way back")
                said = await channel.ask("elicitation/create", {"message": "?", "requestedSchema": {"type": "object"}})
                return {**made, "content": [], "x-said": said}
            case "tools/call":
                await channel.notify("notifications/message", {"level": "info", "data": {"x": [None]}})
                return {**made, "content": [{"type": "text", "text": "", "x-unknown": None}]}
            case _:
                return {**made, "x-method": method, "x-params": {k: v for k, v in params.items() if k != "_meta"}}

    async def input_schema(self, client: Client, name: str) -> dict[str, Any] | None:
        self.asked.append((f"schema of {name}", client))
        region = {"type": "string", "x-mcp-header": "Region"}
        return {"type": "object", "properties": {"region": region}} if name == "regional" else None

    async def ended(self, connection: str) -> None:
        self.over.append(connection)
