"""A gateway before a server that is whatever a test says at the moment, over the FAKE spine of `local_runner`."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
from local_gateway import gateway_of, served
from local_runner import FakeSpine
from raw_client import PEER

from fakes import FakeLedger
from fumehood.gateway.events import Event
from fumehood.gateway.front import Gateway
from fumehood.gateway.peer import Client
from fumehood.gateway.protocol import OUTCOME_KEY, Era
from fumehood.model import Image, Sender

SERVER = str(Path(PEER[1]).with_name("shifty.py"))
SENDER = Sender(uid=0, name="tester")
OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}}


def tool(name: str = "read", description: str = "Reads.", **members: Any) -> dict[str, Any]:
    return {"name": name, "description": description, "inputSchema": OBJECT, **members}


@dataclass
class Images:
    """A store whose one image can be rebuilt."""

    digest: str = "sha256:" + "1" * 64

    def resolve(self, name: str) -> Image:
        return Image(name=name, digest=self.digest, docker_id=None)


@dataclass
class Shifty:
    """A gateway before a server that is what its file says."""

    front: Gateway
    spine: FakeSpine
    file: Path
    images: Images
    events: list[Event] = field(default_factory=list)

    @property
    def ledger(self) -> FakeLedger:
        return self.spine.ledger

    def becomes(self, *tools: dict[str, Any], **more: Any) -> None:
        self.file.write_text(json.dumps({"tools": tools, **more}))

    async def ask(self, method: str, *, capabilities: dict[str, Any] | None = None, modern: bool = True, **params: Any) -> dict[str, Any]:
        version = "2026-07-28" if modern else "2025-11-25"
        client = Client(era=Era(version), capabilities=capabilities or {}, sender=SENDER, connection=None)
        with anyio.fail_after(20):
            return await self.front.answer(client, method, params, Silence())

    async def listed(self, **asked: Any) -> list[str]:
        return [each["name"] for each in (await self.ask("tools/list", **asked))["tools"]]

    async def refusal(self, name: str = "read", **asked: Any) -> str:
        """The code of the refused call."""
        result = await self.ask("tools/call", name=name, arguments={"a": "x"}, **asked)
        assert result["isError"] is True, result
        assert result["_meta"][OUTCOME_KEY]["result"] == "refused"
        return str(result["_meta"][OUTCOME_KEY]["reason"])

    async def calls(self, name: str = "read", **asked: Any) -> bool:
        """Whether the call goes through."""
        return not (await self.ask("tools/call", name=name, arguments={"a": "x"}, **asked)).get("isError", False)

    async def read_again(self) -> None:
        """As when the server says that its list has changed."""
        (upstream,) = self.front._routes.upstreams  # without the pause that follows a server's word
        await upstream.renew(Client(era=Era("2026-07-28"), capabilities={}, sender=SENDER, connection=None))


class Silence:
    can_ask = False

    async def notify(self, method: str, params: Any) -> None:
        """Drop it."""

    async def ask(self, method: str, params: Any) -> dict[str, Any]:
        raise AssertionError(f"nobody is asked: {method} {params}")


@asynccontextmanager
async def shifty(tmp_path: Path, *tools: dict[str, Any], ledger: FakeLedger | None = None, **changes: Any) -> AsyncIterator[Shifty]:
    file = tmp_path / "definitions"
    spine = FakeSpine()
    if ledger is not None:
        spine.ledger = ledger
    images = Images()
    spine.ports = replace(spine.ports, images=images, ledger=spine.ledger)
    async with gateway_of([served((sys.executable, SERVER, str(file)), **changes)], spine) as front:
        made = Shifty(front, spine, file, images)
        front.events.subscribe(made.events.append)
        made.becomes(*tools or (tool(),))
        yield made
