"""The client of the Python SDK, `mcp` 2.x."""

import json
import sys

import anyio
import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client


async def main() -> None:
    given = json.loads(sys.argv[1])
    if "url" in given:
        http = httpx2.AsyncClient(headers=given["headers"], timeout=30)
        target = streamable_http_client(given["url"], http_client=http)
    else:
        target = StdioServerParameters(command=given["command"][0], args=given["command"][1:], env=given["env"])
    async with Client(target, mode=given["mode"]) as client:
        tools = (await client.list_tools()).tools
        found = await client.call_tool(given["tool"], given["arguments"])
        refused = await client.call_tool(given["tool"], {**given["arguments"], "no such": 1})
        told = {
            "version": client.protocol_version,
            "tools": [tool.name for tool in tools],
            "answer": found.structured_content,
            "refused": refused.content[0].text if refused.is_error else None,
            "task": found.meta["fumehood/task"],
        }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    anyio.run(main)
