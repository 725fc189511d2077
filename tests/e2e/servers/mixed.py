"""An MCP server of ours whose one tool ends in every way a call can: for `scripts/chaos` and `scripts/soak`. Standard library only.

`how`: ok, error, die, memory, or sleep for `seconds` in a child process of its own; `pause` comes before the answer.
"""

import json
import os
import subprocess
import sys
import time


def answer(method: str, params: dict) -> dict:
    if method == "server/discover":
        return {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
    if method == "tools/list":
        schema = {"type": "object", "additionalProperties": True}
        tools = [{"name": name, "inputSchema": schema} for name in ("end", "forbidden")]
        return {"tools": tools, "ttlMs": 0, "cacheScope": "private"}
    arguments = params.get("arguments", {})
    how = arguments.get("how", "ok")
    if how == "die":
        os._exit(3)
    if how == "memory":
        kept = [bytearray(b"x" * 2**20) for _ in range(4096)]
        return {"content": [{"type": "text", "text": str(len(kept))}]}
    if how == "sleep":
        with subprocess.Popen(["/bin/sleep", str(arguments.get("seconds", 60))]) as child:
            child.wait()
    time.sleep(arguments.get("pause", 0))
    return {"content": [{"type": "text", "text": how}], "isError": how == "error"}


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        result = {"resultType": "complete", **answer(request["method"], request.get("params", {}))}
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}) + "\n")
        sys.stdout.flush()
