"""The lifetime of a call's record, and the log that its stages write to.

Invariants: the record is on disk before the body does anything (without one, the first `note` refuses the call); it is
closed when the body has been left, however that was: shielded from cancellation and bounded by `CLOSE_DEADLINE_S`; the
call's path follows `lifecycle.NEXT` or it is a fault of ours. A ledger that goes away ends a call that does not run
yet; one that runs is carried to its end and its box removed, because the record on disk still says it was begun.

`record` swallows refusals, failures and faults: they become the outcome. It raises only what ends the program or the
task: cancellation, an interrupt, an exit.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any, TypeVar

import anyio

from fumehood.evidence.ending import ending, one_line
from fumehood.evidence.facts import text
from fumehood.faults import FumehoodError, LedgerGone, Refused, Repeated
from fumehood.lifecycle import NEXT, Event, State
from fumehood.model import REMOTE, Deny, Fresh, Grant, Outcome, Plan, Repeat, Result, ToolCall, Verdict, Verified
from fumehood.permission import Approval
from fumehood.policies.asked import asked_of, facts_of
from fumehood.policies.booking import account_of
from fumehood.policies.policy import Policy
from fumehood.ports import Opened, Ports
from fumehood.reasons import Reason

OPEN_DEADLINE_S = 10.0
CLOSE_DEADLINE_S = 5.0
REASON_CHARS = 200
Noted = TypeVar("Noted", Verified, Verdict, Grant, Fresh, Plan)

# What the time until a state was spent on.
STAGES = {
    State.VERIFIED: "verify",
    State.DECIDED: "verify",
    State.WAITING: "verify",
    State.GRANTED: "verify",
    State.PLANNED: "verify",
    State.MADE: "make",
    State.BOUND: "bind",
    State.RUNNING: "start",
    State.PARKED: "run",
    State.EXITED: "run",
    State.SETTLED: "settle",
    State.REMOVED: "remove",
}
_log = logging.getLogger("fumehood")


def stage(before: State, after: State) -> str | None:
    """What the time between two states was spent on."""
    if before is State.WAITING:
        return "approval"
    return "parked" if before is State.PARKED and after is not State.REMOVED else STAGES.get(after)


class LifecycleError(Exception):
    """A stage reported what cannot follow from where the call is: a fault of ours."""


class Log:
    """What the stages of one call write to. Made by `record`, which alone begins and ends it."""

    def __init__(self, call: ToolCall, ports: Ports) -> None:
        """Be the log of a call whose record does not exist yet."""
        self._call = call
        self._ledger = ports.ledger
        self._clock = ports.clock
        self._state = State.OPEN
        self._began_s = self._last_s = ports.clock.monotonic_s()
        self._timings_ms: dict[str, float] = {}
        self._engine: str | None = None
        self._container: str | None = None
        self._ran = False
        self._outcome: Outcome | None = None
        self._may_be_open = True
        self._opened = Opened()
        self._policy = ports.policies.current
        self._refused: Refused | None = None
        self._remarks: list[str] = []

    @property
    def opened(self) -> Opened:
        """What the ledger knew of the call when its record was opened."""
        return self._opened

    @property
    def policy(self) -> Policy:
        """The policy that was in force when the call began: a reload decides none that is under way."""
        return self._policy

    @property
    def outcome(self) -> Outcome:
        """How the call ended, once `record` was left."""
        if self._outcome is None or self._state is not State.CLOSED:
            raise LifecycleError("a call has no outcome before its record is closed")
        return self._outcome

    async def note(self, value: Noted | Repeat | Deny) -> Noted:
        """Report what an admission stage decided, and pass it on. Raises Refused for a `Deny`, Repeated for a `Repeat`."""
        if self._refused is not None:
            raise self._refused
        match value:
            case Deny():
                raise Refused(value)
            case Repeat():
                raise Repeated(value)
            case Verified():
                image = value.image
                seen = facts_of(asked_of(value.call, self._opened.booked.conversation, 0, 0.0))
                if image is None:
                    await self.event(Event.VERIFY, image=None, asked=seen)
                else:
                    found = {"image": image.name, "image_digest": image.digest, "docker_id": image.docker_id}
                    await self.event(Event.VERIFY, **found, asked=seen)
            case Verdict():
                await self.event(Event.DECIDE, decision=value.decision.value, rule=value.rule, policy=value.policy)
            case Grant(approval=None):
                await self.event(Event.GRANT)
            case Grant(approval=Approval() as agreed):
                # The verdict of the moment that it was spent in: what is decided again may be decided by another rule.
                await self.event(Event.GRANT, rule=value.verdict.rule, approval=_agreed(agreed))
            case Plan():
                await self.event(Event.PLAN, **_plan_facts(value))
        return value

    async def event(self, event: Event, **facts: Any) -> None:
        """Report a step of the call's box. Raises LedgerGone as long as nothing of the call ran."""
        if self._refused is not None:
            raise self._refused
        after = NEXT.get((self._state, event))
        if after is None or after is State.CLOSED:
            raise LifecycleError(f"{event.value} cannot follow {self._state.value}")
        now_s = self._clock.monotonic_s()
        self._spend(stage(self._state, after) or after.value, now_s)
        self._state = after
        self._ran = self._ran or after is State.RUNNING
        if after is State.MADE:
            self._engine, self._container = facts.get("engine"), facts.get("container")
        try:
            await self._ledger.event(self._call.task, after.value, {"ms": _ms(now_s - self._began_s), **facts})
        except LedgerGone as error:
            if not self._ran and after is not State.REMOVED:
                raise
            _log.error("task %s: the ledger does not know of %s: %s", self._call.task, after.value, one_line(error))

    def conclude(self, outcome: Outcome) -> None:
        """Give the outcome that the record is to be closed with."""
        if self._outcome is not None or self._state is State.CLOSED:
            raise LifecycleError("a call is concluded once")
        self._outcome = outcome

    def remark(self, text: str) -> None:
        """Have something said in the outcome's detail, whatever the outcome is."""
        self._remarks.append(text)

    async def begin(self) -> None:
        """Open the record. Without one the log lives, and refuses the call at its first step."""
        detail = "the ledger does not answer"
        reason = Reason.LEDGER_UNAVAILABLE
        with anyio.move_on_after(OPEN_DEADLINE_S):
            try:
                self._opened = await self._ledger.open(self._call, account_of(self._call, self._policy.config))
            except FumehoodError as error:
                self._may_be_open = False
                reason, detail = error.reason, error.detail
                if isinstance(error, Refused) and reason is Reason.STOPPED:  # the ledger has opened and closed it already
                    self._refused = error
                    return
            else:
                self._spend("open", self._clock.monotonic_s())
                return
        self._refused = Refused(Deny(reason=reason, rule="evidence.open", detail=detail))

    def fail(self, error: BaseException) -> None:
        """Take the outcome from what ended the body."""
        self._outcome = ending(self._call.task, error, ran=self._ran)
        if self._outcome.reason is Reason.INTERNAL:
            _log.error("task %s: %s", self._call.task, self._outcome.detail)

    async def end(self) -> None:
        """Close the record with the outcome, in bounded time and whatever is being cancelled."""
        outcome = self._outcome or Outcome(
            task=self._call.task, result=Result.FAILED, reason=Reason.INTERNAL, detail="the call was never concluded"
        )
        self._timings_ms["total"] = _ms(self._clock.monotonic_s() - self._began_s)
        outcome = replace(
            outcome,
            engine=outcome.engine or self._engine,
            container=outcome.container or self._container,
            timings_ms={**outcome.timings_ms, **self._timings_ms},
        )
        if self._remarks:
            outcome = replace(outcome, detail="; ".join(filter(None, (outcome.detail, *self._remarks))))
        self._state = State.CLOSED
        if self._may_be_open and (problem := await self._close(outcome)):
            _log.error("task %s: its record could not be closed as %s: %s", outcome.task, outcome.result.value, problem)
            told = f"its record could not be closed: {problem}"
            outcome = replace(outcome, detail=f"{outcome.detail}; {told}" if outcome.detail else told)
        self._outcome = outcome

    async def _close(self, outcome: Outcome) -> str | None:
        with anyio.move_on_after(CLOSE_DEADLINE_S, shield=True):
            try:
                await self._ledger.close(outcome)
            except Exception as error:  # noqa: BLE001 - whatever it is must not cost the caller the outcome
                return one_line(error)
            return None
        return f"no answer within {CLOSE_DEADLINE_S:g} s"

    def _spend(self, stage: str, now_s: float) -> None:
        self._timings_ms[stage] = round(self._timings_ms.get(stage, 0.0) + _ms(now_s - self._last_s), 3)
        self._last_s = now_s


@asynccontextmanager
async def record(call: ToolCall, ports: Ports) -> AsyncIterator[Log]:
    """Hold a call's record open for the body, and close it with how the body ended."""
    log = Log(call, ports)
    stops = ports.halting.stops
    try:
        await log.begin()
        with ports.halting.under_way(stops):
            yield log
    except Exception as error:  # noqa: BLE001 - every way out of a call is an outcome; `fail` tells our own faults
        log.fail(error)
        await log.end()
    except BaseException as error:
        log.fail(error)
        await log.end()
        raise
    else:
        await log.end()


def _agreed(approval: Approval) -> dict[str, Any]:
    """An approval as facts, which must fit however many had how much to say: the ledger has their words whole."""
    votes = [{**asdict(vote), "reason": text(vote.reason, REASON_CHARS)} for vote in approval.votes]
    return {"id": approval.id, "binding": approval.binding, "votes": votes}


def _plan_facts(plan: Plan) -> dict[str, Any]:
    frame, binding = plan.frame, plan.binding
    if frame is None:
        return {"engine": REMOTE, "wall_s": binding.wall_s}
    return {
        "engine": frame.engine,
        "runtime": frame.runtime,
        "cpu": frame.cpu,
        "memory_bytes": frame.memory_bytes,
        "pids": frame.pids,
        "wall_s": binding.wall_s,
        "disk_bytes": None if binding.disk_unlimited else binding.disk_bytes,
        "seccomp": frame.seccomp.name,
        "user_namespace": frame.user_namespace.value,
        "accept_risk": list(frame.accept_risk),
        "workspace": binding.workspace.value,
        "workspace_path": binding.workspace_path,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
