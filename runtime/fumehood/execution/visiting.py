"""A conversation with a server that was not started for it: a session's, in whose box the call is a guest, or a remote one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import Any

import anyio

from fumehood.execution.parking import Heeding, Parkable
from fumehood.execution.pipes import Heard
from fumehood.execution.work import Call, EnteredBox, RemoteBox, Streams, Visit, VisitedBox
from fumehood.faults import ExchangeFailed
from fumehood.model import Outcome, Plan, Result
from fumehood.reasons import Reason
from fumehood.residence import ServerStreams
from fumehood.screening.judging import Screen

# A server that did this in one call is not kept for the next.
BROKEN = frozenset({Reason.SERVER_DIED, Reason.SERVER_GARBAGE})


async def run_visit(box: VisitedBox, work: Visit, plan: Plan, screen: Screen) -> Outcome:
    """Converse with the session's server, for at most the call's own `wall` and `idle`."""
    return await _converse(box, nullcontext(box.streams), work.converse, plan, screen)


async def converse_remotely(box: RemoteBox, work: Call, plan: Plan, screen: Screen) -> Outcome:
    """Converse with a remote server, for at most the call's `wall` and `idle`."""
    outcome = await _converse(box, work.speak(box.origin), work.converse, plan, screen)
    if outcome.reason in BROKEN and outcome.remedy is None:
        return replace(outcome, remedy="Try again; whoever runs the server knows more.")  # it has no stderr here to read
    return outcome


async def _converse(
    box: EnteredBox, speaking: AbstractAsyncContextManager[ServerStreams], converse: Callable[[Streams], Awaitable[Any]], plan: Plan,
    screen: Screen,
) -> Outcome:
    limits = plan.limits
    outcome = Outcome(task=plan.call.task, result=Result.OK)
    heard = Heard()
    late: list[Reason] = []
    await box.enter()
    try:
        async with speaking as streams, anyio.create_task_group() as tasks:
            tasks.start_soon(_limit_visit, tasks.cancel_scope, heard, limits.wall_s, limits.idle_s, late)
            value = await converse(Parkable(Heeding(streams, heard), box.park, box.resume, heard, screen))
            outcome = replace(outcome, value=value)
            tasks.cancel_scope.cancel()
    except* ExchangeFailed as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, ExchangeFailed)  # noqa: S101 - what `except*` chose
        told: dict[str, Any] = {"reason": error.reason, "detail": error.detail, "remedy": error.remedy, "value": error.value}
        outcome = replace(outcome, result=Result.FAILED, **told)
        if error.reason in BROKEN:
            await box.kill(error.reason)
    if late and outcome.result is Result.OK and outcome.value is None:
        # What it was doing it would go on doing in the next call.
        await box.kill(late[0])
        outcome = replace(outcome, result=Result.KILLED, reason=late[0])
    return replace(outcome, usage=await box.leave())


async def _limit_visit(
    everything: anyio.CancelScope, heard: Heard, wall_s: float, idle_s: float | None, late: list[Reason]
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
