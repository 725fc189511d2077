"""Runs the work in the bound box, bounds what comes out, and says how it ended.

`Work` is what happens inside: a `Command` (argument list, streams) or an `Exchange` (a conversation with a server over the box's
streams). Output beyond its limit is read and thrown away, so that a chatty tool is not killed by a full pipe; at
sixteen times the limit it is. The box's streams are pipes, never terminals.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import anyio

from fumehood.faults import ExchangeFailed
from fumehood.model import Outcome, Plan, Result
from fumehood.ports import Exited
from fumehood.reasons import Reason

FLOOD_FACTOR = 16
FRAME_SLACK_BYTES = 64 * 1024
_CHUNK = 65_536
# The whole environment of a tool, beside what its profile adds.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",  # noqa: S108 - the box's private one
    "TMPDIR": "/tmp",  # noqa: S108
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
}


class ServerStreams(Protocol):
    """A server's stdin and stdout, a line a message."""

    async def send(self, frame: bytes) -> None:
        """Write one message; the newline is added."""
        ...

    async def receive(self) -> bytes:
        """The next line without its newline. Raises ExchangeFailed(SERVER_DIED | RESULT_TOO_LARGE)."""
        ...


@dataclass(frozen=True, slots=True)
class Command:
    """One program run to its end. `stdin` is a descriptor that is read to its end, or None for an empty one.

    `on_output` is told of each chunk as it comes (stream name, bytes within the limit), for callers that pass it through.
    `put` copies a descriptor's content to a workspace path before the start, `get` the other way after a good end.
    """

    argv: tuple[str, ...]
    stdin: int | None = None
    on_output: Callable[[str, bytes], None] | None = None
    put: tuple[tuple[int, str], ...] = ()
    get: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Exchange:
    """A server started in the box and talked to; its first process is killed when `converse` has returned."""

    argv: tuple[str, ...]
    converse: Callable[[ServerStreams], Awaitable[Any]]


Work = Command | Exchange


class RunningBox(Protocol):
    """The part of a box that running work needs."""

    async def start(self, argv: tuple[str, ...], env: Mapping[str, str], stdio: tuple[int, int, int]) -> None:
        """Start the tool."""
        ...

    async def wait(self) -> Exited:
        """Wait for its end."""
        ...

    async def kill(self, reason: Reason) -> None:
        """End it."""
        ...

    async def put(self, source: int, path: str) -> None:
        """Copy a file into the workspace."""
        ...

    async def get(self, path: str, target: int) -> None:
        """Copy a file out of the workspace."""
        ...


@dataclass(slots=True)
class _Kept:
    """What is kept of one stream."""

    limit: int
    data: bytearray = field(default_factory=bytearray)
    total: int = 0

    def take(self, chunk: bytes) -> bytes:
        """Count a chunk and keep what fits; returns what was kept of it."""
        self.total += len(chunk)
        kept = chunk[: max(0, self.limit - len(self.data))]
        self.data += kept
        return kept

    @property
    def flooded(self) -> bool:
        """Whether the tool wrote so much that it is ended."""
        return self.total > FLOOD_FACTOR * self.limit


class _Pipes:
    """The three pipes of one tool: the box's ends are given away, ours are non-blocking."""

    def __init__(self, *, stdin: bool) -> None:
        self.box_in, self.our_in = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), -1)
        self.our_out, self.box_out = os.pipe()
        self.our_err, self.box_err = os.pipe()
        for fd in (self.our_in, self.our_out, self.our_err):
            if fd >= 0:
                os.set_blocking(fd, False)

    def close_box_ends(self) -> None:
        """After the tool has its own copies, its end of a pipe must be the only one."""
        for name in ("box_in", "box_out", "box_err"):
            _close(self, name)

    def close(self) -> None:
        """Close whatever is open."""
        for name in ("box_in", "box_out", "box_err", "our_in", "our_out", "our_err"):
            _close(self, name)

    def close_input(self) -> None:
        """Tell the tool that its input has ended."""
        _close(self, "our_in")


def _close(pipes: _Pipes, name: str) -> None:
    fd = getattr(pipes, name)
    if fd >= 0:
        setattr(pipes, name, -1)
        os.close(fd)


async def run(box: RunningBox, work: Work, plan: Plan) -> Outcome:
    """Run the work to its end and describe it. Raises ExchangeFailed when a conversation went wrong by itself."""
    limits = plan.limits
    env = {**ENVIRONMENT, **dict(plan.call.profile.environment)}
    stdout, stderr = _Kept(limits.output_bytes), _Kept(limits.output_bytes)
    pipes = _Pipes(stdin=isinstance(work, Exchange) or work.stdin is not None)
    try:
        if isinstance(work, Command):
            for source, path in work.put:
                await box.put(source, path)
        try:
            await box.start(work.argv, env, (pipes.box_in, pipes.box_out, pipes.box_err))
        finally:
            pipes.close_box_ends()
        if isinstance(work, Command):
            ended = await _run_command(box, work, pipes, stdout, stderr, limits.idle_s)
            outcome = _classify(plan.call.task, ended)
            for path, target in work.get if outcome.result is Result.OK else ():
                await box.get(path, target)
        else:
            outcome = await _run_exchange(box, work, pipes, stderr, plan)
    finally:
        pipes.close()
    return replace(
        outcome,
        stdout=bytes(stdout.data),
        stderr=bytes(stderr.data),
        stdout_truncated=stdout.total > len(stdout.data),
        stderr_truncated=stderr.total > len(stderr.data),
        stdout_total_bytes=stdout.total,
        stderr_total_bytes=stderr.total,
    )


async def _run_command(
    box: RunningBox, work: Command, pipes: _Pipes, stdout: _Kept, stderr: _Kept, idle_s: float | None
) -> Exited:
    async with anyio.create_task_group() as tasks:
        heard = _Heard()
        if work.stdin is not None:
            tasks.start_soon(_feed, work.stdin, pipes)
        if idle_s is not None:
            tasks.start_soon(_watch_idle, box, heard, idle_s)
        async with anyio.create_task_group() as readers:
            readers.start_soon(_collect, box, pipes.our_out, "stdout", stdout, work.on_output, heard)
            readers.start_soon(_collect, box, pipes.our_err, "stderr", stderr, work.on_output, heard)
            ended = await box.wait()
        tasks.cancel_scope.cancel()
    return ended


async def _run_exchange(box: RunningBox, work: Exchange, pipes: _Pipes, stderr: _Kept, plan: Plan) -> Outcome:
    """Converse until `converse` returns, fails, or the box ends on its own; then end the box and describe."""
    streams = _Lines(pipes, plan.limits.result_bytes + FRAME_SLACK_BYTES)
    said: list[Any] = []
    failure: list[ExchangeFailed] = []
    ended: list[Exited] = []

    async def converse() -> None:
        try:
            said.append(await work.converse(streams))
        except ExchangeFailed as error:
            failure.append(error)
        # Without this, a server that ignores the end of its input would run on into its limit.
        await box.kill(Reason.CANCELLED)

    async def wait() -> None:
        ended.append(await box.wait())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_collect, box, pipes.our_err, "stderr", stderr, None, _Heard())
        tasks.start_soon(wait)
        await converse()
    outcome = _classify(plan.call.task, ended[0])
    if said:
        return replace(outcome, result=Result.OK, reason=None, detail="", value=said[0])
    if outcome.reason is Reason.CANCELLED or outcome.result is not Result.KILLED:
        words = stderr.data.decode(errors="replace").strip().splitlines()
        detail = failure[0].detail + (f"; its stderr ends: {words[-1][:300]}" if words else "")
        return replace(outcome, result=Result.FAILED, reason=failure[0].reason, detail=detail)
    return outcome


@dataclass(slots=True)
class _Heard:
    """When the tool last wrote something."""

    event: anyio.Event = field(default_factory=anyio.Event)

    def now(self) -> None:
        """Something was written."""
        event, self.event = self.event, anyio.Event()
        event.set()


async def _watch_idle(box: RunningBox, heard: _Heard, idle_s: float) -> None:
    while True:
        with anyio.move_on_after(idle_s) as waiting:
            await heard.event.wait()
        if waiting.cancelled_caught:
            await box.kill(Reason.IDLE)
            return


async def _collect(
    box: RunningBox, fd: int, name: str, kept: _Kept, on_output: Callable[[str, bytes], None] | None, heard: _Heard
) -> None:
    while chunk := await _read(fd):
        heard.now()
        fresh = kept.take(chunk)
        if fresh and on_output is not None:
            on_output(name, fresh)
        if kept.flooded:
            await box.kill(Reason.OUTPUT)
            return


async def _feed(source: int, pipes: _Pipes) -> None:
    """Copy the caller's input into the tool's until either ends."""
    try:
        while True:
            # A plain file cannot be waited for, and need not be; any other is read only when it has something.
            with contextlib.suppress(PermissionError):
                await anyio.wait_readable(source)
            if not (chunk := os.read(source, _CHUNK)):
                return
            await _write(pipes.our_in, chunk)
    except (BrokenPipeError, OSError):
        pass  # the tool does not want more
    finally:
        pipes.close_input()


class _Lines:
    """A server's streams, a line a message, every line bounded."""

    def __init__(self, pipes: _Pipes, longest: int) -> None:
        self._pipes = pipes
        self._longest = longest
        self._buffer = bytearray()
        self._sending = anyio.Lock()

    async def send(self, frame: bytes) -> None:
        async with self._sending:
            try:
                await _write(self._pipes.our_in, frame + b"\n")
            except BrokenPipeError:
                raise ExchangeFailed(Reason.SERVER_DIED, "the server closed its input") from None

    async def receive(self) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > self._longest:
                raise ExchangeFailed(Reason.RESULT_TOO_LARGE, f"one message of the server's is over {self._longest} bytes")
            chunk = await _read(self._pipes.our_out)
            if not chunk:
                raise ExchangeFailed(Reason.SERVER_DIED, "the server ended before it answered")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if len(line) > self._longest:
            raise ExchangeFailed(Reason.RESULT_TOO_LARGE, f"one message of the server's is over {self._longest} bytes")
        return line


async def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _CHUNK)
        except BlockingIOError:
            await anyio.wait_readable(fd)


async def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await anyio.wait_writable(fd)


def _classify(task: str, ended: Exited) -> Outcome:
    outcome = Outcome(task=task, result=Result.OK, exit_code=ended.exit_code, signal=ended.signal, usage=ended.usage)
    if ended.killed is not None:
        return replace(outcome, result=Result.KILLED, reason=ended.killed, detail=ended.detail)
    if ended.failed is not None:
        return replace(outcome, result=Result.FAILED, reason=ended.failed, detail=ended.detail)
    if ended.signal is not None:
        return replace(outcome, result=Result.FAILED, reason=Reason.SIGNALLED, detail=f"signal {ended.signal}")
    if ended.exit_code != 0:
        return replace(outcome, result=Result.FAILED, reason=Reason.EXIT_NONZERO, detail=f"exit status {ended.exit_code}")
    return outcome
