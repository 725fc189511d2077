"""Clients that talk to a gateway's front without a transport, over the FAKE spine of `local_runner`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from local_gateway import SENDER, gateway_of, served
from local_runner import FakeSpine

from fumehood.gateway import protocol
from fumehood.gateway.front import Gateway
from fumehood.gateway.peer import Client
from fumehood.gateway.protocol import Era

SERVER = str(Path(__file__).resolve().parent / "servers" / "stateful.py")


@dataclass
class Told:
    """A channel that keeps what it is told, and answers what it is asked."""

    can_ask: bool = True
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    asked: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        self.notes.append((method, params))

    async def ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append((method, params))
        return self.answers[method]


def client(era: str = "modern", connection: str | None = "c1", **capabilities: Any) -> Client:
    version = protocol.MODERN_VERSIONS[-1] if era == "modern" else "2025-11-25"
    return Client(era=Era(version), capabilities=capabilities, sender=SENDER, connection=connection)


@dataclass
class Open:
    front: Gateway
    spine: FakeSpine

    async def ask(self, method: str, asking: Client | None = None, channel: Told | None = None, **params: Any) -> dict[str, Any]:
        with anyio.fail_after(20):
            return await self.front.answer(asking or client(), method, params, channel or Told())


@asynccontextmanager
async def opened(*eras: str, spine: FakeSpine | None = None, **changes: Any) -> AsyncIterator[Open]:
    """A gateway before one server of each era, by the names `a`, `b` and so on."""
    spine = spine or FakeSpine()
    servers = [served((sys.executable, SERVER, era), name="abc"[n], **changes) for n, era in enumerate(eras)]
    async with gateway_of(servers, spine) as front:
        yield Open(front, spine)
