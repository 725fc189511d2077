"""An MCP server of ours for tests that is whatever a file says at the moment, in both eras. Standard library only.

usage: shifty.py FILE

FILE holds JSON: `tools`, a list of definitions; `sampler_tools`, those for clients that declare sampling; `results`, by tool's name
what a call answers with.
"""

import json
import sys

MODERN_VERSION = "2026-07-28"
CAPABILITIES = {"tools": {}}


def told() -> dict:
    with open(sys.argv[1], encoding="utf-8") as file:
        return json.load(file)


def answer(method: str, params: dict, declared: dict) -> dict:
    match method:
        case "server/discover":
            return {"supportedVersions": [MODERN_VERSION], "capabilities": CAPABILITIES}
        case "initialize":
            info = {"name": "shifty", "version": "1"}
            return {"protocolVersion": "2025-11-25", "capabilities": CAPABILITIES, "serverInfo": info}
        case "tools/list":
            mine = told()
            return {"tools": mine.get("sampler_tools", mine["tools"]) if "sampling" in declared else mine["tools"]}
        case "tools/call":
            plain = {"content": [{"type": "text", "text": json.dumps(params["arguments"])}]}
            return told().get("results", {}).get(params["name"], plain)
    return {"error": {"code": -32601, "message": "Method not found"}}


def main() -> None:
    declared: dict = {}
    for line in sys.stdin:
        request = json.loads(line)
        params = request.get("params") or {}
        meta = params.get("_meta") or {}
        modern = "io.modelcontextprotocol/protocolVersion" in meta
        declared = params.get("capabilities") or meta.get("io.modelcontextprotocol/clientCapabilities") or declared
        if "id" not in request or "method" not in request:
            continue
        found = answer(request["method"], params, declared)
        if "error" not in found and modern:
            found = {"resultType": "complete", **found}
            if request["method"] == "tools/list":
                found |= {"ttlMs": 0, "cacheScope": "private"}
        reply = {"jsonrpc": "2.0", "id": request["id"], **(found if "error" in found else {"result": found})}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
