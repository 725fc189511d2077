"""An MCP server that stands by, in the ways that it should not: it is given to `python3 -c`, since a box that stands by has no workspace.

usage: standing.py MARKER [quiet | forks | listens | writes | dials HOST PORT]
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time

MODE = sys.argv[2]
ticked = 0
dialled = []


def tick() -> None:
    global ticked  # noqa: PLW0603
    while True:
        time.sleep(0.01)
        ticked += 1


def dial(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), timeout=3) as connection:
            return connection.recv(16).decode() or "closed"
    except OSError as error:
        return type(error).__name__


def mark() -> list:
    """What an earlier call left, before this one leaves its own."""
    found = sorted(os.listdir("/tmp"))
    with open(f"/tmp/left-{len(found)}", "w", encoding="ascii") as file:
        file.write("of an earlier call")
    return [found, os.getpid(), MODE]


def answer(method: str, params: dict) -> dict:
    if method == "server/discover":
        return {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
    if method == "tools/list":
        shape = {"type": "object", "additionalProperties": True}
        names = ("mark", "ticks", "dial", "dialled", "facts", "sleep")
        return {"tools": [{"name": name, "inputSchema": shape} for name in names], "ttlMs": 0, "cacheScope": "private"}
    arguments = params.get("arguments") or {}
    if params["name"] == "sleep":
        time.sleep(arguments["seconds"])
    said = {
        "mark": mark,
        "ticks": lambda: ticked,
        "dial": lambda: dial(arguments["host"], arguments["port"]),
        "dialled": lambda: dialled,
        "facts": lambda: sorted(os.environ.items()),
        "sleep": lambda: "slept",
    }[params["name"]]()
    return {"content": [{"type": "text", "text": json.dumps(said)}]}


threading.Thread(target=tick, daemon=True).start()
held = []
if MODE == "forks":
    held.append(subprocess.Popen(["sleep", "60"]))
if MODE == "listens":
    held.append(socket.create_server(("0.0.0.0", 8000)))  # noqa: S104
if MODE == "dials":
    dialled.append(dial(sys.argv[3], int(sys.argv[4])))
for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        result = {"resultType": "complete", **answer(request["method"], request.get("params") or {})}
        extra = "\nunasked" if MODE == "writes" and request["method"] == "server/discover" else ""
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}) + extra + "\n")
        sys.stdout.flush()
