"""An MCP server that hands its tools' work over: `sudo .venv/bin/python examples/delegation/server.py`, on stdio.

The functions are in `wordtools`, so that a box can import them without this file. The process gives up root when the runtime opens.
"""

from __future__ import annotations

import anyio
import wordtools
from mcp.server.mcpserver import MCPServer

from fumehood import Runtime

server = MCPServer("words")
server.tool()(wordtools.count_words)
server.tool()(wordtools.match_lines)


async def main() -> None:
    async with Runtime.open():
        await server.run_stdio_async()


if __name__ == "__main__":
    anyio.run(main)
