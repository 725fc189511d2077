"""The servers under test, each on an address: directly, and behind `fumehood gateway --http`.

`ours` is `tests/peers/everything`, `npm` is the reference server-everything, an image's own program behind the gateway. Behind
the gateway a server's files are mounted read-only, and servers stand by. The gateway has a state folder of its own (`lab`), so these calls
are not among the operator's, and a token that is made for the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from forwarder import forwarding

from lab import FUMEHOOD, Lab, close_lab, open_lab

HERE = Path(__file__).resolve().parent
EVERYTHING = HERE.parent / "peers" / "everything"
_LISTENING = re.compile(r"listening on (http://\S+)")
_STARTS_S = 30.0


class NotServedError(Exception):
    """A server could not be started."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server: the folder of its files, if it is not the image's, and its command in a box and on the host."""

    name: str
    files: Path | None
    in_box: tuple[str, ...]
    eras: tuple[str, ...]
    # Scenarios that it passes for the wrong reason.
    vacuous: frozenset[str] = frozenset()

    def on_host(self, port: int, peers: Path) -> tuple[list[str], dict[str, str]]:
        """Its command and environment when it serves HTTP itself."""
        if self.files is not None:
            return [sys.executable, str(self.files / "server.py"), "--http", str(port)], {}
        program = peers / "node_modules" / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
        return [str(peers / "bin" / "node"), str(program), "streamableHttp"], {"PORT": str(port)}


OURS = Server("ours", EVERYTHING, ("python3", "/mnt/server/server.py"), ("2026-07-28", "2025-11-25"))
# It has neither tool, and says so in a result with a text and `isError`, which is all that these two look for.
NPM = Server("npm", None, ("mcp-server-everything",), ("2025-11-25",), frozenset({"tools-call-simple-text", "tools-call-error"}))
# The suite calls everything that a server has, and waits half a second for a first frame, in which no Python server starts.
STAND_BY = 4
_WHO = {"protocolVersion": "2026-07-28", "clientInfo": {"name": "conformance", "version": "1"}, "clientCapabilities": {}}
_ALLOWED = f"""\
image: mcp-reference
pool: {{started: {STAND_BY}}}
tools: {{allow: "*"}}
resources: {{allow: "*"}}
prompts: {{allow: "*"}}
completion: true
ask: {{elicitation: true, sampling: true, roots: true}}
limits: {{memory: 512MiB, wall: 60s}}
"""


@contextmanager
def directly(server: Server, peers: Path) -> Iterator[str]:
    """The server itself, on a loopback port."""
    port = _free_port()
    argv, environment = server.on_host(port, peers)
    with _started(argv, environment) as process:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}/mcp"


@contextmanager
def through_gateway(server: Server, engine: str | None, extra: Sequence[str] = (), profile: str = "") -> Iterator[str]:
    """The server behind a gateway, whose token every request gets on its way. `profile` is added to the server's."""
    lab = open_lab("cf")
    try:
        # Copied without what Python compiled beside it, which would be another thing to read.
        files = lab.folder / "server"
        if server.files is not None:
            shutil.copytree(server.files, files, ignore=shutil.ignore_patterns("__pycache__"))
            with (lab.folder / "fumehood.yaml").open("a") as file:
                file.write(f"mount_roots: [{files}]\n")
            profile += f"filesystem: {{mounts: [{{source: {files}, name: server}}]}}\n"
        (lab.folder / "profile.yaml").write_text(_ALLOWED + profile)
        token, port = secrets.token_urlsafe(48), _free_port()
        (lab.folder / "tokens").touch(mode=0o600)
        (lab.folder / "tokens").write_text(f"suite:{hashlib.sha256(token.encode()).hexdigest()}\n")
        argv = [
            str(FUMEHOOD), "gateway", "--profile", str(lab.folder / "profile.yaml"),
            *(["--engine", engine] if engine else []),
            "--http", f"127.0.0.1:{port}", "--token-file", str(lab.folder / "tokens"),
            # The suite comes as a browser would, with an Origin, which nobody may until the operator says so.
            "--allow-origin", f"http://127.0.0.1:{port}", *extra, "--", *server.in_box,
        ]  # fmt: skip
        with _started(argv, lab.env) as process:
            url = _told(process)
            _stand_by(lab, url, token)
            with forwarding(url, f"Authorization: Bearer {token}") as address:
                yield address
    finally:
        close_lab(lab)


def _stand_by(lab: Lab, url: str, token: str) -> None:
    """Wait until as many servers stand by as the profile says: the suite meets a gateway that has been up for a while."""
    meta = {f"io.modelcontextprotocol/{name}": value for name, value in _WHO.items()}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}).encode()
    headers = {
        "Authorization": f"Bearer {token}", "Content-Type": "application/json", "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": _WHO["protocolVersion"], "Mcp-Method": "tools/list",
    }  # fmt: skip
    urllib.request.urlopen(urllib.request.Request(url, body, headers)).read()  # noqa: S310 - the gateway that was just started
    until = time.monotonic() + _STARTS_S
    while time.monotonic() < until:
        told = lab.fumehood("tasks", "--json", "--result", "open", "--front-door", "pool").said
        if sum(record["state"] == "running" for record in told) == STAND_BY:
            return
        time.sleep(0.2)
    raise NotServedError(f"not {STAND_BY} servers stand by after {_STARTS_S:.0f} s")


@contextmanager
def _started(argv: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _told(process: subprocess.Popen[str]) -> str:
    """The address that the gateway says it listens on. Its stderr is read to its end, and passed on."""
    assert process.stderr is not None
    told: list[str] = []
    for line in process.stderr:
        if match := _LISTENING.search(line):
            threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
            return match[1]
        told.append(line)
    raise NotServedError(f"the gateway ended with status {process.wait()}: {''.join(told)[-800:].strip()}")


def _drain(stderr: object) -> None:
    try:
        for line in stderr:  # type: ignore[attr-defined] # a text stream
            if os.environ.get("FUMEHOOD_CONFORMANCE_LOG"):
                sys.stderr.write(line)
    except ValueError:
        pass  # closed when the gateway has ended


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + _STARTS_S
    while time.monotonic() < until:
        if process.poll() is not None:
            assert process.stderr is not None
            raise NotServedError(f"it ended with status {process.returncode}: {process.stderr.read()[-500:]}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise NotServedError(f"nothing listens on {port} after {_STARTS_S:.0f} s")
