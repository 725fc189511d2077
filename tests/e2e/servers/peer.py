"""An MCP server of ours for tests: each of its tools behaves in one way, most of them badly. Standard library only.

usage: peer.py [modern | legacy | dies-on-discover | silent-on-discover | dies | garbage | bad-list]

`modern` speaks 2026-07-28 alone, `legacy` 2025-11-25 alone, and refuses everything before its handshake.
"""

import base64
import json
import os
import subprocess
import sys
import time

MODE = sys.argv[1] if len(sys.argv) > 1 else "modern"
MODERN = MODE in ("modern", "bad-list")
OPEN_OBJECT = {"type": "object", "additionalProperties": True}
NESTED = {"type": "object", "properties": {"who": {"type": "object", "properties": {"name": {"type": "string"}}}}}
CATASTROPHIC = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
REMOTE = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}}
OUTPUT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

seen: list[dict] = []
shaken = {"initialize": False, "initialized": False, "capabilities": {}}


def send(message: dict) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def text(value: object) -> dict:
    return {"content": [{"type": "text", "text": value if isinstance(value, str) else json.dumps(value)}]}


def ask(method: str) -> dict:
    """Ask the client something and return its answer."""
    send({"id": f"mine-{method}", "method": method, "params": {}})
    return json.loads(sys.stdin.readline())


def echo(request: dict) -> dict:
    return text(request["params"]["arguments"])


def wire(_request: dict) -> dict:
    """Everything that came upstream."""
    return text(seen)


def media(_request: dict) -> dict:
    data = base64.b64encode(bytes(range(256)) * 16).decode()
    return {
        "content": [
            {"type": "image", "data": data, "mimeType": "image/png", "x-unknown": {"kept": [1, 2.5, None, "é\u2028"]}},
            {
                "type": "audio",
                "data": data,
                "mimeType": "audio/wav",
                "annotations": {"audience": ["user"], "priority": 0.5},
            },
            {"type": "resource", "resource": {"uri": "file:///workspace/a.bin", "mimeType": "x/y", "blob": data}},
            {"type": "resource_link", "uri": "file:///workspace/b", "name": "b", "description": "link"},
        ],
        "structuredContent": {"n": 9007199254740993, "list": [[], {}], "text": 'quote " back \\ slash'},
        "x-unknown": {"top": True},
        "_meta": {"example.org/kept": 1, "fumehood/task": "forged", "fumehood/outcome": {"result": "ok"}},
    }


def progress(request: dict) -> dict:
    token = request["params"].get("_meta", {}).get("progressToken")
    for step in (1, 2, 3):
        send({"method": "notifications/progress", "params": {"progressToken": "guessed", "progress": 99}})
        if token is not None:
            params = {"progressToken": token, "progress": step, "total": 3, "message": f"step {step}"}
            send({"method": "notifications/progress", "params": params})
    return text({"token": token})


def forge(_request: dict) -> dict:
    """Answers under every id that a naive gateway would use, before the true one."""
    for guess in (0, 1, 2, 3, "1", "2", True, 1.0, None):
        send({"id": guess, "result": text("forged")})
    return text("true")


def subprocess_line(_request: dict) -> dict:
    subprocess.run(["/bin/echo", '{"jsonrpc":"2.0","id":1,"result":{"content":[]}}'], check=True)
    subprocess.run(["/bin/echo", "On branch main"], check=True)
    return text("done")


def nan(request: dict) -> dict:
    sys.stdout.write(f'{{"jsonrpc":"2.0","id":"{request["id"]}","result":{{"content":[],"structuredContent":NaN}}}}\n')
    sys.stdout.flush()
    time.sleep(3600)
    return {}


def surrogate(_request: dict) -> dict:
    return text("cut \ud83d here")


def flood(_request: dict) -> dict:
    while True:
        sys.stdout.write("x" * 60 + "\n")


def long_line(_request: dict) -> dict:
    while True:
        sys.stdout.write("x" * 65536)


def hang(_request: dict) -> dict:
    while True:
        time.sleep(3600)


def die(_request: dict) -> dict:
    sys.stderr.write("I am dying\n")
    sys.exit(3)


def stubborn(_request: dict) -> dict:
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.fork() or hang({})
    return text("answered")


def error(_request: dict) -> dict:
    return {"error": {"code": -32042, "message": "no \u001b[31mway"}}


def failing(_request: dict) -> dict:
    return {**text("the tool says no"), "isError": True}


def asks(_request: dict) -> dict:
    return text([ask("sampling/createMessage"), ask("elicitation/create"), ask("roots/list"), ask("ping")])


def mrtr(_request: dict) -> dict:
    return {"resultType": "input_required", "requestState": "s", "inputRequests": {}}


def huge(_request: dict) -> dict:
    return text("x" * (10 * 2**20))


def strange(_request: dict) -> dict:
    return {"resultType": "complete", "structuredContent": [1, 2]} | text("[1, 2]")


TOOLS = {
    "echo": (echo, OPEN_OBJECT),
    "wire": (wire, {"type": "object"}),
    "nested": (echo, NESTED),
    "catastrophic": (echo, CATASTROPHIC),
    "remote": (echo, REMOTE),
    "no_result": (lambda _request: {"resultType": "complete"}, {"type": "object"}),
    **{
        each.__name__: (each, {"type": "object"})
        for each in (
            media, progress, forge, subprocess_line, nan, surrogate, flood, long_line, hang, die, stubborn, error,
            failing, asks, mrtr, huge, strange,
        )
    },
}  # fmt: skip


def definitions() -> list[dict]:
    listed = [{"name": name, "inputSchema": schema, "x-unknown": [1.5]} for name, (_, schema) in TOOLS.items()]
    if MODE == "bad-list":
        listed += [{"name": "echo", "inputSchema": OPEN_OBJECT}]
    for tool in listed:
        if tool["name"] == "failing":
            tool["outputSchema"] = OUTPUT
    if shaken["capabilities"].get("sampling") is not None:
        listed.append({"name": "for_samplers", "inputSchema": {"type": "object"}})
    return listed


def answer(request: dict) -> dict:
    method, params = request["method"], request.get("params") or {}
    if MODERN:
        meta = params.get("_meta") or {}
        if meta.get("io.modelcontextprotocol/protocolVersion") != "2026-07-28":
            return {"error": {"code": -32022, "message": "no envelope", "data": {"supported": ["2026-07-28"]}}}
        shaken["capabilities"] = meta["io.modelcontextprotocol/clientCapabilities"]
        if method == "server/discover":
            return {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, "resultType": "complete"}
    elif method == "initialize":
        shaken.update(initialize=True, capabilities=params["capabilities"])
        info = {"name": "peer", "version": "1"}
        return {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
    elif not shaken["initialized"]:
        return {"error": {"code": -32602, "message": "not initialized"}}
    if method == "tools/list":
        return page(params)
    if method == "tools/call":
        return TOOLS[params["name"]][0](request)
    return {"error": {"code": -32601, "message": "Method not found"}}


def page(params: dict) -> dict:
    """Five tools a page."""
    start = int(params.get("cursor") or 0)
    tools = definitions()
    more = {"nextCursor": str(start + 5)} if start + 5 < len(tools) else {}
    return {"tools": tools[start : start + 5], "ttlMs": 0, "cacheScope": "private", "resultType": "complete", **more}


def main() -> None:
    if MODE == "dies":
        sys.stderr.write("cannot start\n")
        sys.exit(1)
    if MODE == "garbage":
        sys.stdout.write("Welcome to \x1b[31mpeer!\n")
        sys.exit(1)
    for line in sys.stdin:
        request = json.loads(line)
        seen.append(request)
        if request["method"] == "server/discover":
            if MODE == "dies-on-discover":
                sys.exit(1)
            if MODE == "silent-on-discover":
                continue
        if request["method"] == "notifications/initialized":
            shaken["initialized"] = True
        if "id" in request:
            found = answer(request)
            send({"id": request["id"], **(found if "error" in found else {"result": found})})


if __name__ == "__main__":
    main()
