"""A bare client of the gateway, so that little of what is timed is the client's: frames by hand, many requests at once.

Invariants: a request's time runs from before its frame is written until its answer is parsed; an answer that is an error, or a
result with `isError`, is no sample but an exception.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from commands import CannotRunError

_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
}


@dataclass(slots=True)
class _Waiting:
    done: anyio.Event = field(default_factory=anyio.Event)
    begun: anyio.Event = field(default_factory=anyio.Event)
    answer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answered:
    """One request's time and result."""

    ms: float
    result: Mapping[str, Any]

    @property
    def task(self) -> str:
        """The record of a call."""
        name = self.result["_meta"]["fumehood/task"]
        assert isinstance(name, str)
        return name


class GatewayClient:
    """One connection to a gateway, by stdio or a socket; `pid` is the gateway's worker."""

    def __init__(self, source: anyio.abc.ByteReceiveStream, sink: anyio.abc.ByteSendStream, pid: int) -> None:
        self._source = source
        self._sink = sink
        self.pid = pid
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}

    async def read(self) -> None:
        """Hand every message to whom it is for, until the gateway ends."""
        buffer = bytearray()
        async for chunk in self._source:
            buffer += chunk
            *lines, rest = bytes(buffer).split(b"\n")
            buffer[:] = rest
            for line in lines:
                message = json.loads(line)
                if message.get("method") == "notifications/progress":
                    self._waiting[message["params"]["progressToken"]].begun.set()
                elif message.get("id") in self._waiting:
                    waiting = self._waiting[message["id"]]
                    waiting.answer = message
                    waiting.done.set()
        for waiting in self._waiting.values():  # the gateway has ended: nobody will answer them
            waiting.done.set()

    async def request(self, method: str, params: Mapping[str, Any], begun: anyio.Event | None = None) -> Answered:
        """One request. `begun` is set when the call reports progress. Cancelled, it tells the gateway so."""
        number = next(self._numbers)
        waiting = self._waiting[number] = _Waiting(begun=begun or anyio.Event())
        meta = {**_META, **({"progressToken": number} if begun else {})}
        started = time.perf_counter()
        await self._write({"jsonrpc": "2.0", "id": number, "method": method, "params": {**params, "_meta": meta}})
        try:
            with anyio.fail_after(120):
                await waiting.done.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                note = {"requestId": number, "_meta": _META}
                await self._write({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": note})
            raise
        finally:
            del self._waiting[number]
        spent_ms = (time.perf_counter() - started) * 1000
        result = waiting.answer.get("result")
        if result is None or result.get("isError"):
            error = waiting.answer.get("error") or {}
            raise CannotRunError(error.get("message") or (result or {}).get("content", [{}])[0].get("text", "the gateway ended"))
        return Answered(spent_ms, result)

    async def call(self, tool: str, begun: anyio.Event | None = None, **arguments: Any) -> Answered:
        """One call of a tool."""
        return await self.request("tools/call", {"name": tool, "arguments": arguments}, begun)

    async def _write(self, message: Mapping[str, Any]) -> None:
        await self._sink.send(json.dumps(message).encode() + b"\n")


@asynccontextmanager
async def connected(argv: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[GatewayClient]:
    """A gateway that has read its list of tools, until the body is left."""
    async with await anyio.open_process(argv, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        client = GatewayClient(process.stdout, process.stdin, process.pid)
        told: list[bytes] = []

        async def listen() -> None:
            assert process.stderr is not None
            async for chunk in process.stderr:
                told[:] = [*told[-9:], chunk]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.read)
            tasks.start_soon(listen)
            try:
                await client.request("tools/list", {})
                yield client
            except TimeoutError as error:
                raise CannotRunError(f"the gateway: {b''.join(told)[-400:].decode(errors='replace')}") from error
            await process.stdin.aclose()
            with anyio.move_on_after(20):
                await process.wait()
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def listening(argv: Sequence[str], environment: Mapping[str, str], path: Path) -> AsyncIterator[int]:
    """A gateway that listens on a unix socket, until the body is left; its worker's pid."""
    async with await anyio.open_process([*argv, "--unix", str(path)], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            with anyio.fail_after(60):
                while not await anyio.Path(path).is_socket():  # noqa: ASYNC110 - another process makes it
                    await anyio.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()
            with anyio.move_on_after(30, shield=True):
                await process.wait()


@asynccontextmanager
async def joined(path: Path, pid: int) -> AsyncIterator[GatewayClient]:
    """One connection more to a gateway that listens."""
    async with await anyio.connect_unix(path) as stream, anyio.create_task_group() as tasks:
        client = GatewayClient(stream, stream, pid)
        tasks.start_soon(client.read)
        yield client
        tasks.cancel_scope.cancel()


def usage(pid: int) -> tuple[float, int]:
    """Resident MiB and open descriptors of a process."""
    with open(f"/proc/{pid}/status") as file:
        resident = next(line for line in file if line.startswith("VmRSS"))
    return int(resident.split()[1]) / 1024, len(os.listdir(f"/proc/{pid}/fd"))


def cpu_ms(pid: int) -> float:
    """The processor time that a process has used, in steps of the kernel's clock tick."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")
