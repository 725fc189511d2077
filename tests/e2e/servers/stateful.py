"""An MCP server of ours for tests: prompts, resources, completion, questions, logs, and state that lasts between calls.

Standard library only. usage: stateful.py [modern | legacy | forking | chatty] [FILE]   (the last two are modern, and do not only wait)

With a file, its words are tools beside the others, and a server that finds `broken` in it lists none and ends.
"""

import json
import os
import sys
import threading
import time

MODE = sys.argv[1] if len(sys.argv) > 1 else "modern"
MODERN = MODE != "legacy"
SECRET = os.urandom(8).hex()  # a later round must come back to this very process
OBJECT = {"type": "object", "additionalProperties": True}
FORM = {"message": "Your name?\x1b[2J", "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}}}
SAMPLE = {"messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}], "maxTokens": 5}
CAPABILITIES = {"tools": {}, "prompts": {}, "resources": {"subscribe": True}, "completions": {}, "logging": {}}

counter = 0
answering = None
level = None


def send(message: dict, extra: str = "") -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + extra + "\n")
    sys.stdout.flush()


def text(value: object) -> dict:
    return {"content": [{"type": "text", "text": value if isinstance(value, str) else json.dumps(value)}]}


def ask(method: str, params: dict) -> dict:
    send({"id": f"mine-{method}", "method": method, "params": params})
    while True:
        found = json.loads(sys.stdin.readline())
        if found.get("id") == f"mine-{method}":
            return found


def count(_params: dict) -> dict:
    global counter
    counter += 1
    return text(str(counter))


def ticks(_params: dict) -> dict:
    """What a thread of the server's has counted: it counts on only while the server runs."""
    if not hasattr(ticks, "seen"):
        ticks.seen = 0

        def tick() -> None:
            while True:
                time.sleep(0.01)
                ticks.seen += 1

        threading.Thread(target=tick, daemon=True).start()
    return text(str(ticks.seen))


def who(params: dict) -> dict:
    """Ask for a name, in the way of the era."""
    if not MODERN:
        return text(ask("elicitation/create", FORM))
    answers = params.get("inputResponses")
    if answers is None:
        return {
            "resultType": "input_required",
            "inputRequests": {"name": {"method": "elicitation/create", "params": FORM}, "roots": {"method": "roots/list"}},
            "requestState": SECRET,
        }
    if params.get("requestState") != SECRET:
        return {"error": {"code": -32602, "message": "another process sealed this"}}
    return text(answers)


def sample(params: dict) -> dict:
    if not MODERN:
        return text(ask("sampling/createMessage", SAMPLE))
    answers = params.get("inputResponses")
    if answers is None:
        return {"resultType": "input_required", "inputRequests": {"s": {"method": "sampling/createMessage", "params": SAMPLE}}}
    return text(answers)


def insist(_params: dict) -> dict:
    return {"resultType": "input_required", "inputRequests": {"name": {"method": "elicitation/create", "params": FORM}}}


def log(_params: dict) -> dict:
    for each in ("debug", "warning", "error"):
        send({"method": "notifications/message", "params": {"level": each, "logger": "stateful", "data": {"said": each}}})
    return text(str(level))


def touch(params: dict) -> dict:
    send({"method": "notifications/resources/updated", "params": {"uri": params["arguments"].get("uri", "memo://one")}})
    return text("touched")


def relist(params: dict) -> dict:
    for _ in range(params["arguments"].get("times", 1)):
        for each in ("tools", "prompts", "resources"):
            send({"method": f"notifications/{each}/list_changed"})
    return text("told")


def more_tools() -> list[str]:
    if len(sys.argv) < 3:
        return []
    with open(sys.argv[2], encoding="ascii") as file:
        words = file.read().split()
    return words if "broken" not in words else os._exit(7)


def nap(params: dict) -> dict:
    time.sleep(float(params["arguments"].get("seconds", 0.5)))
    return text("rested")


def late_who(params: dict) -> dict:
    nap(params)
    return who(params)


def chatter(params: dict) -> dict:
    """Progress for longer than an idle limit."""
    token = params.get("_meta", {}).get("progressToken")
    for step in range(8):
        time.sleep(0.15)
        send({"method": "notifications/progress", "params": {"progressToken": token, "progress": step}})
    return text("done")


def fall(_params: dict) -> dict:
    os._exit(7)


def write(params: dict) -> dict:
    with open(f"/workspace/{params['arguments']['name']}", "w", encoding="ascii") as file:
        file.write("kept")
    return text("written")


def eat(params: dict) -> dict:
    return text(len(bytearray(os.urandom(1024)) * (1024 * params["arguments"]["mebibytes"])))


def pid(_params: dict) -> dict:
    return text(str(os.getpid()))


def big(params: dict) -> dict:
    return text("x" * int(params["arguments"].get("bytes", 100_000)))


def late_big(params: dict) -> dict:
    nap(params)
    return big(params)


def raw(params: dict) -> dict:
    """Lines that the test made up, written as they are; `ID` in them is the request's."""
    for line in params["arguments"]["lines"]:
        sys.stdout.write(line.replace("ID", json.dumps(answering)).replace("LONG", "x" * 200_000) + "\n")
    sys.stdout.flush()
    return text("after")


def shaped(params: dict) -> dict:
    return {**big(params), "structuredContent": {"a": 1}}


def long_question(_params: dict) -> dict:
    return {**insist({}), "pad": "x" * 200_000, "content": []}


TOOLS = {each.__name__: each for each in (count, ticks, who, sample, insist, log, touch, relist, nap, late_who, chatter, fall, pid, big, write, eat, late_big, raw, shaped, long_question)}
RESOURCES = [{"uri": "memo://one", "name": "one"}, {"uri": "memo://two", "name": "two"}]


def answer(method: str, params: dict) -> dict:
    global level
    meta = params.get("_meta") or {}
    if MODERN and meta.get("io.modelcontextprotocol/protocolVersion") != "2026-07-28":
        return {"error": {"code": -32022, "message": "no envelope", "data": {"supported": ["2026-07-28"]}}}
    if MODERN:
        level = meta.get("io.modelcontextprotocol/logLevel")
    match method:
        case "server/discover" if MODERN:
            return {"supportedVersions": ["2026-07-28"], "capabilities": CAPABILITIES}
        case "initialize" if not MODERN:
            info = {"name": "stateful", "version": "1"}
            return {"protocolVersion": "2025-11-25", "capabilities": CAPABILITIES, "serverInfo": info}
        case "logging/setLevel" if not MODERN:
            level = params["level"]
            return {}
        case "tools/list":
            shape = {"shaped": {"outputSchema": {"type": "object"}}}
            return {"tools": [{"name": name, "inputSchema": OBJECT, **shape.get(name, {})} for name in [*TOOLS, *more_tools()]]}
        case "tools/call":
            return TOOLS[params["name"]](params)
        case "prompts/list":
            return {"prompts": [{"name": "greet", "arguments": [{"name": "who", "required": True}]}, {"name": "secret"}]}
        case "prompts/get":
            said = f"Hello, {(params.get('arguments') or {}).get('who')}"
            return {"messages": [{"role": "user", "content": {"type": "text", "text": said}}]}
        case "resources/list":
            planted = [{"uri": f"{scheme}x", "name": "x"} for scheme in ("workspace:///", "fumehood://")]
            return {"resources": RESOURCES + planted}
        case "resources/templates/list":
            return {"resourceTemplates": [{"uriTemplate": "memo://{name}", "name": "memo"}]}
        case "resources/read":
            if not params["uri"].startswith("memo://"):
                return {"error": {"code": -32002, "message": "no such resource", "data": {"uri": params["uri"]}}}
            return {"contents": [{"uri": params["uri"], "text": "read", "x-unknown": 1}]}
        case "completion/complete":
            return {"completion": {"values": [params["ref"].get("name") or params["ref"]["uri"], params["argument"]["value"]]}}
    return {"error": {"code": -32601, "message": "Method not found"}}


def main() -> None:
    global answering
    if MODE == "forking" and not os.fork():
        time.sleep(60)
    for line in sys.stdin:
        request = json.loads(line)
        answering = request.get("id")
        if "id" in request and "method" in request:
            found = answer(request["method"], request.get("params") or {})
            if "error" not in found and MODERN:
                found.setdefault("resultType", "complete")
                if request["method"].endswith("/list") or request["method"] == "resources/read":
                    found |= {"ttlMs": 0, "cacheScope": "private"}
            extra = "\nunasked" if MODE == "chatty" and request["method"] == "server/discover" else ""
            send({"id": request["id"], **(found if "error" in found else {"result": found})}, extra)


if __name__ == "__main__":
    main()
