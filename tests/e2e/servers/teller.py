"""An MCP server of ours whose tool leaves a mark each time that it runs: for what must not run twice. Standard library only.

Its tool `mark` appends a line to the workspace's file `marks`, then takes `seconds`; with `fail` it answers with an error of its own.
"""

import json
import sys
import time


def answer(method: str, params: dict) -> dict:
    if method == "server/discover":
        return {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
    if method == "tools/list":
        schema = {"type": "object", "additionalProperties": True}
        return {"tools": [{"name": "mark", "inputSchema": schema}], "ttlMs": 0, "cacheScope": "private"}
    arguments = params.get("arguments", {})
    with open("/workspace/marks", "a", encoding="ascii") as file:
        file.write(f"{time.monotonic_ns()}\n")
    time.sleep(arguments.get("seconds", 0))
    return {"content": [{"type": "text", "text": "marked"}], "isError": bool(arguments.get("fail"))}


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        result = {"resultType": "complete", **answer(request["method"], request.get("params", {}))}
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}) + "\n")
        sys.stdout.flush()
