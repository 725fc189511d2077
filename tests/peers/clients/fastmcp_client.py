"""FastMCP's client."""

import json
import sys

import anyio
from fastmcp import Client
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport


async def main() -> None:
    given = json.loads(sys.argv[1])
    if "url" in given:
        transport = StreamableHttpTransport(given["url"], headers=given["headers"])
    else:
        transport = StdioTransport(given["command"][0], given["command"][1:], env=given["env"], keep_alive=False)
    async with Client(transport, mode=given["mode"]) as client:
        tools = await client.list_tools()
        found = await client.call_tool_mcp(given["tool"], given["arguments"])
        refused = await client.call_tool_mcp(given["tool"], {**given["arguments"], "no such": 1})
        told = {
            "version": client.session.protocol_version,
            "tools": [tool.name for tool in tools],
            "answer": found.structured_content,
            "refused": refused.content[0].text if refused.is_error else None,
            "task": found.meta["fumehood/task"],
        }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    anyio.run(main)
