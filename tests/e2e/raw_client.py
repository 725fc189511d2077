"""A client that writes frames by hand, and a gateway before it over the FAKE spine of `local_runner`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from local_gateway import SENDER, gateway
from local_runner import FakeSpine

from fumehood.gateway import adapter, protocol, stdio
from fumehood.gateway.proofs import Proofs
from signed import proofs

PEER = (sys.executable, str(Path(__file__).resolve().parent / "servers" / "peer.py"))
ENVELOPE = {
    protocol.VERSION_KEY: "2026-07-28",
    protocol.CAPABILITIES_KEY: {},
    protocol.CLIENT_INFO_KEY: {"name": "raw", "version": "0"},
}


class RawClient:
    """Frames by hand: nothing between the test and the gateway's descriptors."""

    def __init__(self, spine: FakeSpine, to_gateway: int, from_gateway: int) -> None:
        self.spine = spine
        self._to, self._from = to_gateway, from_gateway
        self._frames = stdio.read_frames(from_gateway, 2**24)
        self.progress: list[dict[str, Any]] = []

    async def write(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        await anyio.to_thread.run_sync(os.write, self._to, data + b"\n")

    async def send(self, **members: Any) -> None:
        await self.write(json.dumps({"jsonrpc": "2.0", **members}))

    async def read(self) -> dict[str, Any]:
        with anyio.fail_after(15):
            frame = await anext(self._frames)
        assert frame is not None
        found = json.loads(frame)
        assert isinstance(found, dict)
        return found

    async def answer(self, number: object) -> dict[str, Any]:
        """The answer to a request; progress before it is kept."""
        while True:
            message = await self.read()
            if message.get("method") == "notifications/progress":
                self.progress.append(message["params"])
                continue
            assert message.get("id") == number, message
            return message

    async def request(self, number: object, method: str, **params: Any) -> dict[str, Any]:
        """A modern request and its answer."""
        meta = {**ENVELOPE, **params.pop("_meta", {})}
        await self.send(id=number, method=method, params={**params, "_meta": meta})
        return await self.answer(number)

    async def call(self, tool: str, number: object = 1, **arguments: Any) -> dict[str, Any]:
        """The result of one call by a modern client."""
        message = await self.request(number, "tools/call", name=tool, arguments=arguments)
        assert "result" in message, message
        result = message["result"]
        assert isinstance(result, dict)
        return result

    def hang_up(self) -> None:
        os.close(self._to)
        self._to = -1

    def close(self) -> None:
        if self._to >= 0:
            os.close(self._to)
        os.close(self._from)


@asynccontextmanager
async def connect(*argv: str, mode: str = "modern", proving: Proofs | None = None, **changes: object) -> AsyncIterator[RawClient]:
    """Open a gateway before a command (our `peer` by default) and a raw client to it."""
    source, to_gateway = os.pipe()
    from_gateway, sink = os.pipe()
    spine = FakeSpine()
    client = RawClient(spine, to_gateway, from_gateway)

    async def serve() -> None:
        try:
            async with gateway(argv or (*PEER, mode), spine, **changes) as front:
                await adapter.serve(front, source, sink, SENDER, proving or proofs())
        finally:
            os.close(sink)

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            yield client
            tasks.cancel_scope.cancel()
    finally:
        client.close()
        os.close(source)
