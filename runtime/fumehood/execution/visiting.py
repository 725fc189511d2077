"""A conversation with the server of a session, in whose box the call is a guest."""

from __future__ import annotations

from dataclasses import replace

import anyio

from fumehood.execution.parking import Heeding, Parkable
from fumehood.execution.pipes import Heard
from fumehood.execution.work import Visit, VisitedBox
from fumehood.faults import ExchangeFailed
from fumehood.model import Outcome, Plan, Result
from fumehood.reasons import Reason

# A server that did this in one call is not kept for the next.
BROKEN = frozenset({Reason.SERVER_DIED, Reason.SERVER_GARBAGE})


async def run_visit(box: VisitedBox, work: Visit, plan: Plan) -> Outcome:
    """Converse with the session's server, for at most the call's own `wall` and `idle`."""
    call, limits = plan.call, plan.limits
    outcome = Outcome(task=call.task, result=Result.OK)
    heard = Heard()
    streams = Parkable(Heeding(box.streams, heard), box.park, box.resume, heard)
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
