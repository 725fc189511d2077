"""A ledger process of a test's own, and clients of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fumehood import evidence, wire
from fumehood.asking import asking
from fumehood.evidence.client import LedgerClient, closing, opening
from fumehood.model import Outcome, Result, ToolCall

RUNTIME = Path(evidence.__file__).parents[2]
SERVE = """
import socket, sys
from pathlib import Path
from fumehood.ledger import serve
serve([socket.socket(fileno=int(fd)) for fd in sys.argv[3:]], Path(sys.argv[1]), sys.argv[2])
"""


@dataclass
class Running:
    """A ledger process with the worker's and the broker's end of its sockets."""

    process: subprocess.Popen[bytes]
    worker: socket.socket
    broker: socket.socket

    def ask(self, verb: str, sock: socket.socket | None = None, /, **args: Any) -> Any:
        return wire.request(sock or self.worker, verb, args)[0]

    def open(self, call: ToolCall) -> None:
        self.ask("open", **opening(call))

    def close(self, task: str, **outcome: Any) -> None:
        self.ask("close", **closing(Outcome(task=task, **{"result": Result.OK, **outcome})))

    def tasks(self) -> list[str]:
        return [row["task"] for row in self.ask("tasks", limit=500)["tasks"]]


@contextmanager
def running(
    folder: Path, *, runtime: str = "r1", program: str = SERVE, prefix: tuple[str, ...] = ()
) -> Iterator[Running]:
    """A ledger for the body; afterwards its peers are gone, and it must have ended by itself or been killed."""
    with ExitStack() as stack:
        ends = [stack.enter_context(end) for _ in range(2) for end in wire.pair()]
        ours, theirs = ends[::2], ends[1::2]
        for end in ours:
            end.settimeout(20)
        fds = [end.fileno() for end in theirs]
        arguments = [sys.executable, "-c", program, str(folder), runtime, *map(str, fds)]
        env = {**os.environ, "PYTHONPATH": str(RUNTIME)}
        process = subprocess.Popen([*prefix, *arguments], pass_fds=fds, env=env)
        for end in theirs:
            end.close()
        try:
            yield Running(process, *ours)
        finally:
            for end in ours:
                end.close()
            try:
                process.wait(20)
            finally:
                process.kill()
                process.wait()


@asynccontextmanager
async def client(ledger: Running) -> AsyncIterator[LedgerClient]:
    class Wall:
        def wall_s(self) -> float:
            return 5.0

        def monotonic_s(self) -> float:
            return 5.0

    async with asking(ledger.worker) as asker:
        yield LedgerClient(asker, Wall())
