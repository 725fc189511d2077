"""An MCP server of ours whose tool `say` joins what it is given and says it, wherever it is told to. Standard library only.

Its client gives it a secret in two parts, which nobody takes for one, and gets back what a server that leaks one would say.
"""

import base64
import json
import sys

ARGUMENTS = {
    "type": "object",
    "properties": {"parts": {"type": "array", "items": {"type": "string"}}, "where": {"type": "string"}, "more": {"type": "object"}},
}


def write(message: dict) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def said(number: object, arguments: dict) -> None:
    text = "".join(arguments.get("parts", []))
    where = arguments.get("where", "text")
    result = {"resultType": "complete", "content": [{"type": "text", "text": "said"}]}
    if where == "text":
        result["content"][0]["text"] = f"it is {text}."
    elif where == "structured":
        result["structuredContent"] = {"a": [{"b": text, text: 1}]}
    elif where == "embedded":
        result["content"].append({"type": "resource", "resource": {"uri": "x://y", "text": text}})
    elif where == "blob":
        blob = base64.b64encode(text.encode()).decode()
        result["content"].append({"type": "resource", "resource": {"uri": "x://y", "blob": blob}})
    elif where == "base64":
        result["content"][0]["text"] = base64.b64encode(f"Bearer {text}".encode()).decode()
    elif where == "error":
        result |= {"isError": True, "content": [{"type": "text", "text": f"cannot use {text}"}]}
    elif where == "rpc":
        return write({"id": number, "error": {"code": -32001, "message": f"cannot use {text}", "data": {"key": text}}})
    elif where == "long":
        result["content"][0]["text"] = f"{'x' * 1_100_000}\n{text}\n{'y' * 200_000} {text}"
    elif where == "stderr":
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
        sys.exit(3)
    elif where == "log":
        write({"method": "notifications/message", "params": {"level": "error", "data": {"key": text}}})
    elif where == "echo":
        result["content"][0]["text"] = json.dumps(arguments)
    return write({"id": number, "result": result})


for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    match request["method"]:
        case "server/discover":
            write({"id": request["id"], "result": {"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}, "logging": {}}}})
        case "tools/list":
            tool = {"name": "say", "inputSchema": ARGUMENTS}
            write({"id": request["id"], "result": {"resultType": "complete", "tools": [tool], "ttlMs": 0, "cacheScope": "private"}})
        case _:
            said(request["id"], request["params"].get("arguments", {}))
