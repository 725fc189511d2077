"""An MCP server of ours that takes its time: for what happens while a call is in flight. Standard library only.

usage: napper.py TOOL. Its one tool answers with its own name; with `seconds` after that long, with `write` after it wrote
the workspace's file of that name.
"""

import json
import sys
import time
from pathlib import Path

TOOL = sys.argv[1]


def answer(method: str, params: dict) -> dict:
    if method == "server/discover":
        return {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
    if method == "tools/list":
        schema = {"type": "object", "additionalProperties": True}
        return {"tools": [{"name": TOOL, "inputSchema": schema}], "ttlMs": 0, "cacheScope": "private"}
    arguments = params.get("arguments", {})
    if "write" in arguments:
        Path("/workspace", arguments["write"]).write_text(TOOL)
    time.sleep(arguments.get("seconds", 0))
    return {"content": [{"type": "text", "text": TOOL}]}


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        result = {"resultType": "complete", **answer(request["method"], request.get("params", {}))}
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}) + "\n")
        sys.stdout.flush()
