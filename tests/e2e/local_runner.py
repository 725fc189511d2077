"""A FAKE of the broker for tests of the gateway's protocol part: a "box" is a plain process group, in no box at all.

Everything above it is the real thing: `run_call`, its stages, the streams, sessions and parking. Freezing is SIGSTOP.
What its ledger records stands for the ledger process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from fakes import FakeLedger, NoBroker, all_senders
from fumehood import evidence
from fumehood.app import SystemClock
from fumehood.call import run_call
from fumehood.execution import Work
from fumehood.faults import BoxFailed
from fumehood.model import (
    Binding,
    Deny,
    FileChange,
    Frame,
    Image,
    Outcome,
    ToolCall,
    Usage,
)
from fumehood.ports import Exited, Listen, Made, Ports, Settled, Sockets
from fumehood.reach import Supplies
from fumehood.reasons import Reason
from fumehood.residence import Surveyed


class OneImage:
    """An image store in which everything is."""

    def resolve(self, name: str) -> Image:
        return Image(name=name, digest="sha256:" + "1" * 64, docker_id=None)


@dataclass(eq=False)
class LocalBox:
    """One process group."""

    process: subprocess.Popen[bytes] | None = None
    wall_s: float = 60.0
    killed: Reason | None = None
    frozen_until: float | None = None


@dataclass
class LocalBroker(NoBroker):
    """Boxes without walls."""

    spine: FakeSpine
    boxes: dict[str, LocalBox] = field(default_factory=dict)
    settled: list[tuple[str, str]] = field(default_factory=list)
    fail_next: bool = False

    async def make(self, task: str, frame: Frame) -> Made:  # noqa: ARG002 - the port's signature
        if self.fail_next:
            self.fail_next = False
            raise BoxFailed(Reason.BOX_FAILED, "as the test asked")
        self.boxes[task] = LocalBox()
        return Made(engine="local", container=f"local-{task}", facts={})

    async def network(self, task: str, listen: Sequence[Listen]) -> Sockets:
        raise BoxFailed(Reason.UNENFORCEABLE, f"a plain process has no network of its own ({task}, {listen})")

    async def bind(self, task: str, binding: Binding, supplies: Supplies) -> Mapping[str, Any]:  # noqa: ARG002 - as above
        self.boxes[task].wall_s = binding.wall_s
        return {}

    async def start(
        self, task: str, argv: Sequence[str], env: Mapping[str, str], stdio: tuple[int, int, int],  # noqa: ARG002 - as above
        *, check_fence: bool,  # noqa: ARG002 - as above
    ) -> Mapping[str, Any]:  # fmt: skip
        box = self.boxes[task]
        box.process = subprocess.Popen(
            argv, stdin=stdio[0], stdout=stdio[1], stderr=stdio[2], start_new_session=True
        )
        self.spine.pids.append(box.process.pid)
        self.spine.started.set()
        return {}

    async def wait(self, task: str) -> Exited:
        box = self.boxes[task]
        assert box.process is not None
        left_s, before = box.wall_s, time.monotonic()
        while box.process.poll() is None:
            await anyio.sleep(0.005)
            now = time.monotonic()
            if box.frozen_until is None:
                left_s -= now - before
            before = now
            if box.killed is None and left_s < 0:
                await self.kill(task, Reason.WALL)
            if box.killed is None and box.frozen_until is not None and now > box.frozen_until:
                await self.kill(task, Reason.PARKED)
        code = box.process.returncode
        return Exited(exit_code=code if code >= 0 else None, signal=-code if code < 0 else None, killed=box.killed)

    async def kill(self, task: str, reason: Reason) -> None:
        box = self.boxes.get(task)
        if box is None:
            return
        box.killed = box.killed or reason
        self._signal(box, signal.SIGKILL)

    async def freeze(self, task: str, seconds: float) -> Usage:
        box = self.boxes.get(task)
        if box is None or box.process is None or box.process.poll() is not None:
            raise BoxFailed(Reason.BOX_DIED, "the box has ended")
        box.frozen_until = time.monotonic() + seconds
        self._signal(box, signal.SIGSTOP)
        while box.process.poll() is None and not self.is_frozen(task):  # noqa: ASYNC110 - the kernel has no event
            await anyio.sleep(0.001)
        return Usage()

    async def thaw(self, task: str) -> None:
        if task not in self.boxes:
            raise BoxFailed(Reason.BOX_DIED, "it has no box any more")
        self.boxes[task].frozen_until = None
        self._signal(self.boxes[task], signal.SIGCONT)

    async def survey(self, task: str) -> Surveyed:
        process = self.boxes[task].process
        assert process is not None
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return Surveyed(processes=sum(_group_of(pid) == process.pid for pid in pids), listeners=())

    async def get(self, task: str, path: str, target: int, most_bytes: int | None = None) -> None:  # noqa: ARG002 - as above
        try:
            data = (self.spine.workspace / path).read_bytes()
        except OSError as error:
            raise BoxFailed(Reason.BAD_REQUEST, f"{path}: {error.strerror}") from error
        if most_bytes is not None and len(data) > most_bytes:
            raise BoxFailed(Reason.RESULT_TOO_LARGE, f"{path} has more than {most_bytes} bytes")
        os.write(target, data)

    async def settle(self, task: str, action: str, protect: Sequence[str]) -> Settled:  # noqa: ARG002 - as above
        self.settled.append((task, action))
        return Settled(files=self.spine.changes, files_total=len(self.spine.changes))

    async def remove(self, task: str) -> Mapping[str, Any]:
        box = self.boxes.pop(task, None)
        if box is not None and box.process is not None:
            self._signal(box, signal.SIGKILL)
            box.process.wait()  # killed: it ends at once
            self.spine.removed_at_s.append(time.monotonic())
        return {"clean": True}

    def is_frozen(self, task: str) -> bool:
        """Whether the box's first process is stopped, by the kernel's word."""
        process = self.boxes[task].process
        assert process is not None
        with open(f"/proc/{process.pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"

    @staticmethod
    def _signal(box: LocalBox, number: int) -> None:
        if box.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(box.process.pid, number)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@dataclass
class FakeSpine:
    """`run` and `refuse` for a gateway: the real path of a call over a local broker and a ledger in memory."""

    outcomes: list[tuple[ToolCall, Outcome]] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    removed_at_s: list[float] = field(default_factory=list)
    started: anyio.Event = field(default_factory=anyio.Event)
    workspace: Path = Path("/nonexistent")
    changes: tuple[FileChange, ...] = ()

    def __post_init__(self) -> None:
        self.broker = LocalBroker(self)
        self.ledger = FakeLedger()
        self.ports = Ports(
            broker=self.broker, ledger=self.ledger, images=OneImage(), clock=SystemClock(), owner_uid=os.getuid(),
            policies=all_senders(),
        )  # fmt: skip

    async def run(self, call: ToolCall, work: Work) -> Outcome:
        try:
            outcome = await run_call(call, work, self.ports)
        except BaseException:
            self.outcomes.append((call, self.ledger.closed[call.task]))
            raise
        self.outcomes.append((call, outcome))
        return outcome

    async def refuse(self, call: ToolCall, deny: Deny) -> Outcome:
        async with evidence.record(call, self.ports) as log:
            await log.note(deny)
        self.outcomes.append((call, log.outcome))
        return log.outcome
