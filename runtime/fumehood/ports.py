"""The Protocols between the spine and what does the work. Fakes in tests implement exactly these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fumehood.model import Binding, FileChange, Frame, Image, Keeping, Outcome, Sender, ToolCall, Usage
from fumehood.reasons import Reason
from fumehood.residence import Residences


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A box whose init waits. `facts` go to the record: versions, digests, id range, timings."""

    engine: str
    container: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """How the tool's first process ended; exactly one of `exit_code` and `signal` unless it never started."""

    exit_code: int | None = None
    signal: int | None = None
    killed: Reason | None = None
    failed: Reason | None = None
    detail: str = ""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of a workspace's changes. `pending`: kept for `fumehood diff|commit|discard`."""

    files: tuple[FileChange, ...] = ()
    files_total: int = 0
    pending: bool = False
    failed: Reason | None = None
    detail: str = ""


class Broker(Protocol):
    """The privileged process's verbs for one box each, named by task. Raises `Refused` or `BoxFailed`."""

    async def make(self, task: str, frame: Frame) -> Made:
        """Make a box whose init waits."""
        ...

    async def bind(self, task: str, binding: Binding) -> Mapping[str, Any]:
        """Attach the call's own things; returns facts for the record."""
        ...

    async def start(
        self, task: str, argv: Sequence[str], env: Mapping[str, str], stdio: tuple[int, int, int]
    ) -> Mapping[str, Any]:
        """Read back what the kernel applied, then start the tool; returns the read-back."""
        ...

    async def wait(self, task: str) -> Exited:
        """Wait until the tool has ended and nothing of the box runs but its init."""
        ...

    async def kill(self, task: str, reason: Reason) -> None:
        """End every process of the box now; `wait` then returns with this reason."""
        ...

    async def freeze(self, task: str, seconds: float) -> Usage:
        """Stop every process of the box for at most `seconds`; what was used since the start or the last thaw."""
        ...

    async def thaw(self, task: str) -> None:
        """Let the box go on. `wall` stood still meanwhile."""
        ...

    async def put(self, task: str, source: int, path: str) -> None:
        """Copy what `source` holds to a new file of the workspace, before the start."""
        ...

    async def get(self, task: str, path: str, target: int, most_bytes: int | None = None) -> None:
        """Copy a regular file of the workspace into `target`, after the end. BoxFailed(RESULT_TOO_LARGE) for more."""
        ...

    async def settle(self, task: str, action: str, protect: Sequence[str]) -> Settled:
        """`commit`, `hold` or `discard` the workspace's changes of a box whose tool has ended."""
        ...

    async def remove(self, task: str) -> Mapping[str, Any]:
        """Remove everything of the box, check that it is gone, and return the teardown facts. Idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Whose a call was, how it went, and what is kept of it: `fd` is the reader's to close, None when nothing is."""

    sender: Sender
    front_door: str
    is_open: bool
    result: str | None
    reason: str | None
    opened_at_s: float
    closed_at_s: float | None
    fd: int | None = None
    size_bytes: int = 0
    kept_at_s: float = 0.0
    until_s: float = 0.0


class Ledger(Protocol):
    """The ledger process. Raises `LedgerGone` when it cannot make durable what it was given."""

    async def open(self, call: ToolCall) -> None:
        """Write the call's record durably. Returns only when it is on disk."""
        ...

    async def event(self, task: str, state: str, facts: Mapping[str, Any]) -> None:
        """Append one step of the call's timeline (state of `lifecycle.State`, JSON facts)."""
        ...

    async def close(self, outcome: Outcome) -> None:
        """Close the record with its outcome."""
        ...

    async def keep(self, task: str, kind: Keeping, source: int, offset: int, size: int) -> float:
        """Keep bytes of a sealed memory file beside a record of this runtime's; until when they are kept (epoch).

        Raises `Refused` when they cannot be kept. Returns only when they are on disk.
        """
        ...

    async def kept(self, task: str, kind: Keeping) -> Kept | None:
        """What is kept of any task; None when there is no such task. Whether it may be read is the caller's to judge."""
        ...


class Images(Protocol):
    """The image store, read side."""

    def resolve(self, name: str) -> Image | None:
        """The image of this name or digest, or None."""
        ...


class Clock(Protocol):
    """Time, so that tests can hold it."""

    def wall_s(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic_s(self) -> float:
        """Seconds of a clock that never steps."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Everything a call may touch. `owner_uid` owns the state folder: the one sender the shipped policy allows."""

    broker: Broker
    ledger: Ledger
    images: Images
    clock: Clock
    owner_uid: int
    residences: Residences = field(default_factory=Residences)
