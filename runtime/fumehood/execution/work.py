"""What happens inside a box, and what it needs of one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fumehood.model import Usage
from fumehood.ports import Exited, Origin, Recall, Requester
from fumehood.reasons import Reason
from fumehood.residence import HeldBox, Residence, ServerStreams


class Parking(Protocol):
    """The part of a conversation's box that waiting for a person needs."""

    def parked(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """Let the box stand still for the body, at most so long: it is killed then."""
        ...

    def passing(self, value: Any) -> Any:
        """A part of what the server says, fit to be passed on in mid-call: without secrets, and with nothing hidden in it."""
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
    requester: Requester | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A server started in the box and talked to; its first process is killed when `converse` has returned."""

    argv: tuple[str, ...]
    converse: Callable[[Streams], Awaitable[Any]]
    recall: Recall | None = None
    requester: Requester | None = None


@dataclass(frozen=True, slots=True)
class Hosting:
    """A server started in the box and kept there: `greet` opens the conversation, `residence` lets calls visit, or the one call."""

    argv: tuple[str, ...]
    greet: Callable[[Streams], Awaitable[Any]]
    residence: Residence


@dataclass(frozen=True, slots=True)
class Visit:
    """A conversation with the server of the task that the call is a guest of."""

    converse: Callable[[Streams], Awaitable[Any]]
    recall: Recall | None = None
    requester: Requester | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A conversation with a remote server. `speak` makes a server's streams out of requests to it, for as long as it is held."""

    speak: Callable[[Origin], AbstractAsyncContextManager[ServerStreams]]
    converse: Callable[[Streams], Awaitable[Any]]
    recall: Recall | None = None
    requester: Requester | None = None


Work = Command | Exchange | Hosting | Visit | Call


def recall_of(work: Work) -> Recall | None:
    """How what the work gives is kept for a request that repeats it; None where nothing is."""
    return work.recall if isinstance(work, Exchange | Visit | Call) else None


def requester_of(work: Work) -> Requester | None:
    """Who is told when the call waits for an approval; None where nobody is: a server is only started."""
    return None if isinstance(work, Hosting) else work.requester


def argv_of(work: Work) -> tuple[str, ...]:
    """The command line that a call brings itself; a server's is its operator's."""
    return work.argv if isinstance(work, Command) else ()


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


class EnteredBox(Protocol):
    """The part that a conversation needs of a box whose server runs already."""

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
        """End what there is to end of it: a session, a remote server's connections."""
        ...


@runtime_checkable
class VisitedBox(EnteredBox, Protocol):
    """The part of a session's box that a visit needs."""

    @property
    def streams(self) -> ServerStreams:
        """The server's."""
        ...


@runtime_checkable
class RemoteBox(EnteredBox, Protocol):
    """The part that a call of a remote server needs of its box, which is a gate alone."""

    @property
    def origin(self) -> Origin:
        """Where the gate leads."""
        ...
