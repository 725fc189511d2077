"""A box that is another task's than the call's: of a session (rule 10), or of a server that stood by for one call (rule 27).

The host is a task of its own whose work is to host; every call in it is a task too, with its own record and its own
admission, that borrows the box for its length. Invariants: one visitor at a time; a session's has the sender, the profile and the
workspace of the session, and a standby's is the first and last, or is refused; the box stands still whenever nobody visits; when the
host ends, a visitor inside ends with it, and no other gets in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from fumehood.faults import BoxFailed, ExchangeFailed, Refused
from fumehood.memory import Memory
from fumehood.model import Deny, Plan, ToolCall, Usage
from fumehood.reasons import Reason

# The broker ends a box that nobody thaws; the session's own clock ends it earlier, and in order.
BACKSTOP_S = 30.0


class ServerStreams(Protocol):
    """A server's stdin and stdout, a line a message."""

    async def send(self, frame: bytes) -> None:
        """Write one message; the newline is added."""
        ...

    async def receive(self) -> bytes:
        """The next line without its newline. Raises ExchangeFailed(SERVER_DIED | RESULT_TOO_LARGE)."""
        ...

    async def receive_long(self, most_bytes: int) -> bytes | Memory:
        """As `receive`, but a line over the limit comes, up to so many bytes, as sealed memory that is the caller's."""
        ...


class HostedStreams(ServerStreams, Protocol):
    """A server's streams as who hosts it has them."""

    @property
    def has_unread(self) -> bool:
        """Whether the server has written what nobody has read."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """A box that stands still: its processes beside init, and the sockets that listen in it and are not its gate's."""

    processes: int
    listeners: tuple[str, ...]


class WayOut(Protocol):
    """A call's gate and its leases, as whoever parks the call's box needs them."""

    async def suspend(self) -> None:
        """Let nothing through, and revoke the leases."""
        ...

    async def resume(self) -> None:
        """Renew the leases, and let through again."""
        ...


class HeldBox(Protocol):
    """The part of a box that holding it needs."""

    container: str
    engine: str
    way_out: WayOut | None
    readback: Mapping[str, Any]

    async def freeze(self, seconds: float) -> Usage:
        """Stop everything in it; what was used since it went on."""
        ...

    async def survey(self) -> Surveyed:
        """What is in it, while it stands still."""
        ...

    async def thaw(self) -> None:
        """Let it go on."""
        ...

    async def kill(self, reason: Reason) -> None:
        """End it."""
        ...


class Residence:
    """One session's box, from its server's first answer to its end."""

    def __init__(self, task: str) -> None:
        """Be the residence of the host with this task id; nobody can visit before it is `opened`."""
        self.task = task
        self.visits = 0
        self._turn = anyio.Lock()
        self._opened = anyio.Event()
        self._over = anyio.Event()
        self._host: tuple[Plan, HeldBox, HostedStreams] | None = None
        self._touched = anyio.Event()

    @property
    def is_over(self) -> bool:
        """Whether the host has ended, or is about to."""
        return self._over.is_set()

    def end(self) -> None:
        """End the host. Idempotent."""
        self._over.set()
        self._touched.set()
        self._opened.set()

    async def opened(self) -> None:
        """Return when the server answers, or will not any more."""
        await self._opened.wait()

    async def host(self, plan: Plan, box: HeldBox, streams: HostedStreams) -> None:
        """Keep the box until the session is ended, idle for too long, or as old as it may become."""
        life = plan.call.profile.session
        self._host = (plan, box, streams)
        try:
            await box.freeze(life.idle_s + BACKSTOP_S)
            self._opened.set()
            with anyio.move_on_after(life.lifetime_s):
                await self._while_used(life.idle_s)
        finally:
            self.end()

    async def _while_used(self, idle_s: float) -> None:
        while not self.is_over:
            self._touched = anyio.Event()
            with anyio.move_on_after(idle_s) as waiting:
                await self._touched.wait()
            if waiting.cancelled_caught and not self._turn.locked():
                return

    @asynccontextmanager
    async def visit(self, plan: Plan) -> AsyncIterator[Visitor]:
        """Have the box for the body. Raises Refused: it is over, another's, or taken for the whole `wall`."""
        with anyio.move_on_after(plan.binding.wall_s) as waiting:
            await self._turn.acquire()
        if waiting.cancelled_caught:
            raise _refused(Reason.BUSY, "the session's earlier call took all of this one's time")
        try:
            if self.is_over or self._host is None:
                raise _refused(Reason.SESSION_ENDED, "")
            theirs, box, streams = self._host
            if _pool_key(theirs) != _pool_key(plan) or not self._fits(theirs.call, plan.call):
                raise _refused(Reason.SESSION_ENDED, "it is not of this sender and profile")
            self.visits += 1
            yield Visitor(self, box, streams, theirs.call.profile.session.idle_s)
        finally:
            self._turn.release()
            self._touched.set()

    def _fits(self, theirs: ToolCall, ours: ToolCall) -> bool:
        """Whether a call may visit."""
        return theirs.sender == ours.sender and _same(theirs, ours)


class Standby(Residence):
    """A server that was started before its call: frozen from its first answer on, and visited once."""

    def __init__(self, task: str) -> None:
        """Be that of the host with this task id; `ended` is set when its box is gone."""
        super().__init__(task)
        self.stood_by = False
        self.ended = anyio.Event()
        self._taken = anyio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether a call could have it."""
        return self.stood_by and not self._taken.is_set()

    @property
    def frame_image(self) -> str | None:
        """The digest of the image that it runs in, once it is opened."""
        frame = None if self._host is None else self._host[0].frame
        return None if frame is None else frame.image

    def take(self) -> None:
        """Have it for a call. From here on it does not grow too old; whoever takes it ends it."""
        self._taken.set()

    def end(self) -> None:
        """End the host. Idempotent."""
        super().end()
        self._taken.set()

    async def host(self, plan: Plan, box: HeldBox, streams: HostedStreams) -> None:
        """Keep the box until its one call is over, or until nobody came. Raises ExchangeFailed when the server does not only wait."""
        age_s = plan.call.profile.pool.age_s
        self._host = (plan, box, streams)
        try:
            await box.freeze(age_s + BACKSTOP_S)
            # What it does beside waiting it would do beside its call, whose box it is not yet.
            if found := _unquiet(await box.survey(), has_unread=streams.has_unread):
                raise ExchangeFailed(Reason.NOT_QUIET, found)
            self.stood_by = True
            self._opened.set()
            with anyio.move_on_after(age_s) as waiting:
                await self._taken.wait()
            if not waiting.cancelled_caught:
                await self._over.wait()
        finally:
            self.end()

    def _fits(self, theirs: ToolCall, ours: ToolCall) -> bool:
        return self.visits == 0 and ours.standby == self.task and _same(theirs, ours)


def _unquiet(found: Surveyed, *, has_unread: bool) -> str:
    """What a server did beside answering, in one line; empty when it only waits."""
    if found.processes != 1:
        return f"it runs as {found.processes} processes before its call"
    if found.listeners:
        return f"it listens before its call: {', '.join(found.listeners)[:200]}"
    return "it wrote what nobody asked for" if has_unread else ""


class Visitor:
    """The host's box as one call has it."""

    def __init__(self, residence: Residence, box: HeldBox, streams: ServerStreams, idle_s: float) -> None:
        self._residence = residence
        self._box = box
        self._idle_s = idle_s
        self.streams = streams
        self.number = residence.visits

    @property
    def engine(self) -> str:
        """The engine's name."""
        return self._box.engine

    @property
    def container(self) -> str:
        """The container's name."""
        return self._box.container

    @property
    def way_out(self) -> WayOut | None:
        """The gate of the host's box."""
        return self._box.way_out

    @property
    def readback(self) -> Mapping[str, Any]:
        """What the kernel applied to the box, read before its tool's first instruction."""
        return self._box.readback

    async def freeze(self, seconds: float | None = None) -> Usage:
        """Stop the box, until the next call or for the length of a question; what was used since it went on."""
        try:
            return await self._box.freeze(self._idle_s + BACKSTOP_S if seconds is None else seconds)
        except BoxFailed:
            self._residence.end()  # a box that cannot be stopped is not kept
            raise

    async def thaw(self) -> None:
        """Let the box go on."""
        await self._box.thaw()

    async def kill(self, reason: Reason) -> None:
        """End the box, and its host with it: whoever hosts it sees it end."""
        self._residence.end()
        await self._box.kill(reason)


class Residences:
    """What calls can visit in one runtime, by the hosts' task ids."""

    def __init__(self) -> None:
        """Know none."""
        self._known: dict[str, Residence] = {}

    def add(self, residence: Residence) -> None:
        """Let calls find it."""
        self._known[residence.task] = residence

    def forget(self, task: str) -> None:
        """Let no call find it any more."""
        self._known.pop(task, None)

    def of(self, call: ToolCall) -> Residence:
        """The residence that a call names. Raises Refused."""
        found = self._known.get(call.host or "")
        if found is None:
            raise _refused(Reason.SESSION_ENDED, "there is none of this name")
        return found


def _same(theirs: ToolCall, ours: ToolCall) -> bool:
    return (theirs.profile.digest, theirs.workspace_path) == (ours.profile.digest, ours.workspace_path)


def _pool_key(plan: Plan) -> str | None:
    return None if plan.frame is None else plan.frame.digest


def _refused(reason: Reason, detail: str) -> Refused:
    return Refused(Deny(reason=reason, rule="session", detail=detail or reason.meaning))
