"""A `fumehood gateway --config` that runs, with a client that writes its frames by hand."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import FUMEHOOD, RISKS, SENDERS, Lab, children, descendants, pids

NAPPER = Path(__file__).parent / "e2e" / "servers" / "napper.py"
META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
PROFILE = "command: [python3, /workspace/napper.py, nap]\ntools: {allow: '*'}\narguments: {open: ['*']}\nfilesystem: {workspace: rw}\nlimits: {wall: 30s}\n"


@dataclass
class LiveGateway:
    """The process, its configuration, and the answers that arrived for others than who waits."""

    lab: Lab
    process: subprocess.Popen[bytes]
    file: Path
    log: Path
    _sent: int = 0
    _answers: dict[int, Any] = field(default_factory=dict)
    _read: bytes = b""

    def send(self, method: str, **params: Any) -> int:
        """Send a request; its id. Members of `_meta` come beside those that the revision wants."""
        self._sent += 1
        meta = {**META, **params.pop("_meta", {})}
        request = {"jsonrpc": "2.0", "id": self._sent, "method": method, "params": {**params, "_meta": meta}}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return self._sent

    def answer(self, number: int, timeout_s: float = 30) -> Any:
        """The answer to a request, whenever it comes."""
        assert self.process.stdout is not None
        deadline_s = time.monotonic() + timeout_s
        while number not in self._answers:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline_s - time.monotonic()))
            assert ready, f"no answer within {timeout_s} s; the log: {self.log.read_text()}"
            got = os.read(self.process.stdout.fileno(), 2**16)  # a reader with a buffer would hold lines that nobody waits for
            assert got, f"ended: {self.log.read_text()}"
            *lines, self._read = (self._read + got).split(b"\n")
            self._answers.update({said["id"]: said for said in map(json.loads, lines)})
        return self._answers.pop(number)

    def call(self, tool: str, **arguments: Any) -> Any:
        """The result of a call, or the error."""
        said = self.answer(self.send("tools/call", name=tool, arguments=arguments))
        return said.get("result", said.get("error"))

    def tools(self) -> list[str]:
        """What is listed."""
        said = self.answer(self.send("tools/list"))
        assert "result" in said, said
        return [tool["name"] for tool in said["result"]["tools"]]

    def reload(self) -> str:
        """SIGHUP, and the line of the log that tells what came of it."""
        before = len(self.log.read_text())
        self.process.send_signal(signal.SIGHUP)
        return self.logged("the configuration ", before)

    def logged(self, words: str, start: int = 0, timeout_s: float = 20) -> str:
        """The first line of the log behind `start` with these words."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for line in self.log.read_text()[start:].splitlines():
                if words in line:
                    return line
            time.sleep(0.02)  # another process's progress, with a deadline
        raise AssertionError(f"nothing of {words!r} in the log: {self.log.read_text()[start:]}")

    def until(self, happened: Callable[[], bool], timeout_s: float = 20) -> None:
        """Wait for another process's progress."""
        deadline_s = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(0.02)

    def operator(self) -> int:
        """The pid of the operator process: of root's two it is the one without threads or boxes; it was forked last."""
        return max(children(self.process.pid))

    def ours(self) -> list[int]:
        """Every process of the gateway's."""
        return [self.process.pid, *descendants(self.process.pid)]

    def end(self) -> int:
        """Hang up, and the exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=20)


def configure(of: Lab, gateway: str, more: str = "") -> Path:
    """Write a configuration with this `gateway:` section; engines' risks are accepted, and all senders unless `more` has a policy.

    Nobody is there to approve anything, so no request is held open for that, unless `more` says how long.
    """
    path = of.folder / "gateway.yaml"
    policy = "" if "policy:" in more else SENDERS
    approvals = "" if "approvals:" in more else "approvals: {wait: 0s}\n"
    path.write_text(f"accept_risk: [{', '.join(RISKS)}]\n{policy}{approvals}{more}\ngateway: {gateway}\n")
    path.chmod(0o644)
    return path


def napping(of: Lab, name: str, *, tool: str | None = None, engine: str = "oci") -> tuple[str, Path]:
    """One entry below `servers:`, of a napper in a workspace of its own; and that workspace."""
    workspace = of.workspace(name)
    shutil.copy(NAPPER, workspace / "napper.py")
    profile = of.profile(f"napper-{name}", PROFILE)
    command = f"[python3, /workspace/napper.py, {tool or name}]"
    return f"{name}: {{profile: {profile}, workspace: {workspace}, command: {command}, engine: {engine}}}", workspace


def naps(tool: str) -> bool:
    """Whether a box runs a napper with this tool."""
    return any("/workspace/napper.py" in _words(pid) and tool in _words(pid) for pid in pids())


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


@contextmanager
def live_gateway(
    of: Lab, file: Path, program: Sequence[str] = (), options: Sequence[str] = ()
) -> Iterator[LiveGateway]:
    """A gateway that serves `file` for the length of the body. `program` replaces the `fumehood` script."""
    log = of.folder / "gateway.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*(program or [str(FUMEHOOD)]), "gateway", "--config", str(file), *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=of.env, cwd=of.folder,
            bufsize=0,  # what a buffer holds, no `select` sees
        )  # fmt: skip
    gateway = LiveGateway(of, process, file, log)
    try:
        yield gateway
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=30)
        process.stdin.close()
        process.stdout.close()
