"""Runs the work in the bound box, bounds what comes out, and says how it ended.

`Work` is what happens inside: a `Command` (argument list, streams), an `Exchange` (a conversation with a server over the
box's streams), `Hosting` (a session's server, kept for others) or a `Visit` (a conversation with such a server). Output
beyond its limit is read and thrown away, so that a chatty tool is not killed by a full pipe; at sixteen times the limit
it is. The box's streams are pipes, never terminals.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import anyio

from fumehood.faults import BoxFailed, ExchangeFailed
from fumehood.memory import Memory
from fumehood.model import Outcome, Plan, Result, Usage
from fumehood.ports import Exited
from fumehood.reasons import Reason
from fumehood.residence import HeldBox, Residence, ServerStreams

FLOOD_FACTOR = 16
FRAME_SLACK_BYTES = 64 * 1024
_CHUNK = 65_536
# A server that did this in one call is not kept for the next.
_BROKEN = frozenset({Reason.SERVER_DIED, Reason.SERVER_GARBAGE})
# The whole environment of a tool, beside what its profile adds.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",  # noqa: S108 - the box's private one
    "TMPDIR": "/tmp",  # noqa: S108
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
}


class Parking(Protocol):
    """The part of a conversation's box that waiting for a person needs."""

    def parked(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """Let the box stand still for the body, at most so long: it is killed then."""
        ...


class Streams(ServerStreams, Parking, Protocol):
    """What a conversation has: a server's streams, and its box to park."""


@dataclass(frozen=True, slots=True)
class Command:
    """One program run to its end. `stdin` is a descriptor that is read to its end, or None for an empty one.

    `on_output` is told of each chunk as it comes (stream name, bytes within the limit), for callers that pass it through.
    `put` copies a descriptor's content to a workspace path before the start, `get` the other way after a good end,
    each at most `get_bytes` if given.
    """

    argv: tuple[str, ...]
    stdin: int | None = None
    on_output: Callable[[str, bytes], None] | None = None
    put: tuple[tuple[int, str], ...] = ()
    get: tuple[tuple[str, int], ...] = ()
    get_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A server started in the box and talked to; its first process is killed when `converse` has returned."""

    argv: tuple[str, ...]
    converse: Callable[[Streams], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Hosting:
    """A server started in the box and kept there: `greet` opens the conversation, `residence` lets calls visit."""

    argv: tuple[str, ...]
    greet: Callable[[Streams], Awaitable[Any]]
    residence: Residence


@dataclass(frozen=True, slots=True)
class Visit:
    """A conversation with the server of the session that the call belongs to."""

    converse: Callable[[Streams], Awaitable[Any]]


Work = Command | Exchange | Hosting | Visit


class RunningBox(HeldBox, Protocol):
    """The part of a box of the call's own that running work needs."""

    async def start(self, argv: tuple[str, ...], env: Mapping[str, str], stdio: tuple[int, int, int]) -> None:
        """Start the tool."""
        ...

    async def wait(self) -> Exited:
        """Wait for its end."""
        ...

    async def park(self, seconds: float) -> None:
        """Let it stand still while somebody is asked something."""
        ...

    async def resume(self) -> None:
        """Let it go on."""
        ...

    async def put(self, source: int, path: str) -> None:
        """Copy a file into the workspace."""
        ...

    async def get(self, path: str, target: int, most_bytes: int | None = None) -> None:
        """Copy a file out of the workspace."""
        ...


@runtime_checkable
class VisitedBox(Protocol):
    """The part of a session's box that a visit needs."""

    @property
    def streams(self) -> ServerStreams:
        """The server's."""
        ...

    async def enter(self) -> None:
        """Let the server go on."""
        ...

    async def leave(self) -> Usage:
        """Stop it; what the visit used."""
        ...

    async def park(self, seconds: float) -> None:
        """Let it stand still while somebody is asked something."""
        ...

    async def resume(self) -> None:
        """Let it go on."""
        ...

    async def kill(self, reason: Reason) -> None:
        """End the session."""
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


async def run(box: RunningBox | VisitedBox, work: Work, plan: Plan) -> Outcome:
    """Run the work to its end and describe it. Raises BoxFailed when the box goes wrong."""
    if isinstance(work, Visit):
        if not isinstance(box, VisitedBox):
            raise BoxFailed(Reason.BAD_REQUEST, "a visit needs a session")
        return await _run_visit(box, work, plan)
    if isinstance(box, VisitedBox):
        raise BoxFailed(Reason.BAD_REQUEST, "a session takes only visits")
    return await _run_own(box, work, plan)


async def _run_own(box: RunningBox, work: Command | Exchange | Hosting, plan: Plan) -> Outcome:
    limits = plan.limits
    env = {**ENVIRONMENT, **dict(plan.call.profile.environment)}
    stdout, stderr = _Kept(limits.output_bytes), _Kept(limits.output_bytes)
    pipes = _Pipes(stdin=not isinstance(work, Command) or work.stdin is not None)
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
                await box.get(path, target, work.get_bytes)
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


async def _run_exchange(
    box: RunningBox, work: Exchange | Hosting, pipes: _Pipes, stderr: _Kept, plan: Plan
) -> Outcome:
    """Converse until the conversation is over, fails, or the box ends on its own; then end the box and describe."""
    heard = _Heard()
    lines = _Lines(pipes, plan.limits.result_bytes + FRAME_SLACK_BYTES, heard)
    streams = _Parkable(lines, box.park, box.resume, heard)
    said: list[Any] = []
    failure: list[ExchangeFailed] = []
    ended: list[Exited] = []

    async def converse() -> None:
        try:
            if isinstance(work, Hosting):
                await work.greet(streams)
                idle.cancel()  # from here on the residence has its own
                await work.residence.host(plan, box, lines)
                said.append(None)
            else:
                said.append(await work.converse(streams))
        except ExchangeFailed as error:
            failure.append(error)
        # Without this, a server that ignores the end of its input would run on into its limit.
        await box.kill(Reason.CANCELLED)

    async def wait() -> None:
        ended.append(await box.wait())
        if isinstance(work, Hosting):
            work.residence.end()

    async def watch() -> None:
        if plan.limits.idle_s is not None:
            with idle:
                await _watch_idle(box, heard, plan.limits.idle_s)

    idle = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_collect, box, pipes.our_err, "stderr", stderr, None, heard)
        tasks.start_soon(wait)
        tasks.start_soon(watch)
        await converse()
        idle.cancel()
    outcome = _classify(plan.call.task, ended[0])
    if isinstance(work, Hosting) and said and outcome.reason not in {None, Reason.CANCELLED, Reason.OPERATOR}:
        # It did not end because it was over.
        return replace(outcome, result=Result.FAILED) if outcome.reason in _BROKEN else outcome
    if said:
        return replace(outcome, result=Result.OK, reason=None, detail="", value=said[0])
    return _broken_off(outcome, failure[0], bytes(stderr.data))


def _broken_off(outcome: Outcome, failure: ExchangeFailed, stderr: bytes) -> Outcome:
    """The outcome of a conversation that failed: why, unless the box was ended for a reason of its own."""
    if outcome.reason is not Reason.CANCELLED and outcome.result is Result.KILLED:
        return outcome
    words = stderr.decode(errors="replace").strip().splitlines()
    detail = failure.detail + (f"; its stderr ends: {words[-1][:300]}" if words else "")
    return replace(outcome, result=Result.FAILED, reason=failure.reason, detail=detail, value=failure.value)


async def _run_visit(box: VisitedBox, work: Visit, plan: Plan) -> Outcome:
    """Converse with the session's server, for at most the call's own `wall` and `idle`."""
    call, limits = plan.call, plan.limits
    outcome = Outcome(task=call.task, result=Result.OK)
    heard = _Heard()
    streams = _Parkable(_Heeding(box.streams, heard), box.park, box.resume, heard)
    late: list[Reason] = []
    await box.enter()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_limit_visit, tasks.cancel_scope, heard, limits.wall_s, limits.idle_s, late)
            outcome = replace(outcome, value=await work.converse(streams))
            tasks.cancel_scope.cancel()
    except* ExchangeFailed as group:
        error = group.exceptions[0]
        assert isinstance(error, ExchangeFailed)  # noqa: S101 - what `except*` chose
        outcome = replace(outcome, result=Result.FAILED, reason=error.reason, detail=error.detail, value=error.value)
        if error.reason in _BROKEN:
            await box.kill(error.reason)
    if late and outcome.result is Result.OK and outcome.value is None:
        # What it was doing it would go on doing in the next call.
        await box.kill(late[0])
        outcome = replace(outcome, result=Result.KILLED, reason=late[0])
    return replace(outcome, usage=await box.leave())


async def _limit_visit(
    everything: anyio.CancelScope, heard: _Heard, wall_s: float, idle_s: float | None, late: list[Reason]
) -> None:
    """End a visit that takes too long or is silent too long, by a clock that stands still while it is parked."""
    running_s, silent_s, step_s = 0.0, 0.0, min(0.05, wall_s, idle_s or wall_s)
    while running_s < wall_s and (idle_s is None or silent_s < idle_s):
        event = heard.event
        await anyio.sleep(step_s)
        if heard.parked:
            continue
        running_s += step_s
        silent_s = 0.0 if event.is_set() else silent_s + step_s
    late.append(Reason.WALL if running_s >= wall_s else Reason.IDLE)
    everything.cancel()


@dataclass(slots=True)
class _Heard:
    """When the tool last wrote something, and whether it stands still."""

    event: anyio.Event = field(default_factory=anyio.Event)
    parked: bool = False

    def now(self) -> None:
        """Something was written."""
        event, self.event = self.event, anyio.Event()
        event.set()


async def _watch_idle(box: RunningBox, heard: _Heard, idle_s: float) -> None:
    while True:
        with anyio.move_on_after(idle_s) as waiting:
            await heard.event.wait()
        if waiting.cancelled_caught and not heard.parked:
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

    def __init__(self, pipes: _Pipes, longest: int, heard: _Heard) -> None:
        self._pipes = pipes
        self._longest = longest
        self._heard = heard
        self._buffer = bytearray()
        self._skipping = False
        self._sending = anyio.Lock()

    async def send(self, frame: bytes) -> None:
        async with self._sending:
            try:
                await _write(self._pipes.our_in, frame + b"\n")
            except BrokenPipeError:
                raise ExchangeFailed(Reason.SERVER_DIED, "the server closed its input") from None

    async def receive(self) -> bytes:
        if (line := await self._line()) is None:
            self._skipping = True
            raise ExchangeFailed(Reason.RESULT_TOO_LARGE, f"one message of the server's is over {self._longest} bytes")
        return line

    async def receive_long(self, most_bytes: int) -> bytes | Memory:
        if (line := await self._line()) is not None:
            return line
        memory = Memory()
        self._skipping = True
        try:
            while True:
                end = self._buffer.find(b"\n")
                part = bytes(self._buffer if end < 0 else self._buffer[:end])
                if memory.size + len(part) > most_bytes:
                    detail = f"one message of the server's is over {most_bytes} bytes, the most that is kept"
                    raise ExchangeFailed(Reason.RESULT_TOO_LARGE, detail)
                memory.write(part)
                del self._buffer[: len(part) + (end >= 0)]
                if end >= 0:
                    self._skipping = False
                    return memory.seal()
                self._buffer += await self._more()
        except BaseException:
            memory.close()
            raise

    async def _line(self) -> bytes | None:
        """The next line, or None when it is too long: what there is of it is then still in the buffer."""
        if self._skipping:
            await self._skip()
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > self._longest:
                return None
            self._buffer += await self._more()
        if end > self._longest:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def _skip(self) -> None:
        """Drop the rest of a line that was too long: a session's next call must not find it."""
        while (end := self._buffer.find(b"\n")) < 0:
            self._buffer.clear()
            self._buffer += await self._more()
        del self._buffer[: end + 1]
        self._skipping = False

    async def _more(self) -> bytes:
        chunk = await _read(self._pipes.our_out)
        if not chunk:
            raise ExchangeFailed(Reason.SERVER_DIED, "the server ended before it answered")
        self._heard.now()
        return chunk


class _Heeding:
    """A session's streams as one visit hears them."""

    def __init__(self, streams: ServerStreams, heard: _Heard) -> None:
        self._streams = streams
        self._heard = heard
        self.send = streams.send

    async def receive(self) -> bytes:
        line = await self._streams.receive()
        self._heard.now()
        return line

    async def receive_long(self, most_bytes: int) -> bytes | Memory:
        line = await self._streams.receive_long(most_bytes)
        self._heard.now()
        return line


class _Parkable:
    """A server's streams, and its box to park."""

    def __init__(
        self,
        streams: ServerStreams,
        park: Callable[[float], Awaitable[None]],
        resume: Callable[[], Awaitable[None]],
        heard: _Heard,
    ) -> None:
        self.send = streams.send
        self.receive = streams.receive
        self.receive_long = streams.receive_long
        self._park = park
        self._resume = resume
        self._heard = heard

    @asynccontextmanager
    async def parked(self, seconds: float) -> AsyncIterator[None]:
        await self._park(seconds)
        self._heard.parked = True
        try:
            yield
        except ExchangeFailed as error:
            if error.reason is not Reason.PARKED:  # then its box has been ended
                await self._resume()  # without an answer: what that means to the server is its own affair
            raise
        else:
            await self._resume()
        finally:
            self._heard.parked = False
            self._heard.now()


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
