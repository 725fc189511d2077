"""A FAKE of the spine for tests of the gateway's protocol part: the server is a plain subprocess, in no box at all.

The streams are the real ones of `execution`; it turns ExchangeFailed and a wall-clock limit into the outcomes that
`run_call` gives, and kills the server however a call is left. What it records stands for the ledger.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio

from fumehood import execution
from fumehood.execution import ServerStreams
from fumehood.faults import ExchangeFailed
from fumehood.model import Deny, Outcome, Result, ToolCall
from fumehood.reasons import Reason


@dataclass
class FakeSpine:
    """`run` and `refuse` for a `Gateway`."""

    outcomes: list[tuple[ToolCall, Outcome]] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    removed_at_s: list[float] = field(default_factory=list)
    started: anyio.Event = field(default_factory=anyio.Event)

    async def run(
        self, call: ToolCall, argv: tuple[str, ...], converse: Callable[[ServerStreams], Awaitable[Any]]
    ) -> Outcome:
        try:
            outcome = await self._attempt(call, argv, converse)
        except BaseException:
            self.outcomes.append((call, Outcome(task=call.task, result=Result.KILLED, reason=Reason.CANCELLED)))
            raise
        self.outcomes.append((call, outcome))
        return outcome

    async def refuse(self, call: ToolCall, deny: Deny) -> Outcome:
        outcome = Outcome(
            task=call.task,
            result=Result.REFUSED,
            reason=deny.reason,
            detail=deny.detail,
            rule=deny.rule,
            remedy=deny.remedy,
        )
        self.outcomes.append((call, outcome))
        return outcome

    async def _attempt(
        self, call: ToolCall, argv: tuple[str, ...], converse: Callable[[ServerStreams], Awaitable[Any]]
    ) -> Outcome:
        limits = call.profile.limits
        pipes = execution._Pipes(stdin=True)
        process = subprocess.Popen(
            argv, stdin=pipes.box_in, stdout=pipes.box_out, stderr=subprocess.DEVNULL, start_new_session=True
        )
        pipes.close_box_ends()
        self.pids.append(process.pid)
        self.started.set()
        try:
            with anyio.move_on_after(limits.wall_s) as wall:
                value = await converse(execution._Lines(pipes, limits.result_bytes + execution.FRAME_SLACK_BYTES))
        except ExchangeFailed as error:
            return Outcome(task=call.task, result=Result.FAILED, reason=error.reason, detail=error.detail)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()  # killed: it ends at once
            self.removed_at_s.append(time.monotonic())
            pipes.close()
        if wall.cancelled_caught:
            return Outcome(task=call.task, result=Result.KILLED, reason=Reason.WALL)
        return Outcome(task=call.task, result=Result.OK, value=value)
