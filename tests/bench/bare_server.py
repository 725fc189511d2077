"""The least MCP server for `scripts/bench gateway`: 2026-07-28 on stdio, standard library, no SDK.

It starts in the time that Python does (`python3 -I -S`), so that what a call costs is ours and the box's. Tools: `echo`, and
`wait`, which reports progress when it has begun, then answers after `seconds`.
"""

import json
import sys
import time

TOOLS = [
    {"name": "echo", "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}},
    {"name": "wait", "inputSchema": {"type": "object", "properties": {"seconds": {"type": "number"}}}},
]


def send(message: dict) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def answer(method: str, params: dict) -> dict:
    if method == "server/discover":
        return {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
    if method == "tools/list":
        return {"tools": TOOLS, "ttlMs": 0, "cacheScope": "private"}
    arguments = params["arguments"]
    if params["name"] == "wait":
        token = params["_meta"].get("progressToken")
        if token is not None:
            send({"method": "notifications/progress", "params": {"progressToken": token, "progress": 0}})
        time.sleep(arguments["seconds"])
    return {"content": [{"type": "text", "text": arguments.get("text", "")}]}


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        send({"id": request["id"], "result": {"resultType": "complete", **answer(request["method"], request["params"])}})
