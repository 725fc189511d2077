"""The mcp SDK's own client, in both eras, over a real process's standard streams."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio
import pytest
from mcp import Client, MCPError, StdioServerParameters
from raw_client import PEER

GATEWAY = Path(__file__).resolve().parents[2] / "e2e" / "local_gateway.py"
pytestmark = pytest.mark.anyio


def server(*options: str, mode: str = "modern") -> StdioServerParameters:
    argv = [str(GATEWAY), *options, "--", *PEER, mode]
    return StdioServerParameters(command=sys.executable, args=argv, env=dict(os.environ))


@pytest.mark.parametrize("upstream", ["modern", "legacy"])
@pytest.mark.parametrize("era", ["auto", "legacy", "2026-07-28"])
async def test_every_era_of_client_meets_every_era_of_server(era: str, upstream: str) -> None:
    steps: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        steps.append(done)
        assert (total, message) == (3, f"step {done:.0f}")

    with anyio.fail_after(30):
        async with Client(server(mode=upstream), mode=era) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            assert "echo" in names
            assert "remote" not in names
            result = await client.call_tool("echo", {"a": [1, None, "é"]})
            assert result.content[0].text == '{"a": [1, null, "\\u00e9"]}'  # type: ignore[union-attr] # text, or it fails
            assert result.meta is not None
            assert len(result.meta["fumehood/task"]) == 26
            await client.call_tool("progress", {}, progress_callback=progress)
            assert steps == [1, 2, 3]
            media = await client.call_tool("media", {})
            assert [block.type for block in media.content] == ["image", "audio", "resource", "resource_link"]
            failed = await client.call_tool("die", {})
            assert failed.is_error
            assert failed.meta is not None
            assert failed.meta["fumehood/outcome"]["reason"] == "server_died"
            with pytest.raises(MCPError) as refused:
                await client.call_tool("no_such_tool", {})
            assert refused.value.data["reason"] == "tool_unknown"


async def test_a_cancelled_call_leaves_the_client_usable() -> None:
    with anyio.fail_after(30):
        async with Client(server()) as client:
            with anyio.move_on_after(1):
                await client.call_tool("hang", {})
            assert not (await client.call_tool("echo", {})).is_error
