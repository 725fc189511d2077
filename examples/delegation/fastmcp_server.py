"""The same with FastMCP: `sudo .venv/bin/python examples/delegation/fastmcp_server.py`, on stdio (needs `pip install fastmcp`)."""

from __future__ import annotations

import anyio
import fasttools
from fastmcp import FastMCP

from fumehood import Runtime

server = FastMCP("words")
server.tool(fasttools.compare)


async def main() -> None:
    async with Runtime.open():
        await server.run_async(transport="stdio", show_banner=False)


if __name__ == "__main__":
    anyio.run(main)
